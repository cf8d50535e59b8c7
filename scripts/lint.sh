#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# Static checks.  One line per item; status 1 if any failed.
. "$(dirname "$0")/lib.sh"

failed=0
run() {	# a row of its own in the results of `make check`
	local start=$SECONDS result=pass
	step "$@" || { failed=1 result=fail; }
	[ -z "${HYPERMI_RESULTS:-}" ] ||
		printf 'lint\t%s\t%s\t%d\n' "$1" $result $((SECONDS - start)) >>"$HYPERMI_RESULTS"
}

# Files the series touches, by suffix; generated objects of the HyperMI build.
touched() {
	git -C "$LINUX" diff --name-only --diff-filter=d refs/tags/base refs/heads/hypermi -- "$@"
}

sparse() {
	local out=$BUILD/o/kunit objects=() file new
	while read -r file; do
		# only what this configuration compiled as a kernel object
		[ ! -e "$out/${file%.c}.o" ] || objects+=("${file%.c}.o")
	done < <(touched '*.c' ':!tools')
	[ ${#objects[@]} -gt 0 ] || { echo "no touched C file is built"; return 0; }
	make -C "$LINUX" O="$out" -j"$JOBS" C=2 "${objects[@]}" 2>&1 | tee "$BUILD/log/sparse.out"
	# Old code in the same files may have findings of its own: only lines that
	# the series added count.
	new=$(findings "$BUILD/log/sparse.out")
	[ -z "$new" ] || { echo "on lines of the series:"; echo "$new"; return 1; }
}

# Of the file:line: messages in $1, those on lines the series added.
findings() {
	git -C "$LINUX" diff -U0 refs/tags/base refs/heads/hypermi |
	awk -v tree="$LINUX/" '
		FNR == NR && /^\+\+\+ b\// { file = substr($2, 3); next }
		FNR == NR && /^@@/ { split(substr($3, 2), at, ","); n = at[2] == "" ? 1 : at[2];
			for (i = 0; i < n; i++) added[file ":" at[1] + i]; next }
		FNR == NR { next }
		/(warning|error|WARNING|ERROR):? / { line = $0; sub(tree, "", line); sub(/^(\.\.\/)+/, "", line);
			split(line, part, ":"); if ((part[1] ":" part[2]) in added) print line }
	' - "$1"
}

kernel_doc() {
	local file new
	# As for sparse: mm/pgtable.c, say, has 13 of its own.
	touched '*.c' '*.h' ':!tools' |
		while read -r file; do "$LINUX/scripts/kernel-doc" -none "$LINUX/$file"; done \
		>"$BUILD/log/kernel-doc.out" 2>&1 || true
	new=$(findings "$BUILD/log/kernel-doc.out")
	[ -z "$new" ] || { echo "on lines of the series:"; echo "$new"; return 1; }
}

cocci_one() {	# rule, file
	timeout 60 spatch --no-show-diff --very-quiet -D report --timeout 20 -I "$LINUX/include" \
		--cocci-file "$LINUX/scripts/coccinelle/$1" "$LINUX/$2" 2>/dev/null || true
}

coccicheck() {
	local file files=()
	mapfile -t files < <(touched '*.c' ':!tools')
	[ ${#files[@]} -gt 0 ] || { echo "no C file is touched"; return 0; }
	# Every rule of the tree over one file takes a minute: the quick, relevant ones.
	# Not mini_lock: half of the MMU returns with the lock its caller took.
	local rules=(free/kfree.cocci free/ifnullfree.cocci locks/double_lock.cocci
		null/deref_null.cocci misc/returnvar.cocci
		misc/semicolon.cocci misc/doubleinit.cocci
		api/alloc/zalloc-simple.cocci tests/unsigned_lesser_than_zero.cocci)
	for rule in "${rules[@]}"; do
		[ -e "$LINUX/scripts/coccinelle/$rule" ] || { echo "no rule $rule"; return 1; }
	done
	# One line at a time comes out of each, so they do not mix.
	for rule in "${rules[@]}"; do printf "$rule %s\n" "${files[@]}"; done |
		xargs -P "$JOBS" -L 1 "$0" --call cocci_one >"$BUILD/log/cocci.out"
	sed -n '/^[^:]*:[0-9]/s/$/ WARNING: /p' "$BUILD/log/cocci.out" >"$BUILD/log/cocci.lines"
	local new
	new=$(findings "$BUILD/log/cocci.lines")
	[ -z "$new" ] || { echo "$new"; return 1; }
}

spelling() {
	local file status=0
	cd "$TOP" || exit	# for .codespellrc
	for file in "$TOP"/patches/*.patch; do
		[ -e "$file" ] || continue
		sed -n '/^diff --git/q; p' "$file" | codespell - || status=1
		grep -h '^+' "$file" | codespell - || status=1
	done
	codespell "$TOP/README.md" "$TOP/Documentation" "$TOP/scripts" "$TOP/selftests" \
		"$TOP/patches/cover-letter.txt" "$TOP/Makefile" "$TOP/.ci/run" || status=1
	return "$status"
}

scripts() {
	local file files=()
	while read -r file; do
		! head -n 3 "$file" | grep -qE '^#!/bin/(ba)?sh|shell=bash' || files+=("$file")
	done < <(find "$TOP" -path "$BUILD" -prune -o -path "$TOP/.git" -prune -o -type f -print)
	(cd "$TOP" && shellcheck "${files[@]}") || return 1
	python3 -m py_compile "$TOP"/scripts/*.py "$TOP"/selftests/machine.py "$TOP"/selftests/run
}

spdx() {
	local file status=0
	while read -r file; do
		case $file in
		*.patch | */COPYING | */cover-letter.txt | */MAINTAINERS-snippet | */README.md) continue ;;
		esac
		head -n 3 "$file" | grep -q SPDX-License-Identifier ||
			{ echo "no SPDX line: $file"; status=1; }
	done < <(find "$TOP" -path "$BUILD" -prune -o -path "$TOP/.git" -prune -o \
		-name __pycache__ -prune -o -type f -print)
	return "$status"
}

if [ "${1:-}" = --call ]; then shift; "$@"; exit; fi
[ -e "$LINUX/.git" ] || "$TOP/scripts/series.sh" tree
run checkpatch "$TOP/scripts/checkpatch-wrap.sh"
# The KUnit kernel has all that the series adds.
"$TOP/scripts/build.sh" kunit || failed=1
run sparse sparse
run kernel-doc kernel_doc
run coccinelle coccicheck
run codespell spelling
run shellcheck scripts
run spdx spdx
exit $failed
