#!/bin/sh
# `deno task test:fresh-root`: what README and the tutorials say is typed, on a root file system of this machine's
# Debian release that has nothing but its essential packages and apt. First everything is installed there (install.ts),
# with the machine's network; then the tests of README and of the tutorials run on nodes that have that root.
# With --tests it is README's second command instead, all tests in a checkout there (tests.ts).
# Needs root. Where no mirror of Debian answers, it says so and is skipped. The root before anything is installed, and
# packages, are kept in .cache/fresh-root.
set -eu

project=$(cd "$(dirname "$0")/../.." && pwd)
cd "$project"
deno=$(sh tools/deno.sh)
cache=$project/.cache/fresh-root
mkdir -p "$cache/packages/partial"
work=$(mktemp -d "$cache/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

skip() {
  echo "test:fresh-root [skipped: $*]"
  exit 0
}

[ "$(id -u)" -eq 0 ] || skip "needs root"
command -v mmdebstrap >/dev/null || skip "no mmdebstrap: run tests/support/packages.sh"
release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
kept=$cache/$release.tar
if [ ! -f "$kept" ]; then
  # shellcheck source=tests/support/debian.sh
  . tests/support/debian.sh
  # shellcheck disable=SC2046  # two words
  set -- $(debian_source | head -n 1)
  [ -n "${1:-}" ] || skip "no Debian source among this machine's apt sources"
  source="deb [signed-by=${2:-/usr/share/keyrings/debian-archive-keyring.gpg}] $1 $release main"
  timeout 600 mmdebstrap --quiet --variant=apt --format=tar "$release" "$work/root.tar" "$source" 2>"$work/log" ||
    skip "no root file system could be made: $(tail -n 1 "$work/log")"
  mv "$work/root.tar" "$kept"
fi
mkdir "$work/root"
tar -xf "$kept" -C "$work/root"
# The machine's network: who tells names, how old a mirror's lists may be, and authorities that only this machine knows,
# such as a proxy's.
cat /etc/resolv.conf >"$work/root/etc/resolv.conf"
apt-config dump | grep '^Acquire::Check-' >"$work/root/etc/apt/apt.conf.d/90machine" || true
mkdir -p "$work/root/usr/local/share/ca-certificates"
for authority in /usr/local/share/ca-certificates/*.crt; do
  [ ! -f "$authority" ] || cp "$authority" "$work/root/usr/local/share/ca-certificates/"
done
# No server is started by its installation: it would run on the machine's network.
printf '#!/bin/sh\nexit 101\n' >"$work/root/usr/sbin/policy-rc.d"
chmod 755 "$work/root/usr/sbin/policy-rc.d"

export CNIBOX_E2E_ROOT="$work/root" CNIBOX_E2E_PACKAGES="$cache/packages"
if [ "${1:-}" = --tests ]; then
  "$deno" test -A --no-check tests/fresh_root/tests.ts
  exit
fi
failed=0
"$deno" test -A --no-check tests/fresh_root/install.ts || failed=1
[ "$failed" -ne 0 ] || "$deno" test -A --no-check tests/readme_test.ts tests/docs_tutorials_test.ts || failed=1
exit "$failed"
