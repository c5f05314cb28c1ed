"""From results to points: pure arithmetic, shown with the result."""

from dataclasses import dataclass, replace
from typing import Any

from autograder.mechanism import MechanismResult
from autograder.question import Mistake
from autograder.tolerance import Difference


@dataclass(frozen=True)
class CaseResult:
    """One case, all of its draws together."""

    name: str
    passed: bool
    weight: float = 1.0
    message: str = ""
    differences: tuple[Difference, ...] = ()
    error: float = 0.0
    bound: float = 0.0
    milliseconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """What examining one question gave."""

    question: str
    points: float
    cases: tuple[CaseResult, ...] = ()
    mechanisms: tuple[MechanismResult, ...] = ()
    mistake: str = ""  # the known mistake's name
    diagnosis: str = ""  # what it says to the student
    attempted: bool = True
    note: str = ""

    @property
    def share(self) -> float:
        """The share of the points earned, 0 to 1.

        Cases count by weight, but only once the first, plain one passes: edge cases alone prove nothing (zeros pass
        where zero is right). Then each failed mechanism takes its share away, and a bonus may fill up
        what is lacking.
        """
        if not self.attempted or not self.cases or not self.cases[0].passed:
            return 0.0
        earned = sum(case.weight for case in self.cases if case.passed) / sum(case.weight for case in self.cases)
        for mechanism in self.mechanisms:
            if not mechanism.passed:
                earned *= 1 - mechanism.costs
        return min(1.0, earned + sum(m.gains for m in self.mechanisms if m.passed)) if earned else 0.0

    @property
    def earned(self) -> float:
        return round(self.points * self.share, 2)

    @property
    def passed(self) -> bool:
        """Whether nothing is left to improve."""
        return bool(self.cases) and all(c.passed for c in self.cases) and all(m.passed for m in self.mechanisms)

    @property
    def status(self) -> str:
        if not self.attempted:
            return "not attempted yet"
        if self.passed:
            return "passed"
        return "partly right" if self.share > 0 else "not right yet"

    def with_diagnosis(self, known: Mistake | None) -> "Report":
        return replace(self, mistake=known.name, diagnosis=known.says) if known else self

    def public(self) -> dict[str, Any]:
        """What a student may see of a graded question: no input, no expected value."""
        return {
            "question": self.question,
            "points": self.points,
            "earned": self.earned,
            "status": self.status,
            "note": self.note,
            "mistake": self.mistake,
            "diagnosis": self.diagnosis,
            "cases": [
                {"name": c.name, "passed": c.passed, "weight": c.weight, "message": c.message,
                 "milliseconds": round(c.milliseconds, 1)}
                for c in self.cases
            ],
            "mechanisms": [
                {"name": m.name, "passed": m.passed, "message": m.message, "costs": m.costs} for m in self.mechanisms
            ],
        }  # fmt: skip
