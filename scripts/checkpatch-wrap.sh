#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# checkpatch --strict, by the kernel tree's own script, over each patch given
# (default: the series).  Findings that are left out, and why:
#   FILE_PATH_CHANGES  MAINTAINERS-snippet is added when the series is sent
#   SPACING in the x86 feature lists, where the new line looks as its neighbours
#   EXPORT_SYMBOL      does not know that DEFINE_STATIC_KEY_FALSE() is the variable
#   MACRO_ARG_*        of `test` and `field` in KUnit macros: always plain names
#   MACRO_ARG_*, COMPLEX_MACRO, BRACKET_SPACE of lists of VMCS fields, which are
#                      macros to build tables, and of macros that are empty
#   SPACING            of the operands of an asm goto
#   MACRO_WITH_FLOW_CONTROL of the one that defines functions of attacks_test.c
#   (ARCH_)INCLUDE_LINUX for <asm/nmi.h>, which <linux/nmi.h> does not always include
#   CHECKs of trace events, whose macros look like this everywhere
. "$(dirname "$0")/lib.sh"

[ -x "$LINUX/scripts/checkpatch.pl" ] || die "no build/linux: run 'make tree'"
[ $# -gt 0 ] || set -- "$TOP"/patches/*.patch
[ -e "$1" ] || { say "no patches"; exit 0; }
if [ $# -gt 1 ]; then
	status=0
	printf '%s\0' "$@" | xargs -0 -P "$JOBS" -n 1 "$0" || status=1
	exit $status
fi
status=0
for patch in "$@"; do
	patch=$(realpath "$patch")
	# /usr/bin: its spdxcheck wants Debian's python3, which has python3-ply
	found=$(cd "$LINUX" || exit; PATH=/usr/bin:$PATH scripts/checkpatch.pl --strict --quiet --show-types \
		--terse --showfile --ignore FILE_PATH_CHANGES "$patch" || true)
	found=$(grep -vE -e '^arch/x86/include/asm/(cpu|disabled-)features\.h:[0-9]+: [A-Z]+:SPACING:' \
		-e '^arch/x86/hypermi/(boot|vmx)\.c:[0-9]+: WARNING:EXPORT_SYMBOL:' \
		-e '^arch/x86/hypermi/tests/.*:MACRO_ARG_[A-Z]+: Macro argument (reuse )?.(test|field).' \
		-e '^(arch/x86/hypermi/tests/|drivers/misc/lkdtm/).*:(ARCH_)?INCLUDE_LINUX: .*<linux/nmi\.h>' \
		-e '^arch/x86/include/asm/hypermi_(vcpu|insn)\.h:[0-9]+: [A-Z]+:(MACRO_ARG_[A-Z]+|COMPLEX_MACRO):' \
		-e '^arch/x86/hypermi/world/vmcs_policy\.c:[0-9]+: ERROR:BRACKET_SPACE:' \
		-e '^drivers/misc/lkdtm/hypermi\.c:[0-9]+: CHECK:SPACING: .* .%. ' \
		-e '^tools/testing/selftests/hypermi/attacks_test\.c:[0-9]+: WARNING:MACRO_WITH_FLOW_CONTROL:' \
		-e '^arch/x86/include/asm/trace/hypermi\.h:[0-9]+: CHECK:' \
		-e '^total: ' <<<"$found" || true)
	[ -z "$found" ] || { printf '%s:\n%s\n' "${patch##*/}" "$found"; status=1; }
done
exit $status
