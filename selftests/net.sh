#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# In the q35 machine: full-size packets to the emulator's gateway and back, and
# what HyperMI has refused on the way (nothing).
count() { cat /sys/kernel/hypermi/dma_refused /sys/kernel/hypermi/violations 2>/dev/null; }
before=$(count)
ifconfig eth0 10.0.2.15 up || exit 1
for _ in 1 2 3 4 5 6 7 8 9 10; do
	ping -c 1 -W 1 10.0.2.2 >/dev/null && break
done
ping -c 50 -i 0.02 -s 1400 -W 2 10.0.2.2 | tail -n 2
ping -c 20 -i 0.02 -s 1400 -W 2 10.0.2.2 | grep -q ' 0% packet loss' || exit 1
[ "$(count)" = "$before" ] || { echo "something was refused"; exit 1; }
dmesg | grep -i 'DMAR.*fault' && exit 1
exit 0
