#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Runs inside the machine: a Linux guest under Debian's unmodified QEMU must
# reach user space, say so, and power off.  The disk: scripts/guest-image.sh.
#
#	guest.sh [VCPUS]	one guest
#	guest.sh two		two at once
#	guest.sh killed		QEMU is killed while its guest runs; then one more
for dir in dev proc sys tmp; do
	mount -o bind /$dir /disk/$dir
done

boot() {	# name, vCPUs: QEMU's status in /tmp/NAME.status, its output in /tmp/NAME.log
	chroot /disk /usr/bin/qemu-system-x86_64 -machine q35,accel=kvm -cpu host -m 256 \
		-smp "$2" -nodefaults -display none -no-reboot -serial stdio \
		-pidfile "/tmp/$1.pid" -kernel /guest/bzImage -initrd /guest/initrd.gz \
		-append "console=ttyS0 nokaslr panic=-1" >"/tmp/$1.log" 2>&1 </dev/null
	echo $? >"/tmp/$1.status"
}

ended_well() {	# name
	status=$(cat "/tmp/$1.status")
	cat "/tmp/$1.log"
	[ "$status" -eq 0 ] || { echo "qemu: exit status $status"; exit 1; }
	grep -q '^GUEST-IS-UP' "/tmp/$1.log" || { echo "the guest did not reach user space"; exit 1; }
	grep -q 'reboot: Power down' "/tmp/$1.log" || { echo "the guest did not power off"; exit 1; }
}

free_vcpus() { sed -n 's/^vcpus_free //p' /sys/kernel/hypermi/memory 2>/dev/null; }

before=$(free_vcpus)
case ${1:-1} in
two)
	boot a 1 &
	boot b 1
	wait
	ended_well a
	ended_well b
	;;
killed)
	boot a 1 &
	tries=0
	# In mid-run: its kernel has said something.
	until grep -q 'Linux version' /tmp/a.log 2>/dev/null; do
		tries=$((tries + 1))
		[ "$tries" -lt 100 ] || { echo "the guest did not start"; exit 1; }
		sleep 0.1
	done
	kill -9 "$(cat /tmp/a.pid)"
	wait
	[ "$(cat /tmp/a.status)" -eq 137 ] || { echo "qemu was not killed: $(cat /tmp/a.status)"; exit 1; }
	boot b 1
	ended_well b
	;;
*)
	boot a "${1:-1}"
	ended_well a
	;;
esac
after=$(free_vcpus)
[ "$before" = "$after" ] || { echo "vCPUs are left behind: $before free before, $after after"; exit 1; }
