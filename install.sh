#!/bin/sh
# Installs cnibox: one executable, and a relative symlink to it for every CNI plugin. `install.sh --help` tells all.
#
# Everything is prepared in a folder of our own below the target and put in place by rename, one name at a time: at any
# moment, also while pods are being added and after a kill, each name is the old file or the new one, whole.
#
#   DIR/cnibox              the executable
#   DIR/bridge, ...         symlinks to it
#   DIR/.cnibox/previous    the executable before the last change
#   DIR/.cnibox/replaced/   files that --replace moved out of the way; --uninstall puts them back
#   DIR/.cnibox/units/      the systemd units as they were installed; where they are is in .cnibox/units-folder
set -eu

here=$(cd "$(dirname "$0")" && pwd)
# Runtimes and minimal systems have short PATHs; the tools that we look for live in sbin.
PATH=$PATH:/usr/sbin:/sbin:/usr/local/sbin
export PATH

main() {
  parse "$@"
  case "$mode" in
    demo-inside) demo_inside; return ;;
    uninstall)
      [ -d "$state" ] || { say "nothing of ours in $bin_dir"; return; }
      open_state
      uninstall
      return
      ;;
  esac
  preflight
  case "$mode" in
    build) build; say "built $binary" ;;
    release) build; release ;;
    image) find_binary; image ;;
    install)
      check_target
      find_binary
      open_state
      provide_tools
      install_all
      [ "$demo" = no ] || demo
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
  --replace        move files that are not ours out of the way (--uninstall puts them back);
                   without it they are listed and left alone
  --no-deps        install no packages; what is missing is only named
  --units DIR      put the systemd units there; without it into $default_units where systemd runs
                   and plugins go into $default_dir. None is enabled or started
  --no-units       install no systemd units
  --build-only     build dist/cnibox, install nothing
  --release        build dist/cnibox-VERSION-linux-ARCH.tar.gz, install nothing
  --image FILE     write an OCI image of the executable into the archive FILE, install nothing
  --uninstall      remove what this installed, and put back what --replace moved
  --help           this text

Examples
  ./install.sh --demo                                      build, install, and see it work
  ./install.sh --from cnibox-0.1.0-linux-x86_64.tar.gz     on a machine without network
  ./install.sh --from $default_dir/.cnibox/previous        back to the version before
EOF
}

default_dir=/opt/cni/bin
default_units=/etc/systemd/system
units='cni-dhcp.socket cni-dhcp.service cnibox-node.service cnibox-page-cache.service cnibox-restore.service'
glibc_needed=2.27

