"""The judge's word on one submission: signed, without anything hidden, and believed only if it fits.

A verdict names what it is about (lab, student, hash of the cells that ran) and what it rests on (bank version,
judge version, tier, an opaque name of the seed). `check` refuses a verdict that does not fit, so a missing,
edited or stale one never becomes points.
"""

import ast
import functools
import hashlib
import hmac
import importlib.util
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autograder.judge.history import remember
from autograder.judge.tiers import at_least
from autograder.judge.vault import Vault, canonical, write_atomically
from autograder.labs import Lab
from autograder.mechanism import MechanismResult
from autograder.overlay import files_of
from autograder.score import CaseResult, Report

SCHEMA = 1
PACKAGE = Path(__file__).resolve().parents[1]
REFERENCE = "refimpl"  # the package of oracles; its modules are followed through their imports
COMPARISON = ("checks.py", "mechanism.py", "question.py", "score.py", "tolerance.py", "tree.py")


class CycleError(Exception):
    """A step cannot be done for anybody; the message says what to do."""


class BadVerdict(Exception):
    """No verdict, or one that may not count; the message says why and what to run."""


@dataclass(frozen=True)
class Verdict:
    """One submission's result. `questions` holds the public report of every code question, never a hidden number."""

    lab: str
    student: str
    submission_sha256: str
    bank_version: str
    judge_version: str
    draw: str
    tier: str
    created: str
    questions: dict[str, dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    staff_notes: list[str] = field(default_factory=list)
    seconds: float = 0.0  # that judging took
    schema: int = SCHEMA

    @property
    def earned(self) -> float:
        return round(sum(question["earned"] for question in self.questions.values()), 2)

    def fits(self, other: "Basis") -> bool:
        """Whether judging again would only repeat this."""
        return other == Basis(self.submission_sha256, self.bank_version, self.judge_version, self.draw)


@dataclass(frozen=True)
class Basis:
    """What a verdict depends on."""

    submission_sha256: str
    bank_version: str
    judge_version: str
    draw: str


def save(verdict: Verdict, vault: Vault) -> Path:
    """Sign and write; returns the file."""
    body = asdict(verdict)
    path = vault.verdict_path(verdict.lab, verdict.student)
    signed = {**body, "signature": vault.sign(canonical(body))}
    write_atomically(path, json.dumps(signed, indent=1, sort_keys=True) + "\n")
    remember(verdict, vault)
    return path


def load(lab: str, student: str, vault: Vault) -> Verdict:
    """Read and verify the signature; BadVerdict when there is none or it is not ours."""
    path = vault.verdict_path(lab, student)
    again = f"run `autograder judge {lab}`"
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        signature = body.pop("signature")
    except FileNotFoundError:
        raise BadVerdict(f"no verdict for {student}: {again}") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise BadVerdict(f"{path} is not a verdict: delete it and {again}") from None
    if not _same(vault.sign(canonical(body)), signature):
        raise BadVerdict(f"the signature of {student}'s verdict is not the judge's: it was changed; {again}")
    if (body.get("schema"), body.get("lab"), body.get("student")) != (SCHEMA, lab, student):
        raise BadVerdict(f"the verdict filed for {student} in {lab} is about something else: {again}")
    return Verdict(**body)


def check(verdict: Verdict, *, submission_sha256: str, bank_version: str, minimum_tier: str = "T0") -> None:
    """BadVerdict unless `verdict` is about this submission, these checks, and a strong enough sandbox."""
    again = f"run `autograder judge {verdict.lab}`"
    if verdict.submission_sha256 != submission_sha256:
        raise BadVerdict(f"{verdict.student} handed in something newer than the verdict: {again}")
    if verdict.bank_version != bank_version:
        raise BadVerdict(f"the checks of {verdict.lab} changed since the verdict of {verdict.student}: {again}")
    if not at_least(verdict.tier, minimum_tier):
        raise BadVerdict(f"judged in tier {verdict.tier}, the course asks for {minimum_tier}: see `autograder doctor`")


def _same(ours: str, theirs: object) -> bool:
    return isinstance(theirs, str) and hmac.compare_digest(ours.encode(), theirs.encode())


# --- reports as data -----------------------------------------------------------------------------------


def rebuild(public: dict[str, Any]) -> Report:
    """The report again, for showing it; `earned` in the verdict is what counts."""
    cases = tuple(CaseResult(**case) for case in public["cases"])
    mechanisms = tuple(MechanismResult(**mechanism) for mechanism in public["mechanisms"])
    attempted = public["status"] != "not attempted yet"
    names = {key: public[key] for key in ("question", "points", "note", "mistake", "diagnosis")}
    return Report(**names, cases=cases, mechanisms=mechanisms, attempted=attempted)


# --- versions ------------------------------------------------------------------------------------------


def bank_version(lab: Lab) -> str:
    """Changes whenever a grade could: checks, mistakes, points, the oracles and the comparison's own code.

    Read once for a loaded lab, whose checks are read once, too: it takes longer than comparing a small answer.
    """
    if "bank_version" not in vars(lab):
        vars(lab)["bank_version"] = _bank_version(lab)
    return str(vars(lab)["bank_version"])


def _bank_version(lab: Lab) -> str:
    own = [lab.folder / name for name in ("checks.py", "mistakes.py", "lab.toml", "reference.py")]
    found: set[Path] = set()
    for file in own:
        _follow(file, found)
    for question in lab.checks.values():
        oracle = lab.oracle(question)
        if oracle is not None:
            _follow(_file_of(oracle.__module__), found)
    return _hash([*sorted(found), *own, *files_of(lab), *(PACKAGE / name for name in COMPARISON)])


@functools.cache
def judge_version() -> str:
    """Changes with the code that runs answers."""
    return _hash(sorted([*PACKAGE.glob("judge/*.py"), *PACKAGE.glob("sandbox/*.py")]))


def _follow(file: Path | None, found: set[Path]) -> None:
    """Add `file` and every module of the reference package that it imports, directly or not."""
    if file is None or file in found or file.suffix != ".py" or not file.is_file():
        return
    found.add(file)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.partition(".")[0] == REFERENCE:
                _follow(_file_of(name), found)


def _file_of(module: str) -> Path | None:
    """The source file of a module, found without importing it where that is possible."""
    if module in sys.modules:
        file = getattr(sys.modules[module], "__file__", None)
        return Path(file) if file else None
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        return None  # `from package import function` is no module
    return Path(spec.origin) if spec and spec.origin else None


def _hash(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            content = file.read_bytes()
            digest.update(f"{file.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]
