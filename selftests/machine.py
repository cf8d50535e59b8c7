# SPDX-License-Identifier: GPL-2.0-only
"""The test machine: an initramfs with programs in it, booted in Bochs or QEMU.

Inside the machine /init relays every line of a program's output, and a marker
before and after each program, through /dev/kmsg: one stream, in order, never
torn by a kernel message.  The markers carry a number drawn for this run, so no
program prints one by accident.
"""
import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
BUILD = TOP / "build"
OVMF = Path("/usr/share/OVMF")
# A second inside Bochs is about 1.1e9 instructions: this many seconds outside.
BOCHS_SLOWDOWN = 20
OOPS = re.compile(r"Oops: |kernel BUG at|BUG: |general protection fault|"
                  r"stack segment|double fault|invalid opcode: ")
PANIC = re.compile(r"Kernel panic - |reboot: System halted|Attempted to kill init")
STAMP = re.compile(r"\[ *(\d+\.\d+)\] ?(?:\[ *[TC]\d+\] ?)?")

INIT = """#!/bin/sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /disk
/bin/busybox --install -s /bin
export PATH=/bin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mkdir -p /dev/shm /dev/hugepages
mount -t tmpfs shm /dev/shm
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
mount -t hugetlbfs hugetlbfs /dev/hugepages 2>/dev/null
[ -b /dev/sda ] && mount -t ext4 -o ro /dev/sda /disk
ulimit -c 0
say() { echo "<1>@MARK@ $*" > /dev/kmsg; }
one() {
	n=$1; shift
	say begin "$n"
	echo 255 > /tmp/status
	{ timeout -s KILL @LIMIT@ "$@" < /dev/null; echo $? > /tmp/status; } 2>&1 |
	while IFS= read -r line || [ -n "$line" ]; do say out "$n" "$line"; done
	say end "$n" "$(cat /tmp/status)"
}
cd /prog
@RUNS@
say done
poweroff -f
"""

BOCHSRC = """\
plugin_ctrl: unmapped=1, biosdev=1, speaker=0, extfpuirq=1, parallel=0, serial=1
display_library: term
memory: guest={memory}, host={resident}
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
cpu: model={model}, count={cpus}, quantum=32, ips=50000000, reset_on_triple_fault=0, ignore_bad_msrs=1
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
{drives}
boot: cdrom
com1: enabled=1, mode=file, dev={dir}/serial.log
clock: sync=none, time0=local
log: {dir}/bochs.log
panic: action=fatal
error: action=report
info: action=ignore
debug: action=ignore
pci: enabled=1, chipset=i440fx
"""


SCREEN = re.compile(rb'connected to screen "([^"]+)"')


class Problem(Exception):
    """Something the caller of the machine must put right."""


def find_program(word):
    """The file of a program: a path, or the name of a self-test that is built."""
    places = [Path(word)]
    if "/" not in word:
        places += sorted(BUILD.glob("o/selftests/*/" + word))
        places += sorted(BUILD.glob("o/selftests/*/x86_64/" + word))
    for path in places:
        if path.is_file():
            return path
    raise Problem(f"no program {word} (self-tests are built by: make build-selftests)")


def check_program(path):
    head = path.read_bytes()[:2]
    if head == b"#!":
        return
    out = subprocess.run(["readelf", "-lW", path], capture_output=True, text=True)
    if out.returncode or "Program Headers" not in out.stdout:
        raise Problem(f"{path} is neither a script nor an x86-64 program")
    if "INTERP" in out.stdout:
        raise Problem(f"{path} is not static: link it with -static")


def kernel_image(kernel, image=None):
    path = Path(image or BUILD / "o" / kernel / "arch/x86/boot/bzImage")
    if not path.is_file():
        hint = "" if image else f": run 'make build-{kernel}'"
        raise Problem(f"no kernel {path}{hint}")
    return path


def command_line(kernel, append=""):
    """PTI off: HyperMI does not come up with it.  What is appended wins.

    Idle CPUs use HLT: in Bochs 2.7 a MONITOR on one CPU disarms those that sleep
    in MWAIT without waking them up, and Linux sends these no IPI.
    """
    words = ["console=ttyS0,115200", "nopti", "idle=nomwait"]
    if os.environ.get("HYPERMI_KASLR") != "1":
        words.append("nokaslr")
    if not kernel.endswith("stock"):
        words.append("hypermi=on")
    if kernel == "q35":
        words.append("kunit.enable=0")  # it has the suites, for kunit.py
    return " ".join(words + [append]).strip()


