#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# Whether lint.sh finds anything: a copy of the project with a defect of each kind,
# on each of which the check that is for it has to fail.
. "$(dirname "$0")/lib.sh"

copy=$BUILD/lint-test
rows=$copy/build/lint.tsv
file=arch/x86/hypermi/release.c

seed() {
	rm -rf "$copy"
	mkdir -p "$copy/build"
	git -C "$TOP" ls-files -z --cached --others --exclude-standard |
		tar -C "$TOP" --null --files-from=- -c | tar -C "$copy" -x
	git clone -q --shared --branch hypermi "$LINUX" "$copy/build/linux"

	# For checkpatch, sparse, kernel-doc, coccinelle and codespell (whose word is in pieces)
	printf '%s\n' '' '/* Te''h release of nothing */' 'void *hypermi_seeded;' \
		'/**' ' * seeded() - defects' ' */' 'static void __maybe_unused seeded(void *p)' '{' \
		$'\tif(hypermi_seeded)' $'\t\treturn;' $'\tif (p)' $'\t\tkfree(p);' '}' \
		>>"$copy/build/linux/$file"
	sed -i 's,^#include <linux/smp.h>,&\n#include <linux/slab.h>,' "$copy/build/linux/$file"
	git -C "$copy/build/linux" -c user.name=seed -c user.email=seed@example.org \
		commit -q -a -m 'x86/hypermi: Plant defects' -m 'For the test of the checks.' \
		-m 'Signed-off-by: seed <seed@example.org>'
	"$copy/scripts/series.sh" export

	# For shellcheck, and without a licence
	printf '%s\n' '#!/bin/sh' "rm \$1" >"$copy/scripts/seeded.sh"
}

# The check $1 failed, and its log says $2.
found() {
	if ! grep -q "^lint.$1.fail" "$rows"; then
		say "lint-test: $1 did not fail"
	elif ! grep -q -e "$2" "$copy/build/log/$1.log"; then
		say "lint-test: $1 failed, but not for: $2"
	else
		say "lint-test: $1 finds what it should"
		return 0
	fi
	return 1
}

if [ "${1:-}" = --call ]; then shift; "$@"; exit; fi
[ -e "$LINUX/.git" ] || "$TOP/scripts/series.sh" tree
step lint-test-seed seed
start=$SECONDS
if HYPERMI_RESULTS=$rows "$copy/scripts/lint.sh" >"$BUILD/log/lint-test.log" 2>&1; then
	die "lint.sh is content: see $BUILD/log/lint-test.log"
fi
say "lint.sh on the copy: $((SECONDS - start)) s"
failed=0
found checkpatch 'release.c.*SPACING' || failed=1
found sparse "'hypermi_seeded' was not declared" || failed=1
found kernel-doc "'p' not described in 'seeded'" || failed=1
found coccinelle 'release.c.*NULL check before' || failed=1
found codespell 'Te''h ==> The' || failed=1
found shellcheck 'seeded.sh' || failed=1
found spdx 'seeded.sh' || failed=1
[ "$(grep -c '' "$rows")" = 7 ] || { say "lint-test: a check has no seeded defect"; failed=1; }
[ $failed -ne 0 ] || rm -rf "$copy"
exit $failed
