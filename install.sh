#!/bin/sh
# Installs cnibox: one executable, and a relative symlink to it for every CNI plugin. `install.sh --help` tells all.
#
# It gets the executable, by building it or out of a release, and the tools that plugins start. The executable installs
# itself: `cnibox install` puts it, the symlinks and the units into place, `cnibox uninstall` removes them.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
# Runtimes and minimal systems have short PATHs; the tools that we look for live in sbin.
PATH=$PATH:/usr/sbin:/sbin:/usr/local/sbin
export PATH

main() {
  parse "$@"
  case "$mode" in
    demo-inside) demo_inside; return ;;
    uninstall) uninstall; return ;;
  esac
  preflight
  case "$mode" in
    build) build; say "built $binary" ;;
    release) build; release ;;
    image) find_binary; image ;;
    deb) find_binary; deb ;;
    install)
      check_target
      find_binary
      provide_tools
      install_all
      [ "$demo" = no ] || demo
      exit "$ended"
      ;;
  esac
}

usage() {
  cat <<EOF
Usage: ./install.sh [options]

Builds cnibox (from a checkout) or takes it from a release archive, and installs it into $default_dir
with a symlink for every plugin. Safe to run again, to interrupt, and while pods are being added.
Needs Linux on x86_64 or aarch64 with glibc $glibc_needed or newer.

  --bin-dir DIR    install there instead of $default_dir
  --plugins A,B    only these plugins' symlinks; the others stay as they are
  --demo           then show it at work on throw-away network namespaces
  --from FILE      take the executable, or the release archive, FILE: needs no network, no Deno, no Node
  --replace        swap plugins that are not ours for ours (--uninstall puts them back);
                   without it they are named and stay, and the exit status is $in_the_way
  --no-deps        install no packages; what is missing is only named
  --units DIR      put the systemd units there; without it into /etc/systemd/system where systemd runs
                   and plugins go into $default_dir. None is enabled or started
  --no-units       install no systemd units
  --build-only     build dist/cnibox, install nothing
  --release        build dist/cnibox-VERSION-linux-ARCH.tar.gz, install nothing
  --image FILE     write an OCI image of the executable into the archive FILE, install nothing
  --deb            write a Debian package, cnibox_VERSION_ARCH.deb: a checkout's into dist/, else into
                   the working folder; needs no network, installs nothing
  --uninstall      remove what this installed, and put back what --replace moved
  --help           this text

Examples
  ./install.sh --demo                                      build, install, and see it work
  ./install.sh --from cnibox-0.1.0-linux-x86_64.tar.gz     on a machine without network
  ./install.sh --from $default_dir/.cnibox/previous        back to the version before
EOF
}

default_dir=/opt/cni/bin
glibc_needed=2.27
# What `cnibox install` ends with where plugins of others stay as they are.
in_the_way=73

