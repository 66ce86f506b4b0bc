# Sourced: takes packages out of Debian's archive without installing anything, as any user. Everything happens in the
# folder $work, apt's lists included: the machine's sources and packages stay as they are. What apt says is in
# $work/log. shellcheck shell=sh disable=SC2154  # $work is the caller's

# Chooses and reads a suite: "release" (this machine's own sources) or "sid".
suite() {
  rm -rf "$work/lists"
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
  : >"$work/log"
  if [ "$1" = release ]; then
    sources='' suffix=''
  else
    # shellcheck disable=SC2046  # two words
    set -- "$1" $(debian_source | head -n 1)
    [ -n "${2:-}" ] || { echo "no Debian source among this machine's apt sources" >>"$work/log"; return 1; }
    printf 'deb [signed-by=%s] %s %s main\n' "${3:-/usr/share/keyrings/debian-archive-keyring.gpg}" "$2" "$1" \
      >"$work/suite.list"
    suffix=/$1
    sources="-o Dir::Etc::sourcelist=$work/suite.list -o Dir::Etc::sourceparts=/dev/null"
  fi
  apt update >>"$work/log" 2>&1
}

# Unpacks packages of that suite into $work/tree.
fetch() {
  for package_name in "$@"; do
    (cd "$work" && apt download "$package_name$suffix") >>"$work/log" 2>&1 || return 1
    dpkg-deb -x "$(find "$work" -maxdepth 1 -name "${package_name}_*.deb" | head -n 1)" "$work/tree" || return 1
  done
}

# The packages that a package of that suite needs directly, one a line.
needs_of() {
  # shellcheck disable=SC2086  # options are words
  apt-cache $(settings) --no-all-versions show "$1" 2>>"$work/log" | sed -n 's/^Depends: //p' | tr ',|' '\n\n' |
    sed -e 's/^ *//' -e 's/ .*//'
}

apt() {
  # shellcheck disable=SC2046  # options are words
  apt-get -q -y $(settings) -o APT::Sandbox::User=root -o Acquire::Retries=3 "$@" </dev/null
}

# What the machine prefers (a suite that is pinned low, a default release) is about what is installed: it does not count
# here.
settings() {
  echo "-o Dir::State::lists=$work/lists -o Dir::Cache=$work/cache -o Dir::Etc::preferences=/dev/null" \
    "-o Dir::Etc::preferencesparts=/dev/null -o APT::Default-Release= $sources"
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
