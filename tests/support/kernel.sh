#!/bin/sh
# Finds or fetches a Debian kernel for the virtual machine of `deno task test:vm`, and prints its file, vmlinuz-VERSION;
# its modules are in lib/modules/VERSION beside the file's folder. Nothing is installed: a kernel that could boot this
# machine is not wanted.
# Usage: kernel.sh [--offline] [release | sid]     (release, this machine's own, unless told; --offline: look, do not
# fetch) Exit status: 0 and the file on standard output; 1 and the reason on standard error.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
offline=no
[ "${1:-}" != --offline ] || { offline=yes; shift; }
from=${1:-release}
cache=$root/.cache/kernel/$from

say() { echo "kernel.sh: $*" >&2; }
kept() { find "$cache"/*/boot -name 'vmlinuz-*' 2>/dev/null | sort -V | tail -n 1; }

found=$(kept)
if [ -n "$found" ]; then
  printf '%s\n' "$found"
  exit 0
fi
[ "$offline" = no ] || { say "not fetched yet; run tests/support/kernel.sh $from"; exit 1; }
command -v depmod >/dev/null || PATH=$PATH:/usr/sbin:/sbin
command -v depmod >/dev/null || { say "no depmod: install kmod"; exit 1; }

say "fetching the kernel of Debian's $from"
mkdir -p "$cache"
work=$(mktemp -d "$cache/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
# shellcheck source=tests/support/debian.sh
. "$root/tests/support/debian.sh"

# The newest kernel's package holds it all, or names those that hold the image and the modules.
newest() {
  image=$(needs_of "linux-image-$(dpkg --print-architecture)" | grep '^linux-image-[0-9]' | head -n 1)
  [ -n "$image" ] || return 1
  echo "$image"
  needs_of "$image" | grep -E '^linux-(base|binary|modules)-[0-9]' || true
}
# shellcheck disable=SC2046  # names are words
if ! { suite "$from" && names=$(newest) && fetch $names; }; then
  tail -n 5 "$work/log" >&2
  say "could not be fetched: name a kernel with --kernel, whose modules are installed"
  exit 1
fi
tree=$work/tree
# Newer packages have the modules below /usr alone, and the kernel among them.
[ -d "$tree/lib/modules" ] || { mkdir -p "$tree/lib" && ln -s ../usr/lib/modules "$tree/lib/modules"; }
version=$(find "$tree/lib/modules/" -mindepth 1 -maxdepth 1 -printf '%f\n' | head -n 1)
[ -d "$tree/boot" ] || { mkdir "$tree/boot" && ln -s "../lib/modules/$version/vmlinuz" "$tree/boot/vmlinuz-$version"; }
[ -f "$tree/boot/vmlinuz-$version" ] || { say "no kernel in $(echo "$names" | tr '\n' ' ')"; exit 1; }
depmod -b "$tree" "$version"
rm -rf "$tree/usr/share"
# Appears whole or not at all; a second run beside this one may have been quicker.
mv -T "$tree" "$cache/$version" 2>/dev/null || [ -d "$cache/$version/boot" ]
kept
