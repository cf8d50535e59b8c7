#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The test commands: check.py demo|check|check-long|selftests|kunit|bench.

Builds what is missing, then boots machines, as many at a time as there are
CPUs.  Writes build/results.tsv, build/attacks.tsv and build/bench.tsv.
"""
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "selftests"))
import machine  # noqa: E402

BUILD, SCRIPTS, SELFTESTS = TOP / "build", TOP / "scripts", TOP / "selftests"
LINUX = BUILD / "linux"
GUEST_DISK = BUILD / "guest/disk.img"
START = time.monotonic()
say_lock = threading.Lock()


def say(text=""):
    with say_lock:
        print(text, flush=True)


class Results:
    """Rows (suite, test, result, seconds) of this command; others' rows stay."""
    HEADER = "suite\ttest\tresult\tseconds"

    def __init__(self):
        self.rows = []
        self.reasons = {}
        self.broken = []        # machines whose programs do not count

    def add(self, suite, test, result, seconds, why=""):
        with say_lock:
            self.rows.append((suite, test, result, f"{seconds:.0f}"))
        if result == "fail":
            self.reasons[suite, test] = why
            say(f"{suite}: {test}: FAILED {why}")

    def count(self, result):
        return sum(r[2] == result for r in self.rows)

    def save(self):
        path, suites = BUILD / "results.tsv", {r[0] for r in self.rows}
        old = [tuple(line.split("\t")) for line in path.read_text().splitlines()[1:]] \
            if path.exists() else []
        rows = [r for r in old if r[0] not in suites] + self.rows
        write_table(path, self.HEADER, sorted(rows))

    def finish(self):
        """The last line, and the exit status."""
        self.save()
        failed = [r for r in self.rows if r[2] == "fail"]
        if failed:
            say("\nfailed:")
            for suite, test, *_ in failed:
                say(f"  {suite}: {test} {self.reasons[suite, test]}".rstrip())
            for line in self.broken:
                say(f"  {line}")
        if not self.rows:
            self.add("check", "something was tested", "fail", 0)
        say(f"\nresults: build/results.tsv; {time.monotonic() - START:.0f} s in all")
        say(f"{self.count('pass')} passed, {self.count('fail')} failed, "
            f"{self.count('skip')} skipped")
        return 1 if self.count("fail") else 0


results = Results()


def write_table(path, header, rows):
    path.write_text("\n".join([header] + ["\t".join(map(str, r)) for r in rows]) + "\n")


def command(suite, test, *argv, env=None):
    """A script that prints its own steps."""
    start = time.monotonic()
    status = subprocess.run([str(a) for a in argv], stdin=subprocess.DEVNULL,
                            env={**os.environ, **(env or {})}, check=False).returncode
    results.add(suite, test, "fail" if status else "pass", time.monotonic() - start,
                f"({Path(argv[0]).name}: status {status})")
    return status == 0


def script_with_rows(suite, script, *args):
    """A script that appends its rows to the file HYPERMI_RESULTS."""
    rows = BUILD / "log" / f"{suite}.tsv"
    rows.unlink(missing_ok=True)
    status = subprocess.run([script, *args], stdin=subprocess.DEVNULL, check=False,
                            env={**os.environ, "HYPERMI_RESULTS": str(rows)}).returncode
    lines = rows.read_text().splitlines() if rows.exists() else []
    for line in lines:
        _, test, result, seconds = line.split("\t")
        results.add(suite, test, result, float(seconds), "(see above)")
    if status and not any("\tfail\t" in line for line in lines):
        results.add(suite, "ran", "fail", 0, f"({script.name}: status {status})")