parse() {
  mode=install demo=no replace=no deps=yes from='' plugins='' image='' bin_dir=$default_dir
  with_units=auto units_dir=$default_units
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
      --units) with_units=yes units_dir=$2; shift ;;
      --no-units) with_units=no ;;
      --build-only) mode=build ;;
      --release) mode=release ;;
      --image) mode=image image=$2; shift ;;
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
  case "$units_dir" in
    /*) ;;
    *) units_dir=$(pwd)/$units_dir ;;
  esac
  state=$bin_dir/.cnibox
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
  # What does not exist yet is made below a folder that may be like /tmp: names in there belong to those who made them.
  if [ "$there" = "$bin_dir" ]; then trust "$there"; else trust "$there" above; fi
  if [ -L "$bin_dir/cnibox" ] || { [ -e "$bin_dir/cnibox" ] && [ ! -f "$bin_dir/cnibox" ]; }; then
    refuse "$bin_dir/cnibox is in the way and not a file"
  fi
}

# trust FOLDER [above]: refuses a folder that somebody other than root and the caller owns or may write to, and one below such
# a folder: what is put there could be replaced. Folders above it may be sticky.
trust() {
  folder=$(cd -P "$1" && pwd) || refuse "cannot enter $1"
  above=${2:-}
  while :; do
    owner=$(stat -c %u "$folder") mode=$(stat -c %a "$folder")
    case "$owner" in
      0 | "$(id -u)") ;;
      *) refuse "refused: $folder belongs to user $owner, who could replace what is installed in $1; chown it, or use another folder" ;;
    esac
    case "$mode" in
      *[2367] | *[2367]?)
        case "$above$mode" in
          above[1357]???) ;;
          *) refuse "refused: others may write to $folder (mode $mode) and replace what is installed in $1; chmod go-w it, or use another folder" ;;
        esac
        ;;
    esac
    [ "$folder" != / ] || return 0
    folder=$(dirname "$folder") above=above
  done
}

# A folder of our own below the target, one installer at a time in it.
open_state() {
  umask 022
  made=no
  [ -d "$bin_dir" ] || made=yes
  mkdir -p "$bin_dir"
  trust "$bin_dir"
  [ -d "$state" ] || mkdir "$state" || refuse "$state is in the way and not a folder"
  [ ! -L "$state" ] || refuse "refused: $state is a link; remove it"
  trust "$state"
  for name in lock made-this-folder units-folder; do
    if [ -L "$state/$name" ] || { [ -e "$state/$name" ] && [ ! -f "$state/$name" ]; }; then
      refuse "refused: $state/$name is not a regular file; remove it"
    fi
  done
  [ "$made" = no ] || : >"$state/made-this-folder"
  exec 9>>"$state/lock"
  if has flock; then
    flock -w 300 9 || refuse "another installer is at work in $bin_dir"
    rm -rf "$state"/work.* # of one that was killed
  fi
  work=$(mktemp -d "$state/work.XXXXXX")
  trap close_state EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
}

# Where nothing was installed, nothing stays either.
close_state() {
  rm -rf "$work"
  if [ -e "$bin_dir/cnibox" ] || [ -e "$state/replaced" ]; then return; fi
  [ ! -e "$state/made-this-folder" ] || made=yes
  rm -rf "$state"
  [ "$made" = no ] || rmdir "$bin_dir" 2>/dev/null || true
}

# ---- The tools that plugins start

# One a line: tool, then the package that holds it for apt, dnf, apk.
tools='ip iproute2 iproute iproute2
tc iproute2 iproute-tc iproute2-tc
iptables iptables iptables-nft iptables
nft nftables nftables nftables
nsenter util-linux util-linux util-linux
conntrack conntrack conntrack-tools conntrack-tools'

provide_tools() {
  manager=''
  for name in apt-get dnf apk; do
    if [ -z "$manager" ] && has "$name"; then manager=$name; fi
  done
  missing=$(missing_packages)
  if [ -n "$missing" ] && [ "$deps" = yes ] && [ -n "$manager" ] && is_root; then
    wanted=$missing
    install_packages "$wanted" || true
    missing=$(missing_packages)
    [ "$missing" = "$wanted" ] || row packages "$wanted" "installed with $manager"
  fi
  if [ -n "$missing" ]; then
    row tools "MISSING: $missing" 'plugins will fail without them'
  else
    row tools "$(printf '%s\n' "$tools" | cut -d ' ' -f 1 | tr '\n' ' ')" 'all there'
  fi
}

# Packages of the tools that are not here, in one line. BusyBox's own `ip` has neither -json nor -batch.
missing_packages() {
  printf '%s\n' "$tools" | while read -r tool apt dnf apk; do
    if has "$tool" && { [ "$tool" != ip ] || ip -V 2>/dev/null | grep -q iproute2; }; then continue; fi
    case "$manager" in
      dnf) say "$dnf" ;;
      apk) say "$apk" ;;
      *) say "$apt" ;;
    esac
  done | sort -u | tr '\n' ' ' | sed 's/ $//'
}

# shellcheck disable=SC2086  # a list of names, split into words on purpose
install_packages() {
  note "installing $1"
  case "$manager" in
    apt-get)
      apt install --no-install-recommends $1 2>/dev/null || { apt update && apt install --no-install-recommends $1; }
      ;;
    dnf) dnf install -y -q $1 >/dev/null ;;
    apk) apk add -q $1 >/dev/null ;;
  esac
}

apt() {
  DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" </dev/null >/dev/null 9>&-
}

# ---- The executable: built, or given

build() {
  [ -f "$here/tools/build.ts" ] || refuse "this is not a checkout, so nothing can be built here"
  deno=$("$here/tools/deno.sh" 9>&-) || refuse "there is no Deno to build with; --from installs a release without it"
  [ -n "${HOME:-}${DENO_DIR:-}" ] || export DENO_DIR="$here/.cache/dir"
  # What the build gets from npm may come through a proxy whose authority only this system knows.
  export DENO_TLS_CA_STORE="${DENO_TLS_CA_STORE:-mozilla,system}"
  (cd "$here" && "$deno" task --quiet compile 9>&-) || refuse "the build failed"
  binary=$here/dist/cnibox
}

release() {
  version=$("$binary" --version | sed -n 's/^cnibox v//p')
  name=cnibox-$version-linux-$arch
  draft=$(mktemp -d "$here/dist/release.XXXXXX")
  trap 'rm -rf "$draft"' EXIT
  trap 'exit 130' INT TERM
  mkdir "$draft/$name"
  cp "$binary" "$here/install.sh" "$here/LICENSE" "$here/README.md" "$draft/$name/"
  cp "$binary.base" "$draft/$name/BASE"
  for unit in $units; do cp "$here/systemd/$unit" "$draft/$name/"; done
  (cd "$draft/$name" && chmod 644 -- * && chmod 755 cnibox install.sh &&
    LC_ALL=C && export LC_ALL && sha256sum -- * >"../sums" && mv ../sums SHA256SUMS && chmod 644 SHA256SUMS)
  # Only files, root's, dated alike: unpacking changes no folder, and the same inputs give the same bytes.
  (cd "$draft" && LC_ALL=C && export LC_ALL &&
    tar --owner=0 --group=0 --numeric-owner --mtime=@0 --format=ustar -cf "$name.tar" "$name"/* &&
    gzip -n "$name.tar" && sha256sum "$name.tar.gz" >"$name.tar.gz.sha256")
  mv -f "$draft/$name.tar.gz" "$draft/$name.tar.gz.sha256" "$here/dist/"
  say "$here/dist/$name.tar.gz"
}

# The executable writes its own image, so this needs nothing else.
image() {
  if [ -n "$archive" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM
    unpack
  fi
  "$binary" image "$image" || refuse "no image was made"
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
  if grep -qvE '^cnibox-[A-Za-z0-9._-]+/[A-Za-z0-9._-]*$' "$work/names" || grep -q '/\.\.$' "$work/names"; then
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

table=''
row() { table="$table$1|$2|$3
"; }
print_table() { printf '%s' "$table" | awk -F '|' '{ printf "  %-14s %-44s %s\n", $1, $2, $3 }' | sed 's/ *$//'; }

install_all() {
  [ -z "$archive" ] || unpack
  [ "$(od -An -tu1 -j18 -N1 "$binary" | tr -d ' ')" = "$elf_machine" ] ||
    refuse "$from was built for another kind of machine than this one ($arch)"
  draft=$work/cnibox
  cp "$binary" "$draft"
  chmod 755 "$draft"
  if is_root; then chown 0:0 "$draft"; fi
  label "$draft"
  # In the page cache as a whole before it is run: a file that is paged in by being run makes every later call slower.
  cat "$draft" >/dev/null
  # Started where it will live: a wrong base, a missing library, a mount without exec show here, not on a pod.
  version=$("$draft" --version) || refuse "the executable does not start in $bin_dir; nothing was changed"
  types=$("$draft" plugins --names) || refuse "the executable does not name its plugins; nothing was changed"
  for name in $(printf '%s' "$plugins" | tr ',' ' '); do
    printf '%s\n' "$types" | grep -qx -e "$name" ||
      refuse "there is no plugin \"$name\"; there are: $(printf '%s' "$types" | tr '\n' ' ')"
  done
  sync "$draft" 2>/dev/null || sync
  place_binary
  foreign=''
  for name in $(if [ -n "$plugins" ]; then printf '%s' "$plugins" | tr ',' ' '; else printf '%s' "$types"; fi); do
    place_link "$name"
  done
  place_units
  retire_replaced
  print_table
  [ -z "$foreign" ] ||
    say "Not ours, so left alone:$foreign. With --replace they are kept as a backup and put back by --uninstall."
}

place_binary() {
  if cmp -s "$draft" "$bin_dir/cnibox"; then
    row cnibox "$bin_dir/cnibox" "$version, unchanged"
    return
  fi
  kept=''
  if [ -e "$bin_dir/cnibox" ]; then
    second_name "$state/previous"
    second_name "$bin_dir/$replaced_name"
    kept=', the one before kept in .cnibox/previous'
  fi
  mv -f "$draft" "$bin_dir/cnibox"
  row cnibox "$bin_dir/cnibox" "$version, installed$kept"
}

# The file of before under another name as well: there is no moment without an executable.
second_name() {
  rm -f "$1"
  ln "$bin_dir/cnibox" "$1" 2>/dev/null || cp -p "$bin_dir/cnibox" "$1"
}

# A program of `deno compile` opens its own file again while it starts, by the name that the kernel has for it. Once the
# file is replaced that is its old path and " (deleted)". A call that started a moment ago still needs to find it there.
replaced_name='cnibox (deleted)'

retire_replaced() {
  [ -e "$bin_dir/$replaced_name" ] || return 0
  for _ in 1 2 3 4 5; do
    sleep 1
    # shellcheck disable=SC2010  # what the links point to is asked, not their names
    ls -l /proc/[0-9]*/exe 2>/dev/null | grep -qF "/$replaced_name" || break
  done
  rm -f "$bin_dir/$replaced_name"
}

