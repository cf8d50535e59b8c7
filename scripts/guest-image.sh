#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# build/guest/: a disk with this Debian's own, unmodified qemu-system-x86_64 and
# the libraries it needs, and a Linux guest (the stock kernel, busybox) for it.
. "$(dirname "$0")/lib.sh"

make_disk() {
	local root=$BUILD/guest/root
	rm -rf "$root" && mkdir -p "$root"/{bin,dev,proc,sys,tmp,guest,usr/share}
	# Everything the binary maps, at the path it looks for.
	ldd /usr/bin/qemu-system-x86_64 | grep -o '/[^ ]*' | sort -u | while read -r lib; do
		mkdir -p "$root${lib%/*}"
		cp -L "$lib" "$root$lib"
	done
	mkdir -p "$root/usr/bin"
	cp /usr/bin/qemu-system-x86_64 "$root/usr/bin/"
	cmp /usr/bin/qemu-system-x86_64 "$root/usr/bin/qemu-system-x86_64"
	cp -rL /usr/share/seabios "$root/usr/share/"
	mkdir -p "$root/usr/share/qemu"
	for rom in /usr/share/qemu/*; do
		[ ! -f "$rom" ] || [ "$(stat -Lc %s "$rom")" -gt 500000 ] || cp -L "$rom" "$root/usr/share/qemu/"
	done
	cp /bin/busybox "$root/bin/busybox"
	for applet in sh cat grep tee; do ln -s busybox "$root/bin/$applet"; done

	local init=$BUILD/guest/init
	rm -rf "$init" && mkdir -p "$init"/{bin,proc,dev}
	cp /bin/busybox "$init/bin/"
	ln -s busybox "$init/bin/sh"
	cat >"$init/init" <<-'END'
		#!/bin/sh
		/bin/busybox mount -t proc proc /proc
		/bin/busybox mount -t devtmpfs dev /dev
		echo "GUEST-IS-UP $(/bin/busybox uname -r) $(/bin/busybox grep -c ^processor /proc/cpuinfo) CPU"
		# A disk of zeroes: write, and read again what was written.
		echo "written by the guest" >/text
		/bin/busybox dd if=/text of=/dev/vda bs=4096 seek=16 conv=sync,fsync 2>/dev/null
		/bin/busybox dd if=/dev/vda iflag=direct bs=4096 skip=16 count=1 2>/dev/null |
			/bin/busybox head -n 1 | /bin/busybox cmp - /text && echo GUEST-READ-ITS-DISK
		# QEMU is the gateway, and serves a copy of this initramfs.
		/bin/busybox ifconfig eth0 10.0.2.15 up
		/bin/busybox tftp -g -r initrd.gz -l /got 10.0.2.2 &&
			/bin/busybox zcat /got | /bin/busybox grep -q GUEST-GOT-A && echo GUEST-GOT-A-FILE
		/bin/busybox poweroff -f
	END
	chmod +x "$init/init"
	(cd "$init" && find . | cpio -o -H newc --quiet -R 0:0 | gzip -1) >"$root/guest/initrd.gz"
	cp "$BUILD/o/stock/arch/x86/boot/bzImage" "$root/guest/"
	du -sh "$root"
	rm -f "$BUILD/guest/disk.img.new"
	mkfs.ext4 -q -d "$root" -L guest "$BUILD/guest/disk.img.new" \
		"$(($(du -sk "$root" | cut -f1) * 5 / 4 + 16384))k"
	rm -rf "$root" "$init"
	mv "$BUILD/guest/disk.img.new" "$BUILD/guest/disk.img"
}

if [ "${1:-}" = --call ]; then shift; "$@"; exit; fi
[ -f "$BUILD/o/stock/arch/x86/boot/bzImage" ] || die "no stock kernel: run 'make build-stock'"
if [ "$BUILD/guest/disk.img" -nt "$BUILD/o/stock/arch/x86/boot/bzImage" ] &&
	[ "$BUILD/guest/disk.img" -nt "$0" ]; then
	exit 0
fi
step guest-image make_disk
