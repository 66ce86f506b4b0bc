#!/bin/sh
# Runs the test files of a queue, /run/out/QUEUE, one after the other, sharing it with the machines beside this one;
# each file's output and exit status go to /run/out/taken.
# Usage: queue.sh QUEUE
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
# shellcheck disable=SC1091  # written by run.ts
. /run/out/environment
cd "$CNIBOX_VM_ROOT" || exit 1
for ready in "/run/out/$1"/*; do
  name=${ready##*/}
  # Whoever can move it out of the queue runs it.
  mv "$ready" "/run/out/taken/$name" 2>/dev/null || continue
  file=$(cat "/run/out/taken/$name")
  # shellcheck disable=SC2086  # the options are words
  timeout -k 10 "$CNIBOX_VM_LIMIT" "$CNIBOX_VM_DENO" test -A --no-check --no-lock $CNIBOX_VM_OPTIONS "$file" \
    >"/run/out/taken/$name.log" 2>&1 </dev/null
  echo $? >"/run/out/taken/$name.code.new"
  mv "/run/out/taken/$name.code.new" "/run/out/taken/$name.code"
done