@dataclass
class Job:
    """One boot of a machine."""
    suite: str
    kernel: str
    programs: list
    cpus: int = 1
    append: str = ""
    image: str = None
    disk: str = None
    extra: tuple = ()           # more files, as selftests/run has them
    memory: int = 2048
    timeout: int = 900
    expected: dict = field(default_factory=dict)    # stock's result, if not pass
    counted: bool = True        # does a program's exit status count?
    restart: bool = False       # after a death, go on with the programs that are left
    at: str = "waiting"
    results: list = field(default_factory=list)
    serial: Path = None

    def run(self):
        start, left = time.monotonic(), list(self.programs)
        broken = None
        try:
            while left:
                box = machine.Machine(
                    machine.kernel_image(self.kernel, self.image), left, self.cpus,
                    machine.command_line(self.kernel, self.append), self.timeout,
                    self.memory, self.extra, self.disk, machine.backend_for(self.kernel))
                self.serial = box.serial
                some, broken = machine.run(
                    box, oops_ok=self.restart, report=self.record if self.counted else None,
                    progress=lambda elapsed, text: setattr(self, "at", text))
                ended = sum(r.status is not None for r in some)
                keep = len(some) if not self.restart else min(ended + 1, len(some))
                self.results += some[:keep]
                left = left[keep:]
        except machine.Problem as problem:
            broken = str(problem)
            for program in left:
                if self.counted:
                    results.add(self.suite, Path(program).name, "fail", 0, f"({problem})")
        self.at = None
        if broken and not self.counted:
            results.broken.append(f"{self.suite} broke, which may be why: {broken}")
        state = f"BROKEN: {broken} ({self.serial})" if broken else "ok"
        say(f"{self.suite:<28} {state:<7} {time.monotonic() - start:4.0f} s, "
            f"{len(self.results)} programs")
        return self

    def record(self, result):
        want = self.expected.get(result.name, "pass")
        seconds = (result.end or 0) - (result.begin or 0)
        word = result.word
        if word == want:
            word = "skip" if word == "skip" else "pass"
        elif word != "skip":
            word = "fail"
        results.add(self.suite, result.name, word, seconds,
                    f"({result.why or 'exit status %s' % result.status}, stock: {want}; "
                    f"{self.serial})")


def run_jobs(jobs):
    workers = int(os.environ.get("JOBS") or os.cpu_count())
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(job.run) for job in jobs]
        start = last = time.monotonic()
        while not all(f.done() for f in futures):
            time.sleep(0.5)
            if time.monotonic() - last >= 10:
                last = time.monotonic()
                busy = "; ".join(f"{j.suite}: {j.at}" for j in jobs if j.at not in (None, "waiting"))
                say(f"  {last - start:.0f} s: {busy}"[:150])
        for future in futures:
            future.result()
    return {job.suite: job for job in jobs}


# ---------------------------------------------------------------- what to run

