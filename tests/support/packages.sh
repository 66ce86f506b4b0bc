#!/bin/sh
# Installs the Debian packages that the kernel tests use (packages.txt beside this file); does nothing when all are
# there. Usage: packages.sh [--list | --missing]
#   --list     prints the names and ends
#   --missing  prints the names of those not installed and ends
# Exit status: 0 all are installed now; 1 some could not be installed (they are named on standard error).
# shellcheck disable=SC2086  # lists of names are split into words on purpose
set -eu

here=$(cd "$(dirname "$0")" && pwd)
wanted=$(sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$here/packages.txt")

installed() {
  dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed
}

missing() {
  for name in $wanted; do
    installed "$name" || printf '%s\n' "$name"
  done
}

case "${1:-}" in
  --list) printf '%s\n' "$wanted"; exit 0 ;;
  --missing) missing; exit 0 ;;
  '') ;;
  *) echo "usage: $0 [--list | --missing]" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null; then
  echo "packages.sh: this is not a Debian system; install what these packages hold by other means:" $wanted >&2
  exit 1
fi
todo=$(missing)
[ -n "$todo" ] || exit 0
if [ "$(id -u)" -ne 0 ]; then
  echo "packages.sh: not root, so these stay missing:" $todo >&2
  exit 1
fi

# Servers must not be started, nor configured, by their installation: the tests run their own.
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  trap 'rm -f "$policy"' EXIT
fi
apt() {
  apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 "$@" </dev/null
}
if ! apt install --no-install-recommends $todo >/dev/null 2>&1; then
  apt update >/dev/null
  apt install --no-install-recommends $todo >/dev/null || true
fi
todo=$(missing)
# One by one, so that a package which this release lacks does not cost us the others.
for name in $todo; do
  apt install --no-install-recommends "$name" >/dev/null 2>&1 || true
done
todo=$(missing)
[ -z "$todo" ] || { echo "packages.sh: could not be installed:" $todo >&2; exit 1; }
