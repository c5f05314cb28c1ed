"""Examining an answer: cases, mechanisms, diagnosis, and what a broken answer is told."""

import linecache
import time

import pytest
import torch

from autograder import Case, Forbids, MemorySlope, ReadOnce, mistake, question
from autograder.checks import (
    TIMEOUTS_ALLOWED,
    Outcome,
    call_in_place,
    examine,
    hand_over,
    judge_case,
    last_line,
    merge_draws,
    summary,
)
from autograder.question import DRAWS
from autograder.score import CaseResult
from autograder.student import AnswerInPlace
from autograder.tolerance import Comparison, Difference


@question("center", oracle="reference:center")
class Center:
    """Each row without its mean."""

    def cases(self, rng):
        yield Case("plain", torch.randn(3, 5, generator=rng) + 2)
        yield Case("one column", torch.randn(3, 1, generator=rng) + 2)
        yield Case("large", torch.randn(3, 5, generator=rng) * 1e4, weight=2)

    mechanism = (Forbids("layer_norm"),)

    def grow(self, rng, n):
        return Case("grown", torch.randn(n, 4, generator=rng))


CENTER = Center.__question__


def center(x):
    return x - x.mean(-1, keepdim=True)


@mistake("center", says="One mean for all.")
def one_mean(x):
    return x - x.mean()


@mistake("center", says="You raised for a single column.")
def refuses_one_column(x):
    if x.shape[-1] == 1:
        raise ValueError("one column")
    return x - x.mean(-1, keepdim=True)


@mistake("center", says="A square was kept.", fails="MemorySlope")
def square(x):
    return x


@mistake("center", says="You called the library.", fails="Forbids")
def library(x):
    return x


KNOWN = [m for f in (one_mean, refuses_one_column, square, library) for m in f.__mistakes__]


def in_a_cell(source):
    """The function `f` of a notebook cell, whose lines Python can show."""
    linecache.cache["<cell>"] = (len(source), None, source.splitlines(keepends=True), "<cell>")
    namespace = {"center": center, "torch": torch}
    exec(compile(source, "<cell>", "exec"), namespace)
    return namespace["f"]


def check(answer, *, asked=CENTER, runner=None, oracle=center, mistakes=KNOWN):
    runner = runner or AnswerInPlace({asked.answer: answer})
    return examine(asked, runner, oracle=oracle, seed=5, mistakes=mistakes, points=4.0)


def test_a_right_answer_passes_every_case():
    """Full points, one line per case, no diagnosis."""
    report = check(center)
    assert report.passed
    assert (report.earned, report.diagnosis) == (4.0, "")
    assert [case.name for case in report.cases] == ["plain", "one column", "large"]
    assert all(case.error <= case.bound for case in report.cases)


def test_a_half_right_answer_earns_its_cases():
    """By weight, when the plain case passes."""
    report = check(lambda x: center(x) if x.abs().max() < 100 else x)
    assert report.earned == 2.0
    assert [case.passed for case in report.cases] == [True, True, False]
    assert report.cases[2].message.startswith("result: 15 of 15 values are off")


def test_a_case_passes_only_if_every_draw_of_it_does():
    """A result that was right once is not enough; the first failure speaks."""
    seen = []

    def right_once(x):
        seen.append(x)
        return center(x) if len(seen) <= 3 else x

    report = check(right_once)
    assert report.earned == 0
    assert [case.passed for case in report.cases] == [False, False, False]
    results = [
        CaseResult("a", True, message="1"),
        CaseResult("a", False, message="2"),
        CaseResult("a", False, message="3"),
    ]
    assert [r.message for r in merge_draws(results)] == ["2"]


def test_answers_get_private_copies():
    """Who overwrites the input fails by what is returned, never by what the oracle then sees."""

    def overwrites(x):
        x -= x.mean(-1, keepdim=True)
        return x

    assert check(overwrites).passed
    assert not check(lambda x: x.zero_()).passed


def test_an_unwritten_answer_is_not_attempted():
    """NotImplementedError from the stub, or no such name in the notebook."""

    def stub(x):
        raise NotImplementedError("center")

    report = check(stub)
    assert (report.status, report.earned, report.note) == ("not attempted yet", 0.0, "")
    renamed = check(None, runner=AnswerInPlace({"centre": center}))
    assert renamed.status == "not attempted yet"
    assert 'there is no `center` in this notebook: run the cell that defines it. Did you mean "centre"?' in renamed.note


def test_a_branch_left_unwritten_costs_its_cases_only():
    """What works already counts."""

    half = 'def f(x):\n    if x.shape[-1] == 1:\n        raise NotImplementedError("later")\n    return center(x)\n'
    report = check(in_a_cell(half))
    assert report.earned == 3.0
    assert report.cases[1].message == 'NotImplementedError: later, at `raise NotImplementedError("later")`'


