"""Examine an answer: run the cases, compare with the oracle, check the mechanism, name the mistake.

The same code runs in the student's notebook (visible seed, answer called in place) and in the judge (hidden seed,
answer called in another process). What differs is the `Runner`, which says how an answer is called.
"""

import contextlib
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from autograder.converse import AnswerFailed, Rules
from autograder.mechanism import Forbids, MechanismResult
from autograder.question import Case, Mistake, Question, WithGradients
from autograder.sandbox.watch import ForbiddenCall, ForbidFunctions, WatchOperations, own_error
from autograder.score import CaseResult, Report
from autograder.served import Seen
from autograder.tolerance import Comparison, Difference, alike, compare
from autograder.tree import fresh, to_double

PACKAGE = str(Path(__file__).parent)
TIMEOUTS_ALLOWED = 2  # after so many, the rest of a question's cases would only make the class wait


@dataclass(frozen=True)
class Outcome:
    """What one call of an answer gave: a value, or an error by type, message and the answer's own line.

    `seen` is what was counted outside of it: served functions, and what each rank sent.
    """

    value: Any = None
    error: str = ""
    message: str = ""
    line: str = ""
    milliseconds: float = 0.0
    seen: Seen = field(default_factory=Seen)

    @property
    def not_attempted(self) -> bool:
        return self.error in ("NotImplementedError", "AnswerMissing")


class Runner(Protocol):
    """How an answer is called. In the notebook: in place. In the judge: in a sandboxed process."""

    measures: bool  # whether `peak` is that of a process of its own

    def call(self, question: Question, case: Case) -> Outcome:
        """Drive the answer on a private copy of the case."""

    def peak(self, question: Question, case: Case, warmup: Case) -> tuple[Outcome, int | None]:
        """The same in a fresh process after a warm-up call, with the peak of extra memory in bytes (None: unknown)."""

    def race(self, question: Question, oracle: "Oracle", cases: Sequence[Case]) -> list[tuple[Outcome, float]] | None:
        """Outcomes of the answer with the oracle's milliseconds, the two in turn; None where nothing is timed."""


Oracle = Callable[..., Any]


def examine(
    question: Question,
    runner: Runner,
    *,
    oracle: Oracle | None,
    seed: int,
    mistakes: Sequence[Mistake] = (),
    points: float = 1.0,
) -> Report:
    """Run every case of `question`, then its mechanisms, and report with a diagnosis.

    `oracle` is the function that `question.oracle` names (None for a question judged by property).
    """
    drawn = [case for _, case in question.draw(seed)]
    outcomes: list[Outcome] = []
    results: list[CaseResult] = []
    timeouts = 0
    for case in drawn:
        if timeouts >= TIMEOUTS_ALLOWED:
            outcome = Outcome(error="NotRun", message="not run: earlier cases did not finish in time")
        else:
            outcome = runner.call(question, case)
        # A later case may meet a branch that is still missing: that case fails, the others count.
        if outcome.not_attempted and not outcomes:
            note = outcome.message if outcome.error == "AnswerMissing" else ""
            return Report(question.name, points, attempted=False, note=note)
        timeouts += outcome.error == "Timeout"
        outcomes.append(outcome)
        results.append(judge_case(question, oracle, case, outcome))
    cases = merge_draws(results)
    mechanisms = examine_mechanisms(question, runner, oracle, seed, drawn, outcomes, cases[0].passed)
    report = Report(question.name, points, cases=cases, mechanisms=mechanisms)
    if report.passed:
        return report
    known = diagnose(question, mistakes, drawn, outcomes, results, mechanisms)
    return report.with_diagnosis(known)


def judge_case(question: Question, oracle: Oracle | None, case: Case, outcome: Outcome) -> CaseResult:
    """One drawn case against the oracle (or the question's own `judge`)."""
    if outcome.error:
        return CaseResult(case.name, False, case.weight, error_message(outcome), milliseconds=outcome.milliseconds)
    if question.by_property:
        problems = judged_by_property(question, case, outcome.value)
        return CaseResult(case.name, not problems, case.weight, "; ".join(problems), milliseconds=outcome.milliseconds)
    result = against_oracle(question, oracle, case, outcome.value)
    return CaseResult(
        case.name, result.ok, case.weight, summary(result), result.differences, result.error, result.bound,
        outcome.milliseconds,
    )  # fmt: skip


def judged_by_property(question: Question, case: Case, got: Any) -> list[str]:
    """What the question's own `judge` says; whatever an answer returned may not stop the one who judges it."""
    try:
        return list(question.spec.judge(fresh(got), case.map(fresh)))
    except Exception as error:
        return [f"the result is not of the expected form ({type(error).__name__})"]