parse() {
  mode=install demo=no deps=yes from='' image='' bin_dir=$default_dir
  plugins='' replace=no units=''
  while [ $# -gt 0 ]; do
    case "$1" in
      --*=*)
        name=${1%%=*} value=${1#*=}
        shift
        set -- "$name" "$value" "$@"
        ;;
    esac
    case "$1" in
      --bin-dir | --plugins | --from | --units | --image) [ -n "${2:-}" ] || refuse "$1 needs a value; see --help" ;;
    esac
    case "$1" in
      --bin-dir) bin_dir=$2; shift ;;
      --plugins) plugins=$2; shift ;;
      --from) from=$2; shift ;;
      --demo) demo=yes ;;
      --replace) replace=yes ;;
      --no-deps) deps=no ;;
      --units) units=--units=$2; shift ;;
      --no-units) units=--no-units ;;
      --build-only) mode=build ;;
      --release) mode=release ;;
      --image) mode=image image=$2; shift ;;
      --deb) mode=deb ;;
      --uninstall) mode=uninstall ;;
      --demo-inside) mode='demo-inside' ;; # for demo() alone
      --help | -h) usage; exit 0 ;;
      *) refuse "unknown option $1; see --help" ;;
    esac
    shift
  done
  case "$bin_dir" in
    /*) ;;
    *) bin_dir=$(pwd)/$bin_dir ;;
  esac
}

say() { printf '%s\n' "$*"; }
note() { printf 'install.sh: %s\n' "$*" >&2; }
refuse() { note "$*"; exit 1; }
is_root() { [ "$(id -u)" -eq 0 ]; }
has() { command -v "$1" >/dev/null 2>&1; }

# ---- What this machine must be, checked before anything is touched

preflight() {
  [ "$(uname -s)" = Linux ] || refuse "cnibox runs on Linux; this is $(uname -s)"
  arch=$(uname -m)
  case "$arch" in
    x86_64) loader=/lib64/ld-linux-x86-64.so.2 elf_machine=62 ;;
    aarch64 | arm64) arch=aarch64 loader=/lib/ld-linux-aarch64.so.1 elf_machine=183 ;;
    *) refuse "cnibox needs x86_64 or aarch64; this machine is $arch" ;;
  esac
  [ -e "$loader" ] ||
    refuse "cnibox needs glibc $glibc_needed or newer; this system has no $loader (musl, as on Alpine, will not do)"
  glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed -n 's/^glibc //p')
  [ -n "$glibc" ] || glibc=$("$loader" --version 2>/dev/null | sed -n '1s/.*version \([0-9.]*[0-9]\).*/\1/p')
  minor=${glibc#*.} minor=${minor%%[!0-9]*}
  if [ "${glibc%%.*}" = 2 ] && [ "${minor:-0}" -lt "${glibc_needed#2.}" ]; then
    refuse "cnibox needs glibc $glibc_needed or newer; this system has $glibc"
  fi
}

check_target() {
  there=$bin_dir
  while [ ! -e "$there" ]; do there=$(dirname "$there"); done
  if [ ! -d "$there" ] || [ ! -w "$there" ]; then
    refuse "cannot write to $bin_dir: run as root, or name another folder with --bin-dir"
  fi
}

# ---- The tools that plugins start

# One a line: tool, then the package that holds it for apt, dnf, apk.
tools='ip iproute2 iproute iproute2
tc iproute2 iproute-tc iproute2-tc
iptables iptables iptables-nft iptables
nft nftables nftables nftables
nsenter util-linux util-linux util-linux
conntrack conntrack conntrack-tools conntrack-tools
udhcpc udhcpc busybox busybox'

provide_tools() {
  manager=''
  for name in apt-get dnf apk; do
    if [ -z "$manager" ] && has "$name"; then manager=$name; fi
  done
  missing=$(missing_packages)
  if [ -n "$missing" ] && [ "$deps" = yes ] && [ -n "$manager" ] && is_root; then
    wanted=$missing
    # One by one, where a package that this system lacks costs the others.
    install_packages "$wanted" || for package in $wanted; do install_packages "$package" || true; done
    missing=$(missing_packages)
    [ "$missing" = "$wanted" ] || say "  packages  $wanted  installed with $manager"
  fi
  if [ -n "$missing" ]; then
    say "  tools  MISSING: $missing  plugins will fail without them"
  else
    say "  tools  $(printf '%s\n' "$tools" | cut -d ' ' -f 1 | tr '\n' ' ') all there"
  fi
}

# BusyBox's own `ip` has neither -json nor -batch; its DHCP client goes by either name.
is_there() {
  case "$1" in
    ip) ip -V 2>/dev/null | grep -q iproute2 ;;
    udhcpc) has udhcpc || busybox --list 2>/dev/null | grep -qx udhcpc ;;
    *) has "$1" ;;
  esac
}

# Packages of the tools that are not here, in one line.
missing_packages() {
  printf '%s\n' "$tools" | while read -r tool apt dnf apk; do
    if is_there "$tool"; then continue; fi
    case "$manager" in
      dnf) say "$dnf" ;;
      apk) say "$apk" ;;
      *) say "$apt" ;;
    esac
  done | sort -u | tr '\n' ' ' | sed 's/ $//'
}

install_packages() {
  slowly "installing $1" installed_by_manager "$1"
}