def test_an_error_is_told_with_the_answer_s_own_line():
    """Not with ours, nor torch's."""

    report = check(in_a_cell("def f(x):\n    return center(x @ x)\n"))
    assert report.cases[0].message.startswith("RuntimeError: mat1 and mat2 shapes")
    assert report.cases[0].message.endswith(", at `return center(x @ x)`")
    deeper = "def g(x):\n    return x @ x\n\ndef f(x):\n    return g(x)\n"
    assert check(in_a_cell(deeper)).cases[0].message.endswith(", at `return x @ x`")
    assert last_line(ValueError("never raised")) == ""


class Slow:
    """A runner in which some calls end at their deadline."""

    def __init__(self, slow):
        self.slow, self.calls = slow, 0

    def call(self, asked, case):
        self.calls += 1
        if self.calls in self.slow:
            return Outcome(error="Timeout", message="no result within 20 s")
        return call_in_place(asked, center, case)


def test_a_hanging_answer_makes_nobody_wait_long():
    """After a few deadlines the rest is not run, and says so."""
    runner = Slow(slow=range(1, 100))
    report = check(None, runner=runner)
    assert runner.calls == TIMEOUTS_ALLOWED < 3 * DRAWS
    assert report.cases[0].message == "Timeout: no result within 20 s"
    assert report.cases[2].message == "not run: earlier cases did not finish in time"
    assert report.earned == 0


def test_one_slow_case_costs_one_case():
    """The others are still run."""
    runner = Slow(slow=[3])
    assert check(None, runner=runner).earned == 2.0
    assert runner.calls == 3 * DRAWS


# --- diagnosis ------------------------------------------------------------------------------------------


def test_a_known_mistake_is_named_by_what_it_returns():
    """On every case, up to rounding."""
    report = check(lambda x: x - x.sum() / x.numel())
    assert (report.mistake, report.diagnosis) == ("one_mean", "One mean for all.")


def test_a_known_mistake_is_named_by_where_it_raises():
    """The same type of error on the same case."""

    def mine(x):
        if x.shape[-1] < 2:
            raise ValueError("too narrow")
        return center(x)

    report = check(mine)
    assert report.mistake == "refuses_one_column"
    assert report.earned == 3.0


def test_an_unknown_mistake_is_not_given_a_wrong_name():
    """Nor one that agrees with a known mistake on few of its wrong results."""
    report = check(lambda x: x + 1)
    assert not report.passed
    assert report.mistake == ""


def test_one_of_two_faults_is_named_with_its_share():
    """A first attempt often has two; the one behind most wrong results is told, and that there is another."""
    report = check(lambda x: x - x.mean() * (1 + (x.abs().max() > 100) * 0.2))
    assert report.mistake == "one_mean"
    assert report.diagnosis.startswith("This explains 4 of your 6 wrong results; something else is wrong as well.")


def test_an_answer_that_waits_is_compared_on_what_ran():
    """Cases that were not run can not speak against a diagnosis."""

    class WrongThenSlow(Slow):
        def call(self, asked, case):
            outcome = super().call(asked, case)
            return outcome if outcome.error else call_in_place(asked, one_mean, case)

    waits = mistake("center", says="It waits.")(lambda x: one_mean(x)).__mistakes__
    report = check(None, runner=WrongThenSlow(slow=[5, 6]), mistakes=waits)
    assert "This explains 4 of your 6 wrong results" in report.diagnosis  # the deadline is no result of the mistake's
    report = check(None, runner=WrongThenSlow(slow=[]), mistakes=waits)
    assert report.diagnosis == "It waits."


def test_a_forbidden_call_is_diagnosed_by_its_mechanism():
    """The cases fail with it, and the mistake that names the mechanism is found."""
    report = check(lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:]))
    assert report.mistake == "library"
    assert report.cases[0].message.startswith("ForbiddenCall: `")
    assert report.earned == 0


def test_right_numbers_by_the_wrong_route_are_diagnosed_by_the_mechanism():
    """No case fails; the most specific text wins."""

    @question("total", oracle="reference:total")
    class Total:
        mechanism = (MemorySlope(sizes=(2048, 4096)),)

        def cases(self, rng):
            yield Case("a column", torch.randn(4, 1, generator=rng))

        def grow(self, rng, n):
            return Case("grown", torch.randn(n, 1, generator=rng))

    say = [
        mistake("total", says=fails, fails=fails)(lambda: None).__mistakes__[0]
        for fails in ("n^2", "Forbids", "it grows as n^2")
    ]
    report = check(
        lambda x: (x @ x.T).sum() * 0 + x.sum(), asked=Total.__question__, oracle=lambda x: x.sum(), mistakes=say
    )
    assert all(case.passed for case in report.cases)
    assert report.mistake == "<lambda>"
    assert report.diagnosis == "it grows as n^2"


