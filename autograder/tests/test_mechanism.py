"""How an answer works: each mechanism lets the right method through and stops the wrong one."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from autograder import Case, Counterfactual, Forbids, MemorySlope, PoisonOutside, ReadOnce, question
from autograder.checks import Outcome, examine
from autograder.mechanism import NOISE_BYTES
from autograder.student import AnswerInPlace

MIB = 2**20


@dataclass
class Measured:
    """A runner whose peaks are given, by size."""

    peaks: dict[int, int | None]
    error: str = ""

    def call(self, asked, case):
        return Outcome(case.args[0].sum(-1))

    def peak(self, asked, case, warmup):
        assert warmup.args[0].shape[0] == 64
        return Outcome(error=self.error, message="no"), self.peaks[case.args[0].shape[0]]


def total(mechanism=()):
    """A question about the sum of a row."""

    @question("total", oracle="reference:total")
    class Total:
        def cases(self, rng):
            yield Case("a row", torch.randn(8, generator=rng))
            yield Case("a matrix", torch.randn(3, 8, generator=rng))

        def grow(self, rng, n):
            return Case("grown", torch.randn(n, 1, generator=rng))

    Total.mechanism = mechanism
    return Total.__question__


def oracle(x):
    return x.sum(-1)


def found(mechanism, answer: Callable | None = None, runner=None):
    runner = runner or AnswerInPlace({"total": answer})
    report = examine(total([mechanism]), runner, oracle=oracle, seed=1)
    assert len(report.mechanisms) <= 1
    return report.mechanisms[0] if report.mechanisms else None


# --- memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peaks", "order", "passed"),
    [
        ([4, 8, 16], 1, True),
        ([16, 64, 256], 1, False),
        ([16, 64, 256], 2, True),
        ([0.1, 0.4, 1.6], 1, True),
        ([2, 5.6, 15.8], 1, True),
        ([64, 32, 16], 1, True),
        ([40, 40, 160], 1, False),
    ],
    ids=["linear", "square", "square allowed", "square in the noise", "n log n", "shrinking", "square at the end"],
)
def test_the_growth_of_memory_decides(peaks, order, passed):
    """Between the two largest sizes, on log axes, with half a power of grace."""
    sizes = (1024, 2048, 4096)
    measured = Measured({n: int(p * MIB) for n, p in zip(sizes, peaks, strict=True)})
    result = found(MemorySlope(order=order, sizes=sizes), runner=measured)
    assert result.passed == passed
    assert f"4,096: {peaks[-1]:.1f} MiB" in result.message
    assert ("it grows as n^" in result.message) == (not passed)


def test_waste_at_small_sizes_does_not_hide_a_square_at_the_largest():
    """A straight line through peaks that no linear method needs; what has to grow faster has no such roof."""
    wasted = {n: 64 * MIB * n // 4096 for n in (1024, 2048, 4096)}
    result = found(MemorySlope(), runner=Measured(wasted))
    assert not result.passed and "16.1 MiB are plenty at n = 4,096" in result.message
    assert found(MemorySlope(order=2), runner=Measured(wasted)).passed


def test_growth_within_the_noise_is_no_evidence():
    """The allocator's own steps and the size of the inputs are allowed for."""
    inputs = 4096 * 4
    limit = NOISE_BYTES + 4 * inputs
    assert found(MemorySlope(), runner=Measured({1024: 0, 2048: 1, 4096: limit})).passed
    assert not found(MemorySlope(), runner=Measured({1024: 0, 2048: 1, 4096: limit + 1})).passed


def test_an_answer_that_fails_at_a_larger_size_fails_the_measurement():
    """The size and the error are told."""
    result = found(MemorySlope(), runner=Measured({1024: 1}, error="MemoryError"))
    assert (result.passed, result.message) == (False, "at size 1,024: MemoryError: no")


def test_a_peak_that_can_not_be_measured_is_no_pass():
    """It says what is missing."""
    result = found(MemorySlope(), runner=Measured({1024: None}))
    assert not result.passed
    assert "needs Linux" in result.message


def test_a_square_is_seen_in_the_notebook_too():
    """There, by the largest tensor that the answer makes."""
    sizes = (2048, 4096)
    assert found(MemorySlope(sizes=sizes), oracle).passed
    assert not found(
        MemorySlope(sizes=sizes), lambda x: (x @ x.T)[:, 0] * 0 + x.sum(-1) if x.ndim > 1 else x.sum(-1)
    ).passed