# Runs a command. On a terminal, a line says meanwhile what takes so long, for as long as this script lives.
slowly() {
  what=$1
  shift
  [ -t 2 ] || { "$@"; return; }
  seconds=0
  while kill -0 $$ 2>/dev/null; do
    printf '\r\033[K%s, %s s' "$what" "$seconds" >&2
    seconds=$((seconds + 1))
    sleep 1
  done &
  ticker=$!
  ended=0
  "$@" || ended=$?
  kill "$ticker"
  wait "$ticker" 2>/dev/null || true
  printf '\r\033[K' >&2
  return "$ended"
}

# shellcheck disable=SC2086  # a list of names, split into words on purpose
installed_by_manager() {
  case "$manager" in
    apt-get)
      apt install --no-install-recommends $1 2>/dev/null || { apt update && apt install --no-install-recommends $1; }
      ;;
    dnf) dnf install -y -q $1 >/dev/null ;;
    apk) apk add -q $1 >/dev/null ;;
  esac
}

apt() {
  DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" </dev/null >/dev/null
}

# ---- The executable: built, or given

build() {
  [ -f "$here/tools/build.ts" ] || refuse "this is not a checkout, so nothing can be built here"
  deno=$("$here/tools/deno.sh") || refuse "there is no Deno to build with; --from installs a release without it"
  [ -n "${HOME:-}${DENO_DIR:-}" ] || export DENO_DIR="$here/.cache/dir"
  # What the build gets from npm may come through a proxy whose authority only this system knows.
  export DENO_TLS_CA_STORE="${DENO_TLS_CA_STORE:-mozilla,system}"
  (cd "$here" && "$deno" task --quiet compile) || refuse "the build failed"
  binary=$here/dist/cnibox
}

release() {
  version=$("$binary" --version | sed -n 's/^cnibox v//p')
  name=cnibox-$version-linux-$arch
  draft=$(mktemp -d "$here/dist/release.XXXXXX")
  trap 'rm -rf "$draft"' EXIT
  trap 'exit 130' INT TERM
  mkdir "$draft/$name"
  cp -R "$binary" "$here/install.sh" "$here/LICENSE" "$here/README.md" "$here/docs" "$draft/$name/"
  cp "$binary.base" "$draft/$name/BASE"
  "$binary" man --dir "$draft/$name/man" >/dev/null
  (cd "$draft/$name" && find . -type f -exec chmod 644 {} + && chmod 755 cnibox install.sh &&
    find . -type f | sed 's|^\./||' | LC_ALL=C sort >../files && xargs -d '\n' sha256sum -- <../files >SHA256SUMS &&
    chmod 644 SHA256SUMS && echo SHA256SUMS >>../files && sed -i "s|^|$name/|" ../files)
  # Only files, root's, dated alike: unpacking changes no folder, and the same inputs give the same bytes.
  (cd "$draft" && LC_ALL=C sort -o files files &&
    tar --owner=0 --group=0 --numeric-owner --mtime=@0 --format=ustar -cf "$name.tar" -T files &&
    gzip -n "$name.tar" && sha256sum "$name.tar.gz" >"$name.tar.gz.sha256")
  mv -f "$draft/$name.tar.gz" "$draft/$name.tar.gz.sha256" "$here/dist/"
  say "$here/dist/$name.tar.gz"
}

# The executable writes its own image, so this needs nothing else.
image() {
  make_work
  [ -z "$archive" ] || unpack
  as_cnibox
  "$binary" image "$image" || refuse "no image was made"
}

# So does it write its own package.
deb() {
  make_work
  [ -z "$archive" ] || unpack
  as_cnibox
  folder=$PWD
  [ -n "$from" ] || folder=$here/dist
  "$binary" deb "$folder" || refuse "no package was made"
}

# The name that a program is called by decides what it does: a file of another name gets a link of this one.
as_cnibox() {
  [ "$(basename "$binary")" != cnibox ] || return 0
  mkdir "$work/named"
  ln -s "$(readlink -f "$binary")" "$work/named/cnibox"
  binary=$work/named/cnibox
}

