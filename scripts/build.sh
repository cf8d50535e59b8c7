#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# Build into build/o/: build.sh stock|hypermi|modular|kunit|clang|q35|selftests
# (modular: HyperMI, with KVM as modules; clang: as kunit, with trace events, by clang
# 19 and without warnings; q35: for a machine with an IOMMU), or
# build.sh control ATTACK: HyperMI without the mechanism that stops ATTACK.
. "$(dirname "$0")/lib.sh"

[ -e "$LINUX/.git" ] || die "no build/linux: run 'make tree'"

kernel() {	# output directory, source tree, further config lines...
	local out=$1 tree=$2
	shift 2
	mkdir -p "$out"
	printf '%s\n' "$@" | cat "$TOP/selftests/config" - >"$out/.fragment"
	# An unchanged fragment keeps .config, and so the build, untouched.
	if ! cmp -s "$out/.fragment" "$out/.fragment.built" || [ ! -e "$out/.config" ]; then
		make -s -C "$tree" O="$out" tinyconfig
		"$tree/scripts/kconfig/merge_config.sh" -m -Q -O "$out" "$out/.config" "$out/.fragment"
		make -s -C "$tree" O="$out" olddefconfig
	else
		make -s -C "$tree" O="$out" olddefconfig
	fi
	# What the fragment asks for and Kconfig did not give is an error.
	local asked
	while read -r asked; do
		case $asked in
		CONFIG_*=n) ! grep -q "^${asked%n}" "$out/.config" ;;
		CONFIG_*=*) grep -qx "$asked" "$out/.config" ;;
		*) true ;;
		esac || { echo "the configuration did not take $asked"; return 1; }
	done < <(tac "$out/.fragment" | awk -F= '/^CONFIG/ && !seen[$1]++')
	cp "$out/.fragment" "$out/.fragment.built"
	make -C "$tree" O="$out" -j"$JOBS" bzImage
	! grep -q '^CONFIG_KVM=m' "$out/.config" || make -C "$tree" O="$out" -j"$JOBS" modules
}

selftests() {
	local out=$BUILD/o/selftests headers=$BUILD/o/selftests/headers
	local flags=(ARCH=x86_64 LDFLAGS=-static)
	make -C "$LINUX" O="$headers" -j"$JOBS" headers
	mkdir -p "$out/kvm" "$out/hypermi"
	local kvm
	mapfile -t kvm < <(awk -v out="$out/kvm/" '!/^#/ && NF { print out $1 }' \
		"$TOP/selftests/kvm-tests.txt" | sort -u)
	make -C "$LINUX/tools/testing/selftests/kvm" "${flags[@]}" OUTPUT="$out/kvm" \
		KHDR_INCLUDES="-isystem $headers/usr/include" -j"$JOBS" \
		"${kvm[@]}"
	if [ -e "$LINUX/tools/testing/selftests/hypermi/Makefile" ]; then
		make -C "$LINUX/tools/testing/selftests/hypermi" "${flags[@]}" \
			OUTPUT="$out/hypermi" KHDR_INCLUDES="-isystem $headers/usr/include" -j"$JOBS"
	fi
}

# The layout of build/ again under build/control/, so that ccache sees the same
# relative paths and only what the patch touches is compiled anew.
control() {
	local top=$BUILD/control patch=$TOP/selftests/controls/$1.patch
	local tree=$top/linux out=$top/o/hypermi
	[ -f "$patch" ] || { echo "no $patch"; return 1; }
	if [ ! -e "$tree/.git" ]; then
		git -C "$LINUX" worktree prune
		git -C "$LINUX" worktree add -q --detach "$tree" refs/heads/hypermi
	fi
	git -C "$tree" checkout -q -f --detach refs/heads/hypermi
	git -C "$tree" apply "$patch"
	CCACHE_BASEDIR=$top kernel "$out" "$tree" CONFIG_HYPERMI=y CONFIG_HYPERMI_KUNIT_TEST=n
	cp "$out/arch/x86/boot/bzImage" "$top/bzImage-$1"
}

# As kunit.py has it, on top of selftests/config: for a kernel that boots in QEMU and Bochs.
KUNIT=arch/x86/hypermi/tests/.kunitconfig

# Only a tree that has HyperMI can be told to leave it out.
off=()
grep -qs 'config HYPERMI$' "$LINUX"/arch/x86/Kconfig "$LINUX"/arch/x86/hypermi/Kconfig && off=(CONFIG_HYPERMI=n)
if [ "${1:-}" = --call ]; then shift; "$@"; exit; fi
case ${1:-} in
stock) step build-stock kernel "$BUILD/o/stock" "$LINUX" "${off[@]}" "$(cat "$TOP/selftests/guest-config")" ;;
hypermi) step build-hypermi kernel "$BUILD/o/hypermi" "$LINUX" CONFIG_HYPERMI=y CONFIG_HYPERMI_KUNIT_TEST=n ;;
modular) step build-modular kernel "$BUILD/o/modular" "$LINUX" CONFIG_HYPERMI=y CONFIG_HYPERMI_KUNIT_TEST=n \
	CONFIG_KVM=m CONFIG_KVM_INTEL=m ;;
q35) step build-q35 kernel "$BUILD/o/q35" "$LINUX" "$(cat "$TOP/selftests/q35-config")" CONFIG_HYPERMI=y "$(cat "$LINUX/$KUNIT")" ;;
kunit) step build-kunit kernel "$BUILD/o/kunit" "$LINUX" "$(cat "$LINUX/$KUNIT")" ;;
clang) export MAKEFLAGS=CC=clang-19
	step build-clang kernel "$BUILD/o/clang" "$LINUX" "$(cat "$LINUX/$KUNIT")" CONFIG_WERROR=y CONFIG_FRAME_WARN=2048 \
		CONFIG_FTRACE=y CONFIG_ENABLE_DEFAULT_TRACERS=y ;;
selftests) step build-selftests selftests ;;
control) step "build-control-${2:?usage: build.sh control ATTACK}" control "$2" ;;
*) die "usage: build.sh stock|hypermi|modular|kunit|clang|q35|selftests|control ATTACK" ;;
esac
