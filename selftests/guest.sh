#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Runs inside the machine: a Linux guest under Debian's unmodified QEMU must
# reach user space, say so, and power off.  The disk: scripts/guest-image.sh.
for dir in dev proc sys tmp; do
	mount -o bind /$dir /disk/$dir
done
{ chroot /disk /usr/bin/qemu-system-x86_64 -machine q35,accel=kvm -cpu host -m 256 \
	-smp "${1:-1}" -nodefaults -display none -no-reboot -serial stdio \
	-kernel /guest/bzImage -initrd /guest/initrd.gz \
	-append "console=ttyS0 nokaslr panic=-1"; echo $? > /tmp/qemu.status; } 2>&1 | tee /tmp/guest.log
status=$(cat /tmp/qemu.status)
[ "$status" -eq 0 ] || { echo "qemu: exit status $status"; exit 1; }
grep -q '^GUEST-IS-UP' /tmp/guest.log || { echo "the guest did not reach user space"; exit 1; }
grep -q 'reboot: Power down' /tmp/guest.log || { echo "the guest did not power off"; exit 1; }