place_link() {
  target=$bin_dir/$1
  done='installed'
  if [ -L "$target" ] && [ "$(readlink "$target")" = cnibox ]; then
    row "$1" '-> cnibox' 'unchanged'
    return
  fi
  if { [ -e "$target" ] || [ -L "$target" ]; } && ! is_ours "$target"; then
    if [ "$replace" = no ] || [ -d "$target" ]; then
      foreign="$foreign $1"
      row "$1" "$target" 'left alone: not ours'
      return
    fi
    mkdir -p "$state/replaced"
    cp -pP "$target" "$work/replaced"
    mv -f "$work/replaced" "$state/replaced/$1"
    done='installed, the file before kept in .cnibox/replaced'
  fi
  ln -s cnibox "$work/$1"
  label "$work/$1"
  mv -f "$work/$1" "$target"
  row "$1" '-> cnibox' "$done"
}

# ---- Units of systemd: the dhcp daemon, and rules made again after a firewall's start

place_units() {
  [ "$with_units" != no ] || return 0
  if [ "$with_units" = auto ]; then
    # Also what an earlier run put somewhere else is brought up to date.
    if [ -f "$state/units-folder" ]; then
      units_dir=$(cat "$state/units-folder")
    elif [ "$bin_dir" != "$default_dir" ] || [ ! -d /run/systemd/system ] || ! is_root; then
      return 0
    fi
  fi
  case "$bin_dir" in
    *[!A-Za-z0-9/._-]*)
      row units "$units_dir" "left out: $bin_dir has characters that units would have to quote"
      return
      ;;
  esac
  mkdir -p "$units_dir" "$state/units" || refuse "cannot write to $units_dir; all else is installed"
  trust "$units_dir"
  say "$units_dir" >"$work/units-folder"
  mv -f "$work/units-folder" "$state/units-folder"
  rm -f "$units_dir"/.cnibox-* # of a run that was killed
  changed=no
  for unit in $units; do place_unit "$unit"; done
  [ "$changed" = no ] || reload_systemd
}

