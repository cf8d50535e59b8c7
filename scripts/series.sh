#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# The series and the kernel tree: series.sh tree|export|drift
. "$(dirname "$0")/lib.sh"

# Tests set these to work on a copy.
LINUX=${HYPERMI_LINUX:-$LINUX}
PATCHES=${HYPERMI_PATCHES:-$TOP/patches}
export GIT_AUTHOR_NAME='HyperMI Project' GIT_AUTHOR_EMAIL=hypermi@example.org
export GIT_COMMITTER_NAME=$GIT_AUTHOR_NAME GIT_COMMITTER_EMAIL=$GIT_AUTHOR_EMAIL
BASE=refs/tags/base

format() {	# the series as files in directory $1
	git -C "$LINUX" -c core.abbrev=12 -c diff.algorithm=myers -c diff.renames=true \
		-c format.signOff=false -c diff.noprefix=false -c diff.mnemonicPrefix=false \
		format-patch --quiet --numbered --zero-commit --no-signature --full-index \
		--no-cover-letter --no-base --no-thread --no-attach --stat=75 \
		--subject-prefix=PATCH -o "$1" "$BASE..refs/heads/hypermi"
}

# Debian's .gitignore hides every new file (`/*`): look past that line.
dirty() {
	git -C "$LINUX" status --porcelain --untracked-files=no
	git -C "$LINUX" ls-files --others --exclude=__pycache__ \
		--exclude-from=<(grep -vxF '/*' "$LINUX/.gitignore") | sed 's/^/?? /'
}

# What keeps build/linux and patches/ from being equal; nothing if they are.
difference() {
	local changes tmp
	changes=$(dirty)
	if [ -n "$changes" ]; then
		say "$LINUX has uncommitted changes:"
		head -n 10 <<<"$changes"
	fi
	tmp=$(mktemp -d)
	format "$tmp"
	for file in "$PATCHES"/*.patch; do
		[ -e "$file" ] && [ ! -e "$tmp/${file##*/}" ] &&
			say "only in patches/: ${file##*/}"
	done
	for file in "$tmp"/*.patch; do
		[ -e "$file" ] || continue
		if [ ! -e "$PATCHES/${file##*/}" ]; then
			say "only in build/linux: ${file##*/}"
		elif ! cmp -s "$file" "$PATCHES/${file##*/}"; then
			say "differs: ${file##*/}"
		fi
	done
	rm -rf "$tmp"
}

version_of() {	# of the kernel tree whose Makefile is on stdin
	awk -F' *= *' '/^(VERSION|PATCHLEVEL|SUBLEVEL) =/ { v = v s $2; s = "." }
		/^EXTRAVERSION/ { print v; exit }'
}

unpack() {	# kernel source $1 (tree or tarball) into directory $2
	if [ -d "$1/.git" ] || [ -f "$1/.git" ]; then
		git -C "$1" archive HEAD | tar -x -C "$2"
	elif [ -d "$1" ]; then
		cp -a "$1/." "$2"
	else
		tar -x -f "$1" -C "$2" --strip-components=1
	fi
}

check_version() {
	local version
	version=$(version_of <"$1/Makefile") || true
	case $version in
	6.12.*) say "$version" ;;
	*) die "KSRC=$2 is version '${version:-unknown}', not 6.12: the series applies to 6.12" ;;
	esac
}

make_base() {
	local ksrc=$1 new=$LINUX.new version
	rm -rf "$new"
	mkdir -p "$new"
	unpack "$ksrc" "$new"
	[ -f "$new/Makefile" ] || die "$ksrc holds no kernel tree"
	version=$(check_version "$new" "$ksrc")
	git -C "$new" init -q -b hypermi
	git -C "$new" config user.name "$GIT_AUTHOR_NAME"
	git -C "$new" config user.email "$GIT_AUTHOR_EMAIL"
	git -C "$new" config gc.auto 0
	# -f: the same .gitignore line.
	git -C "$new" add -A -f .
	GIT_AUTHOR_DATE=2026-01-01T00:00:00Z GIT_COMMITTER_DATE=2026-01-01T00:00:00Z \
		git -C "$new" commit -q -m "Linux $version"
	git -C "$new" tag base
	mv "$new" "$LINUX"
}

apply() {
	local patches=("$PATCHES"/*.patch)
	[ -e "${patches[0]}" ] || return 0
	git -C "$LINUX" am --quiet --committer-date-is-author-date "${patches[@]}" || {
		git -C "$LINUX" am --abort
		return 1
	}
}

tree() {
	local ksrc=${KSRC:-/usr/src/linux-source-6.12.tar.xz} changes
	if [ -e "$LINUX/.git" ]; then
		changes=$(difference)
		if [ -n "$changes" ]; then
			say "$changes"
			die "build/linux holds work that is not in patches/: 'make export' keeps it;" \
				"to drop it, remove build/linux yourself"
		fi
		printf '%-28s ok      %4d s  (build/linux equals patches/)\n' tree 0
		return
	fi
	[ -e "$ksrc" ] || die "no kernel source $ksrc: run 'make deps', or set KSRC= to a 6.12 tree or tarball"
	step tree-base make_base "$ksrc"
	if ! step tree-apply apply; then
		git -C "$LINUX" worktree prune
		rm -rf "$LINUX"
		die "the series does not apply to $ksrc"
	fi
}

if [ "${1:-}" = --call ]; then shift; "$@"; exit; fi
case ${1:-} in
tree)
	tree
	;;
export)
	[ -e "$LINUX/.git" ] || die "no build/linux: run 'make tree'"
	changes=$(dirty)
	[ -z "$changes" ] || { say "$changes" | head; die "build/linux has uncommitted changes: commit or stash them first"; }
	mkdir -p "$PATCHES"
	tmp=$(mktemp -d)
	trap 'rm -rf "$tmp"' EXIT
	format "$tmp"
	rm -f "$PATCHES"/*.patch
	find "$tmp" -name '*.patch' -exec cp -t "$PATCHES" {} +
	say "exported $(find "$tmp" -name '*.patch' | wc -l) patches"
	;;
drift)
	[ -e "$LINUX/.git" ] || die "no build/linux: run 'make tree'"
	changes=$(difference)
	[ -z "$changes" ] || { say "$changes"; exit 1; }
	;;
*)
	die "usage: series.sh tree|export|drift"
	;;
esac