# A folder of our own, in which programs may run: /tmp is often mounted without that.
make_work() {
  for parent in "${TMPDIR:-/tmp}" "${HOME:-/root}"; do
    work=$(mktemp -d "$parent/cnibox.XXXXXX" 2>/dev/null) || continue
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' HUP INT TERM
    printf '#!/bin/sh\n' >"$work/runs"
    chmod 700 "$work/runs"
    if "$work/runs" 2>/dev/null; then return; fi
    rm -rf "$work"
  done
  refuse "there is no folder to unpack programs in; name one with TMPDIR"
}

# Sets $binary, or $archive when it has to be unpacked first. From a checkout it is built; from an unpacked release it
# lies beside this script.
find_binary() {
  binary='' archive=''
  if [ -z "$from" ] && [ -f "$here/tools/build.ts" ]; then
    build
    return
  fi
  [ -n "$from" ] || from=$here/cnibox
  [ -f "$from" ] || refuse "there is no file $from; name an executable or a release archive with --from"
  case "$(od -An -tx1 -N4 "$from" | tr -d ' \n')" in
    7f454c46)
      verify_sum "$from" "$(dirname "$from")/SHA256SUMS"
      binary=$from
      ;;
    1f8b*)
      verify_sum "$from" "$from.sha256"
      archive=$from
      ;;
    *) refuse "$from is neither an executable nor a release archive (.tar.gz)" ;;
  esac
}

# Sets $binary to what the archive holds; every file that its SHA256SUMS names is verified.
unpack() {
  tar -tzf "$from" >"$work/names" 2>/dev/null || refuse "$from cannot be read: it is cut short or no .tar.gz"
  if grep -qvE '^cnibox-[A-Za-z0-9._-]+/([A-Za-z0-9._-]+/)*[A-Za-z0-9._-]*$' "$work/names" || grep -qE '/\.\.(/|$)' "$work/names"; then
    refuse "refused: $from holds files that no release of cnibox has"
  fi
  # Links would be followed, by tar itself or afterwards.
  if tar -tvzf "$from" 2>/dev/null | grep -qv '^[-d]'; then refuse "refused: $from holds something else than files"; fi
  mkdir "$work/unpacked"
  tar -xzf "$from" -C "$work/unpacked" || refuse "$from cannot be unpacked"
  set -- "$work"/unpacked/cnibox-*
  if [ $# -ne 1 ] || [ ! -f "$1/cnibox" ] || [ ! -f "$1/SHA256SUMS" ]; then
    refuse "refused: $from lacks cnibox or SHA256SUMS"
  fi
  binary=$1/cnibox
  [ -n "$(sum_of cnibox "$1/SHA256SUMS")" ] || refuse "refused: SHA256SUMS in $from does not name cnibox"
  (cd "$1" && sha256sum -c SHA256SUMS >/dev/null 2>&1) ||
    refuse "refused: files in $from differ from its SHA256SUMS; fetch it again"
}

sum_of() { awk -v name="$1" '$2 == name || $2 == "*" name { print $1 }' "$2"; }

# A list of sums that is there must hold; where there is none, or it does not name the file, nothing is claimed.
verify_sum() {
  [ -f "$2" ] || return 0
  wanted=$(sum_of "$(basename "$1")" "$2")
  [ -z "$wanted" ] || [ "$wanted" = "$(sha256sum "$1" | cut -d ' ' -f 1)" ] ||
    refuse "refused: $1 differs from its sum in $2; fetch it again"
}

# ---- In place

install_all() {
  make_work
  [ -z "$archive" ] || unpack
  [ "$(od -An -tu1 -j18 -N1 "$binary" | tr -d ' ')" = "$elf_machine" ] ||
    refuse "$from was built for another kind of machine than this one ($arch)"
  # In the page cache as a whole before it is run: a file that is paged in by being run makes every later call slower.
  cat "$binary" >/dev/null
  as_cnibox
  "$binary" --version >/dev/null || refuse "$binary does not start; nothing was changed"
  umask 022
  set -- install --bin-dir "$bin_dir"
  [ -z "$plugins" ] || set -- "$@" --plugins "$plugins"
  [ "$replace" = no ] || set -- "$@" --replace
  [ -z "$units" ] || set -- "$@" "$units"
  ended=0
  "$binary" "$@" || ended=$?
  [ "$ended" -eq 0 ] || [ "$ended" -eq "$in_the_way" ] || exit 1
}

# By the executable that is installed, or the one beside this script.
uninstall() {
  [ -d "$bin_dir/.cnibox" ] || { say "nothing of ours in $bin_dir"; return; }
  for binary in "$bin_dir/cnibox" "$here/cnibox" "$here/dist/cnibox"; do
    if [ -x "$binary" ]; then "$binary" uninstall --bin-dir "$bin_dir" || exit 1; return; fi
  done
  refuse "there is no executable to do it: run \`cnibox uninstall --bin-dir $bin_dir\` with one of a release"
}

# ---- The demo: two containers, and the host that they are plugged into, are namespaces that end with it

demo() {
  is_root || refuse "the demo makes network namespaces: run it as root"
  exec
  demo_bin=$bin_dir
  for name in bridge host-local portmap; do
    [ "$(readlink "$bin_dir/$name")" = cnibox ] || demo_bin=$work/bin
  done
  if [ "$demo_bin" != "$bin_dir" ]; then
    mkdir "$demo_bin"
    for name in bridge host-local portmap; do ln -s "$bin_dir/cnibox" "$demo_bin/$name"; done
  fi
  demo_provide
  demo_traces >"$work/before"
  say ''
  unshare --net --mount --pid --fork --kill-child --mount-proc --propagation private \
    sh "$here/install.sh" --demo-inside --bin-dir "$demo_bin" || refuse "the demo failed"
  demo_traces >"$work/after"
  if ! cmp -s "$work/before" "$work/after"; then
    diff "$work/before" "$work/after" >&2 || true
    refuse "the demo left the above behind"
  fi
  say 'nothing left behind'
}

# One tool that has ping, a web server and its client; and mount, which Debian's smallest systems lack.
demo_provide() {
  if ! has mount && [ "$deps $manager" = 'yes apt-get' ]; then install_packages mount || true; fi
  has mount || refuse "the demo needs mount: install it and run this again"
  if has busybox && busybox httpd --help 2>&1 | grep -q '^Usage: httpd'; then return; fi
  case "$deps $manager" in
    'yes apt-get') install_packages busybox-static || true ;;
    'yes dnf') install_packages busybox || true ;;
    'yes apk') install_packages busybox-extras || true ;;
  esac
  has busybox || refuse "the demo needs busybox: install it (Debian: busybox-static) and run this again"
}

