#!/bin/sh
# Prints the path of the Deno that builds and tests this project, and gets it from npm where it is missing.
# In this order: $DENO; `deno` on PATH; what an earlier run put into .cache/. Only the pinned version will do: the
# runtime base in the executable takes only what a compiler of its own version wrote.
# Exit status: 0 and the path on standard output; 1 and the reason on standard error.
set -eu

version=2.4.2
root=$(cd "$(dirname "$0")/.." && pwd)
kept=$root/.cache/deno-$version/deno

say() { echo "deno.sh: $*" >&2; }
# For people who wait.
progress() { [ ! -t 2 ] || say "$*"; }

is_wanted() {
  [ "$("$1" --version 2>/dev/null | sed -n '1s/^deno \([^ ]*\).*/\1/p')" = "$version" ]
}

if [ -n "${DENO:-}" ]; then
  is_wanted "$DENO" || { say "DENO=$DENO is not Deno $version"; exit 1; }
  printf '%s\n' "$DENO"
  exit 0
fi
found=$(command -v deno || true)
for candidate in $found "$kept"; do
  if is_wanted "$candidate"; then
    printf '%s\n' "$candidate"
    exit 0
  fi
done

# The executable is held to its SHA-256. For arm64 none is known yet: there npm's own digest has to do, and what was
# fetched is named.
case "$(uname -m)" in
  x86_64)
    package=@deno/linux-x64-glibc
    sum=1d6580e813252f6b27a41d97d2e3725a408baa2e765a86e45f65b228d3e93ad6
    ;;
  aarch64 | arm64)
    package=@deno/linux-arm64-glibc
    sum=
    ;;
  *)
    say "there is no Deno $version for $(uname -m)"
    exit 1
    ;;
esac

if ! command -v npm >/dev/null; then
  progress "installing npm"
  if [ "$(id -u)" -ne 0 ]; then
    say "npm is missing and installing it needs root; or name Deno $version in DENO"
    exit 1
  elif command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt() { apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" </dev/null >/dev/null; }
    apt install --no-install-recommends npm ca-certificates 2>/dev/null ||
      { apt update && apt install --no-install-recommends npm ca-certificates; }
  elif command -v dnf >/dev/null; then
    dnf install -y -q npm >/dev/null || dnf install -y -q nodejs-npm >/dev/null
  elif command -v apk >/dev/null; then
    apk add -q npm >/dev/null
  fi || true
  command -v npm >/dev/null || { say "npm could not be installed; install it, or name Deno $version in DENO"; exit 1; }
fi

progress "fetching Deno $version from npm"
mkdir -p "$root/.cache"
work=$(mktemp -d "$root/.cache/.cnibox-build-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
# No script of any package is run: the package is the executable.
npm install --prefix "$work" --ignore-scripts --no-audit --no-fund --no-save --loglevel=error "$package@$version" >/dev/null ||
  { say "npm could not fetch $package@$version; install it by other means (DENO names it), or use a release archive"; exit 1; }
executable=$work/node_modules/$package/deno
actual=$(sha256sum "$executable" | cut -d ' ' -f 1)
if [ -z "$sum" ]; then
  say "fetched $package@$version: SHA-256 of the executable $actual, compared with nothing"
elif [ "$actual" != "$sum" ]; then
  say "refused: $package@$version holds an executable with SHA-256 $actual, expected $sum"
  exit 1
fi
chmod 755 "$executable"
is_wanted "$executable" || { say "Deno $version does not start on this machine: it needs glibc 2.27 or newer"; exit 1; }
# Appears whole or not at all; a second run beside this one may have been quicker.
mkdir -p "${kept%/*}"
mv -f "$executable" "$kept"
printf '%s\n' "$kept"
