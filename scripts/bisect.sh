#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# Every patch builds, with HyperMI on and off, and with KVM as a module, and its files
# without a W=1 warning of the compiler (lint.sh has kernel-doc).  What was built once is
# not built again, so it can be stopped and go on; rm build/bisect/passed to have all of it.
. "$(dirname "$0")/lib.sh"

# The same layout as build/, for ccache.
tree=$BUILD/bisect/linux
export CCACHE_BASEDIR=$BUILD/bisect

# What the series neither touches nor needs: half of the objects.
LEFT_OUT='NET|UNIX|ATA\w*|SCSI|BLK_DEV_S[DR]|BLOCK|BLK_DEV|EXT4_FS|MSDOS_PARTITION|ACPI|PCI|IO_URING|SERIAL_\w+'

one() {	# on|off|module
	local out=$BUILD/bisect/o/$1 config=$TOP/selftests/config asked file objects=()
	mkdir -p "$out"
	grep -vE "^CONFIG_($LEFT_OUT)=" "$config" >"$out/.fragment"
	[ "$1" = off ] || printf 'CONFIG_HYPERMI=y\nCONFIG_HYPERMI_KUNIT_TEST=y\n' >>"$out/.fragment"
	[ "$1" != module ] || printf 'CONFIG_KVM=m\nCONFIG_KVM_INTEL=m\n' >>"$out/.fragment"
	# To come to the same .config again takes a fourth of the time.
	asked=$(git -C "$tree" ls-tree -r HEAD | grep Kconfig | cat "$out/.fragment" - | sha256sum)
	if [ "$asked" != "$(cat "$out/.asked" 2>/dev/null)" ]; then
		make -s -C "$tree" O="$out" tinyconfig
		"$tree/scripts/kconfig/merge_config.sh" -m -Q -O "$out" "$out/.config" "$out/.fragment"
		make -s -C "$tree" O="$out" olddefconfig
		echo "$asked" >"$out/.asked"
	fi
	# (Linked, but not compressed)
	make -C "$tree" O="$out" -j"$JOBS" vmlinux
	[ "$1" != module ] || make -C "$tree" O="$out" -j"$JOBS" modules
	while read -r file; do
		[ ! -e "$out/${file%.c}.o" ] || { objects+=("${file%.c}.o"); rm "$out/${file%.c}.o"; }
	done < <(git -C "$tree" show --name-only --diff-filter=d --format= HEAD -- '*.c' ':!tools')
	# (In KCFLAGS it would be for kernel-doc as well, which has 13 for mm/pgtable.c as it was.)
	[ ${#objects[@]} -eq 0 ] ||
		make -C "$tree" O="$out" -j"$JOBS" W=1 KCPPFLAGS=-Werror "${objects[@]}"
}

# What a kernel is built from
built() {	# COMMIT
	git -C "$tree" ls-tree "$1" | grep -vwE 'Documentation|MAINTAINERS|tools'
	git -C "$tree" ls-tree "$1" tools/objtool
}

if [ "${1:-}" = --call ]; then shift; "$@"; exit; fi
[ -e "$LINUX/.git" ] || "$TOP/scripts/series.sh" tree
if [ ! -e "$tree/.git" ]; then
	mkdir -p "$BUILD/bisect"
	git -C "$LINUX" worktree prune
	git -C "$LINUX" worktree add -q --detach "$tree" refs/tags/base
fi
failed=0
passed=$BUILD/bisect/passed
touch "$passed"
scripts=$(cat "$0" "$TOP/selftests/config" | sha256sum | head -c 12)
while read -r commit subject; do
	say "$commit $subject"
	git -C "$tree" checkout -q -f --detach "$commit"
	# The files of the patch matter, too: they are the ones that may not warn.
	key="$( (built HEAD; built HEAD^) | sha256sum | head -c 32) $scripts"
	for way in off on module; do
		! grep -qxF "$key $way" "$passed" || { say "bisect-$commit-$way: built before"; continue; }
		if step "bisect-$commit-$way" one "$way"; then
			echo "$key $way" >>"$passed"
		else
			failed=1
		fi
	done
done < <(git -C "$LINUX" log --reverse --abbrev=12 --format='%h %s' refs/tags/base..refs/heads/hypermi)
exit $failed
