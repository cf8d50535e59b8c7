#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The opcode scanner: scan.py [TREE], scan.py --self-test.

Looks for privileged instructions at every executable byte offset of a built
kernel (TREE, or build/o/hypermi): vmlinux, its modules, the real-mode trampoline
and the HyperMI World.  Writes build/scan.tsv; status 1 while a VMX instruction
other than the gate's VMLAUNCH stands outside world text, 2 if it could not look.

One row per place where an opcode starts: the 0F, or the D5 (REX2), C4 (VEX) or
62 (EVEX) instead of it; not the prefixes before.  An attacker jumps to any byte,
so what is there without a prefix counts as well: 66 0F C7 30 is one row,
VMCLEAR+VMPTRLD, and the REX of a MOV to CR8 does not hide the MOV to CR0.
An instruction counts when the bytes that decide what it is are there.  Bits that
must have one value are not looked at: this reports more, never less.

"intended" is what objdump sees in a linear disassembly; what it does not know
(REX2, EVEX and immediate WRMSRNS, in binutils 2.40) is unintended.

This is a report.  Alternatives, jump labels, static calls and ftrace change text
later, loading fills in the fields of a module and lays out its sections, and the
KASLR position changes 4-byte fields: only the scan at the seal counts.
"""
import argparse
import re
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
CASES = TOP / "selftests/scan-cases.txt"
GATE_SHARED = 0x1000            # of .gate: from here on mapped in both worlds


class Problem(Exception):
    """No report."""


# ------------------------------------------------------------ the instructions

def form(reg, mods=range(4)):
    """The ModRM bytes with this /reg."""
    return frozenset(mod << 6 | reg << 3 | rm for mod in mods for rm in range(8))


MEMORY, REGISTER, ALL_MEMORY = range(3), (3,), frozenset(range(0xc0))
# Name, mandatory prefix, what follows 0F, ModRM if it matters.  Not here because
# they do no harm: VMCALL (fails in VMX root operation), VMFUNC (#UD outside a
# guest), LMSW and CLTS (reach neither PE=0 nor PG nor WP).
LEGACY = [
    ("LLDT", None, b"\x00", form(2)),
    ("LTR", None, b"\x00", form(3)),
    ("LGDT", None, b"\x01", form(2, MEMORY)),
    ("LIDT", None, b"\x01", form(3, MEMORY)),
    ("VMLAUNCH", None, b"\x01\xc2", None),
    ("VMRESUME", None, b"\x01\xc3", None),
    ("VMXOFF", None, b"\x01\xc4", None),
    ("PCONFIG", None, b"\x01\xc5", None),
    ("WRMSRLIST", 0xf3, b"\x01\xc6", None),
    ("WRMSRNS", None, b"\x01\xc6", None),
    ("SEAMCALL", 0x66, b"\x01\xcf", None),
    ("XSETBV", None, b"\x01\xd1", None),
    ("INVD", None, b"\x08", None),
    ("MOV-CR0", None, b"\x22", form(0)),        # the CPU ignores the mod bits
    ("MOV-CR3", None, b"\x22", form(3)),
    ("MOV-CR4", None, b"\x22", form(4)),
    ("WRMSR", None, b"\x30", None),
    ("GETSEC", None, b"\x37", None),
    ("INVEPT", 0x66, b"\x38\x80", ALL_MEMORY),
    ("INVVPID", 0x66, b"\x38\x81", ALL_MEMORY),
    ("VMREAD", None, b"\x78", None),
    ("VMWRITE", None, b"\x79", None),
    ("VMCLEAR", 0x66, b"\xc7", form(6, MEMORY)),
    ("VMXON", 0xf3, b"\xc7", form(6, MEMORY)),
    ("VMPTRLD", None, b"\xc7", form(6, MEMORY)),
    ("VMPTRST", None, b"\xc7", form(7, MEMORY)),
]
# First byte, opcode map and opcode, all with F3 in the pp field: name, ModRM
EXTENDED = {
    (0xc4, 7, 0xf6): ("WRMSRNS (VEX)", form(0, REGISTER)),
    (0x62, 7, 0xf6): ("WRMSRNS (EVEX)", form(0, REGISTER)),
    (0x62, 4, 0xf0): ("INVEPT (EVEX)", ALL_MEMORY),
    (0x62, 4, 0xf1): ("INVVPID (EVEX)", ALL_MEMORY),
}
VMX = {"VMLAUNCH", "VMRESUME", "VMXOFF", "VMXON", "VMCLEAR", "VMPTRLD", "VMPTRST", "VMREAD",
       "VMWRITE", "INVEPT", "INVVPID"}
PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf2\xf3" + bytes(range(0x40, 0x50)))
BY_OPCODE = {row[2][0]: [r for r in LEGACY if r[2][0] == row[2][0]] for row in LEGACY}
OPCODE = b"[" + re.escape(bytes(BY_OPCODE)) + b"]"
CANDIDATE = re.compile(b"\x0f(?=%b)|\xd5(?=[\x80-\xff]%b)|[\xc4\x62]" % (OPCODE, OPCODE), re.S)

# The column "allowed": why, or what will remove it
WORLD = "yes: world text"
GATE = "yes: the way into the world, wherever it is called from"
HARMLESS = {
    "VMREAD": "yes: changes no VMCS; the seal leaves the gate VMCS as the current one",
    "VMRESUME": "yes: fails; the seal leaves the gate VMCS, never launched, as the current one",
}
GATE_CR3 = "no: the gate's cr3 entry; boot overwrites it where the vmx entry is used"
TRAMPOLINE = "no: the seal makes the trampolines non-executable"
INIT = "no: init memory is freed"
ALTERNATIVE = "no: init memory is freed, but alternatives copy this into text"
UNINTENDED = "no: relocated by the seal into a clean slot"
KVM = "no: not on the list of what HyperMI overwrites (HYPERMI_INSN)"
REMOVED = "yes: overwritten when HyperMI comes up with the vmx gate"
NATIVE = "no: becomes a gate operation; the seal makes the native helpers non-executable"


def decode(code, at):
    """What the instruction whose opcode starts at `at` can be, prefixed ones first."""
    if code[at] in (0xc4, 0x62):
        size, mask = (2, 0x1f) if code[at] == 0xc4 else (3, 7)
        tail = code[at + 1:at + size + 3]
        if len(tail) < size + 2 or tail[1] & 3 != 2:
            return []
        name, modrm = EXTENDED.get((code[at], tail[0] & mask, tail[size]), ("", ()))
        return [name] if tail[size + 1] in modrm else []
    start = at
    while start and at - start < 14 and code[start - 1] in PREFIXES:
        start -= 1
    rex2 = code[at] == 0xd5
    tail, names = code[at + 1 + rex2:at + 4 + rex2], []
    for name, prefix, opcode, modrm in BY_OPCODE[tail[0]]:
        # With REX2, rows 3 and 8 of the map are #UD; R3 and R4 select other CRs.
        if rex2 and (opcode[0] >> 4 in (3, 8) or opcode == b"\x22" and code[at + 1] & 0x44):
            continue
        if tail.startswith(opcode) and (prefix is None or prefix in code[start:at]) and \
                (modrm is None or len(tail) > len(opcode) and tail[len(opcode)] in modrm):
            names.append(name + " (REX2)" * rex2)
    return names


# -------------------------------------------------------------------- the files

@dataclass
class Section:
    """An executable section."""
    name: str
    address: int
    code: bytes
    symbols: list               # (address, name)

    def where(self, address):
        base, name = [(self.address, self.name),
                      *(s for s in self.symbols if s[0] <= address)][-1]
        return f"{name}+{address - base:#x}"


def run(*argv):
    done = subprocess.run(list(map(str, argv)), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise Problem(f"{argv[0]} failed on {argv[-1]}")
    return done.stdout


def sections(path):
    """The executable sections by address, and the addresses of init memory."""
    text, data, found, symbols, init = run("readelf", "-SsW", path), path.read_bytes(), {}, {}, {}
    for number, name, kind, address, offset, size, flags in re.findall(
            r"^ +\[ *(\d+)\] (\S+) +([A-Z]\S*) +(\w+) (\w+) (\w+) \w\w +(\w*) +\d+ +\d+ +\d+$",
            text, re.M):
        begin, length = int(offset, 16), int(size, 16)
        if not {"A", "X"} <= set(flags) or not length:
            continue
        found[number] = Section(name, int(address, 16), data[begin:begin + length], [])
        if kind != "PROGBITS" or len(found[number].code) != length:
            raise Problem(f"{path}: cannot read the section {name}")
    for value, kind, number, name in re.findall(
            r"^ *\d+: (\w+) +\w+ (NOTYPE|FUNC) +\w+ +\w+ +(\w+) (\S+)", text, re.M):
        if name in ("__init_begin", "__init_end"):
            init[name] = int(value, 16)
        if number in found and not name.startswith(".L"):
            symbols.setdefault(number, []).append((int(value, 16), kind == "FUNC", name))
    if not found or len({s.name for s in found.values()}) != len(found):
        raise Problem(f"{path}: no executable section, or two of one name")
    for number, some in symbols.items():    # the last of several in one place counts
        some.sort(key=lambda s: (s[0], s[1], -len(s[2]), s[2]))
        found[number].symbols = [(value, name) for value, _, name in some]
    return sorted(found.values(), key=lambda s: s.address), \
        range(init.get("__init_begin", 0), init.get("__init_end", 0))


def removed(path):
    """Start addresses of the instructions that HyperMI overwrites when it comes up."""
    match = re.search(r" \.hypermi_insn +PROGBITS +(\w+) (\w+) (\w+) ", run("readelf", "-SW", path))
    if not match:
        return set()
    address, offset, size = (int(number, 16) for number in match.groups())
    offsets = struct.unpack(f"<{size // 4}i", path.read_bytes()[offset:offset + size])
    return {address + 4 * i + value for i, value in enumerate(offsets)}


def hits(parts):
    """(section, address, names).  Sections that touch are scanned as one."""
    regions = []
    for part in parts:
        last = regions[-1][-1] if regions else None
        if last and last.address + len(last.code) == part.address:
            regions[-1].append(part)
        else:
            regions.append([part])
    for region in regions:
        code = b"".join(part.code for part in region)
        for match in CANDIDATE.finditer(code):
            names, address = decode(code, match.start()), region[0].address + match.start()
            if names:
                yield [p for p in region if p.address <= address][-1], address, names


def disassemble(path, section, addresses):
    """address -> start and text of the instruction that objdump sees there."""
    argv = ["objdump", "-dw", "--no-show-raw-insn", "-j", section.name]
    if path.name == "realmode.elf":
        argv += ["-m", {".text": "i8086", ".text32": "i386"}.get(section.name, "i386:x86-64")]
    wanted, found, previous = sorted(addresses, reverse=True), {}, (0, "")
    with subprocess.Popen([*argv, str(path)], stdout=subprocess.PIPE) as objdump:
        for line in objdump.stdout:
            start, tab, text = line.partition(b":\t")
            if tab:
                start = int(start, 16)
                while wanted and wanted[-1] < start:
                    found[wanted.pop()] = previous
                previous = (start, text.decode())
    if objdump.returncode or not previous[1]:
        raise Problem(f"objdump failed on {path}, {section.name}")
    return found | dict.fromkeys(wanted, previous)


def meant(section, address, names, start, text):
    """The one of the names that objdump sees, if any."""
    if not PREFIXES.issuperset(section.code[start - section.address:address - section.address]):
        return None
    for name in names:
        if name.startswith("MOV"):
            if f",%{name[4:].lower()}" in text:
                return name
        elif any(word.startswith(name.lower()) for word in text.split()):
            return name
    return None


# ------------------------------------------------------------------ the report

def bare(names):
    return [name.split()[0] for name in names]      # without "(REX2)"


def verdict(image, section, names, intended, init, gone=False):
    if image == "world":
        return WORLD
    if image == "gate" and intended:
        return GATE if names == ["VMLAUNCH"] else GATE_CR3
    if HARMLESS.keys() >= set(bare(names)):
        return HARMLESS[bare(names)[0]]
    if gone:
        return REMOVED
    if init:
        return ALTERNATIVE if section == ".altinstr_replacement" else INIT
    if not intended:
        return UNINTENDED
    if image == "realmode":
        return TRAMPOLINE
    return KVM if VMX & set(bare(names)) else NATIVE


def scan(image, path):
    """The rows of a file."""
    parts, init = sections(path)
    # In an object that is not linked yet the list is all relocations.
    gone = removed(path) if path.suffix != ".ko" else set()
    found, rows = list(hits(parts)), []
    for part in parts:
        mine = [(address, names) for section, address, names in found if section is part]
        seen = disassemble(path, part, [address for address, _ in mine]) if mine else {}
        for address, names in mine:
            name = meant(part, address, names, *seen[address])
            names.sort(key=lambda n, first=name: n != first)
            # The first page of the gate is mapped in the world only.
            owner = "gate" if image == "world" and part.name == ".gate" and \
                address - part.address >= GATE_SHARED else image
            allowed = verdict(owner, part.name, names, name is not None,
                              address in init or part.name.startswith(".init"),
                              seen[address][0] in gone)
            rows.append((owner, part.where(address), "+".join(names),
                         "yes" if name else "no", allowed))
    return rows


def offending(rows):
    """What keeps the status at 1."""
    return [r for r in rows if r[4].startswith("no") and VMX & set(bare(r[2].split("+")))]


def report(tree, output):
    images = [("vmlinux", tree / "vmlinux"),
              ("realmode", tree / "arch/x86/realmode/rm/realmode.elf")]
    if (tree / "arch/x86/hypermi").is_dir():
        images.append(("world", tree / "arch/x86/hypermi/world/world.elf"))
    images += [(module.name, module) for module in sorted(tree.rglob("*.ko"))]
    for _, path in images:
        if not path.exists():
            raise Problem(f"no {path}: run 'make build-{tree.name}'")
    rows, table = [row for image in images for row in scan(*image)], {}
    output.write_text("\n".join("\t".join(row) for row in [
        ("image", "symbol+offset", "instruction", "intended", "allowed"), *rows]) + "\n")

    for image, _, names, intended, allowed in rows:
        count = table.setdefault((names.split("+")[0], image), Counter())
        count.update([intended, allowed.partition(":")[0] + " allowed"])
    print(f"{'instruction':<16} {'image':<16} {'intended':>8} {'unintended':>10} {'not allowed':>11}")
    for (name, image), count in sorted(table.items()):
        print(f"{name:<16} {image:<16} {count['yes']:>8} {count['no']:>10} {count['no allowed']:>11}")
    bad = offending(rows)
    print(f"\n{len(rows)} places in {len(images)} files: {output}\n"
          "As linked: patching at run time and the KASLR position change bytes, so only the scan\n"
          "at the seal counts.\n"
          f"{len(bad)} VMX instructions that are not allowed outside the world, "
          f"{sum(r[3] == 'yes' for r in bad)} of them intended")
    return 1 if bad else 0


# --------------------------------------------------------------- the self-test

def self_test():
    source, want = ['.macro part name, align=64; .section \\name, "ax"; .balign \\align; .endm'], []
    for i, line in enumerate(CASES.read_text().splitlines()):
        if not line or line.startswith("#"):
            continue
        assembly, found = (part.strip() for part in line.split("|"))
        # The NOPs keep objdump from taking odd bytes into the next case.
        source.append(f".text; .fill 16, 1, 0x90; line{i + 1}: {assembly}")
        label = re.match(r"part ([.\w]+)|", assembly)[1] or f"line{i + 1}"
        for row in found.split(";") if found else []:
            at, name, intended = re.fullmatch(r" *(\d+) (.+) (yes|no)", row).groups()
            want.append((f"{label}+{int(at):#x}", name, intended))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "planted")
        path.with_suffix(".S").write_text("\n".join(source + [".text; .fill 16, 1, 0x90"]) + "\n")
        run("gcc", "-c", "-o", path.with_suffix(".o"), path.with_suffix(".S"))
        run("ld", "-e", "0", "-o", path, path.with_suffix(".o"))
        rows, world = scan("vmlinux", path), scan("world", path)
        module = scan("planted.ko", path.with_suffix(".o"))
    got, want = Counter(row[1:4] for row in rows), Counter(want)
    wrong = [f"not found: {row}" for row in want - got] + \
        [f"found, but not there: {row}" for row in got - want]
    # Not linked, as a module: all but what is over a seam
    if want - Counter(row[1:4] for row in module) != Counter([(".f0+0x0", "MOV-CR4", "no")]):
        wrong.append("wrong in the object that is not linked")
    allowed = {name for row in rows if row[4].startswith("yes") for name in bare(row[2].split("+"))}
    counted = {name for row in offending(rows) for name in bare(row[2].split("+"))}
    in_gate = [(n, i) for n in bare(row[0] for row in LEGACY) for i in (True, False)
               if verdict("gate", ".gate", [n], i, False).startswith("yes")]
    for what, good in (("harmless", allowed == set(HARMLESS)), ("VMX", counted == VMX - allowed),
                       ("the world", {row[4] for row in world} == {WORLD}),
                       ("the gate", set(in_gate) == {("VMLAUNCH", True), ("VMREAD", False),
                                                     ("VMRESUME", False)})):
        wrong += [] if good else [f"wrong about what is allowed: {what}"]
    print("\n".join(wrong + [f"{sum(want.values())} planted, {len(wrong)} wrong"]))
    return 1 if wrong else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tree", nargs="?", type=Path, default=TOP / "build/o/hypermi")
    parser.add_argument("--output", type=Path, default=TOP / "build/scan.tsv")
    parser.add_argument("--self-test", action="store_true")
    args = parser.parse_args()
    try:
        return self_test() if args.self_test else report(args.tree, args.output)
    except (OSError, Problem) as problem:
        print(f"scan.py: {problem}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
