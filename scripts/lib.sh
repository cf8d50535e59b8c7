# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash disable=SC2034
# Sourced by the scripts: where things are, and `step`.
set -euo pipefail
TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BUILD=$TOP/build
LINUX=$BUILD/linux
JOBS=${JOBS:-$(nproc)}
export PATH=/usr/lib/ccache:$PATH:/usr/sbin:/sbin
export CCACHE_BASEDIR=$BUILD CCACHE_NOHASHDIR=1
export KBUILD_BUILD_TIMESTAMP='2026-01-01' KBUILD_BUILD_USER=hypermi KBUILD_BUILD_HOST=build
mkdir -p "$BUILD/log"

say() { printf '%s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# step NAME COMMAND...: run it with its output in build/log/NAME.log; a line at
# the end with the elapsed time, one every 10 s meanwhile.  A function is run by
# a fresh shell (`--call`), because `step f || ...` would take `set -e` from it.
step() {
	local name=$1 log=$BUILD/log/$1.log start=$SECONDS pid status=0 next=10
	shift
	[ "$(type -t "$1")" != function ] || set -- "$0" --call "$@"
	"$@" >"$log" 2>&1 </dev/null &
	pid=$!
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.2
		if [ $((SECONDS - start)) -ge "$next" ]; then
			next=$((next + 10))
			printf '  %s: %d s: %.90s\n' "$name" $((SECONDS - start)) \
				"$(tail -n 1 "$log" | tr -d '\r')"
		fi
	done
	wait "$pid" || status=$?
	if [ "$status" -ne 0 ]; then
		printf '%-28s FAILED  %4d s, status %d; the end of %s:\n' \
			"$name" $((SECONDS - start)) "$status" "$log"
		tail -n 15 "$log" | sed 's/^/    /'
		return "$status"
	fi
	printf '%-28s ok      %4d s\n' "$name" $((SECONDS - start))
}
