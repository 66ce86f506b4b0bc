#!/bin/busybox sh
# /init of the initramfs that machine.ts builds: loads the modules that the root file system needs, and hands over to
# the program named in cnibox_init=. The root is the machine's own file system over 9p, read-only; with a disk, an
# overlay that keeps on the disk what is changed.
export PATH=/bin
fail() {
  echo "test:vm: $*"
  reboot -f
}

mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in /modules/*; do
  insmod "$module" || fail "cannot load $module"
done
nine=trans=virtio,version=9p2000.L,msize=512000
init=$(sed -n 's/.*cnibox_init=\([^ ]*\).*/\1/p' /proc/cmdline)
[ "$init" != none ] || fail boots

mount -t 9p -o "ro,cache=loose,$nine" root /root || fail "cannot mount the root"
if [ -b /dev/vda ]; then
  mkdir /lower /disk
  mount --move /root /lower
  mount -t ext4 /dev/vda /disk || fail "cannot mount the disk"
  mkdir -p /disk/upper /disk/work
  mount -t overlay -o lowerdir=/lower,upperdir=/disk/upper,workdir=/disk/work root /root || fail "cannot mount the overlay"
fi
mount -t tmpfs -o mode=755 run /root/run
mkdir /root/run/out
mount -t 9p -o "rw,cache=none,$nine" run /root/run/out || fail "cannot mount the run's folder"
mount --move /dev /root/dev
umount /proc
exec switch_root /root "$init" || fail "cannot start $init"
