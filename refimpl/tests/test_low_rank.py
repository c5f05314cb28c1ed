"""Components, truncation and sums of parts against definitions and against scikit-learn-free algebra."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from refimpl.attention import multi_head_attention
from refimpl.low_rank import (
    attention_heads,
    components_for,
    energy,
    factor_elements,
    feed_forward_neurons,
    input_rms,
    paired,
    truncate,
)
from refimpl.transformer import FeedForward, TransformerConfig


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def of_rank(rank, rows=30, cols=20):
    return draw(rows, rank) @ draw(rank, cols, seed=1)


# --- components ------------------------------------------------------------------------------------------


def test_a_matrix_of_rank_3_has_all_its_energy_in_3_components():
    """Uncentred; centring takes away one direction at most."""
    assert components_for(1, of_rank(3), center=False) == 3
    assert 2 <= components_for(1, of_rank(3)) <= 3


def test_energy_is_the_variance_that_a_covariance_matrix_has():
    """The same numbers from the eigenvalues of the covariance of the rows: another route, PCA's definition."""
    w = draw(40, 6)
    variances = torch.linalg.eigvalsh(torch.cov(w.T)).flip(0)
    assert_close(energy(w), variances.cumsum(0) / variances.sum())


def test_a_pair_that_repeats_itself_needs_no_more_components():
    """Side by side or one above the other; two unrelated matrices need twice as many."""
    a, b = of_rank(4), draw(30, 4, seed=2) @ draw(4, 20, seed=3)
    for along in ("columns", "rows"):
        assert components_for(1, paired(a, 2 * a, along=along), center=False) == 4
        assert components_for(1, paired(a, b, along=along), center=False) == 8
    with pytest.raises(ValueError, match="given 'diagonal'"):
        paired(a, b, along="diagonal")


@pytest.mark.parametrize("share", [0, -1, 1.5])
def test_a_share_that_cannot_be_is_refused(share):
    """Above 0 and up to 1."""
    with pytest.raises(ValueError, match="above 0 and up to 1"):
        components_for(share, of_rank(2))


# --- truncation ------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 12), cols=st.integers(1, 12), data=st.data())
def test_full_rank_gives_the_matrix_back(rows, cols, data):
    """With and without an input scale, at every shape."""
    w = draw(rows, cols, seed=data.draw(st.integers(0, 99)))
    scale = draw(cols, seed=7).abs()
    for factors in (truncate(w, min(rows, cols)), truncate(w, min(rows, cols), input_scale=scale)):
        assert_close(factors[0] @ factors[1], w, rtol=0, atol=1e-9)


def test_truncation_is_the_best_there_is():
    """Its squared error is the energy of the singular values left out; no random factors of that rank come close."""
    w = draw(12, 9)
    b, a = truncate(w, 4)
    error = (w - b @ a).square().sum()
    assert_close(error, torch.linalg.svdvals(w)[4:].square().sum())
    for seed in range(20):
        other = draw(12, 4, seed=seed)
        fitted = other @ torch.linalg.lstsq(other, w).solution  # best second factor for a random first one
        assert (w - fitted).square().sum() > error


def test_the_input_scale_protects_what_is_used():
    """On inputs with one loud feature the scaled factors err less, although they are further from the matrix."""
    w, x = draw(20, 16), draw(500, 16, seed=1) * torch.tensor([100.0] + [1.0] * 15)
    plain, scaled = truncate(w, 4), truncate(w, 4, input_scale=input_rms(x))

    def error(factors, inputs):
        return ((factors[0] @ factors[1] - w) @ inputs.T).square().sum()

    assert error(scaled, x) < 0.5 * error(plain, x)
    assert error(scaled, torch.eye(16, dtype=w.dtype)) > error(plain, torch.eye(16, dtype=w.dtype))


def test_a_feature_that_never_appears_does_no_harm():
    """Its scale is 0: nothing divides by it."""
    scale = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    b, a = truncate(draw(4, 3), 3, input_scale=scale)
    assert b.isfinite().all() and a.isfinite().all()


@pytest.mark.parametrize("rank", [0, 4])
def test_a_rank_that_cannot_be_is_refused(rank):
    """The possible ones are named."""
    with pytest.raises(ValueError, match=r"\(3, 5\) matrix has ranks 1 to 3, given"):
        truncate(draw(3, 5), rank)


def test_factors_are_counted_as_they_are_stored():
    """And 576 x 576 is only smaller below rank 288."""
    b, a = truncate(draw(10, 6), 2)
    assert factor_elements(10, 6, 2) == b.numel() + a.numel()
    assert factor_elements(576, 576, 288) == 576 * 576


# --- sums of parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_heads_sum_to_multi_head_attention(causal):
    """Each computed alone."""
    x, weights = draw(2, 7, 12), [draw(12, 12, seed=i) for i in range(1, 5)]
    whole = multi_head_attention(x, *weights, heads=3, causal=causal)
    parts = list(attention_heads(x, *weights, heads=3, causal=causal))
    assert len(parts) == 3
    assert_close(sum(parts), whole)


def test_neurons_sum_to_the_feed_forward_network():
    """4 D heads of one neuron each, plus the last bias, are the dense layer."""
    torch.manual_seed(0)
    ffn = FeedForward(TransformerConfig(vocab=1, model=8, heads=1, layers=1)).double()
    ffn.b_1.data.normal_()
    ffn.b_2.data.normal_()
    x = draw(2, 5, 8)
    parts = list(feed_forward_neurons(x, ffn.w_1, ffn.b_1, ffn.w_2, activation=torch.relu))
    assert len(parts) == 4 * 8
    assert_close(sum(parts) + ffn.b_2, ffn(x))