# Releases have the units beside the executable or the installer, checkouts in systemd/.
place_unit() {
  source=''
  for folder in "$(dirname "$binary")" "$here/systemd" "$here"; do
    if [ -z "$source" ] && [ -f "$folder/$1" ]; then source=$folder/$1; fi
  done
  if [ -z "$source" ]; then
    row "$1" "$units_dir" 'left out: not beside this installer'
    return
  fi
  verify_sum "$source" "$(dirname "$source")/SHA256SUMS"
  sed "s|/opt/cni/bin/|$bin_dir/|g" "$source" >"$work/unit"
  target=$units_dir/$1
  if cmp -s "$work/unit" "$target"; then
    cp "$work/unit" "$state/units/$1"
    row "$1" "$target" 'unchanged'
    return
  fi
  if { [ -e "$target" ] || [ -L "$target" ]; } && ! cmp -s "$target" "$state/units/$1"; then
    row "$1" "$target" 'left alone: not ours, or changed since'
    return
  fi
  cp "$work/unit" "$state/units/$1"
  unit_draft=$(mktemp "$units_dir/.cnibox-XXXXXX") # in place by rename, which needs the same file system
  cat "$work/unit" >"$unit_draft"
  chmod 644 "$unit_draft"
  mv -f "$unit_draft" "$target"
  label "$target"
  changed=yes
  case "$1" in
    cni-dhcp.service) row "$1" "$target" 'installed; its socket starts it' ;;
    *) row "$1" "$target" "installed; to use it: systemctl enable --now $1" ;;
  esac
}

