"""Mechanism checks by what is counted outside of the answer: calls of served functions, traffic between ranks.

In the judge the counts are the judge's own, so a bound here holds whatever the answer's process says. A bound is a
function of (case, count the oracle itself made), and None is no bound.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from autograder.mechanism import MechanismResult
from autograder.question import Case
from autograder.served import Seen

if TYPE_CHECKING:
    from autograder.checks import Examination

Bound = Callable[[Case, float], float]


class Counted:
    """Holds on every case: what `count` finds lies between the bounds."""

    name, unit = "", ""

    def __init__(self, at_most: Bound | None, at_least: Bound | None, costs: float) -> None:
        if at_most is None and at_least is None:
            raise TypeError(
                f"{type(self).__name__} needs at_most or at_least: a function of (case, the oracle's count)"
            )
        self.at_most, self.at_least, self.costs = at_most, at_least, costs

    def count(self, seen: Seen) -> float:
        raise NotImplementedError

    def examine(self, exam: "Examination") -> MechanismResult:
        counted = 0
        for case, outcome in zip(exam.drawn, exam.outcomes, strict=True):
            if outcome.error:
                continue
            counted += 1
            got, oracles = self.count(outcome.seen), self.count(exam.oracle_seen(case))
            if self.at_most is not None and got > (limit := self.at_most(case, oracles)):
                return self.result(False, f"{self.says(got)}, allowed {limit:,.0f} (case “{case.name}”)")
            if self.at_least is not None and got < (limit := self.at_least(case, oracles)):
                return self.result(False, f"{self.says(got)}, expected at least {limit:,.0f} (case “{case.name}”)")
        return self.result(bool(counted), "within bounds" if counted else "no case ran to its end: nothing was counted")

    def says(self, got: float) -> str:
        # Two digits: an answer chooses this number, and could spell a hidden input with more.
        return f"{float(f'{got:.2g}'):,.0f} {self.unit}"

    def result(self, passed: bool, message: str) -> MechanismResult:
        return MechanismResult(type(self).__name__, passed, message, self.costs)


class ServedCalls(Counted):
    """How often the answer calls the served function `name`, or on how many positions in all (`of="positions"`).

    A target model must be asked less often than there are tokens, yet asked: a draft alone proves nothing.
    """

    def __init__(
        self, name: str, *, at_most: Bound | None = None, at_least: Bound | None = None, of: str = "calls",
        costs: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(at_most, at_least, costs)
        self.name, self.of = name, of
        self.unit = f"calls of `{name}`" if of == "calls" else f"positions given to `{name}`"

    def count(self, seen: Seen) -> float:
        return getattr(seen.served[self.name], self.of) if self.name in seen.served else 0


class Traffic(Counted):
    """What the busiest rank sends in bytes, or how often it communicates (`of="calls"`), by all or some operations.

    Bytes are those of the usual bandwidth-optimal algorithm (see hub.py): ZeRO's reduce_scatter and all_gather of S
    bytes on n ranks are 2(n-1)/n S, as is one all_reduce.
    """

    def __init__(
        self, *, at_most: Bound | None = None, at_least: Bound | None = None, by: Iterable[str] = (),
        of: str = "bytes", costs: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(at_most, at_least, costs)
        self.by, self.of = tuple(by), of
        self.unit = f"{of} by {', '.join(self.by) or 'all operations'} on the busiest rank"

    def count(self, seen: Seen) -> float:
        return max((self.of_rank(getattr(tally, self.of)) for tally in seen.ranks), default=0)

    def of_rank(self, counts: dict[str, float]) -> float:
        return sum(count for name, count in counts.items() if not self.by or name in self.by)