def test_a_mechanism_is_examined_as_soon_as_the_plain_case_passes():
    """Later cases may fail: what is earned so far rests on it."""

    @question("total", oracle="reference:total")
    class Total:
        mechanism = (MemorySlope(sizes=(2048, 4096)),)

        def cases(self, rng):
            yield Case("a column", torch.randn(4, 1, generator=rng))
            yield Case("three columns", torch.randn(4, 3, generator=rng))

        def grow(self, rng, n):
            return Case("grown", torch.randn(n, 1, generator=rng))

    def answer(x):
        return x.sum() if x.shape[1] == 1 else x.sum() + 1

    report = check(answer, asked=Total.__question__, oracle=lambda x: x.sum(), mistakes=())
    assert [case.passed for case in report.cases] == [True, False]
    assert [mechanism.passed for mechanism in report.mechanisms] == [True]


def test_a_message_names_at_most_three_differences():
    """The rest is more of the same."""
    differing = Comparison(tuple(Difference(f"part {i}", "type", "wrong") for i in range(5)))
    assert summary(differing) == "part 0: wrong; part 1: wrong; part 2: wrong"


# --- properties and oracles -----------------------------------------------------------------------------


@question("root", oracle=None)
class Root:
    def cases(self, rng):
        yield Case("of two", 2.0)
        yield Case("of nine", 9.0)

    def judge(self, got, case):
        if abs(got * got - case.args[0]) > 1e-6:
            yield f"{got} squared is not {case.args[0]}"


def test_a_property_is_judged_by_the_question_itself():
    """Every answer with the property passes; the problems are the message."""
    assert check(lambda x: -(x**0.5), asked=Root.__question__, oracle=None).passed
    report = check(lambda x: 3.0, asked=Root.__question__, oracle=None)
    assert [case.message for case in report.cases] == ["3.0 squared is not 2.0", ""]


@pytest.mark.parametrize("got", ["three", None, [1.0]])
def test_a_result_that_breaks_the_judge_fails_its_case(got):
    """One strange result must not stop a class."""
    report = check(lambda x: got, asked=Root.__question__, oracle=None)
    assert [case.message for case in report.cases] == ["the result is not of the expected form (TypeError)"] * 2


def test_a_question_without_oracle_and_judge_can_not_be_examined():
    """An error of the author's, said as one."""
    with pytest.raises(TypeError, match="question 'center' has neither an oracle nor a `judge` method"):
        check(center, oracle=None)


def test_the_oracle_runs_in_double_precision():
    """The truth is fp64; the run in the case's own precision only sets the bound."""
    seen = []

    def oracle(x):
        seen.append(x.dtype)
        return center(x)

    judge_case(CENTER, oracle, Case("plain", torch.randn(2, 3)), Outcome(torch.zeros(2, 3)))
    assert seen == [torch.float64, torch.float32]


# --- handing over ---------------------------------------------------------------------------------------


@question("both", oracle="reference:both")
class Both:
    mechanism = (ReadOnce(1),)

    def cases(self, rng):
        yield Case("lists", [1, 2], [3, 4])


def test_an_argument_to_be_read_once_runs_dry():
    """Only that one; a case without positional arguments is left as it is."""
    case = hand_over(Both.__question__, Case("lists", [1, 2], [3, 4]))
    assert case.args[0] == [1, 2]
    assert (list(case.args[1]), list(case.args[1])) == ([3, 4], [])
    assert hand_over(Both.__question__, Case("none", scale=1)).kwargs == {"scale": 1}


def test_a_call_tells_time_and_keeps_errors_in():
    """Milliseconds of a success; type and message of a failure, cut to a readable length."""
    outcome = call_in_place(CENTER, lambda x: time.sleep(0.02), Case("plain", torch.ones(2, 3)))
    assert 20 <= outcome.milliseconds < 600
    failed = call_in_place(CENTER, lambda x: {}["x" * 900], Case("plain", torch.ones(2, 3)))
    assert failed.error == "KeyError"
    assert len(failed.message) == 500


def test_an_interrupt_is_not_swallowed():
    """Kernel > Interrupt stops a check at once."""

    def interrupts(x):
        raise KeyboardInterrupt  # what the signal becomes; a shell's background job ignores the signal itself

    with pytest.raises(KeyboardInterrupt):
        check(interrupts)
