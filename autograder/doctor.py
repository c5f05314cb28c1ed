"""Can this machine grade, and how well is a student's code shut in while it does? `autograder doctor`."""

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from autograder.judge.session import Cell, Notebook, Session
from autograder.judge.tiers import LOWER, NOT_FOR_GRADES, TIERS, at_least, machine_tier, probe, why_not
from autograder.judge.zygote import SandboxError, Zygote

PROBE_BYTES = 32 << 20
PROBE = f"import torch\n\n\ndef probe():\n    return torch.ones({PROBE_BYTES // 4}).sum().item()\n"

DESCRIPTION = """Examine this machine as a grading machine: the tier, and what is missing, each with its remedy.
T0 is a plain process, for self-study and rehearsals; T1 and T2 shut a student's code in, T2 in namespaces too."""


@dataclass(frozen=True)
class Finding:
    """One thing that grading needs."""

    name: str
    ok: bool
    says: str
    fix: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit status 1 when grading cannot work here."""
    parser = argparse.ArgumentParser(
        prog="autograder doctor", description=DESCRIPTION, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    arguments = parser.parse_args(argv)
    findings = [examine() for examine in EXAMINATIONS]
    if arguments.json:
        print(json.dumps({**tier_report(), "findings": [asdict(finding) for finding in findings]}))
    else:
        print("\n".join([*tier_lines(tier_report()), *map(line, findings)]))
    return 0 if all(finding.ok for finding in findings) else 1


# --- the tier -------------------------------------------------------------------------------------------

MEANS = {
    "T0": f"{NOT_FOR_GRADES} (a plain process: fine for practice and rehearsals)",
    "T1": "Landlock, seccomp and limits",
    "T2": "namespaces, Landlock, seccomp and limits",
}
# What a failed step says, and the way out of it. The first that fits is shown.
REMEDIES = (
    ("pyseccomp", "pip install pyseccomp"),
    ("libseccomp", "install libseccomp2 (Debian, Ubuntu) or libseccomp (Fedora)"),
    ("Landlock", "a kernel from 5.13 on with Landlock among its security modules (lsm=landlock,... at boot)"),
    ("unshare", "let ordinary users make user namespaces (sysctl user.max_user_namespaces, and on Ubuntu "
     "kernel.apparmor_restrict_unprivileged_userns=0), or grade outside the container"),
    ("mount", "outside a container, or in one whose /proc is not masked (Kubernetes: procMount: Unmasked)"),
    ("needs Linux", "grade on Linux"),
)  # fmt: skip


def tier_report() -> dict:
    """The tier of this machine, why not a stronger one, and how its sessions are held; plain data for --json."""
    tier = machine_tier()
    why = {other: why_not(other) for other in TIERS if not at_least(tier, other)}
    lacks = {other: {"why": said, "fix": remedy(said)} for other, said in why.items() if said}
    says = list(notes(probe(tier)["limits"])) if tier != "T0" else []
    if len(lacks) < len(why):
        says.insert(0, f"lowered by the environment variable {LOWER}")
    return {"tier": tier, "says": MEANS[tier], "lacks": lacks, "notes": says}


def remedy(why: str) -> str:
    return next((fix for sign, fix in REMEDIES if sign in why), "see course/staff/tiers.md")


def notes(limits: dict) -> Iterator[str]:
    """How memory and accounts are kept apart, and what a missing piece costs."""
    if "memory" in limits["memory"]:
        yield "memory: a control group per session, and limits per process"
    else:
        yield "memory: limits per process (no control group can be made here: children of a session count one by one)"
    yield (
        "account: one of its own per session"
        if limits["own_account"]
        else ("account: the grader's own, without privileges (root would give each session its own)")
    )
    version = limits["landlock"]
    missing = [says for since, says in ((4, "TCP ports"), (5, "device requests"), (6, "signals")) if version < since]
    left = f"; {', '.join(missing)} are left to seccomp" if missing else ""
    yield f"Landlock: version {version}{left}"
    if limits["kept"]:
        yield "Python lies behind a folder that only root may enter, so sessions keep the capability to read past it"


def tier_lines(report: dict) -> Iterator[str]:
    yield f"{'tier':10} {report['tier']}: {report['says'].removeprefix('T0: ')}"
    for tier, found in report["lacks"].items():
        yield f"{'':10} not {tier}: {found['why']}\n{'':10} fix: {found['fix']}"
    yield from (f"{'':10} {note}" for note in report["notes"])


def line(finding: Finding) -> str:
    fix = f"\n{'':10} fix: {finding.fix}" if finding.fix and not finding.ok else ""
    return f"{finding.name:10} {'ok' if finding.ok else 'PROBLEM'}: {finding.says}{fix}"


def check_sandbox() -> Finding:
    """A runner starts, answers, and its memory can be read from outside."""
    start = time.monotonic()
    try:
        with Zygote() as zygote, Session(zygote, Notebook([Cell("probe", PROBE)])) as session:
            session.call("probe", [])
            outcome = session.call("probe", [], measure=True)
    except SandboxError as problem:
        return Finding(
            "sandbox", False, str(problem), "look above for the error of the new process; is torch installed?"
        )
    if not outcome.ok:
        return Finding("sandbox", False, f"a trivial answer came back as {outcome.problem}", "report this")
    if outcome.peak_bytes is None:
        return Finding("sandbox", False, "memory cannot be measured from outside", "grade on Linux with /proc mounted")
    says = f"an answer ran in {time.monotonic() - start:.1f} s, {outcome.peak_bytes / 2**20:.0f} MiB seen from outside"
    exact = 0.8 * PROBE_BYTES < outcome.peak_bytes < 1.5 * PROBE_BYTES
    expected = f"; {PROBE_BYTES >> 20} MiB were expected, so memory questions cannot be trusted"
    return Finding("sandbox", exact, says if exact else says + expected, "" if exact else "grade on another machine")


def check_nbgrader() -> Finding:
    """nbgrader and the tool that it calls by name."""
    if importlib.util.find_spec("nbgrader") is None:
        return Finding("nbgrader", False, "not installed", "make lab")
    beside = Path(sys.executable).parent / "alembic"
    if not beside.exists() and shutil.which("alembic") is None:
        return Finding("nbgrader", False, "its `alembic` is not beside this Python nor on PATH", "make lab")
    return Finding("nbgrader", True, "installed, with alembic")


def check_triton() -> Finding:
    """Kernel questions need it; a machine without refuses to judge them."""
    found = importlib.util.find_spec("triton") is not None
    says = "installed" if found else "not installed: labs with kernel questions cannot be judged here"
    return Finding("triton", found, says, "pip install triton (Linux)")


def check_folder() -> Finding:
    """Sessions live in the temporary folder; files of 64 MB are allowed there."""
    free = shutil.disk_usage(tempfile.gettempdir()).free
    fix = "free some space, or set TMPDIR to a larger disk"
    return Finding("space", free > 1 << 30, f"{free / 2**30:.0f} GiB free in {tempfile.gettempdir()}", fix)


EXAMINATIONS: tuple[Callable[[], Finding], ...] = (check_sandbox, check_nbgrader, check_triton, check_folder)
