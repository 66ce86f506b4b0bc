#!/bin/sh
# Runs every test, on a bare Debian machine too: gets the Debian packages, the reference plugins and the pinned Deno
# that the tests use, then runs `deno task test`. As an ordinary user nothing is installed, and the tests that need root
# are skipped and counted. Arguments go to `deno test`, for example: tests/run.sh --filter bridge
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
# What is missing is named; the tests that need it are skipped and say so.
sh tests/support/packages.sh || true
sh tests/support/reference.sh >/dev/null || true
deno=$(sh tools/deno.sh)
[ -n "${HOME:-}${DENO_DIR:-}" ] || export DENO_DIR="$root/.cache/dir"
# What Deno gets from npm may come through a proxy whose authority only this system knows.
export DENO_TLS_CA_STORE="${DENO_TLS_CA_STORE:-mozilla,system}"
exec "$deno" task test "$@"