# What on this machine bears one of the demo's names or addresses. Everything else may change: pods come and go.
demo_traces() {
  {
    ip -o link
    ip route show table all
    ip rule
    iptables-save
    ip6tables-save
    nft list ruleset
    find /run/netns /run/cni /var/lib/cni /etc/cni
  } 2>/dev/null | grep -E 'br-demo|demo-[ab]|/demo(/|$)|10\.85\.0\.' | sort || true
}

# The two plugins of the network, as README shows them in a list.
bridge_conf='"type": "bridge", "bridge": "br-demo", "isGateway": true, "ipMasq": true, "hairpinMode": true,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.85.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}'
portmap_conf='"type": "portmap", "capabilities": {"portMappings": true}'

demo_inside() {
  mount -t tmpfs tmpfs /run
  mount -t sysfs sysfs /sys
  mkdir -p /run/netns /run/demo/www
  cd /run/demo
  echo 'hello from demo-a' >www/index.html
  ip link set lo up
  demo_state >before

  say 'Network: a bridge, addresses from 10.85.0.0/24, masquerade, host ports'
  say "  { $bridge_conf },"
  say "  { $portmap_conf }"
  for container in demo-a demo-b; do
    ip netns add "$container"
    try "ADD $container" add "$container"
  done
  a=$(address_of demo-a) b=$(address_of demo-b)
  try "ping demo-a to the gateway, 10.85.0.1" inside demo-a busybox ping -c 1 -W 2 10.85.0.1
  try "ping demo-a, $a, to demo-b, $b" inside demo-a busybox ping -c 1 -W 2 "$b"
  ip netns exec demo-a busybox httpd -f -p 80 -h /run/demo/www &
  server=$!
  try 'a page of demo-a from the host, 127.0.0.1:8080' fetch http://127.0.0.1:8080/
  try 'a page of demo-a from demo-b, 10.85.0.1:8080' inside demo-b fetch http://10.85.0.1:8080/
  kill "$server"
  try 'CHECK demo-a and demo-b' verb_of_both CHECK
  try 'DEL demo-a and demo-b' verb_of_both DEL
  ip netns del demo-a
  ip netns del demo-b

  demo_state >after
  diff before after | grep '^[<>]' >kept || true
  if grep -E "^<|^> link|demo-[ab]|($a|$b|8080)([^0-9]|\$)|CNI-[0-9a-f]{24}|CNI-DN-" kept | grep -vx '> link br-demo' >left; then
    cat left
    refuse 'DEL left the above behind'
  fi
  say 'Links, addresses, routes, rules and leases of both are gone. Bridge, empty chains and the note of the last address'
  say 'stay for the next container, as with the reference plugins; here they end with the namespace that played the host.'
  say ''
  say 'Result of ADD demo-a:'
  say "$(cat demo-a.result)"
}

