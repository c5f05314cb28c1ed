"""Where answers run while the grader is examined: in the real judge, or in this process for authors in a hurry."""

import contextlib
import io
import linecache
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from autograder.checks import Outcome
from autograder.judge.calls import SandboxRunner
from autograder.judge.session import Cell, Notebook
from autograder.judge.zygote import Zygote
from autograder.labs import Lab
from autograder.question import Case, Question
from autograder.student import AnswerInPlace


class TooSlow(BaseException):
    """The deadline passed; no `except Exception` of an answer may swallow it."""


Cells = Sequence[tuple[str, str]]  # (name, source) of each code cell, in notebook order


class Judged:
    """Opens notebooks in the real judge: one zygote, one sandboxed process per notebook."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.zygote = Zygote(lab.imports)

    def open(self, cells: Cells) -> SandboxRunner:
        return SandboxRunner(self.zygote, Notebook([Cell(*cell) for cell in cells]), self.lab.seconds)

    def close(self) -> None:
        self.zygote.close()


class Quick:
    """Opens notebooks in this process."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def open(self, cells: Cells) -> "InProcess":
        return InProcess(self.lab, cells)

    def close(self) -> None:
        pass


class InProcess:
    """Runs a notebook's cells here and calls its answers in place (a `Runner` of autograder.checks)."""

    measures = False

    def __init__(self, lab: Lab, cells: Cells) -> None:
        self.lab, self.cells = lab, cells
        self.problems: list[str] = []  # what cells raised; as in the judge, the cells after them still run

    def __enter__(self) -> "InProcess":
        namespace: dict[str, Any] = {"__name__": "__main__"}
        with contextlib.redirect_stdout(io.StringIO()):
            for name, source in self.cells:
                try:
                    run_cell(f"<{self.lab.slug} {name}>", source, namespace)
                except Exception as error:
                    self.problems.append(f"cell {name}: {type(error).__name__}: {error}")
        self.inner = AnswerInPlace(namespace)
        return self

    def __exit__(self, *problem: Any) -> None:
        pass

    def call(self, question: Question, case: Case) -> Outcome:
        try:
            with deadline(self.lab.seconds), contextlib.redirect_stdout(io.StringIO()):
                outcome = self.inner.call(question, case)
        except TooSlow:
            return Outcome(error="Timeout", message=f"no result within {self.lab.seconds:g} s")
        if outcome.error == "AnswerMissing" and self.problems:
            return replace(outcome, message="; ".join(self.problems))
        return outcome

    def peak(self, question: Question, case: Case, warmup: Case) -> tuple[Outcome, int | None]:
        try:
            with deadline(self.lab.seconds), contextlib.redirect_stdout(io.StringIO()):
                return self.inner.peak(question, case, warmup)
        except TooSlow:
            return Outcome(error="Timeout", message=f"no result within {self.lab.seconds:g} s"), None

    def race(self, question: Question, oracle: Any, cases: Sequence[Case]) -> None:
        return None


def run_cell(name: str, source: str, namespace: dict[str, Any]) -> None:
    """Execute one cell; its text is registered so that @triton.jit finds it."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec", dont_inherit=True), namespace)


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise TooSlow in this block after `seconds` (main thread of a POSIX system)."""

    def stop(*_: Any) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
