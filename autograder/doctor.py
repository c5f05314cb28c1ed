"""Can this machine grade, and how well is a student's code shut in while it does? `autograder doctor`."""

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from autograder.judge.session import Cell, Notebook, Session
from autograder.judge.tiers import NOT_FOR_GRADES, TIERS, at_least, machine_tier, why_not
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
        print(json.dumps({"tier": machine_tier(), "says": tier_line(), "findings": [asdict(f) for f in findings]}))
    else:
        print("\n".join([tier_line(), *map(line, findings)]))
    return 0 if all(finding.ok for finding in findings) else 1


def tier_line() -> str:
    """The tier, and for each stronger one the step that fails here."""
    tier = machine_tier()
    says = f"{NOT_FOR_GRADES} (a plain process: fine for practice and rehearsals)" if tier == "T0" else tier
    lacks = [f"\n{'':10} {other}: {why_not(other)}" for other in TIERS if not at_least(tier, other)]
    return f"tier       {says}{''.join(lacks)}"


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
