"""How an answer works, not only what it returns.

A right number by the wrong route is a wrong answer: untiled attention behind a tiled signature, a window that is
only masked. Each check here changes something the right method can not notice, or measures from outside what it
must not need.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from autograder.question import Case
from autograder.tree import tensors

if TYPE_CHECKING:
    from autograder.checks import Examination

MEBIBYTE = 2**20
NOISE_BYTES = 8 * MEBIBYTE  # below this, growth is the allocator's, not the method's
ROOM = 8  # how many times what goes in a method of linear memory may hold at once
JITTER_BYTES = 2 * MEBIBYTE  # by which two peaks of the same work differ


@dataclass(frozen=True)
class MechanismResult:
    """What one mechanism check found: a failed one costs the share `costs` of what was earned, a passed one may add
    the share `gains` of the question's points, up to all of them.
    """

    name: str
    passed: bool
    message: str
    costs: float = 1.0
    gains: float = 0.0


class Mechanism(Protocol):
    """A check that sees how the answer works. Returns None where it has nothing to say."""

    def examine(self, exam: "Examination") -> MechanismResult | None: ...


class Forbids:
    """The answer may not call operations whose name contains one of `names`.

    A watcher refuses them, with a message. The judge also takes them out of PyTorch where the answer runs; a name with
    a dot (`aten.exp.`) it leaves there, since PyTorch may need such an operation itself.
    """

    def __init__(self, *names: str, costs: float = 1.0) -> None:
        self.names, self.costs = names, costs

    def examine(self, exam: "Examination") -> MechanismResult:
        calls = [outcome.message for outcome in exam.outcomes if outcome.error == "ForbiddenCall"]
        ruled_out = ", ".join(f"`{name}`" for name in self.names)
        message = calls[0] if calls else f"no call of {ruled_out}"
        return MechanismResult("Forbids", not calls, message, self.costs)


class ReadOnce:
    """Positional argument `index` is an iterator: a second pass over it finds nothing left."""

    def __init__(self, index: int) -> None:
        self.index = index

    def examine(self, exam: "Examination") -> None:
        return None  # enforced in the call itself; wrong numbers tell


class MemorySlope:
    """Peak extra memory must not grow faster than n ** order, measured over `grow(rng, n)` for n in `sizes`.

    With order 1 it must also stay near what goes in: growth alone could be hidden by waste at small sizes.
    """

    def __init__(self, order: int = 1, sizes: tuple[int, ...] = (1024, 2048, 4096), costs: float = 1.0) -> None:
        self.order, self.sizes, self.costs = order, sizes, costs

    def examine(self, exam: "Examination") -> MechanismResult:
        peaks = []
        for size in self.sizes:
            case = exam.question.grow(exam.seed, size)
            outcome, peak = exam.runner.peak(exam.question, case, exam.question.grow(exam.seed, 64))
            if outcome.error:
                return self.result(False, f"at size {size:,}: {outcome.error}: {outcome.message}")
            if peak is None:
                return self.result(False, "peak memory can not be measured on this machine (needs Linux)")
            peaks.append(peak)
        return self.verdict(peaks, input_bytes(case))

    def verdict(self, peaks: list[int], inputs: int) -> MechanismResult:
        """The growth between the two largest sizes, on log axes, unless all of it drowns in noise."""
        grown = math.log(max(peaks[-1], 1) / max(peaks[-2], 1)) / math.log(self.sizes[-1] / self.sizes[-2])
        roof = 2 * NOISE_BYTES + ROOM * inputs
        below = self.order > 1 or peaks[-1] <= roof
        passed = peaks[-1] <= NOISE_BYTES + 4 * inputs or (grown <= self.order + 0.5 and below)
        measured = ", ".join(f"{n:,}: {p / MEBIBYTE:.1f} MiB" for n, p in zip(self.sizes, peaks, strict=True))
        limit = "linearly" if self.order == 1 else f"as n^{self.order}"
        verb = "grows" if passed else "should grow"
        message = f"peak extra memory {verb} at most {limit} with n ({measured})"
        found = f"it grows as n^{grown:.1f}"
        if not below:
            found += f", and {roof / MEBIBYTE:.1f} MiB are plenty at n = {self.sizes[-1]:,}"
        return self.result(passed, message if passed else f"{message}: {found}")

    def result(self, passed: bool, message: str) -> MechanismResult:
        return MechanismResult("MemorySlope", passed, message, self.costs)


class StateBytes:
    """What the answer keeps must not cost more than `at_most(n)` bytes at size n, measured by the slope.

    Between the two `sizes`, peak memory over `grow(rng, n)` may rise by at most `slack` times what the formula does,
    and 2 MiB:
    bytes of a cache per token, of a quantized weight, of one rank's share of the optimizer. Needs the judge: a
    notebook's process holds too much else.
    """

    def __init__(
        self, at_most: Callable[[int], float], sizes: tuple[int, int], slack: float = 1.25, costs: float = 1.0
    ) -> None:
        self.at_most, self.sizes, self.slack, self.costs = at_most, sizes, slack, costs

    def examine(self, exam: "Examination") -> MechanismResult | None:
        if not exam.runner.measures:
            return None
        peaks = []
        for size in self.sizes:
            case = exam.question.grow(exam.seed, size)
            outcome, peak = exam.runner.peak(exam.question, case, exam.question.grow(exam.seed, self.sizes[0] // 8))
            if outcome.error or peak is None:
                why = f"{outcome.error}: {outcome.message}" if outcome.error else "memory can not be measured here"
                return MechanismResult("StateBytes", False, f"at size {size:,}: {why}", self.costs)
            peaks.append(peak)
        return self.verdict(peaks)

    def verdict(self, peaks: list[int]) -> MechanismResult:
        grown = peaks[1] - peaks[0]
        allowed = JITTER_BYTES + self.slack * (self.at_most(self.sizes[1]) - self.at_most(self.sizes[0]))
        from_to = f"from size {self.sizes[0]:,} to {self.sizes[1]:,}"
        message = f"memory grows by {grown / MEBIBYTE:.1f} MiB {from_to}, allowed {allowed / MEBIBYTE:.1f} MiB"
        return MechanismResult("StateBytes", grown <= allowed, message, self.costs)


class PoisonOutside:
    """Data that the method must never read is replaced by NaN; what `keep` selects of the result must not change.

    `spoil(case)` gives (poisoned case, keep), or None where a case has nothing to poison.
    """

    def __init__(
        self, spoil: Callable[[Case], tuple[Case, Callable[[Any], Any]] | None], what: str = "", costs: float = 1.0
    ) -> None:
        self.spoil, self.what, self.costs = spoil, what or "data the method must never read", costs

    def examine(self, exam: "Examination") -> MechanismResult:
        tried = 0
        for case in exam.drawn:
            spoiled = self.spoil(case)
            if spoiled is None:
                continue
            tried += 1
            poisoned, keep = spoiled
            outcome = exam.runner.call(exam.question, poisoned.seeded(case.seed))
            if outcome.error or not exam.against_oracle(case, outcome.value, keep).ok:
                reached = f"{self.what} was replaced by NaN, and the result changed (case “{case.name}”)"
                return MechanismResult("PoisonOutside", False, reached, self.costs)
        if not tried:
            raise ValueError(f"question {exam.question.name!r}: PoisonOutside found no case to poison")
        return MechanismResult("PoisonOutside", True, f"{self.what} is never read", self.costs)


class Counterfactual:
    """Change each case by `change`; `expect(before, after, case)` yields what is wrong with the two results."""

    def __init__(
        self,
        name: str,
        change: Callable[[Case], Case | None],
        expect: Callable[[Any, Any, Case], Iterable[str]],
        costs: float = 1.0,
    ) -> None:
        self.name, self.change, self.expect, self.costs = name, change, expect, costs

    def examine(self, exam: "Examination") -> MechanismResult:
        for case, before in zip(exam.drawn, exam.outcomes, strict=True):
            changed = self.change(case)
            if changed is None or before.error:
                continue
            after = exam.runner.call(exam.question, changed)
            problems = [f"{after.error}: {after.message}"] if after.error else self.problems(before, after, case)
            if problems:
                return MechanismResult(self.name, False, f"{problems[0]} (case “{case.name}”)", self.costs)
        return MechanismResult(self.name, True, "holds", self.costs)

    def problems(self, before: Any, after: Any, case: Case) -> list[str]:
        try:
            return list(self.expect(before.value, after.value, case))
        except Exception as error:
            return [f"the result is not of the expected form ({type(error).__name__})"]


def input_bytes(case: Case) -> int:
    return sum(t.numel() * t.element_size() for t in tensors((case.args, case.kwargs)))
