"""Speed, as a bonus: the answer's time beside the oracle's, in the same kind of process, by the examiner's clock.

Times on a shared CPU are noise and can be forged by nobody but believed by nobody either: without a GPU the ratio is
advice. It never fails an answer.
"""

import statistics
from typing import TYPE_CHECKING

import torch

from autograder.mechanism import MechanismResult

if TYPE_CHECKING:
    from autograder.checks import Examination


class Speed:
    """A bonus of the share `gains` when the answer runs at least `at_least` times as fast as the oracle.

    Timed on `grow(rng, size)`, `rounds` times with other numbers, the two in turn; every timed result is compared.
    """

    def __init__(self, at_least: float, size: int, gains: float = 0.1, rounds: int = 5) -> None:
        self.at_least, self.size, self.gains, self.rounds = at_least, size, gains, rounds

    def examine(self, exam: "Examination") -> MechanismResult | None:
        if exam.oracle is None:
            return None
        cases = [exam.question.grow(exam.seed + number, self.size) for number in range(self.rounds + 1)]
        raced = exam.runner.race(exam.question, exam.oracle, cases)
        if raced is None:
            return None
        for case, (outcome, _) in zip(cases, raced, strict=True):
            if outcome.error or not exam.against_oracle(case, outcome.value, lambda value: value).ok:
                return MechanismResult("Speed", True, "no bonus: a timed result is wrong")
        # The first round warms both up.
        ratio = statistics.median(theirs / max(outcome.milliseconds, 1e-3) for outcome, theirs in raced[1:])
        return self.result(ratio)

    def result(self, ratio: float) -> MechanismResult:
        gains = self.gains if torch.cuda.is_available() and ratio >= self.at_least else 0.0
        advice = "" if torch.cuda.is_available() else "; on this machine, without a GPU, that is only advice"
        message = f"{ratio:.2g} times as fast as the reference (bonus from {self.at_least:g} times on){advice}"
        return MechanismResult("Speed", True, message, gains=gains)
