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
mkdir -p "$cache"
work=$(mktemp -d "$cache/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
# shellcheck source=tests/support/debian.sh
. "$root/tests/support/debian.sh"

if ! { suite sid && fetch "$package"; } &&
  { tail -n 2 "$work/log" >&2; say "no sid; trying this release"; } && { [ -n "$found" ] || ! { suite release && fetch "$package"; }; }; then
  # What an earlier run kept, though older.
  [ -z "$found" ] || { printf '%s\n' "$found"; exit 0; }
  tail -n 5 "$work/log" >&2
  say "could not be fetched: set CNI_REFERENCE_DIR to a folder with the reference plugins"
  exit 1
fi
archive=$(find "$work" -maxdepth 1 -name "$package*.deb" | head -n 1)
version=$(dpkg-deb -f "$archive" Version | sed -e 's/^[0-9]*://' -e 's/[^0-9A-Za-z.]/-/g')
# Appears whole or not at all; a second run beside this one may have been quicker.
mv -T "$work/tree/usr/lib/cni" "$cache/$version" 2>/dev/null || [ -x "$cache/$version/bridge" ]
is_current "$cache/$version" || say "only $version could be had: tests that need 1.9 are skipped"
kept