def against_oracle(
    question: Question, oracle: Oracle | None, case: Case, got: Any, keep: Callable[[Any], Any] = lambda value: value
) -> Comparison:
    """Compare with the oracle in fp64, bounded by what the oracle itself loses in the case's precision."""
    if oracle is None:
        raise TypeError(f"question {question.name!r} has neither an oracle nor a `judge` method")
    true = true_result(question, oracle, case)
    return compared(question, got, true.value, true.low, keep)


@dataclass(frozen=True)
class Truth:
    """The oracle on one case: in fp64, in the case's own precision, and what was counted on the way."""

    value: Any
    low: Any
    seen: Seen


def true_result(question: Question, oracle: Oracle, case: Case) -> Truth:
    """The oracle's results, computed once per drawn case."""
    key = (oracle, case.key)
    if case.key is not None and key in question.truths:
        return question.truths[key]
    value = question.drive(oracle, case.map(lambda value: to_double(fresh(value))))
    true = Truth(value, *question.run(oracle, case.map(fresh)))
    if case.key is not None:
        question.truths[key] = true
    return true


def compared(
    question: Question, got: Any, truth: Any, low: Any, keep: Callable[[Any], Any] = lambda value: value
) -> Comparison:
    """What `keep` selects of a result against the truth, and the gradients where the question wants them.

    Under a `keep`, gradients are left out: they belong to the whole result.
    """
    gradients = got, truth, low
    if question.gradients:
        if not isinstance(got, WithGradients):
            return Comparison((Difference("result", "structure", "not of the expected form"),))
        got, truth, low = got.value, truth.value, low.value
    try:
        kept, true = keep(got), keep(truth)
    except Exception as error:  # a result of the wrong form, which `keep` could not take apart
        wrong_form = Difference("result", "structure", f"not of the expected form ({type(error).__name__})")
        return Comparison((wrong_form,))
    names = [f"rank {rank}" for rank in range(question.ranks)] or question.returns
    result = compare(kept, true, keep(low), question.tolerance, names)
    if not question.gradients or true is not truth:
        return result
    theirs, true_ones, low_ones = (part.gradients for part in gradients)
    names = [f"gradient {number}" for number in range(1, len(true_ones) + 1)]
    slopes = compare(theirs, true_ones, low_ones, question.tolerance, names)
    worse = max(result, slopes, key=lambda c: c.error / c.bound if c.bound else c.error)
    return Comparison((*result.differences, *slopes.differences), worse.error, worse.bound)


def summary(result: Comparison) -> str:
    return "; ".join(f"{d.where}: {d.message}" for d in result.differences[:3])


def error_message(outcome: Outcome) -> str:
    """What went wrong inside the answer, with its own line where there is one."""
    place = f", at `{outcome.line}`" if outcome.line else ""
    if outcome.error == "NotRun":
        return outcome.message
    return f"{outcome.error}: {outcome.message}{place}"


def merge_draws(results: Iterable[CaseResult]) -> tuple[CaseResult, ...]:
    """One result per case name: passed only if every draw of it passed, and the first failure speaks."""
    merged: dict[str, CaseResult] = {}
    for result in results:
        before = merged.get(result.name)
        if before is None or (before.passed and not result.passed):
            merged[result.name] = result
    return tuple(merged.values())


def examine_mechanisms(
    question: Question,
    runner: Runner,
    oracle: Oracle | None,
    seed: int,
    drawn: Sequence[Case],
    outcomes: Sequence[Outcome],
    plain_passed: bool,
) -> tuple[MechanismResult, ...]:
    """How the answer works, not only what it returns. Of an answer that fails the plain case, only what it called."""
    context = Examination(question, runner, oracle, seed, drawn, outcomes)
    worth = [m for m in question.mechanism if plain_passed or isinstance(m, Forbids)]
    return tuple(result for mechanism in worth if (result := mechanism.examine(context)) is not None)


@dataclass(frozen=True)
class Examination:
    """What a mechanism check may use."""

    question: Question
    runner: Runner
    oracle: Oracle | None
    seed: int
    drawn: Sequence[Case]
    outcomes: Sequence[Outcome]

    def against_oracle(self, case: Case, got: Any, keep: Callable[[Any], Any]) -> Comparison:
        return against_oracle(self.question, self.oracle, case, got, keep)

    def oracle_seen(self, case: Case) -> Seen:
        """What the oracle itself was seen to do; nothing where there is none."""
        return true_result(self.question, self.oracle, case).seen if self.oracle is not None else Seen()


