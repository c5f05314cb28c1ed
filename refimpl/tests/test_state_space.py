"""A selective scan three ways, its tie to linear attention, and a layer that is causal and learns to select."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from refimpl.meter import Meter
from refimpl.state_space import FORMS, SelectiveStateSpace, selective_scan


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scan_inputs(seq, heads=2, dim=3, state=4, seed=0):
    x, b, c = draw(2, heads, seq, dim, seed=seed), *(draw(2, heads, seq, state, seed=seed + s) for s in (1, 2))
    return x, draw(2, heads, seq, seed=seed + 3).exp(), draw(heads, seed=seed + 4), b, c


@settings(max_examples=20, deadline=None)
@given(seq=st.integers(1, 40), chunk=st.integers(1, 45), seed=st.integers(0, 99))
def test_the_three_forms_agree(seq, chunk, seed):
    """In float64, at lengths that no chunk divides."""
    inputs = scan_inputs(seq, seed=seed)
    wanted = selective_scan(*inputs, form="recurrent")
    for form in FORMS:
        assert_close(selective_scan(*inputs, form=form, chunk=chunk), wanted, rtol=1e-10, atol=1e-12)


def test_two_steps_by_hand():
    """H_1 = 0.5 * 2 * 3 = 3; H_2 = a H_1 + 1 * 4 * 5 with a = exp(-1); y = C H."""
    column = lambda *values: torch.tensor(values, dtype=torch.float64).view(1, 1, -1, 1)  # noqa: E731
    x, b, c = column(3.0, 5.0), column(2.0, 4.0), column(10.0, 100.0)
    y = selective_scan(x, column(0.5, 1.0)[..., 0], torch.zeros(1, dtype=torch.float64), b, c, form="recurrent")
    h_2 = torch.exp(torch.tensor(-1.0, dtype=torch.float64)) * 3 + 20
    assert_close(y.flatten(), torch.stack([h_2.new_tensor(30.0), 100 * h_2]))


def test_a_long_step_forgets_and_a_short_one_passes_by():
    """dt = 50 leaves nothing of the past; dt = 0 leaves the state as it was, whatever the token says."""
    x, dt, log_a, b, c = scan_inputs(6)
    log_a = torch.zeros_like(log_a)
    long = dt.clone()
    long[:, :, 3] = 50.0
    changed = x.clone()
    changed[:, :, :3] += 1
    after = [selective_scan(v, long, log_a, b, c)[:, :, 3:] for v in (x, changed)]
    assert_close(*after, rtol=0, atol=1e-12)
    still = dt.clone()
    still[:, :, 3] = 0.0
    changed = x.clone()
    changed[:, :, 3] += 1
    assert_close(*(selective_scan(v, still, log_a, b, c) for v in (x, changed)))


def test_without_decay_it_is_unnormalised_linear_attention():
    """With log_a = -inf every a_t is 1, and C, dt B, x stand for q, k, v."""
    x, dt, log_a, b, c = scan_inputs(9)
    y = selective_scan(x, dt, torch.full_like(log_a, -torch.inf), b, c)
    assert_close(y, (c @ (dt[..., None] * b).mT).tril() @ x)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_right(form):
    """Against finite differences, steps and decays included."""
    inputs = [t.requires_grad_() for t in scan_inputs(5, heads=1, dim=2, state=2)]
    assert torch.autograd.gradcheck(lambda *t: selective_scan(*t, form=form, chunk=2), inputs)


@pytest.mark.parametrize("form,formula", [
    ("recurrent", lambda n, s, d: 4 * n * s * d),
    ("parallel", lambda n, s, d: 2 * n * n * (s + d)),
    ("chunked", lambda n, s, d: 2 * n * (16 * (s + d) + 2 * s * d)),
])  # fmt: skip
def test_counted_flops_are_the_docstrings(form, formula):
    """One head, 64 tokens in chunks of 16."""
    x, dt, log_a, b, c = (t[:1, :1] if t.ndim > 1 else t[:1] for t in scan_inputs(64))
    with Meter() as meter:
        selective_scan(x, dt, log_a, b, c, form=form, chunk=16)
    assert meter.flops == formula(64, 4, 3)


def layer(**options):
    torch.manual_seed(0)
    return SelectiveStateSpace(8, heads=2, dim=4, state=4, **options).double()


def test_the_layer_sees_no_later_token():
    """The convolution over neighbours included."""
    x = draw(1, 12, 8)
    changed = torch.cat((x[:, :7], x[:, 7:] + 1), dim=1)
    ours = layer()
    a, b = ours(x), ours(changed)
    assert torch.equal(a[:, :7], b[:, :7]) and not torch.allclose(a[:, 7:], b[:, 7:])


def test_the_layer_is_the_same_in_every_form():
    """Same weights, same output."""
    x = draw(2, 70, 8)
    wanted = layer(form="recurrent")(x)
    for form in FORMS:
        assert_close(layer(form=form)(x), wanted, rtol=1e-10, atol=1e-12)


def test_the_layer_has_as_many_parameters_as_it_says():
    """model (2 inner + 2 state + heads) + 4 inner + 3 heads + inner model."""
    inner = 2 * 4
    wanted = 8 * (2 * inner + 2 * 4 + 2) + 4 * inner + 3 * 2 + inner * 8
    assert sum(p.numel() for p in layer().parameters()) == wanted


@pytest.mark.parametrize("wrong", [{"form": "sideways"}, {"chunk": 0}])
def test_unknown_forms_and_empty_chunks_are_refused(wrong):
    """The known ones are named."""
    with pytest.raises(ValueError, match=r"form is one of .*parallel.* chunk at least 1"):
        selective_scan(*scan_inputs(3), **wrong)
