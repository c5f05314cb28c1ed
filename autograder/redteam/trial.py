"""Try mutants of an oracle on its question's cases: what notices each of them, if anything.

Runs in a forked process: mutants may hang, eat memory or crash.
"""

import contextlib
import os
import resource
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autograder.checks import Examination, Outcome, Truth, compared, hand_over
from autograder.converse import Rules
from autograder.labs import Lab
from autograder.mechanism import Forbids
from autograder.question import Case, Question
from autograder.redteam.mutants import Mutant, mutants, reached, thinned
from autograder.sandbox.watch import WatchOperations
from autograder.served import Seen
from autograder.tree import fresh, to_double

MEMORY_BYTES = 4 << 30


@dataclass(frozen=True)
class Fate:
    """What became of a mutant: how it was noticed, or "" where it survived."""

    id: str
    before: str
    after: str
    killed_by: str


class Trial:
    """One question with its cases and their true results, ready to try mutants of its oracle (a `Runner`, too)."""

    measures = False

    def __init__(self, lab: Lab, question: Question, seeds: Iterable[int]) -> None:
        self.question, self.seeds = question, tuple(seeds)
        self.oracle: Callable[..., Any] = lab.oracle(question)  # type: ignore[assignment]
        self.functions, self.kernels = reached(self.oracle)
        drawn = [case for seed in self.seeds for _, case in question.draw(seed)]
        with executed(self.functions) as self.lines:
            self.cases = [(case, self.truth(case)) for case in drawn]
        # A mechanism that the oracle itself does not keep to says nothing about its mutants.
        kept = [m for m in question.mechanism if not isinstance(m, Forbids) and not self.fails(m)]
        self.mechanisms = tuple(kept)

    def truth(self, case: Case) -> Truth:
        """The oracle in fp64 and in the case's own precision."""
        double = self.question.drive(self.oracle, case.map(lambda value: to_double(fresh(value))))
        return Truth(double, *self.question.run(self.oracle, hand_over(self.question, case)))

    def mutants(self) -> tuple[list[Mutant], int]:
        """The mutants to try, and how many there are: only changes to what the cases evaluate."""
        reached: dict[types.CodeType | None, bool] = {None: True}
        found = []
        for mutant in (m for f in self.functions for m in mutants(f, self.lines[f.__code__.co_filename])):
            if mutant.probe not in reached:
                reached[mutant.probe] = bool(self.first_sign(mutant.function, mutant.probe))
            found += [mutant] * reached[mutant.probe]
        return thinned(found), len(found)

    def first_sign(self, function: types.FunctionType, code: types.CodeType | None) -> str:
        """What notices that the function runs this code, or "" if nothing does."""
        original, function.__code__ = function.__code__, code or function.__code__
        try:
            return next(self.signs(), "")
        finally:
            function.__code__ = original

    def signs(self) -> Iterator[str]:
        for case, true in self.cases:
            outcome = self.call(self.question, case)
            if outcome.error:
                yield f"{case.name}: {outcome.error}"
            elif self.question.by_property:
                yield from (f"{case.name}: {said}" for said in self.question.spec.judge(outcome.value, case))
            elif not compared(self.question, outcome.value, true.value, true.low).ok:
                yield case.name
        yield from (type(m).__name__ for m in self.mechanisms if self.fails(m))

    def fails(self, mechanism: Any) -> bool:
        drawn = [case for case, _ in self.cases]
        outcomes = [self.call(self.question, case) for case in drawn]
        result = mechanism.examine(TrueResults(self, drawn, outcomes))
        return result is not None and not result.passed

    def call(self, question: Question, case: Case, rules: Rules = contextlib.nullcontext) -> Outcome:
        """Drive the (mutated) oracle; a `Runner` of autograder.checks that forbids nothing."""
        try:
            value, seen = question.run(self.oracle, hand_over(question, case), rules)
            return Outcome(value, seen=seen)
        except Exception as error:
            return Outcome(error=type(error).__name__, message=str(error)[:200])

    def peak(self, question: Question, case: Case, warmup: Case) -> tuple[Outcome, int | None]:
        watches: list[WatchOperations] = []

        def watching() -> WatchOperations:
            watches.append(WatchOperations())
            return watches[-1]

        return self.call(question, case, watching), max(watch.largest_bytes for watch in watches)

    def race(self, question: Question, oracle: Any, cases: Sequence[Case]) -> None:
        return None


class TrueResults(Examination):
    """An examination whose truth was computed before anything was mutated."""

    def __init__(self, trial: Trial, drawn: list[Case], outcomes: list[Outcome]) -> None:
        super().__init__(trial.question, trial, trial.oracle, trial.seeds[0], drawn, outcomes)
        object.__setattr__(self, "truths", {id(case): true for case, true in trial.cases})

    def against_oracle(self, case: Case, got: Any, keep: Callable[[Any], Any]) -> Any:
        true: Truth = self.truths[id(case)]  # type: ignore[attr-defined]
        return compared(self.question, got, true.value, true.low, keep)

    def oracle_seen(self, case: Case) -> Seen:
        return self.truths[id(case)].seen  # type: ignore[attr-defined]


@contextlib.contextmanager
def executed(functions: Iterable[types.FunctionType]) -> Iterator[dict[str, set[int]]]:
    """The lines of the functions' files that run inside the block."""
    lines: dict[str, set[int]] = {f.__code__.co_filename: set() for f in functions}

    def trace(frame: types.FrameType, event: str, _: Any) -> Any:
        here = lines.get(frame.f_code.co_filename)
        if here is None:
            return None
        here.add(frame.f_lineno)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    threading.settrace(trace)  # the ranks of a program are threads
    try:
        yield lines
    finally:
        sys.settrace(before)
        threading.settrace(before)  # type: ignore[arg-type]


def try_all(lab: Lab, question: Question, seeds: Sequence[int], first: int, pipe: Any) -> None:
    """In the forked process: try the mutants from number `first` on, and tell each fate as it is known."""
    torch.set_num_threads(1)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        trial = Trial(lab, question, seeds)
        todo, made = trial.mutants()
        pipe.send(([Fate(m.id, m.before, m.after, "") for m in todo], made, trial.kernels))
        for mutant in todo[first:]:
            pipe.send(trial.first_sign(mutant.function, mutant.code))