def diagnose(
    question: Question,
    mistakes: Sequence[Mistake],
    drawn: Sequence[Case],
    outcomes: Sequence[Outcome],
    results: Sequence[CaseResult],
    mechanisms: Sequence[MechanismResult],
) -> Mistake | None:
    """The known mistake that gives what this answer gave, on every case; else the one that trips the same mechanism;
    else the one behind most of the wrong cases, since a first attempt often has two faults.
    """
    if all(result.passed for result in results):
        return by_mechanism(mistakes, mechanisms)
    ran = [(case, outcome) for case, outcome in zip(drawn, outcomes, strict=True) if outcome.error != "NotRun"]
    by_value = [m for m in mistakes if not m.fails]
    exact = next((m for m in by_value if behaves_like(question, m, ran)), None)
    wrong = [pair for pair, result in zip(zip(drawn, outcomes, strict=True), results, strict=True) if not result.passed]
    return exact or by_mechanism(mistakes, mechanisms) or one_of_two_faults(question, by_value, wrong)


def one_of_two_faults(
    question: Question, mistakes: Sequence[Mistake], wrong: Sequence[tuple[Case, Outcome]]
) -> Mistake | None:
    """The mistake that gives the first wrong result and more than half of all wrong ones; its text says how many."""
    best, most = None, len(wrong) // 2
    for known in mistakes:
        if not same_value(question, known, *wrong[0]):
            continue
        explained = sum(same_value(question, known, *pair) for pair in wrong)
        if explained > most:
            best, most = known, explained
    if best is None:
        return None
    counted = f"This explains {most} of your {len(wrong)} wrong results; something else is wrong as well. "
    return replace(best, says=counted + best.says)


def same_value(question: Question, known: Mistake, case: Case, outcome: Outcome) -> bool:
    """Whether `known` gives this very result. The same type of error is not enough here."""
    if outcome.error:
        return False
    theirs = call_in_place(question, known.answer, case)
    return not theirs.error and alike(outcome.value, theirs.value)


def by_mechanism(mistakes: Sequence[Mistake], mechanisms: Sequence[MechanismResult]) -> Mistake | None:
    """The mistake whose `fails` is the most specific match for a failed mechanism."""
    failed = " ".join(f"{m.name} {m.message}" for m in mechanisms if not m.passed)
    matching = [m for m in mistakes if m.fails and m.fails in failed]
    return max(matching, key=lambda m: len(m.fails), default=None)


def behaves_like(question: Question, known: Mistake, ran: Iterable[tuple[Case, Outcome]]) -> bool:
    """Whether `known` gives the same result, or the same type of error, on every case."""
    for case, outcome in ran:
        theirs = call_in_place(question, known.answer, case)
        if outcome.error != theirs.error or (not outcome.error and not alike(outcome.value, theirs.value)):
            return False
    return True


def call_in_place(question: Question, answer: Callable[..., Any], case: Case, watching: Rules | None = None) -> Outcome:
    """Drive `answer` in this process on a private copy of the case, under the question's rules (or `watching`)."""
    private = hand_over(question, case)
    start = time.perf_counter()
    try:
        value, seen = question.run(answer, private, watching or (lambda: rules(question)))
    except Exception as error:
        return failed_in_place(question, error)
    return Outcome(value, milliseconds=1000 * (time.perf_counter() - start), seen=seen)


def failed_in_place(question: Question, error: Exception) -> Outcome:
    """The outcome of an answer that raised; in a conversation, other errors come from what it had returned."""
    if question.converses and not isinstance(error, AnswerFailed):
        form = f"what came back is not of the expected form ({type(error).__name__}: {error})"
        return Outcome(error="WrongForm", message=form[:500])
    own = own_error(error.cause if isinstance(error, AnswerFailed) else error)
    if isinstance(own, ForbiddenCall):
        return Outcome(error="ForbiddenCall", message=str(own))
    return Outcome(error=type(own).__name__, message=str(own)[:500], line=last_line(own))


@contextlib.contextmanager
def rules(question: Question) -> Iterator[None]:
    """Refuse what the question forbids, in this thread."""
    with ForbidFunctions(question.forbidden), WatchOperations(question.forbidden):
        yield


def hand_over(question: Question, case: Case) -> Case:
    """A private copy of the case; arguments to be read once become iterators that run dry."""
    private = case.map(fresh)
    args = [iter(arg) if i in question.read_once else arg for i, arg in enumerate(private.args)]
    return private.replace(*args) if args else private


def last_line(error: BaseException) -> str:
    """The innermost source line that belongs to a notebook cell or a lab, for the message."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith(PACKAGE)]
    return (own[-1].line or "").strip() if own else ""
