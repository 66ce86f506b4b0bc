#!/bin/bash
# Builds kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy and kubectl 1.20.2 from Debian's
# source package, with Debian's Go, for `deno task test:cluster` and `deno task test:kubernetes`, and prints the folder
# that holds them: .cache/kubernetes-1.20.2.
# Debian has no binary package of them. Takes 8 to 10 minutes of processor time and 4 GB of disk, once.
# Usage: kubernetes.sh [--offline]     (--offline: look, but build nothing)
# Exit status: 0 and the folder on standard output; 1 and the reason on standard error.
set -euo pipefail

version=1.20.2
root=$(cd "$(dirname "$0")/../.." && pwd)
kept=$root/.cache/kubernetes-$version
programs=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl)

say() { echo "kubernetes.sh: $*" >&2; }
whole() { for program in "${programs[@]}"; do [ -x "$kept/$program" ] || return 1; done; }

if whole; then
  printf '%s\n' "$kept"
  exit 0
fi
if [ "${1:-}" = --offline ]; then
  say "not built yet; run tests/cluster/kubernetes.sh"
  exit 1
fi
[ "$(id -u)" -eq 0 ] || { say "building needs root, to install Go"; exit 1; }
command -v apt-get >/dev/null || { say "no apt-get: the source package is Debian's"; exit 1; }

export DEBIAN_FRONTEND=noninteractive
apt() { apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" </dev/null >/dev/null; }
needed=(golang-1.19-go golang-github-modern-go-reflect2-dev dpkg-dev)
apt install --no-install-recommends "${needed[@]}" 2>/dev/null || { apt update && apt install --no-install-recommends "${needed[@]}"; }

# One build at a time. What an interrupted one has compiled is kept, and the next one goes on from there.
work=$root/.cache/kubernetes-build
mkdir -p "$work"
exec 9>"$work/lock"
flock 9

tree=$work/go/src/k8s.io/kubernetes
if [ ! -d "$tree" ]; then
  # The source package, by an apt of its own: the machine's sources stay as they are.
  uri=$(sed -n -e 's/^URIs: *\([^ ]*debian\)\/\{0,1\}$/\1/p' /etc/apt/sources.list.d/*.sources 2>/dev/null | head -n 1)
  [ -n "$uri" ] || uri=$(awk '$1 == "deb" { for (i = 2; i <= NF; i++) if ($i ~ /debian\/?$/) { print $i; exit } }' /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null | head -n 1)
  [ -n "$uri" ] || { say "no Debian source among this machine's apt sources"; exit 1; }
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
  printf 'deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s bookworm main\n' "$uri" >"$work/source.list"
  own=(-o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root
    -o Dir::Etc::sourcelist="$work/source.list" -o Dir::Etc::sourceparts=/dev/null)
  say "fetching the source of Kubernetes $version"
  apt "${own[@]}" update
  (cd "$work" && apt "${own[@]}" source --download-only kubernetes)
  rm -rf "$work/go" "$work/unpacked"
  (cd "$work" && dpkg-source --no-check -x ./kubernetes_*.dsc unpacked >/dev/null)
  # The bundled reflect2 dies in mapiterinit when Go 1.19 runs it.
  rm -rf "$work/unpacked/vendor/github.com/modern-go/reflect2"
  cp -rL /usr/share/gocode/src/github.com/modern-go/reflect2 "$work/unpacked/vendor/github.com/modern-go/"
  mkdir -p "${tree%/*}"
  mv -T "$work/unpacked" "$tree"
fi

export GO111MODULE=off CGO_ENABLED=0 GOFLAGS='' GOPATH=$work/go GOCACHE=$work/gocache HOME=$work
PATH=/usr/lib/go-1.19/bin:$PATH
cd "$tree"

say "building Kubernetes $version"
go build -o "$work/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
packages=$(grep -rl --include='*.go' '^// +k8s:openapi-gen=' pkg staging cmd vendor/k8s.io 2>/dev/null | xargs -n 1 dirname | sort -u |
  grep -v -e /_examples -e '^pkg/apis/abac' | sed -e 's#^staging/src/#k8s.io/kubernetes/vendor/#' -e 's#^\(pkg\|cmd\|vendor\)/#k8s.io/kubernetes/\1/#' | sort -u | paste -sd,)
"$work/openapi-gen" -h hack/boilerplate/boilerplate.generatego.txt -i "$packages" -p k8s.io/kubernetes/pkg/generated/openapi \
  -O zz_generated.openapi -r "$work/violations" >"$work/openapi.log" 2>&1 || { tail -n 5 "$work/openapi.log" >&2; exit 1; }
flags="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  for name in "k8s.io/kubernetes/vendor/$package"; do
    flags="$flags -X $name.gitVersion=v$version -X $name.gitMajor=1 -X $name.gitMinor=20 -X $name.gitTreeState=clean"
  done
done
mkdir -p "$work/bin"
go build -ldflags "$flags" -o "$work/bin/" "${programs[@]/#/./cmd/}"
mkdir -p "$kept"
mv -f "$work/bin/"* "$kept/"
rm -rf "$work"
printf '%s\n' "$kept"
