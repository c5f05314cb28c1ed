"""Change one thing in a correct program and see whether a question's cases notice: `prove --mutate`.

Every oracle is mutated: the function and what it reaches in its own package. A mutant that no case and no mechanism
notices shows a case that is missing, unless it computes the same: then `equivalent` of the question says why. Mutants
may hang or eat memory, so they run in a forked process with limits, and this one runs no tensor operation.
"""

import contextlib
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from autograder.labs import Lab, LabError
from autograder.question import Question
from autograder.redteam.trial import Fate, try_all

SECONDS = 20.0  # for one mutant over all cases; a correct oracle needs well under one
SECONDS_TO_PREPARE = 120.0


@dataclass(frozen=True)
class Survey:
    """All mutants of one question's oracle."""

    lab: str
    question: str
    fates: tuple[Fate, ...] = ()
    made: int = 0
    note: str = ""  # why nothing was mutated, or what was left out

    @property
    def survivors(self) -> list[Fate]:
        return [fate for fate in self.fates if not fate.killed_by]


def survey(lab: Lab, question: Question, seeds: Sequence[int]) -> Survey:
    """Try every mutant of the question's oracle."""
    if question.oracle is None:
        return Survey(lab.slug, question.name, note="no oracle to mutate: results are judged by property")
    known: list[Fate] = []
    made, kernels, told = 0, [], []
    while not known or len(told) < len(known):
        with forked(lab, question, seeds, len(told)) as pipe:
            known, made, kernels = pipe.prepared(lab, question)
            if not known:
                break
            told += pipe.fates(len(known) - len(told))
    fates = tuple(Fate(f.id, f.before, f.after, by) for f, by in zip(known, told, strict=True))
    notes = [f"{', '.join(kernels)}: Triton, not mutated"] if kernels else []
    notes += [f"{len(fates)} of {made} mutants, sampled by hash"] if made > len(fates) else []
    return Survey(lab.slug, question.name, fates, made, "; ".join(notes))


class Pipe:
    """The parent's end: what the forked process says, in time."""

    def __init__(self, process: Any, connection: Any) -> None:
        self.process, self.connection = process, connection

    def receive(self, seconds: float) -> Any:
        if not self.connection.poll(seconds):
            raise TimeoutError
        return self.connection.recv()

    def prepared(self, lab: Lab, question: Question) -> tuple[list[Fate], int, list[str]]:
        """The mutants to try, how many there are in all, and which kernels are left out."""
        try:
            return self.receive(SECONDS_TO_PREPARE)
        except (TimeoutError, EOFError):
            raise LabError(
                f"{lab.slug}: the oracle of {question.name!r} does not get through its own cases; "
                f"`python -m autograder prove {lab.slug} --quick --question {question.name}` shows where"
            ) from None

    def fates(self, count: int) -> Iterator[str]:
        """Up to `count` fates; the mutant that hangs or crashes the process is the last one."""
        for _ in range(count):
            try:
                yield self.receive(SECONDS)
            except TimeoutError:
                yield f"no result within {SECONDS:g} s"
                return
            except EOFError:
                yield "the process ended"
                return


@contextlib.contextmanager
def forked(lab: Lab, question: Question, seeds: Sequence[int], first: int) -> Iterator[Pipe]:
    """A forked process that tries mutants; killed on the way out."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=try_all, args=(lab, question, seeds, first, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Pipe(process, ours)
    finally:
        process.kill()
        process.join()
        ours.close()


def unexplained(question: Question, found: Survey) -> list[str]:
    """What is not in order: a survivor without a reason, or a reason without a survivor.

    A key of `equivalent` is a mutant's id or a pattern for several (`pivot:2d7cbd:*`).
    """
    reasons = {pattern for pattern, reason in question.equivalent.items() if reason.strip()}
    wrong = [
        f"survivor {fate.id}\n    - {fate.before}\n    + {fate.after}\n"
        f'    add a case that tells them apart, or `equivalent = {{"{fate.id}": "reason"}}`'
        for fate in found.survivors
        if not any(fnmatchcase(fate.id, pattern) for pattern in reasons)
    ]
    survivors = [fate.id for fate in found.survivors]
    if found.made == len(found.fates):  # of a sample, an id may be missing by chance
        unused = [pattern for pattern in question.equivalent if not any(fnmatchcase(s, pattern) for s in survivors)]
        wrong += [f"equivalent {pattern!r} matches no survivor: strike it from `equivalent`" for pattern in unused]
    return wrong