remove_units() {
  [ -f "$state/units-folder" ] || return 0
  units_dir=$(cat "$state/units-folder") changed=no
  for unit in $units; do
    [ -e "$units_dir/$unit" ] || continue
    if ! cmp -s "$units_dir/$unit" "$state/units/$unit"; then
      row "$unit" "$units_dir/$unit" 'left alone: not ours, or changed since'
      continue
    fi
    if systemd_reads_units; then systemctl disable --now "$unit" >/dev/null 2>&1 9>&- || true; fi
    rm -f "$units_dir/$unit"
    row "$unit" "$units_dir/$unit" 'removed'
    changed=yes
  done
  rm -rf "$state/units" "$state/units-folder"
  [ "$changed" = no ] || reload_systemd
}

systemd_reads_units() { [ "$units_dir" = "$default_units" ] && [ -d /run/systemd/system ] && is_root && has systemctl; }
reload_systemd() { if systemd_reads_units; then systemctl daemon-reload 9>&- || true; fi; }

# By any other kind of link, or a copy of what we installed now or before.
is_ours() {
  if [ -L "$1" ]; then
    [ "$(readlink -f "$1")" = "$(readlink -f "$bin_dir/cnibox")" ]
  else
    cmp -s "$1" "$bin_dir/cnibox" || cmp -s "$1" "$state/previous"
  fi
}

label() {
  has selinuxenabled && selinuxenabled || return 0
  if has restorecon; then
    restorecon "$1"
  else
    row label "$1" 'SELinux is on and there is no restorecon: set the label of plugins yourself'
  fi
}

uninstall() {
  remove_units
  for target in "$bin_dir"/*; do
    name=$(basename "$target")
    if [ "$name" = cnibox ] || [ ! -L "$target" ] || ! is_ours "$target"; then continue; fi
    if [ -e "$state/replaced/$name" ] || [ -L "$state/replaced/$name" ]; then
      mv -f "$state/replaced/$name" "$target"
      row "$name" "$target" 'put back as it was'
    else
      rm -f "$target"
      row "$name" "$target" 'removed'
    fi
  done
  for kept in "$state"/replaced/*; do
    target=$bin_dir/$(basename "$kept")
    if [ -e "$target" ] || [ -L "$target" ] || { [ ! -e "$kept" ] && [ ! -L "$kept" ]; }; then continue; fi
    mv -f "$kept" "$target"
    row "$(basename "$kept")" "$target" 'put back as it was'
  done
  rm -f "$bin_dir/cnibox" "$bin_dir/$replaced_name" "$state/previous"
  row cnibox "$bin_dir/cnibox" 'removed'
  # What stays here has another file in its place by now.
  rmdir "$state/replaced" 2>/dev/null || true
  [ ! -d "$state/replaced" ] || row backup "$state/replaced" 'kept: other files have taken these places'
  print_table
}

# ---- The demo: two containers, and the host that they are plugged into, are namespaces that end with it

demo() {
  is_root || refuse "the demo makes network namespaces: run it as root"
  exec 9>&-
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

# One tool that has ping, a web server and its client.
demo_provide() {
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
