#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Install the Debian packages that are missing, and those named; say which.
set -eu
start=$(date +%s)
export DEBIAN_FRONTEND=noninteractive

packages="b4 bc bison bochs bochs-term bochsbios build-essential busybox-static ccache
coccinelle codespell cpio e2fsprogs flex git isolinux kmod libelf-dev libssl-dev make ovmf
perl python3 python3-git python3-ply qemu-system-x86 rsync seabios shellcheck sparse syslinux-common vgabios
xorriso xz-utils"
packages="$packages $*"
[ -n "${KSRC:-}" ] || packages="$packages linux-source-6.12"

missing=
for package in $packages; do
	status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
	[ "$status" = installed ] || missing="$missing $package"
done
if [ -z "$missing" ]; then
	printf '%-28s ok      %4d s\n' deps 0
	exit 0
fi
echo "deps: installing$missing"
if [ "$(id -u)" != 0 ]; then
	echo "deps: not root; as root: apt-get install$missing" >&2
	exit 1
fi
log=$(dirname "$0")/../build/log/deps.log
mkdir -p "${log%/*}"
# shellcheck disable=SC2086
(apt-get update && apt-get install -y --no-install-recommends $missing) >"$log" 2>&1 </dev/null &
pid=$!
tick=0
while kill -0 $pid 2>/dev/null; do
	sleep 1
	tick=$((tick + 1))
	[ $((tick % 10)) -ne 0 ] || echo "  deps: $tick s: $(tail -n 1 "$log" | cut -c 1-90)"
done
if ! wait $pid; then
	echo "deps: apt-get FAILED; the end of $log:" >&2
	tail -n 15 "$log" >&2
	! grep -q 'locate package linux-source' "$log" ||
		echo "deps: linux-source-6.12 is in Debian 12's bookworm-security; or give KSRC=" >&2
	exit 1
fi
printf '%-28s ok      %4d s\n' deps $(($(date +%s) - start))
