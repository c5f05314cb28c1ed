"""Linformer is attention over summaries; how much of a map they can keep is the map's spectrum."""

import pytest
import torch
from torch.testing import assert_close

from refimpl.attention import naive_attention
from refimpl.linformer import best_projection, linformer_attention, linformer_flops, spectrum
from refimpl.meter import Meter


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


QKV = [draw(2, 3, 11, 4, seed=s) for s in range(3)]


def test_with_n_summaries_that_are_the_tokens_it_is_attention():
    """E = F = identity, and any permutation of it: the order of summaries does not matter."""
    for p in (torch.eye(11, dtype=torch.float64), torch.eye(11, dtype=torch.float64)[torch.randperm(11)]):
        assert_close(linformer_attention(*QKV, p, p), naive_attention(*QKV))


def test_it_is_the_formula_of_the_paper():
    """softmax(Q (E K)^T / sqrt d) F V written out for one head."""
    q, k, v = (t[0, 0] for t in QKV)
    e, f = draw(5, 11, seed=4), draw(5, 11, seed=5)
    wanted = ((q @ (e @ k).T) / 4**0.5).softmax(-1) @ (f @ v)
    assert_close(linformer_attention(*(t[None, None] for t in (q, k, v)), e, f)[0, 0], wanted)


def test_compute_and_the_largest_tensor_are_linear_in_the_length():
    """Counted FLOPs are the formula; the scores are q_len x summaries."""
    for n in (64, 128):
        q, k, v = (draw(1, 1, n, 8, seed=s) for s in range(3))
        with Meter() as meter:
            linformer_attention(q, k, v, draw(16, n), draw(16, n, seed=1))
        assert meter.flops == linformer_flops(n, n, 16, 8)
        assert meter.largest_bytes == 8 * n * 16


def test_gradients_reach_the_projections():
    """Checked in float64, for shared projections and for one per head."""
    q, k, v = (t[:1, :2, :3, :2].clone().requires_grad_() for t in QKV)
    for shape in ((2, 3), (2, 2, 3)):
        e, f = draw(*shape).requires_grad_(), draw(*shape, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(linformer_attention, (q, k, v, e, f))


def test_the_best_projection_keeps_what_the_spectrum_says():
    """||P - P F^T F||² is the energy of the singular values left out, and all is kept at full rank."""
    p = draw(2, 9, 9).softmax(-1)
    f = best_projection(p, 3)
    left = torch.linalg.svdvals(p)[..., 3:].square().sum(-1)
    assert_close((p - p @ f.mT @ f).square().sum((-1, -2)), left)
    assert_close(spectrum(p)[..., -1], torch.ones(2, dtype=torch.float64))


def test_a_projection_of_another_length_is_refused():
    """With what it would fit."""
    with pytest.raises(ValueError, match="project 11 keys"):
        linformer_attention(*QKV, draw(5, 10), draw(5, 10))
