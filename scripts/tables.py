#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Write Documentation/tables.rst from build/attacks.tsv and build/bench.tsv.

What is measured is typed nowhere: `make demo bench` measures, this prints.  Fails
when a row it has words for was not measured, or has none for one that was.
"""
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
BUILD = TOP / "build"
OUT = TOP / "Documentation" / "tables.rst"

# Title, and rows of bench.tsv: the name there, and what it is
BENCHES = [
    ("A VM exit and what KVM does until the next entry (``exits_bench``)", [
        ("exit-cpuid", "CPUID"),
        ("exit-msr", "MSR read"),
        ("exit-io", "OUT to a port nobody has, to the VMM"),
        ("exit-hlt", "HLT, with a system call"),
        ("ept-violation", "EPT violation, a small page"),
        ("vm-create-destroy", "a VM created and destroyed"),
    ]),
    ("Changes of a VM's page tables (``mmu_bench``)", [
        ("ept-violation-4k", "EPT violation, 4 KiB"),
        ("ept-violation-2m", "EPT violation, 2 MiB"),
        ("ept-violation-2m-again", "the same, of memory mapped as a whole before"),
        ("zap-2m", "2 MiB of small pages zapped (mprotect)"),
        ("dontneed-2m", "2 MiB given back (MADV_DONTNEED)"),
        ("slot-delete-64m", "memslot of 64 MiB deleted"),
        ("dirty-log-on-64m", "dirty log on, 64 MiB of small pages"),
        ("dirty-log-on-64m-huge", "dirty log on, 64 MiB of 2 MiB pages"),
        ("dirty-log-get-64m", "dirty log read, 64 MiB"),
        ("dirty-log-off-64m", "dirty log off, 64 MiB"),
        ("vm-destroy-64m", "VM with 64 MiB destroyed"),
        ("zap-1g", "1 GiB of small pages zapped (mprotect)"),
        ("zap-1g-huge", "1 GiB of 2 MiB pages zapped (mprotect)"),
    ]),
    ("Switches and flushes (``switch_bench``)", [
        ("switch-pipe", "switch of processes, by a pipe"),
        ("switch-pipe-off", "the same, ``hypermi=off``"),
        ("switch-yield", "switch of processes, by a yield"),
        ("switch-yield-off", "the same, ``hypermi=off``"),
        ("flush-global", "global flush of the TLB"),
        ("flush-global-off", "the same, ``hypermi=off``"),
        ("flush-local", "local flush of the TLB"),
        ("flush-local-off", "the same, ``hypermi=off``"),
        ("flush-global-noinvpcid", "global flush, no INVPCID"),
        ("flush-local-noinvpcid", "local flush, no INVPCID"),
    ]),
    ("DMA, no IOMMU (``dma_bench``)", [
        ("dma-map-4k-on", "4 KiB mapped and unmapped"),
        ("dma-map-4k-off", "the same, ``hypermi=off``"),
        ("dma-map-sg-128k-on", "128 KiB, 32 pages in a list"),
        ("dma-map-sg-128k-off", "the same, ``hypermi=off``"),
    ]),
    ("A call of the gate; stock is a toggle of CR0.WP (KUnit ``gate_cost``)", [
        ("gate-cr3", "``cr3`` entry"),
        ("gate-vmx", "``vmx`` entry"),
    ]),
]


def read(name):
    path = BUILD / name
    if not path.exists():
        sys.exit(f"tables: no build/{name}: 'make demo bench' writes it")
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return lines[0], lines[1:]


def table(head, rows):
    widths = [max(len(row[i]) for row in [head] + rows) for i in range(len(head))]
    rule = "  ".join("=" * width for width in widths)

    def line(row):
        return "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
    return [rule, line(head), rule, *map(line, rows), rule, ""]


def main():
    out = [".. SPDX-License-Identifier: GPL-2.0-only", "",
           ".. Written by scripts/tables.py: do not edit.", ""]
    head, attacks = read("attacks.tsv")
    out += ["Attacks (``make demo``):", ""] + table(head, attacks)

    measured = {row[0]: row for row in read("bench.tsv")[1]}
    problems = []
    for title, wanted in BENCHES:
        rows = []
        for name, words in wanted:
            if name not in measured:
                problems.append(f"{name} was not measured")
                continue
            _, unit, stock, ours, ratio = measured[name]
            if not unit.startswith("instructions"):
                problems.append(f"{name} is in {unit}: not to be published")
            rows.append([words, f"{int(stock):,}", f"{int(ours):,}", ratio])
        out += [f"{title}, in instructions:", ""] + \
            table(["..", "stock", "HyperMI", "ratio"], rows)
    known = {name for _, wanted in BENCHES for name, _ in wanted}
    problems += [f"{name} has no words here" for name, row in measured.items()
                 if row[1].startswith("instructions") and name not in known
                 and "-noinvpcid" not in name]
    if problems:
        sys.exit("\n".join(f"tables: {p}" for p in problems))
    OUT.write_text("\n".join(out).rstrip() + "\n", encoding="utf-8")
    print(f"tables: wrote {OUT.relative_to(TOP)}: {len(attacks)} attacks, {len(known)} measurements")


if __name__ == "__main__":
    main()