try() {
  what=$1
  shift
  if "$@" >said 2>&1; then
    say "  ok    $what"
  else
    say "  FAIL  $what"
    cat said
    exit 1
  fi
}

inside() {
  name=$1
  shift
  if [ "$1" = fetch ]; then
    shift
    fetch_with "ip netns exec $name" "$@"
  else
    ip netns exec "$name" "$@"
  fi
}
fetch() { fetch_with '' "$@"; }

# shellcheck disable=SC2086  # a prefix of several words
fetch_with() {
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    if $1 timeout 3 busybox wget -q -O page "$2" && grep -x 'hello from demo-a' page; then return 0; fi
    sleep 0.2
  done
  return 1
}

# What a runtime does for a list: ADD and CHECK in order, each with the result before it; DEL in reverse.
add() {
  plugin ADD bridge "$1" '' >"$1.bridge" || { cat "$1.bridge"; return 1; }
  plugin ADD portmap "$1" "$1.bridge" >"$1.result" || { cat "$1.result"; return 1; }
}

verb_of_both() {
  for container in demo-a demo-b; do
    if [ "$1" = DEL ]; then
      plugin DEL portmap "$container" "$container.result" && plugin DEL bridge "$container" "$container.result"
    else
      plugin "$1" bridge "$container" "$container.result" && plugin "$1" portmap "$container" "$container.result"
    fi || return 1
  done
}

# plugin VERB TYPE CONTAINER PREVRESULT: one call as a runtime makes it. Leases are kept below /run/demo.
plugin() {
  case "$2" in
    bridge) conf=$(say "$bridge_conf" | sed 's|"host-local"|&, "dataDir": "/run/demo/leases"|') ;;
    portmap) conf=$portmap_conf ;;
  esac
  [ "$3" != demo-a ] || conf="$conf, \"runtimeConfig\": {\"portMappings\": [
    {\"hostPort\": 8080, \"containerPort\": 80, \"protocol\": \"tcp\"}]}"
  [ -z "$4" ] || conf="$conf, \"prevResult\": $(cat "$4")"
  say "{\"cniVersion\": \"1.1.0\", \"name\": \"demo\", $conf}" |
    CNI_COMMAND=$1 CNI_CONTAINERID=$3 CNI_NETNS=/run/netns/$3 CNI_IFNAME=eth0 CNI_PATH=$bin_dir "$bin_dir/$2"
}

address_of() { tr -d ' \n\t' <"$1.result" | sed -n 's/.*"address":"\([0-9.]*\)\/24".*/\1/p'; }

demo_state() {
  {
    ip -o link | sed 's/^[0-9]*: \([^:@]*\).*/link \1/'
    ip route show table all
    ip -6 route show table all
    ip rule
    iptables-save | sed '/^#/d; s/\[[0-9:]*\]//'
    ip6tables-save | sed '/^#/d; s/\[[0-9:]*\]//'
    nft list ruleset | sed 's/counter packets [0-9]* bytes [0-9]*//'
    find /run/demo/leases
  } 2>/dev/null || true
}

main "$@"