def vmx_backend():
    want = os.environ.get("VMX", "auto")
    if want not in ("auto", "bochs", "kvm", "tcg"):
        raise Problem(f"VMX={want}: must be auto, bochs, kvm (or tcg: QEMU, no VMX at all)")
    usable = (re.search(r"^flags.*\bvmx\b", Path("/proc/cpuinfo").read_text(), re.M)
              and os.access("/dev/kvm", os.R_OK | os.W_OK))
    if want == "kvm" and not usable:
        raise Problem("VMX=kvm: needs the vmx flag in /proc/cpuinfo and a usable /dev/kvm")
    if want == "auto":
        return "kvm" if usable else "bochs"
    return want


def backend_for(kernel):
    """The kernels with an IOMMU driver are for a machine that has one."""
    return "q35" if kernel.startswith("q35") else vmx_backend()


class Machine:
    def __init__(self, image, programs, cpus=1, cmdline="", timeout=600, memory=2048,
                 extra=(), disk=None, backend=None, model="corei7_skylake_x",
                 survives_panic=False):
        self.image, self.cpus, self.timeout, self.memory = Path(image), cpus, timeout, memory
        self.disk = Path(disk).resolve() if disk else None
        self.model = model      # of the CPU, for Bochs
        self.survives_panic = survives_panic    # another kernel takes over
        self.backend = backend or vmx_backend()
        self.mark = "run-" + os.urandom(6).hex()
        self.cmdline = f"printk.devkmsg=on printk.time=1 {cmdline}"
        self.commands = [shlex.split(p) for p in programs]
        self.extra = extra
        (BUILD / "run").mkdir(parents=True, exist_ok=True)
        self.dir = Path(tempfile.mkdtemp(prefix=time.strftime("%m%d-%H%M%S-"), dir=BUILD / "run"))
        self.serial = self.dir / "serial.log"

    def _initramfs(self):
        root = self.dir / "root"
        for name in ("bin", "prog"):
            (root / name).mkdir(parents=True)
        busybox = Path("/bin/busybox")
        if not busybox.exists():
            raise Problem("no /bin/busybox: run 'make deps'")
        check_program(busybox)
        shutil.copy(busybox, root / "bin/busybox")
        (root / "bin/sh").symlink_to("busybox")
        runs = []
        for number, (word, *args) in enumerate(self.commands, 1):
            path = find_program(word)
            check_program(path)
            target = root / "prog" / path.name
            if not target.exists():
                shutil.copy(path, target)
                target.chmod(0o755)
                subprocess.run(["strip", target], stderr=subprocess.DEVNULL, check=False)
            runs.append(shlex.join(["one", str(number), "./" + path.name, *args]))
        for item in self.extra:
            source, _, where = item.partition(":")
            target = root / (where or Path(source).name).lstrip("/")
            if not Path(source).is_file():
                raise Problem(f"no file {source} to add")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
        limit = self.timeout // (BOCHS_SLOWDOWN if self.backend == "bochs" else 1)
        init = INIT.replace("@MARK@", self.mark).replace("@LIMIT@", str(max(limit, 5)))
        (root / "init").write_text(init.replace("@RUNS@", "\n".join(runs)))
        (root / "init").chmod(0o755)
        subprocess.run("find . | cpio -o -H newc --quiet -R 0:0 | gzip -1 > ../initrd.gz",
                       shell=True, cwd=root, check=True)
        shutil.rmtree(root)
        return self.dir / "initrd.gz"

    def _bochs(self, initrd):
        iso = self.dir / "iso"
        iso.mkdir()
        for source in ("/usr/lib/ISOLINUX/isolinux.bin",
                       "/usr/lib/syslinux/modules/bios/ldlinux.c32"):
            if not os.path.exists(source):
                raise Problem(f"no {source}: run 'make deps'")
            shutil.copy(source, iso)
        shutil.copy(self.image, iso / "bzimage")
        shutil.move(initrd, iso / "initrd.gz")
        (iso / "isolinux.cfg").write_text(
            "default l\nprompt 0\nlabel l\nkernel /bzimage\n"
            f"append initrd=/initrd.gz {self.cmdline}\n")
        subprocess.run(["xorriso", "-as", "mkisofs", "-quiet", "-o", self.dir / "boot.iso",
                        "-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot",
                        "-boot-load-size", "4", "-boot-info-table", iso],
                       check=True, stderr=subprocess.DEVNULL)
        shutil.rmtree(iso)
        cdrom = f"type=cdrom, path={self.dir}/boot.iso, status=inserted"
        drives = f"ata0-master: {cdrom}"
        if self.disk:
            # volatile: what the machine writes goes to a journal of this run
            drives = (f"ata0-master: type=disk, path={self.disk}, mode=volatile, "
                      f"journal={self.dir}/journal, cylinders=0\nata0-slave: {cdrom}")
        (self.dir / "bochsrc").write_text(BOCHSRC.format(
            memory=self.memory, resident=min(self.memory, 2048), cpus=self.cpus,
            model=self.model, drives=drives, dir=self.dir))
        (self.dir / "debugger.rc").write_text("c\n")
        return ["bochs", "-q", "-rc", self.dir / "debugger.rc", "-f", self.dir / "bochsrc"]

    def _qemu(self, initrd):
        # q35: with a VT-d unit, EFI, and a device for VFIO, but no VMX, so that HyperMI
        # has the cr3 gate
        kind = "pc"
        accel = self.backend
        if self.backend == "q35":
            # One thread for all CPUs: with more, QEMU before 8.1 may run an INT3 that
            # text patching has long replaced (bugzilla.redhat.com 2216496).
            kind, accel = "q35,kernel-irqchip=split", "tcg,thread=single"
        command = ["qemu-system-x86_64", "-machine", kind, "-m", str(self.memory),
                   "-smp", str(self.cpus), "-accel", accel,
                   "-cpu", "host" if accel == "kvm" else "max,vendor=GenuineIntel",
                   "-nodefaults", "-display", "none", "-no-reboot", "-kernel", self.image,
                   "-initrd", initrd, "-append", self.cmdline,
                   "-serial", f"file:{self.serial}"]
        if self.backend == "q35":
            variables = self.dir / "OVMF_VARS.fd"
            if not OVMF.is_dir():
                raise Problem(f"no {OVMF}: run 'make deps'")
            shutil.copy(OVMF / "OVMF_VARS_4M.fd", variables)
            command += ["-drive", f"if=pflash,format=raw,readonly=on,file={OVMF}/OVMF_CODE_4M.fd",
                        "-drive", f"if=pflash,format=raw,file={variables}",
                        "-device", "intel-iommu,intremap=on", "-device", "edu",
                        "-netdev", "user,id=n", "-device", "e1000,netdev=n"]
        if self.disk:
            command += ["-drive", f"file={self.disk},format=raw,if=ide,snapshot=on"]
        if self.disk and self.backend == "q35":
            command += ["-drive", f"file={self.disk},format=raw,if=none,id=v,snapshot=on",
                        "-device", "virtio-blk-pci,drive=v,disable-legacy=on,iommu_platform=on"]
        return command

    def boot(self, on_line=None, on_wait=None):
        """Run to power-off, death or time-out.  Returns why it ended."""
        initrd = self._initramfs()
        command = (self._bochs if self.backend == "bochs" else self._qemu)(initrd)
        if not shutil.which(command[0]):
            raise Problem(f"no {command[0]}: run 'make deps'")
        start = time.monotonic()
        # The display library of Bochs wants a terminal; what it draws goes to a file.
        # With its debugger compiled in it draws on a terminal of its own, named
        # there, and stops for ever once that one is full: read it, too.
        master, slave = pty.openpty()
        screens = [master]
        # The emulator is one process, and dies with whoever started it.  For each HLT
        # Bochs waits up to a millisecond for its stdin: /dev/null is ready at once.
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *map(str, command)], stdin=subprocess.DEVNULL, stdout=slave,
            stderr=slave, cwd=self.dir, env={**os.environ, "TERM": "xterm"})
        os.close(slave)
        why, offset, pending, stop_at = None, 0, "", None
        done = False
        try:
            with open(self.dir / "emulator.out", "wb") as screen:
                while why is None:
                    for ready in select.select(screens, [], [], 0.3)[0]:
                        try:
                            drawn = os.read(ready, 65536)
                        except OSError:
                            continue
                        if ready == master:
                            screen.write(drawn)
                        other = SCREEN.search(drawn) if len(screens) == 1 else None
                        if other:
                            screens.append(os.open(other[1], os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
                    over = process.poll() is not None
                    if self.serial.exists():
                        with open(self.serial, "rb") as log:
                            log.seek(offset)
                            data = log.read()
                        offset += len(data)
                        pending += data.decode(errors="replace").replace("\r", "")
                        *lines, pending = pending.split("\n")
                        for line in lines + ([pending] if over and pending else []):
                            done = done or line.endswith(self.mark + " done")
                            if PANIC.search(line) and not done and not self.survives_panic:
                                stop_at = stop_at or time.monotonic() + 3
                            if on_line:
                                on_line(line)
                    now = time.monotonic()
                    if over:
                        why = "powered off" if done else "the machine died"
                    elif stop_at and now > stop_at:
                        why = "kernel panic"
                    elif now - start > self.timeout:
                        why = f"time-out after {self.timeout} s"
                    if on_wait:
                        on_wait(now - start)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            for opened in screens:
                os.close(opened)
        return why

    def tidy(self):
        """Drop what is large and can be made again; the logs stay."""
        for name in ("boot.iso", "initrd.gz", "journal"):
            (self.dir / name).unlink(missing_ok=True)


class Result:
    def __init__(self, name):
        self.name, self.output, self.status, self.why = name, [], None, None
        self.begin = self.end = None    # seconds of the machine's own clock

    @property
    def word(self):
        if self.why or self.status is None:
            return "fail"
        return {0: "pass", 4: "skip"}.get(self.status, "fail")


def show_progress(elapsed, text):
    print(f"  {elapsed:.0f} s: {text}", file=sys.stderr, flush=True)


def run(machine, oops_ok=False, report=None, progress=show_progress):
    """Boot the machine and sort its log into one Result per program."""
    results = [Result(" ".join([Path(c[0]).name, *c[1:]])) for c in machine.commands]
    state = {"now": None, "broken": None, "lines": 0, "last": time.monotonic()}
    marker = re.compile(re.escape(machine.mark) + r" (begin|out|end|done)(?: (\d+))?(?: (.*))?$")

    def on_line(line):
        state["lines"] += 1
        found = marker.search(line)
        stamp = STAMP.match(line)
        seconds = float(stamp[1]) if stamp else None
        if not found:
            if (OOPS.search(line) and not oops_ok) or PANIC.search(line):
                state["broken"] = state["broken"] or STAMP.sub("", line)
            if state["now"] is not None:
                results[state["now"]].output.append(line)
            return
        kind, number, rest = found.groups()
        if kind == "done":
            return
        result = results[int(number) - 1]
        if kind == "begin":
            state["now"], result.begin = int(number) - 1, seconds
        elif kind == "out":
            result.output.append(rest or "")
        else:
            result.status, result.end, state["now"] = int(rest), seconds, None
            result.why = state["broken"]
            if report:
                report(result)

    def on_wait(elapsed):
        if time.monotonic() - state["last"] >= 10:
            state["last"] = time.monotonic()
            at = ("booting" if state["now"] is None
                  else f"{state['now'] + 1}/{len(results)} {results[state['now']].name}")
            progress(elapsed, f"{at}, {state['lines']} lines")

    why = machine.boot(on_line, on_wait)
    for result in results:
        if result.status is None:
            result.why = state["broken"] or why
            if report:
                report(result)
    machine.tidy()
    return results, (state["broken"] or (None if why == "powered off" else why))


def run_table(suite, table, one):
    """For scripts with a table of machines: run all rows, or those named on the
    command line, and say in KTAP how each went.  @one gets a row and returns its
    name, a complaint or None, and the seconds it took.  The exit status."""
    rows = [r for r in table if len(sys.argv) == 1 or r[0] in sys.argv[1:]]
    failed = 0
    print(f"KTAP version 1\n1..{len(rows)}", flush=True)
    with ThreadPoolExecutor(int(os.environ.get("JOBS") or os.cpu_count())) as pool:
        for number, (name, complaint, seconds) in enumerate(pool.map(one, rows), 1):
            print(f"{'not ok' if complaint else 'ok'} {number} {name}"
                  f"{' # ' + complaint if complaint else ''}", flush=True)
            failed += bool(complaint)
            # For scripts/check.py
            if os.environ.get("HYPERMI_RESULTS"):
                with Path(os.environ["HYPERMI_RESULTS"]).open("a", encoding="utf-8") as file:
                    file.write(f"{suite}\t{name}\t{'fail' if complaint else 'pass'}"
                               f"\t{seconds:.0f}\n")
    return 1 if failed or not rows else 0
