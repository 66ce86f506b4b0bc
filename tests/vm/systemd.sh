#!/bin/sh
# First process of a virtual machine that has a disk, on which the root file system can be written and stays over a
# reboot: makes it a machine as after its installation, and becomes systemd, which runs the queue "systemd" when all
# else is up.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
# shellcheck disable=SC1091  # written by run.ts
. /run/out/environment
mkdir -p /lib/modules
ln -sfn "$CNIBOX_VM_MODULES/lib/modules/$(uname -r)" "/lib/modules/$(uname -r)"
umount /proc

if [ ! -e /etc/cnibox-vm ]; then
  # Nothing is enabled but what systemd has by itself, and nothing of a CNI installation is there.
  rm -rf /etc/systemd/system /etc/systemd/network /etc/rc?.d/S* /opt/cni /etc/cni /var/lib/cni /var/lib/cnibox /var/log/journal
  mkdir -p /etc/systemd/system /var/log/journal
  # A container that the tests are started in is not what systemd runs in.
  rm -f /.dockerenv
  # What lies in the machine's /tmp is not this boot's to clear.
  mkdir -p /etc/tmpfiles.d
  ln -sf /dev/null /etc/tmpfiles.d/tmp.conf
  # podman's package deletes all leases at boot; a node without it keeps them.
  ln -sf /dev/null /etc/tmpfiles.d/podman.conf
  : >/etc/fstab
  : >/etc/machine-id
  echo cnibox-vm >/etc/hostname
  : >/etc/cnibox-vm
fi

# firewalld starts with its own defaults: on the build machine its folder is one that only root may read, and qemu may
# be an ordinary user's.
if [ -d /etc/firewalld ]; then
  mkdir -p /var/lib/cnibox-vm/firewalld
  mount --bind /var/lib/cnibox-vm/firewalld /etc/firewalld
fi

# What starts in a second on a machine takes a minute on an emulated processor of a busy one.
mkdir -p /run/systemd/system /run/systemd/system.conf.d
printf '[Manager]\nDefaultTimeoutStartSec=10min\nDefaultTimeoutStopSec=5min\n' >/run/systemd/system.conf.d/cnibox-vm.conf
cat >/run/systemd/system/cnibox-vm.target <<END
[Unit]
Requires=multi-user.target
Wants=cnibox-vm.service
END
cat >/run/systemd/system/cnibox-vm.service <<END
[Unit]
After=multi-user.target
[Service]
ExecStart=/bin/sh $CNIBOX_VM_ROOT/tests/vm/queue.sh queue.systemd
ExecStopPost=/bin/systemctl --no-block reboot
TasksMax=infinity
END
exec /lib/systemd/systemd