def kvm_tests():
    """From kvm-tests.txt: programs, and stock's result where it is not pass."""
    programs, expected = [], {}
    for line in (SELFTESTS / "kvm-tests.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            test, want = (part.strip() for part in line.split("="))
            programs.append(str(BUILD / "o/selftests/kvm" / test))
            expected[Path(test).name] = want
    return programs, expected


def hypermi_tests():
    """The series' own self-tests, from TEST_GEN_PROGS of their Makefile."""
    folder = BUILD / "o/selftests/hypermi"
    return [str(f) for f in sorted(folder.glob("*"))
            if f.is_file() and os.access(f, os.X_OK) and f.suffix in ("", ".sh")
            and not f.name.endswith(("_bench", "_reboot"))]


# These look at much memory, which takes long: with two CPUs, and with a disk, in check-long.
LONG_TESTS = ("ranges_test", "release_paths_test", "swap_test")


def selftest_jobs():
    programs, expected = kvm_tests()
    giant = str(BUILD / "o/selftests/hypermi/giant_test")
    own = [p for p in hypermi_tests() if p != giant]
    short = [p for p in own if Path(p).name not in LONG_TESTS]
    kvm = {"programs": programs, "expected": expected}
    jobs = [Job("kvm-hypermi-2cpu", "hypermi", cpus=2, timeout=1500, **kvm),
            Job("kvm-hypermi-1cpu", "hypermi", **kvm),
            Job("kvm-stock", "stock", **kvm),
            Job("kvm-hypermi-off", "hypermi", append="hypermi=off", **kvm)]
    if own:
        jobs = [Job("hypermi-2cpu", "hypermi", short, cpus=2, restart=True, timeout=1500),
                Job("hypermi-1cpu", "hypermi", own, restart=True, timeout=1500),
                Job("hypermi-giant", "hypermi", [giant], memory=6144,
                    append="hugepagesz=1G hugepages=1", timeout=1200)] + jobs
    return jobs


def guest_jobs():
    guest = {"programs": [str(SELFTESTS / "guest.sh")], "disk": str(GUEST_DISK)}
    return [Job("guest-hypermi", "hypermi", **guest), Job("guest-stock", "stock", **guest)]


def more_guest_jobs(*names, cpus=1):
    """2: two vCPUs; two: two guests at once; killed: QEMU is, in mid-run."""
    return [Job(f"guest-{name}-{cpus}cpu", "hypermi", [f"{SELFTESTS / 'guest.sh'} {name}"],
                cpus=cpus, disk=str(GUEST_DISK), timeout=1500 * cpus) for name in names]


def module_jobs(*counts):
    """KVM loaded and unloaded; by modules that are built for that kernel."""
    extra = tuple([f"{BUILD / 'o/modular' / path}:/{Path(path).name}"
                   for path in ("virt/lib/irqbypass.ko", "arch/x86/kvm/kvm.ko",
                                "arch/x86/kvm/kvm-intel.ko")] +
                  [f"{BUILD / 'o/selftests/hypermi' / name}:/prog/{name}"
                   for name in ("guest_test", "insn_test")])
    return [Job(f"kvm-modules-{cpus}cpu", "modular", [str(SELFTESTS / "kvm-modules.sh")],
                cpus=cpus, extra=extra) for cpus in counts]


def exits_jobs():
    programs = [str(BUILD / "o/selftests/hypermi" / name) for name in ("exits_bench", "mmu_bench")]
    return [Job(f"exits-{kernel}", kernel, programs, counted=False, timeout=2400)
            for kernel in ("stock", "hypermi")]


def scratch_disk():
    """What is written to it is lost with the machine."""
    path = BUILD / "scratch.img"
    with open(path, "ab") as file:
        file.truncate(32 << 20)
    return str(path)


def long_jobs():
    """Guest memory that goes to a disk and comes back; and what looks at much of it."""
    programs = [str(BUILD / "o/selftests/hypermi" / name)
                for name in ("ranges_test", "release_paths_test /dev/sda", "swap_test /dev/sda")]
    return [Job("hypermi-long", "hypermi", programs, disk=scratch_disk(), restart=True,
                timeout=2400),
            Job("hypermi-long-2cpu", "hypermi", [p.split()[0] for p in programs], cpus=2,
                restart=True, timeout=2400)]


def dma_jobs():
    """Devices: through an IOMMU in QEMU (AHCI, virtio, e1000, VFIO), without one in Bochs (IDE)."""
    program = str(BUILD / "o/selftests/hypermi/dma_test")
    net = str(SELFTESTS / "net.sh")
    disk = scratch_disk()
    more = [str(BUILD / "o/selftests/hypermi" / name) for name in ("vfio_test", "firmware_test")]
    return [Job("dma-q35", "q35", [f"{program} /dev/sda", f"{program} /dev/vda", net, *more],
                cpus=2, disk=disk, memory=512),
            Job("dma-q35-off", "q35", [f"{program} /dev/sda", net, *more], cpus=2, disk=disk,
                memory=512, append="hypermi=off", counted=False),
            Job("dma-hypermi", "hypermi", [f"{program} /dev/sda"], disk=disk)]


def dma_bench_jobs():
    program = [str(BUILD / "o/selftests/hypermi/dma_bench")]
    return [Job("dma-bench-stock", "stock", program, counted=False),
            Job("dma-bench-off", "hypermi", program, append="hypermi=off", counted=False),
            Job("dma-bench-on", "hypermi", program, counted=False)]


def switch_jobs():
    """And without INVPCID, where a global flush takes writes of CR4."""
    program = [str(BUILD / "o/selftests/hypermi/switch_bench")]
    return [Job(f"switch-{name}{without}", kernel, program, counted=False,
                append=f"{append} {without.lstrip('-')}".strip())
            for without in ("", "-noinvpcid")
            for name, kernel, append in (("stock", "stock", ""), ("hypermi", "hypermi", ""),
                                         ("off", "hypermi", "hypermi=off"))]


def attack_jobs(*kernels):
    """With two CPUs: one attack takes as many.  And, with one, what is left in memory
    that VMs gave back, by which way ever."""
    tests = {Path(p).name: p for p in hypermi_tests()}
    return [Job(f"{name}-{kernel}", kernel, [tests[t] for t in programs if t in tests],
                cpus=cpus, counted=kernel != "stock", restart=True, timeout=1500)
            for kernel in kernels
            for name, cpus, programs in (("attacks", 2, ["attacks_test"]),
                                         ("remains", 1, ["release_paths_test", "swap_test"]))]


def build(*kernels, guest=False):
    """Returns whether all is there; a failed build is a failed test."""
    if not LINUX.exists() and not command("build", "tree", SCRIPTS / "series.sh", "tree"):
        return False
    good = True
    for kernel in kernels:
        good &= command("build", kernel, SCRIPTS / "build.sh", kernel)
    if guest:
        good &= command("build", "guest-image", SCRIPTS / "guest-image.sh")
    return good


# -------------------------------------------------------------------- attacks

ATTACK = re.compile(r"ATTACK (\S+) (succeeds|refused|dies|n/a)\s*-?\s*(.*)$")


def attacks_in(job):
    """attack -> (word, reason, test)"""
    found = {}
    for result in job.results if job else []:
        for line in result.output:
            match = ATTACK.search(line)
            if match:
                found[match[1]] = (match[2], match[3], result.name)
    return found


def controls(wanted):
    """Attacks without a target on stock: HyperMI with one mechanism taken out."""
    found = {}
    for attack, test in sorted(wanted.items()):
        if not (SELFTESTS / "controls" / f"{attack}.patch").exists():
            continue
        if not command("build", f"control-{attack}", SCRIPTS / "build.sh", "control", attack):
            continue
        program = [p for p in hypermi_tests() if Path(p).name == test.split()[0]]
        found[attack] = Job(f"control-{attack}", "hypermi", program, counted=False, restart=True,
                            image=str(BUILD / "control" / f"bzImage-{attack}"))
    run_jobs(list(found.values()))
    # No word at all after a program was run: it took the kernel with it.
    return {attack: attacks_in(job).get(attack, ("dies" if job.results else "not run", "", ""))
            for attack, job in found.items()}


def attack_table(jobs):
    """Writes and prints the table; every row is a test of the suite `attacks`."""
    # Some take an IOMMU, and one more kernel takes long to build: there hypermi=off is stock.
    stock, ours = ({k: v for name in names for k, v in attacks_in(jobs.get(name)).items()}
                   for names in (("dma-q35-off", "attacks-stock", "remains-stock"),
                                 ("dma-q35", "attacks-hypermi", "remains-hypermi",
                                  "hypermi-1cpu", "hypermi-2cpu")))
    without = {a: t for a, (word, _, t) in ours.items() if stock.get(a, ("n/a",))[0] == "n/a"}
    control = controls(without)
    rows = []
    for attack in sorted(stock.keys() | ours.keys()):
        word, reason, test = stock.get(attack, ("n/a", "not reported", ""))
        our_word, _, our_test = ours.get(attack, ("n/a", "", ""))
        possible, shown = word in ("succeeds", "dies"), word
        if word == "n/a":
            control_word = control.get(attack, ("no control",))[0]
            shown = f"n/a ({reason or 'no target'}); control: {control_word}"
            possible = control_word in ("succeeds", "dies")
        rows.append((attack, shown, our_word, our_test or test))
        good = possible and our_word == "refused"
        results.add("attacks", attack, "pass" if good else "fail", 0,
                    f"(stock {shown}, HyperMI {our_word})")
    write_table(BUILD / "attacks.tsv", "attack\tstock\thypermi\ttest", rows)
    if not rows:
        results.add("attacks", "any attack was run", "fail", 0)
    width = max([len(r[0]) for r in rows] + [6])
    wide = max([len(r[1]) for r in rows] + [12])
    say(f"\n{'attack':<{width}}  {'stock kernel':<{wide}}  HyperMI")
    for attack, shown, word, _ in rows:
        say(f"{attack:<{width}}  {shown:<{wide}}  {word}")
    say()


def bench(jobs):
    """The machine's own clock, stock against HyperMI.  In Bochs it counts
    instructions, so only the ratio says anything."""
    rows = []
    unit = "s" if machine.vmx_backend() == "kvm" else "1.1e9-instructions"
    for a, b in (("kvm-stock", "kvm-hypermi-1cpu"), ("guest-stock", "guest-hypermi")):
        if a not in jobs or b not in jobs:
            continue
        old = {r.name: r for r in jobs[a].results if r.word == "pass"}
        for new in jobs[b].results:
            if new.word == "pass" and new.name in old:
                before = old[new.name].end - old[new.name].begin
                after = new.end - new.begin
                if before > 0:
                    rows.append((new.name, unit, f"{before:.4f}", f"{after:.4f}",
                                 f"{after / before:.3f}"))
    if "guest-stock" in jobs and "guest-hypermi" in jobs:
        stock, ours = (guest_busy(jobs[f"guest-{kernel}"]) for kernel in ("stock", "hypermi"))
        if stock and ours:
            rows.append(("guest-boot", unit, stock, ours, f"{ours / stock:.3f}"))
        else:
            results.add("bench", "guest-boot", "fail", 0, "(no GUEST-BUSY line)")
    save_bench(rows)


def guest_busy(job):
    """Seconds of the machine's clock for which QEMU and its guest had a CPU, or None."""
    found = [float(m[1]) for r in job.results for line in r.output
             for m in [re.search(r"GUEST-BUSY ([0-9.]+)", line)] if m]
    return found[0] if found else None


def bench_lines(job):
    return {m[1]: int(m[2]) for r in job.results for line in r.output
            for m in [re.search(r"BENCH (\S+) tsc (\d+)", line)] if m}


def dma_bench(jobs):
    """What dma_bench prints, without an IOMMU: stock, hypermi=off and hypermi=on."""
    unit = "cycles" if machine.vmx_backend() == "kvm" else "instructions"
    stock = bench_lines(jobs["dma-bench-stock"])
    rows = []
    for mode in ("off", "on"):
        for name, ours in bench_lines(jobs[f"dma-bench-{mode}"]).items():
            if stock.get(name):
                rows.append((f"{name}-{mode}", unit, stock[name], ours,
                             f"{ours / stock[name]:.3f}"))
    for name, _, before, after, ratio in rows:
        say(f"{name}: {before} {unit} on the stock kernel, {after} with HyperMI: {ratio}")
    if len(rows) < 4:
        results.add("bench", "dma", "fail", 0, "(no BENCH line)")
    save_bench(rows)


def switch_bench(jobs):
    """What switch_bench prints, stock against HyperMI, on and off: see there."""
    unit = "cycles" if machine.vmx_backend() == "kvm" else "instructions"
    rows = []
    for without in ("", "-noinvpcid"):
        stock, on, off = (bench_lines(jobs[f"switch-{name}{without}"])
                          for name in ("stock", "hypermi", "off"))
        for name in stock:
            for ours, mode in ((on, ""), (off, "-off")):
                if ours.get(name) and stock[name]:
                    rows.append((name + without + mode, unit, stock[name], ours[name],
                                 f"{ours[name] / stock[name]:.3f}"))
    for name, _, before, after, ratio in rows:
        say(f"{name}: {before} {unit} on the stock kernel, {after} with HyperMI: {ratio}")
    if not any(r[0] == "switch-pipe" for r in rows):
        results.add("bench", "switches", "fail", 0, "(no BENCH line)")
    save_bench(rows)


def exits_bench(jobs):
    """What exits_bench and mmu_bench print, stock against HyperMI: see there."""
    unit = "cycles" if machine.vmx_backend() == "kvm" else "instructions"
    stock, ours = (bench_lines(jobs[f"exits-{kernel}"]) for kernel in ("stock", "hypermi"))
    rows = [(name, unit, stock[name], ours[name], f"{ours[name] / stock[name]:.3f}")
            for name in stock if ours.get(name) and stock[name]]
    for name, _, before, after, ratio in rows:
        say(f"{name}: {before} {unit} on the stock kernel, {after} with HyperMI: {ratio}")
    for name in ("exit-cpuid", "zap-2m"):
        if not any(r[0] == name for r in rows):
            results.add("bench", name, "fail", 0, "(no BENCH line)")
    save_bench(rows)


def save_bench(rows):
    """Rows of the same name are replaced, others stay."""
    path, names = BUILD / "bench.tsv", {r[0] for r in rows}
    old = [tuple(line.split("\t")) for line in path.read_text().splitlines()[1:]] \
        if path.exists() else []
    rows = [r for r in old if r[0] not in names] + rows
    write_table(path, "name\tunit\tstock\thypermi\tratio", sorted(rows))


# ---------------------------------------------------------------------- KUnit

def why(log):
    """The first lines of a kernel's log that say what KUnit expected, or what it died of."""
    found = re.compile(r"EXPECTATION FAILED|ASSERTION FAILED|Kernel panic|Oops: int3|BUG:|rcu: INFO")
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    at = [i for i, line in enumerate(lines) if found.search(line)][:3]
    return [line for i in at for line in lines[i:i + 3]] or lines[-5:]


def kunit_py(suite, seconds_from, *args):
    """kunit.py, its log in build/log, its JSON into the results.  @args: "parse" and a
    kernel's log, or "exec" and options, the first of which names the kernel's build."""
    out = BUILD / "log" / f"{suite}.json"
    log = BUILD / "log" / f"{suite}.log"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    with open(log, "w", encoding="utf-8") as file:
        subprocess.run(["timeout", "900", "tools/testing/kunit/kunit.py", args[0],
                        f"--json={out}", *args[1:]],
                       cwd=LINUX, stdout=file, stderr=subprocess.STDOUT, check=False,
                       stdin=subprocess.DEVNULL,
                       env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    cases = []

    def walk(group, names):
        names = names + [group["name"]] if group.get("name") else names
        for case in group.get("test_cases", []):
            cases.append((".".join(names[-1:] + [case["name"]]), case["status"]))
        for sub in group.get("sub_groups", []):
            walk(sub, names)

    if out.exists():
        walk(json.loads(out.read_text()), [])
    seconds = time.monotonic() - seconds_from
    hypermi = [c for c in cases if "hypermi" in c[0].lower()]
    for name, status in cases:
        results.add(suite, name, {"PASS": "pass", "SKIP": "skip"}.get(status, "fail"), 0, f"({log})")
    if any(status not in ("PASS", "SKIP") for _, status in cases):
        raw = args[1] if args[0] == "parse" else Path(args[2].removeprefix("--build_dir=")) / "test.log"
        results.broken += [f"{suite}: {line.strip()}" for line in why(Path(raw))]
    if not hypermi:
        results.add(suite, "a HyperMI suite ran", "fail", seconds, f"(see {log})")
    say(f"{suite:<28} {'ok' if hypermi else 'FAILED':<7} {seconds:4.0f} s, {len(cases)} cases")


def kunit_qemu():
    # SMP and an Intel CPU with every feature; no VMX there, so the gate is `cr3`.  Not
    # more CPUs than the machine has: where they wait for each other, QEMU 7.2
    # turns interrupts on within the world (CMPXCHG16B; Documentation/results.rst).
    # CPUs that really run at the same time are in the first one only: with a thread for
    # each, QEMU before 8.1 dies now and then of an INT3 that is long gone (see machine.py).
    one = " -accel tcg,thread=single"
    for suite, mode, threads in (("kunit-qemu", "on", ""), ("kunit-qemu-audit", "audit", one)):
        kunit_py(suite, time.monotonic(), "exec", "--arch=x86_64",
                 f"--build_dir={BUILD / 'o/kunit'}",
                 f"--qemu_args=-smp 2 -cpu max,vendor=GenuineIntel -m 1024{threads}",
                 f"--kernel_args=hypermi={mode}", "--kernel_args=nopti", "--timeout=600")
    # An interrupt comes at the end of a block of translated code, never within the
    # way out of the gate: unless each instruction is a block.
    kunit_py("kunit-qemu-singlestep", time.monotonic(), "exec", "--arch=x86_64",
             f"--build_dir={BUILD / 'o/kunit'}",
             f"--qemu_args=-singlestep -smp 2 -cpu max,vendor=GenuineIntel -m 1024{one}",
             "--kernel_args=hypermi=on", "--kernel_args=nopti", "--timeout=600",
             "hypermi-gate")
    # After that the world is of no use, so it takes a boot of its own.
    kunit_py("kunit-qemu-shutdown", time.monotonic(), "exec", "--arch=x86_64",
             f"--build_dir={BUILD / 'o/kunit'}",
             f"--qemu_args=-smp 2 -cpu max,vendor=GenuineIntel -m 1024{one}",
             "--kernel_args=hypermi=on", "--kernel_args=nopti",
             "--kernel_args=hypermi_fault.provoke=shutdown", "--timeout=300", "hypermi-fault")


# gate, CPUs, random calls of hypermi-spec, suites.  Fewer calls than in QEMU, which is
# seven times as fast.  The suite of the PPTT takes as long as all others and knows neither
# gates nor CPUs that are in VMX operation: once here, and with two CPUs in QEMU.
KUNIT_BOOTS = (("vmx", 2, 10000, "hypermi-[!p]*"), ("cr3", 2, 10000, "hypermi-[!p]*"),
               ("vmx", 1, 20000, ""), ("vmx", 4, 5000, "hypermi-[!ph]*"),
               ("cr3", 1, 10000, "hypermi-[!p]*"))


def kunit_boot_jobs():
    """Where there is VMX.  (An oops is expected: page faults of the hostile jumps.)"""
    image = str(BUILD / "o/kunit/arch/x86/boot/bzImage")
    return [Job(f"kunit-boot-{gate}-{cpus}cpu", "hypermi", ["/bin/busybox true"], cpus=cpus,
                image=image, restart=True,
                append=f"hypermi_gate={gate} hypermi_spec.calls={calls}" +
                (f" kunit.filter_glob={suites}" if suites else ""))
            for gate, cpus, calls, suites in KUNIT_BOOTS]


def kunit_boot_results(jobs, start):
    gate_bench(jobs)
    for suite, job in jobs.items():
        if suite.startswith("kunit-boot-") and job.serial and job.serial.exists():
            kunit_py(suite.replace("boot", "vmx"), start, "parse", str(job.serial))


def kunit_q35():
    """The suite about devices, where they are behind an IOMMU."""
    kunit_py("kunit-q35", time.monotonic(), "exec", "--arch=x86_64",
             f"--build_dir={BUILD / 'o/q35'}",
             "--qemu_args=-machine q35,kernel-irqchip=split -smp 2 "
             "-cpu max,vendor=GenuineIntel -m 1024 -accel tcg,thread=single "
             "-device intel-iommu,intremap=on "
             "-netdev user,id=n -device e1000,netdev=n",
             "--kernel_args=hypermi=on", "--kernel_args=nopti", "--timeout=300", "hypermi-dma")


def gate_bench(jobs):
    """What KUnit's gate_cost prints: a round trip through each entry of the
    gate next to a toggle of CR0.WP, which the stock kernel would use."""
    unit = "cycles" if machine.vmx_backend() == "kvm" else "instructions"
    found, rows = {}, []
    for gate in ("cr3", "vmx"):
        job = jobs[f"kunit-boot-{gate}-1cpu"]
        text = job.serial.read_text(errors="replace") if job.serial else ""
        found.update({m[1]: int(m[2]) for m in re.finditer(r"BENCH (\S+) tsc (\d+)", text)})
    toggle = found.get("cr0-wp-toggle")
    for name in ("gate-cr3", "gate-vmx"):
        if toggle and name in found:
            rows.append((name, f"{unit} (stock: a CR0.WP toggle)", toggle, found[name],
                         f"{found[name] / toggle:.3f}"))
            say(f"{name}: {found[name]} {unit} per round trip, CR0.WP toggle: {toggle}")
    if len(rows) < 2:
        results.add("bench", "both entries of the gate", "fail", 0, "(no BENCH line)")
    save_bench(rows)


# ------------------------------------------------------------------- commands

def do_demo():
    build("stock", "hypermi", "selftests", guest=True)
    jobs = run_jobs(guest_jobs() + attack_jobs("stock", "hypermi"))
    for name in ("guest-stock", "guest-hypermi"):
        up = [line for r in jobs[name].results if r.word == "pass"
              for line in r.output if line.startswith("GUEST-IS-UP")]
        say(f"{name}: {'a Linux guest ran: ' + up[0] if up else 'the guest did NOT run'}")
    attack_table(jobs)
    bench(jobs)


def do_selftests():
    build("stock", "hypermi", "selftests")
    bench(run_jobs(selftest_jobs()))


def do_kunit():
    if build("kunit"):
        kunit_qemu()
        start = time.monotonic()
        kunit_boot_results(run_jobs(kunit_boot_jobs()), start)
        script_with_rows("world-faults", SELFTESTS / "world-faults")


def do_bench():
    if not build("kunit", "stock", "hypermi", "selftests"):
        return
    image = BUILD / "o/kunit/arch/x86/boot/bzImage"
    gate_bench(run_jobs([Job(f"kunit-boot-{gate}-1cpu", "hypermi", ["/bin/busybox true"],
                             append=f"hypermi_gate={gate} kunit.filter_glob=hypermi-gate",
                             image=str(image)) for gate in ("cr3", "vmx")]))
    exits_bench(run_jobs(exits_jobs()))
    dma_bench(run_jobs(dma_bench_jobs()))
    switch_bench(run_jobs(switch_jobs()))


def do_check():
    build("stock", "hypermi", "modular", "q35", "kunit", "selftests", guest=True)
    command("series", "drift", SCRIPTS / "series.sh", "drift")
    script_with_rows("mbox", SCRIPTS / "mbox.py", "--check")
    script_with_rows("world", SELFTESTS / "world-link")
    script_with_rows("lint", SCRIPTS / "lint.sh")
    command("scan", "self-test", SCRIPTS / "scan.py", "--self-test")
    kunit_qemu()
    kunit_q35()
    start = time.monotonic()
    # The long ones first, so that no CPU is idle at the end.
    jobs = run_jobs(selftest_jobs() + kunit_boot_jobs() + attack_jobs("stock") +
                    more_guest_jobs("killed") + module_jobs(2) + guest_jobs() + dma_jobs())
    kunit_boot_results(jobs, start)
    attack_table(jobs)
    bench(jobs)
    script_with_rows("world-faults", SELFTESTS / "world-faults")
    script_with_rows("bad-input", SELFTESTS / "bad-input")
    script_with_rows("kexec", SELFTESTS / "kexec", "kexec-vmx", "kdump-vmx")


def do_check_long():
    do_check()
    script_with_rows("kexec", SELFTESTS / "kexec", "kexec-stock", "kexec-cr3", "kdump-stock",
                     "kdump-cr3")
    jobs = run_jobs(more_guest_jobs("2", "two", "killed", cpus=2) + more_guest_jobs("2", "two") +
                    module_jobs(1) + long_jobs() + exits_jobs() + dma_bench_jobs() + switch_jobs())
    exits_bench(jobs)
    dma_bench(jobs)
    switch_bench(jobs)
    command("lint", "finds what it should", SCRIPTS / "lint-test.sh")
    if build("clang"):
        kunit_py("kunit-clang", time.monotonic(), "exec", "--arch=x86_64",
                 f"--build_dir={BUILD / 'o/clang'}",
                 "--qemu_args=-smp 2 -cpu max,vendor=GenuineIntel -m 1024",
                 "--kernel_args=hypermi=on", "--kernel_args=nopti", "--timeout=600")
    command("bisect", "every patch builds", SCRIPTS / "bisect.sh")


def main():
    commands = {"demo": do_demo, "check": do_check, "check-long": do_check_long,
                "selftests": do_selftests, "kunit": do_kunit, "bench": do_bench}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        print(__doc__, file=sys.stderr)
        return 2
    (BUILD / "log").mkdir(parents=True, exist_ok=True)
    try:
        commands[sys.argv[1]]()
    except machine.Problem as problem:
        results.add("check", str(problem), "fail", 0)
    except KeyboardInterrupt:
        say("interrupted")
        results.add("check", "not interrupted", "fail", 0)
    return results.finish()


if __name__ == "__main__":
    sys.exit(main())
