#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The series as a thread of mails: mbox.py [--check]

Writes build/hypermi.mbox, cover letter first, for `b4 am -m`, `b4 shazam -m` and
`git am`.  --check has b4 and git apply it to the base, without the network, and
asks get_maintainer.pl about MAINTAINERS-snippet; it appends rows to the file
HYPERMI_RESULTS.
"""
import email.utils
import fnmatch
import hashlib
import mailbox
import os
import re
import subprocess
import sys
import tempfile
import time
from email.message import EmailMessage
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
LINUX, BUILD, PATCHES = TOP / "build/linux", TOP / "build", TOP / "patches"
MBOX = BUILD / "hypermi.mbox"
SENDER = "HyperMI Project <hypermi@example.org>"
TO = "kvm@vger.kernel.org"


class Failure(Exception):
    """What is wrong, for the one who runs this."""


def git(*args, cwd=LINUX, **more):
    done = subprocess.run(["git", *args], cwd=cwd, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, check=False, **more)
    if done.returncode:
        raise Failure(f"git {' '.join(args[:2])}: {(done.stderr or done.stdout).strip()[-600:]}")
    return done.stdout


def mail(subject, date, body, ident, parent=None):
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = SENDER, TO, subject
    message["Date"], message["Message-ID"] = date, ident
    if parent:
        message["In-Reply-To"] = message["References"] = parent
    message.set_content(body, cte="8bit")
    return message


def write_mbox():
    """Message-IDs come from the contents, so the same series gives the same file."""
    files = sorted(PATCHES.glob("*.patch"))
    cover = PATCHES / "cover-letter.txt"
    if not files or not cover.exists():
        raise Failure("no patches/*.patch, or no patches/cover-letter.txt")
    texts = [f.read_text() for f in files]
    mark = hashlib.sha256("".join(texts).encode()).hexdigest()[:12]

    head, _, body = cover.read_text().partition("\n\n")
    subject = head.removeprefix("Subject: ").replace("\n", "")
    if f"/{len(files):02}]" not in subject:
        raise Failure(f"the cover letter's subject does not say that there are {len(files)} patches")
    stat = git("diff", "--stat=75", "--summary", "refs/tags/base", "refs/heads/hypermi")
    # Before the trailers, where git puts it
    text, _, trailers = body.rpartition("\nbase-version:")
    body = f"{text}\n{stat}\nbase-version:{trailers}"

    def ident(number):
        return f"<{mark}-{number}@hypermi.example.org>"

    # Of the last patch, as if they were sent in one go
    stamp = email.utils.parsedate_to_datetime(
        re.search(r"^Date: (.*)$", texts[-1], re.M)[1]).timestamp()
    MBOX.unlink(missing_ok=True)
    box = mailbox.mbox(MBOX)
    box.add(mail(subject, email.utils.formatdate(stamp), body, ident(0)))
    for number, text in enumerate(texts, 1):
        head, _, body = text.partition("\n\n")
        subject = re.sub(r"\n[ \t]+", " ", re.search(r"^Subject: ((?:.*\n)(?:[ \t].*\n)*)",
                                                     head + "\n", re.M)[1]).strip()
        box.add(mail(subject, email.utils.formatdate(stamp + number), body, ident(number),
                     ident(0)))
    box.flush()
    return ident(0).strip("<>"), len(files)


def worktree(path, *more):
    """The base, of which only what the series touches (and @more) is on the disk."""
    git("worktree", "prune")
    git("worktree", "add", "-q", "--detach", "--no-checkout", str(path), "refs/tags/base")
    files = git("diff", "--name-only", "refs/tags/base", "refs/heads/hypermi").split()
    git("sparse-checkout", "set", "--no-cone", *(f"/{f}" for f in (*files, *more)), cwd=path)
    git("checkout", "-q", "--detach", "refs/tags/base", cwd=path)


def applied(path):
    """The tree there is that of the series."""
    if git("rev-parse", "HEAD^{tree}", cwd=path) != git("rev-parse", "refs/heads/hypermi^{tree}"):
        raise Failure("it applies, but does not give the tree of the series")


def without_network(folder):
    """b4 has nowhere to ask, and no settings of whoever runs it."""
    return {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder),
            "XDG_CACHE_HOME": str(folder), "http_proxy": "http://127.0.0.1:9",
            "https_proxy": "http://127.0.0.1:9", "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "b4.attestation-policy", "GIT_CONFIG_VALUE_0": "off",
            "GIT_COMMITTER_NAME": "HyperMI Project",
            "GIT_COMMITTER_EMAIL": "hypermi@example.org"}


def b4(folder, tree, *args):
    done = subprocess.run(["b4", "--no-interactive", "--offline-mode", *args], cwd=tree,
                          capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          env=without_network(folder), timeout=300, check=False)
    if done.returncode:
        raise Failure(f"b4 {args[0]}: {(done.stdout + done.stderr).strip()[-800:]}")


def check_b4_am(folder, ident):
    tree = folder / "am"
    worktree(tree)
    b4(folder, tree, "am", "-m", str(MBOX), "-o", str(folder), "-n", "series", "--no-cover", ident)
    git("am", "-q", str(folder / "series.mbx"), cwd=tree, env=without_network(folder))
    applied(tree)


def check_b4_shazam(folder, ident):
    tree = folder / "shazam"
    worktree(tree)
    b4(folder, tree, "shazam", "-m", str(MBOX), ident)
    applied(tree)


def check_maintainers(folder, _ident):
    """With the snippet in its place every file of the series has a maintainer in it."""
    tree = folder / "maintainers"
    worktree(tree, "MAINTAINERS", "scripts/", "CREDITS", "COPYING", "Makefile", "Kbuild", "README",
             "Documentation/", "arch/Kconfig", "include/linux/kernel.h", "fs/Makefile", "init/", "ipc/",
             "kernel/Makefile", "lib/Makefile", "drivers/Makefile")
    snippet = (TOP / "MAINTAINERS-snippet").read_text().strip() + "\n\n"
    title = snippet.splitlines()[0]
    text = (tree / "MAINTAINERS").read_text()
    begin = text.index("\n3C59X NETWORK DRIVER") + 1
    later = next(m.start() for m in re.finditer(r"^[A-Z0-9].*\n(?=[A-Z]:\t)", text[begin:], re.M)
                 if m[0] > title)
    (tree / "MAINTAINERS").write_text(text[:begin + later] + snippet + text[begin + later:])
    new = git("diff", "--name-only", "--diff-filter=A", "refs/tags/base",
              "refs/heads/hypermi").split()
    git("checkout", "-q", "refs/heads/hypermi", "--", *new, cwd=tree)
    for what, args in (("self-test", ["--self-test=sections"]),
                       ("files", ["--no-git", "--no-git-fallback", "-f", *new])):
        done = subprocess.run(["scripts/get_maintainer.pl", *args], cwd=tree, check=False,
                              capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode or "hypermi" in done.stderr.lower():
            raise Failure(f"get_maintainer.pl, {what}: {(done.stdout + done.stderr).strip()[-600:]}")
    for line in snippet.splitlines():
        pattern = line.removeprefix("F:\t")
        if pattern != line and not any(fnmatch.fnmatch(f, pattern + "*" * pattern.endswith("/"))
                                       for f in new):
            raise Failure(f"the series has nothing at {pattern}")
    missing = []
    # Of a folder that is the series' alone one file will do.
    for file in {re.sub(r"(/hypermi/).*", r"\1", f): f for f in new}.values():
        done = subprocess.run(["scripts/get_maintainer.pl", "--no-git", "--no-git-fallback", "-f",
                               file], cwd=tree, check=False, capture_output=True, text=True)
        if "hypermi@example.org" not in done.stdout:
            missing.append(file)
    if missing:
        raise Failure(f"not in MAINTAINERS-snippet: {' '.join(missing)}")


CHECKS = {"b4 am": check_b4_am, "b4 shazam": check_b4_shazam, "get_maintainer.pl": check_maintainers}


def main():
    if sys.argv[1:] not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    status, rows = 0, []
    try:
        ident, number = write_mbox()
        print(f"{MBOX.relative_to(TOP)}: a cover letter and {number} patches, {ident}")
        for name, check in CHECKS.items() if sys.argv[1:] else ():
            start = time.monotonic()
            with tempfile.TemporaryDirectory(dir=BUILD) as folder:
                try:
                    check(Path(folder), ident)
                    word, why = "pass", ""
                except (Failure, OSError, subprocess.SubprocessError) as problem:
                    word, why, status = "fail", str(problem), 1
            seconds = time.monotonic() - start
            print(f"{name:<28} {'ok' if word == 'pass' else 'FAILED':<7} {seconds:4.0f} s  {why}")
            rows.append(f"mbox\t{name}\t{word}\t{seconds:.0f}\n")
    except Failure as problem:
        print(f"mbox.py: {problem}", file=sys.stderr)
        status = 1
    finally:
        if sys.argv[1:]:
            git("worktree", "prune")
    if os.environ.get("HYPERMI_RESULTS"):
        with open(os.environ["HYPERMI_RESULTS"], "a", encoding="utf-8") as file:
            file.writelines(rows)
    return status


if __name__ == "__main__":
    sys.exit(main())
