"""Three forms of one recurrence: the same numbers, other costs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from refimpl.linear_attention import FORMS, elu_plus_one, linear_attention, linear_attention_flops
from refimpl.meter import Meter


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_definition(q, k, v, causal):
    """The double sum of the docstring, one pair of tokens at a time."""
    out = torch.zeros_like(v)
    q, k = elu_plus_one(q), elu_plus_one(k)
    for i in range(q.shape[2]):
        seen = slice(0, i + 1) if causal else slice(None)
        w = (q[:, :, i : i + 1] * k[:, :, seen]).sum(-1)
        out[:, :, i] = (w[..., None] * v[:, :, seen]).sum(2) / w.sum(-1, keepdim=True)
    return out


@settings(max_examples=20, deadline=None)
@given(seq=st.integers(1, 40), chunk=st.integers(1, 45), causal=st.booleans(), seed=st.integers(0, 99))
def test_the_three_forms_are_the_definition(seq, chunk, causal, seed):
    """In float64, at lengths that no chunk divides."""
    q, k, v = (draw(2, 2, seq, 3, seed=seed + s) for s in range(3))
    wanted = by_definition(q, k, v, causal)
    for form in FORMS:
        assert_close(linear_attention(q, k, v, causal=causal, form=form, chunk=chunk), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_right(form):
    """Against finite differences."""
    inputs = [draw(1, 1, 5, 2, seed=s).requires_grad_() for s in range(3)]
    assert torch.autograd.gradcheck(lambda *x: linear_attention(*x, form=form, chunk=2), inputs)


@pytest.mark.parametrize("form", FORMS)
def test_counted_flops_are_the_formula(form):
    """And doubling the length doubles the linear forms, quadruples the parallel one."""

    def count(seq):
        q, k, v = (draw(1, 1, seq, 8, seed=s) for s in range(3))
        with Meter() as meter:
            linear_attention(q, k, v, form=form, chunk=16)
        return meter.flops

    assert count(64) == linear_attention_flops(64, 8, form=form, chunk=16)
    assert count(128) == (4 if form == "parallel" else 2) * count(64)


def test_no_form_but_the_parallel_one_makes_a_matrix_of_scores():
    """Bytes of the largest tensor at N = 256: N² for one, the inputs' size for the others."""
    q, k, v = (draw(1, 1, 256, 4, seed=s) for s in range(3))
    largest = {}
    for form in FORMS:
        with Meter() as meter:
            linear_attention(q, k, v, form=form, chunk=8)
        largest[form] = meter.largest_bytes
    assert largest["parallel"] == 8 * 256 * 256 and max(largest["recurrent"], largest["chunked"]) == 8 * 256 * 5


@pytest.mark.parametrize("wrong", [{"form": "sideways"}, {"chunk": 0}])
def test_unknown_forms_and_empty_chunks_are_refused(wrong):
    """The known ones are named."""
    with pytest.raises(ValueError, match=r"form is one of .*recurrent.* chunk at least 1"):
        linear_attention(draw(1, 1, 2, 2), draw(1, 1, 2, 2), draw(1, 1, 2, 2), **wrong)
