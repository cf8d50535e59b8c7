#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Runs inside the machine, whose kernel has KVM as modules: they are loaded, have
# guests, and are unloaded, three times, and leave nothing behind in the world.
fail() {
	echo "round $round: $*"
	exit 1
}

memory() { grep -E '^(vcpus|ept_tables)_free ' /sys/kernel/hypermi/memory; }

# What a VM's tables were goes back after a grace period.
settled() {
	tries=0
	until [ "$(memory)" = "$before" ]; do
		tries=$((tries + 1))
		[ "$tries" -lt 50 ] || return 1
		sleep 0.1
	done
}

round=0
[ "$(cat /sys/kernel/hypermi/state)" = online ] || fail "HyperMI is not online"
[ ! -e /dev/kvm ] || fail "KVM is there before it is loaded"
before=$(memory)
for round in 1 2 3; do
	for module in irqbypass kvm kvm-intel; do
		insmod /$module.ko || fail "$module.ko cannot be loaded"
	done
	for test in guest_test insn_test; do
		./$test >/tmp/out 2>&1 || { cat /tmp/out; fail "$test: exit status $?"; }
		grep -q '^ok' /tmp/out || { cat /tmp/out; fail "$test: nothing passed"; }
		grep '^# .*VMX instr' /tmp/out
	done
	exec 3</dev/kvm
	! rmmod kvm_intel 2>/dev/null || fail "kvm_intel went while it was in use"
	exec 3<&-
	for module in kvm_intel kvm irqbypass; do
		rmmod $module || fail "$module cannot be unloaded"
	done
	settled || fail "before: $before; now: $(memory)"
	echo "round $round: $(memory | tr '\n' ' ')"
done
