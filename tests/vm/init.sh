#!/bin/sh
# First process of the virtual machine that `deno task test:vm` boots (run.ts beside this file says how it works
# together). Its file system is the machine's own, read-only; the only folder of it that can be written is the run's
# own, /run/out. It runs the test files of /run/out/queue.
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

# Modules are loaded when something asks for them, from where the kernel has them: the kernel itself, and
# iptables-legacy, which runs what the kernel would run. It runs on nodes too, whose /run is their own, and whose /dev
# is not.
printf '#!/bin/sh\nexec %s -d %s "$@"\n' "$(command -v modprobe)" "$CNIBOX_VM_MODULES" >/dev/modprobe
chmod 755 /dev/modprobe
echo /dev/modprobe >/proc/sys/kernel/modprobe
# These nothing asks for by name.
for module in ipv6 overlay tun; do /dev/modprobe -q "$module"; done

# The project may lie below /tmp, so what is there stays in sight.
mkdir -p /run/tmp/upper /run/tmp/work
chmod 1777 /run/tmp/upper
mount -t overlay -o lowerdir=/tmp,upperdir=/run/tmp/upper,workdir=/run/tmp/work tmp /tmp
ip link set lo up

sh "$CNIBOX_VM_ROOT/tests/vm/queue.sh" queue
end
