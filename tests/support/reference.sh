#!/bin/sh
# Finds or fetches the reference CNI plugins, which the interop tests run beside ours, and prints their folder.
# In this order: $CNI_REFERENCE_DIR; what an earlier run put into .cache/reference; Debian's package of the sid suite
# (1.9.1 or newer), taken out of its archive without installing anything; the package of the running release.
# Usage: reference.sh [--offline]     (--offline: look, but fetch nothing)
# Exit status: 0 and the folder on standard output; 1 and the reason on standard error.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
cache=$root/.cache/reference
package=containernetworking-plugins
offline=no
[ "${1:-}" != --offline ] || offline=yes

say() { echo "reference.sh: $*" >&2; }

if [ -n "${CNI_REFERENCE_DIR:-}" ]; then
  [ -x "$CNI_REFERENCE_DIR/bridge" ] || { say "CNI_REFERENCE_DIR=$CNI_REFERENCE_DIR holds no bridge plugin"; exit 1; }
  printf '%s\n' "$CNI_REFERENCE_DIR"
  exit 0
fi

# The newest kept version: folders are named by their package version.
kept() {
  find "$cache" -mindepth 1 -maxdepth 1 -type d -name '[0-9]*' 2>/dev/null | sort -V | while read -r folder; do
    [ ! -x "$folder/bridge" ] || printf '%s\n' "$folder"
  done | tail -n 1
}

# Tests are written against this version or a newer one; an older one will do only where there is no other.
is_current() {
  [ -n "$1" ] && [ "$(printf '1.9\n%s\n' "$(basename "$1")" | sort -V | head -n 1)" = 1.9 ]
}

found=$(kept)
if is_current "$found" || { [ -n "$found" ] && [ "$offline" = yes ]; }; then
  printf '%s\n' "$found"
  exit 0
fi
if [ "$offline" = yes ]; then
  say "not fetched yet; run tests/support/reference.sh"
  exit 1
fi
for tool in apt-get dpkg-deb; do
  command -v "$tool" >/dev/null || { say "no $tool: set CNI_REFERENCE_DIR to a folder with the reference plugins"; exit 1; }
done

# Everything happens in a folder of our own, apt's lists included: the machine's sources and packages stay as they are. What it
# prefers (a suite that is pinned low, a default release) is about what is installed, so it does not count here.
mkdir -p "$cache"
work=$(mktemp -d "$cache/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

apt() {
  apt-get -q -y -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root \
    -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null -o APT::Default-Release= \
    -o Acquire::Retries=3 "$@" </dev/null
}

# First Debian source of this machine, in either of apt's two formats, as "URI keyring"; security archives have no sid.
debian_source() {
  for file in /etc/apt/sources.list.d/*.sources; do
    [ -e "$file" ] || continue
    awk '
      function done() { if (uri ~ /debian\/?$/ && enabled) { print uri, key; exit } }
      BEGIN { enabled = 1 }
      /^[[:space:]]*$/ { done(); uri = key = ""; enabled = 1 }
      tolower($1) == "uris:" { uri = $2 }
      tolower($1) == "signed-by:" { key = $2 }
      tolower($1) == "enabled:" && tolower($2) == "no" { enabled = 0 }
      END { done() }' "$file"
  done
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [ -e "$file" ] || continue
    awk '$1 == "deb" {
      key = ""; at = 2
      if ($2 ~ /^\[/) {
        for (; at <= NF; at++) {
          word = $at; gsub(/[][]/, "", word)
          if (word ~ /^signed-by=/) key = substr(word, 11)
          if ($at ~ /\]$/) { at++; break }
        }
      }
      if ($at ~ /debian\/?$/) { print $at, key }
    }' "$file"
  done
}

mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
from_sid() {
  # shellcheck disable=SC2046  # two words
  set -- $(debian_source | head -n 1)
  [ -n "${1:-}" ] || { say "no Debian source among this machine's apt sources"; return 1; }
  keyring=${2:-/usr/share/keyrings/debian-archive-keyring.gpg}
  printf 'deb [signed-by=%s] %s sid main\n' "$keyring" "$1" >"$work/sid.list"
  apt -o Dir::Etc::sourcelist="$work/sid.list" -o Dir::Etc::sourceparts=/dev/null update >"$work/log" 2>&1 &&
    (cd "$work" && apt -o Dir::Etc::sourcelist="$work/sid.list" -o Dir::Etc::sourceparts=/dev/null download "$package/sid") \
      >>"$work/log" 2>&1
}
from_release() {
  { apt update && (cd "$work" && apt download "$package"); } >"$work/log" 2>&1
}

if ! from_sid && { [ ! -e "$work/log" ] || tail -n 2 "$work/log" >&2; say "no sid; trying this release"; } &&
  { [ -n "$found" ] || ! from_release; }; then
  # What an earlier run kept, though older.
  [ -z "$found" ] || { printf '%s\n' "$found"; exit 0; }
  tail -n 5 "$work/log" >&2
  say "could not be fetched: set CNI_REFERENCE_DIR to a folder with the reference plugins"
  exit 1
fi
archive=$(find "$work" -maxdepth 1 -name "$package*.deb" | head -n 1)
dpkg-deb -x "$archive" "$work/tree"
version=$(dpkg-deb -f "$archive" Version | sed -e 's/^[0-9]*://' -e 's/[^0-9A-Za-z.]/-/g')
# Appears whole or not at all; a second run beside this one may have been quicker.
mv -T "$work/tree/usr/lib/cni" "$cache/$version" 2>/dev/null || [ -x "$cache/$version/bridge" ]
is_current "$cache/$version" || say "only $version could be had: tests that need 1.9 are skipped"
kept
