#!/bin/sh
# First process of the virtual machine that `deno task test:vm` boots (run.ts beside this file says how it works together).
# Its file system is the machine's own, read-only; the only folder of it that can be written is the run's own, /run/out.
# It runs the test files that it finds in /run/out/queue, one after the other, sharing that queue with the machines beside it.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root

mount -t proc proc /proc
# Power off: the machine ends when it would boot again.
end() {
  sync
  echo b >/proc/sysrq-trigger
  sleep 60
}

mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm /run/netns /run/lock
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ln -sf /proc/self/fd /dev/fd
# shellcheck disable=SC1091  # written by run.ts
. /run/out/environment

# Modules are loaded when something asks for them, from where the kernel has them.
printf '#!/bin/sh\nexec %s -d %s "$@"\n' "$(command -v modprobe)" "$CNIBOX_VM_MODULES" >/run/modprobe
chmod 755 /run/modprobe
echo /run/modprobe >/proc/sys/kernel/modprobe
# These nothing asks for by name.
for module in ipv6 overlay tun; do /run/modprobe -q "$module"; done

# The project may lie below /tmp, so what is there stays in sight.
mkdir -p /run/tmp/upper /run/tmp/work
chmod 1777 /run/tmp/upper
mount -t overlay -o lowerdir=/tmp,upperdir=/run/tmp/upper,workdir=/run/tmp/work tmp /tmp
ip link set lo up

cd "$CNIBOX_VM_ROOT" || end
for ready in /run/out/queue/*; do
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
end