# --- what is forbidden, what is read once ---------------------------------------------------------------


def test_a_forbidden_call_fails_the_mechanism_and_is_named():
    """Also in an answer that fails its cases, which is every one that calls."""
    result = found(Forbids("cumsum"), lambda x: x.cumsum(-1)[..., -1])
    assert not result.passed
    assert "without `cumsum`" in result.message
    clean = found(Forbids("cumsum", "mean"), oracle)
    assert (clean.passed, clean.message) == (True, "no call of `cumsum`, `mean`")


def test_reading_once_is_enforced_in_the_call_and_has_no_line_of_its_own():
    """Wrong numbers tell."""
    assert found(ReadOnce(1), oracle) is None


# --- counterfactuals ------------------------------------------------------------------------------------


def spoil(case):
    """NaN where the sum of the first four elements must not look."""
    if case.args[0].ndim > 1:
        return None
    x = case.args[0].clone()
    x[4:] = math.nan
    return Case(case.name, x), lambda result: result[..., :4]


@question("first", oracle="reference:first")
class First:
    """The running sum of a row, of which the first four do not depend on the rest."""

    mechanism = (PoisonOutside(spoil, "what comes later", costs=0.5),)

    def cases(self, rng):
        yield Case("a row", torch.randn(8, generator=rng))
        yield Case("a matrix", torch.randn(2, 8, generator=rng))


def poisoned(answer):
    report = examine(First.__question__, AnswerInPlace({"first": answer}), oracle=lambda x: x.cumsum(-1), seed=1)
    return report, report.mechanisms[0]


def test_who_never_reads_the_poison_passes():
    """Only the part that `keep` selects is compared."""
    report, result = poisoned(lambda x: x.cumsum(-1))
    assert report.passed
    assert result.message == "what comes later is never read"


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: x.cumsum(-1) + 0 * x.sum(-1, keepdim=True),
        lambda x: [x.cumsum(-1)][x.isnan().any()],
        lambda x: None if x.isnan().any() else x.cumsum(-1),
    ],
    ids=["reads it", "raises", "returns another form"],
)
def test_who_reads_the_poison_fails(answer):
    """By a changed result, an error, or a result that `keep` can not take apart; it costs its share."""
    report, result = poisoned(answer)
    assert all(case.passed for case in report.cases)
    assert not result.passed
    assert "what comes later was replaced by NaN" in result.message
    assert report.share == 0.5


def test_a_poison_that_fits_no_case_is_an_error_of_the_check():
    """A mechanism that never runs would pass everything."""
    with pytest.raises(ValueError, match="PoisonOutside found no case to poison"):
        found(PoisonOutside(lambda case: None), oracle)


def doubled(case):
    return case.replace(2 * case.args[0]) if case.args[0].ndim == 1 else None


def is_linear(before, after, case):
    if not torch.allclose(after, 2 * before, atol=1e-5):
        yield "the double of the input does not give the double of the sum"


def test_a_counterfactual_compares_two_results_of_the_answer():
    """Cases that `change` passes over are not asked."""
    assert found(Counterfactual("linear", doubled, is_linear), oracle).passed
    kept = []

    def remembers(x):
        kept.append(x.sum(-1))
        return kept[-1] if len(kept) <= 4 else kept[0]  # the four drawn cases are right

    result = found(Counterfactual("linear", doubled, is_linear), remembers)
    assert not result.passed
    assert result.message == "the double of the input does not give the double of the sum (case “a row”)"


@pytest.mark.parametrize(("second", "says"), [("raise", "RuntimeError: no more"), ("text", "not of the expected form")])
def test_a_changed_case_that_breaks_the_answer_fails(second, says):
    """An error, or a result of another form."""
    calls = []

    def answer(x):
        calls.append(1)
        if len(calls) > 4 and second == "raise":
            raise RuntimeError("no more")
        return x.sum(-1) if len(calls) <= 4 else "text"

    result = found(Counterfactual("linear", doubled, is_linear), answer)
    assert not result.passed
    assert says in result.message


def test_mechanisms_beyond_forbidden_calls_wait_for_the_plain_case():
    """A wrong answer's memory is of no interest; what it called is."""
    assert found(MemorySlope(), lambda x: x.sum()) is not None
    assert found(MemorySlope(), lambda x: x.sum(-1) + 1) is None
    assert not found(Forbids("sum"), oracle).passed
