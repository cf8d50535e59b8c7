#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Runs inside the machine: a Linux guest under Debian's unmodified QEMU must
# reach user space, use a virtio disk and a virtio network card, and power off.
# The disk with all that: scripts/guest-image.sh.
#
#	guest.sh [VCPUS]	one guest
#	guest.sh two		two at once
#	guest.sh killed		QEMU is killed while its guest runs; then one more
for dir in dev proc sys tmp; do
	mount -o bind /$dir /disk/$dir
done

# boot NAME VCPUS: what it says, behind PREFIX, also in /tmp/NAME.log
boot() {
	dd if=/dev/zero of="/tmp/$1.img" bs=1M count=1 2>/dev/null
	{
		busybox time -f "%U %S" -o "/tmp/$1.time" \
			chroot /disk /usr/bin/qemu-system-x86_64 -machine q35,accel=kvm -cpu host -m 256 \
			-smp "$2" -nodefaults -display none -no-reboot -serial stdio \
			-drive "file=/tmp/$1.img,format=raw,if=virtio" \
			-netdev user,id=net,tftp=/guest -pidfile "/tmp/$1.pid" \
			-device virtio-net-pci,netdev=net,romfile= \
			-kernel /guest/bzImage -initrd /guest/initrd.gz \
			-append "console=ttyS0 nokaslr panic=-1"
		echo $? >"/tmp/$1.status"
	} 2>&1 </dev/null | tee "/tmp/$1.log" | while IFS= read -r line; do echo "$PREFIX$line"; done
}

ended_well() {
	fail="the guest of QEMU $1"
	status=$(cat "/tmp/$1.status")
	[ "$status" -eq 0 ] || { echo "QEMU $1: exit status $status"; exit 1; }
	grep -q '^GUEST-IS-UP' "/tmp/$1.log" || { echo "$fail did not reach user space"; exit 1; }
	grep -q '^GUEST-READ-ITS-DISK' "/tmp/$1.log" || { echo "$fail did not read its disk"; exit 1; }
	grep -q 'written by the guest' "/tmp/$1.img" || { echo "$fail did not write its disk"; exit 1; }
	grep -q '^GUEST-GOT-A-FILE' "/tmp/$1.log" || { echo "$fail got no file over the network"; exit 1; }
	grep -q 'reboot: Power down' "/tmp/$1.log" || { echo "$fail did not power off"; exit 1; }
}

free_vcpus() { sed -n 's/^vcpus_free //p' /sys/kernel/hypermi/memory 2>/dev/null; }

before=$(free_vcpus)
case ${1:-1} in
two)
	PREFIX="a: " boot a 1 &
	PREFIX="b: " boot b 1
	wait
	ended_well a
	ended_well b
	;;
killed)
	PREFIX="a: " boot a 1 &
	tries=0
	# In mid-run: its kernel has said something.
	until grep -q 'Linux version' /tmp/a.log 2>/dev/null; do
		tries=$((tries + 1))
		[ "$tries" -lt 100 ] || { echo "the guest did not start"; exit 1; }
		sleep 0.1
	done
	kill -9 "$(cat /tmp/a.pid)"
	wait
	# time(1) says by which signal.
	[ "$(cat /tmp/a.status)" -eq 9 ] || { echo "QEMU was not killed: $(cat /tmp/a.status)"; exit 1; }
	PREFIX="" boot b 1
	ended_well b
	;;
*)
	PREFIX="" boot a "${1:-1}"
	ended_well a
	grep -q "^GUEST-IS-UP .* ${1:-1} CPU" /tmp/a.log || { echo "not all its CPUs came up"; exit 1; }
	# QEMU and guest, without the time in which they wait
	awk '{ print "GUEST-BUSY " $1 + $2 }' /tmp/a.time
	;;
esac
after=$(free_vcpus)
[ "$before" = "$after" ] || { echo "vCPUs are left behind: $before free before, $after after"; exit 1; }
