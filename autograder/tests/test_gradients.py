"""Questions with gradients: the answer's graph is followed back with cotangents that it can not guess from a sum."""

import pytest
import torch

from autograder import Case, PoisonOutside
from autograder.question import WithGradients
from autograder.sandbox.vjp import with_gradients
from autograder.student import AnswerInPlace
from autograder.tests.kinds import declared, defined, everywhere, first_case, judged


class Scores:
    """Scaled products, with gradients of both factors."""

    gradients = (0, 1)

    def cases(self, rng):
        yield Case("odd", torch.randn(3, 5, generator=rng), torch.randn(7, 5, generator=rng))
        yield Case("half", torch.randn(4, 8, generator=rng).bfloat16(), torch.randn(2, 8, generator=rng).bfloat16())


def oracle(q, k):
    return q @ k.mT * q.shape[-1] ** -0.5


HONEST = "def answer(q, k):\n    return torch.einsum('id,jd->ij', q, k) / q.shape[-1] ** 0.5"
OWN = """
class Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k):
        ctx.save_for_backward(q, k)
        return q @ k.mT * q.shape[-1] ** -0.5

    @staticmethod
    def backward(ctx, g):
        q, k = ctx.saved_tensors
        return BACKWARD


def answer(q, k):
    return Scores.apply(q, k)
"""
RIGHT = OWN.replace("BACKWARD", "g @ k * q.shape[-1] ** -0.5, g.mT @ q * q.shape[-1] ** -0.5")


@pytest.mark.parametrize("source", [HONEST, RIGHT], ids=["autograd", "its own backward"])
def test_right_gradients_pass_in_place_and_in_the_judge(zygote, source):
    """In fp32 and bf16, each bounded by what the oracle loses."""
    for report in everywhere(zygote, declared(Scores), source, oracle):
        assert report.passed, report


WRONG = {
    "no graph": (
        "def answer(q, k):\n    return (q @ k.mT * q.shape[-1] ** -0.5).detach()", "gradient 1: None, expected",
    ),
    "half a graph": ("def answer(q, k):\n    return q @ k.detach().mT * q.shape[-1] ** -0.5", "gradient 2"),
    "no scale": (OWN.replace("BACKWARD", "g @ k, g.mT @ q"), "gradient 1"),
    "as if of a sum": (
        OWN.replace("BACKWARD", "torch.ones_like(g) @ k * q.shape[-1] ** -0.5, torch.ones_like(g).mT @ q"),
        "gradient 1",
    ),
    "numbers of its own": ("def answer(q, k):\n    return 0 * (q @ k.mT)", "result"),
}  # fmt: skip


@pytest.mark.parametrize(("source", "says"), WRONG.values(), ids=WRONG)
def test_a_right_result_with_wrong_gradients_earns_nothing(zygote, source, says):
    """And the report names the gradient."""
    for report in everywhere(zygote, declared(Scores), source, oracle):
        assert report.earned == 0 and says in report.cases[0].message


def test_a_runner_that_sends_no_gradients_has_no_result(zygote):
    """The judge takes a pair or nothing."""
    source = "import sandbox.runner as r\nr.with_gradients = lambda run, args, *more: run(args)\n" + HONEST
    with judged(zygote, source) as runner:
        asked = declared(Scores)
        assert runner.call(asked, first_case(asked)).error == "Crash"


def test_cotangents_differ_from_draw_to_draw_and_not_between_runs():
    """The same case meets the same ones, whoever runs it."""
    asked = declared(Scores)
    one, _, other, _ = (case for _, case in asked.draw(1))
    assert one.seed != other.seed and one.seed == next(iter(asked.draw(1)))[1].seed
    again = [AnswerInPlace(defined(HONEST)).call(asked, one).value for _ in range(2)]
    assert isinstance(again[0], WithGradients)
    assert torch.equal(again[0].gradients[0], again[1].gradients[0])
    assert one.replace(*one.args).map(lambda both: both).seed == one.seed


def test_a_poisoned_case_is_compared_by_its_result():
    """`keep` takes the result apart; gradients belong to the whole of it."""

    class Half(Scores):
        gradients = (0,)
        mechanism = (PoisonOutside(lambda case: (spoilt(case), lambda out: out[0])),)

    def spoilt(case):
        q, k = case.args
        q = q.clone()
        q[1:] = torch.nan
        return Case(case.name, q, k)

    from autograder.checks import examine

    assert examine(declared(Half), AnswerInPlace(defined(HONEST)), oracle=oracle, seed=3).passed


def test_gradients_reach_into_lists_and_dicts():
    """One per floating tensor, dicts by key; what the result does not depend on has gradient 0."""

    def run(args):
        blocks, table, _ = args
        return {"b": blocks[0] * 2, "a": table["w"].sum()}

    args = ([torch.ones(2), torch.ones(1)], {"w": torch.ones(3), "index": torch.tensor([1])}, 4)
    value, (first, second, third) = with_gradients(run, args, (0, 1), seed=5)
    assert value["b"].requires_grad and second.item() == 0 and first.shape == (2,) and third.shape == (3,)
    generator = torch.Generator().manual_seed(5)  # "a" comes first, whatever the order in the dict
    assert third[0] == torch.randn((), generator=generator, dtype=torch.float64).float()
