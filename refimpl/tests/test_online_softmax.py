"""Softmax in ever fewer passes, and the algebra that makes one pass enough."""

import pytest
import torch
from torch.testing import assert_close

from refimpl.attention import naive_attention
from refimpl.online_softmax import (
    block_state,
    empty_state,
    finish,
    merge,
    running_stats,
    softmax_textbook,
    softmax_three_pass,
    softmax_two_pass,
    streaming_attention,
)

STABLE = [softmax_three_pass, softmax_two_pass]


def rand(*shape, seed=0, times=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * times


@pytest.fixture
def scores_and_values():
    """Logits x20: a softmax close to a maximum, where a wrong unit is off by many orders of magnitude."""
    return rand(2, 3, 5, 64, times=20), rand(2, 3, 64, 4, seed=1)


def test_the_textbook_formula_overflows():
    """One logit of 89 in float32 is inf / inf; the value that softmax should have there is 1."""
    x = torch.tensor([89.0, 0.0])
    assert softmax_textbook(x)[0].isnan()
    assert_close(softmax_textbook(x.double()), torch.softmax(x.double(), -1))
    assert_close(softmax_three_pass(x), torch.softmax(x, -1))


@pytest.mark.parametrize("softmax", STABLE)
@pytest.mark.parametrize("n", [1, 127, 128, 130, 300])
def test_stable_forms_equal_softmax(softmax, n):
    """Any length, logits x20, exact up to float64 rounding."""
    x = rand(3, n, seed=n, times=20)
    assert_close(softmax(x), torch.softmax(x, -1), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("softmax", STABLE)
def test_a_row_of_minus_infinity_gives_zeros(softmax):
    """A query that may look at no key shares out nothing: no NaN."""
    x = torch.full((2, 200), -torch.inf)
    x[1, 150] = 3.0
    assert softmax(x)[0].eq(0).all()
    assert softmax(x)[1].sum() == 1


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_running_stats_need_one_pass_and_any_block(block):
    """m and l after the last block are the maximum and the sum over the whole row."""
    x = rand(4, 100, times=20)
    m, l = running_stats(x, block)
    assert_close(m, x.amax(-1), rtol=0, atol=0)
    assert_close(m + l.log(), torch.logsumexp(x, -1), rtol=1e-14, atol=0)


@pytest.mark.parametrize("cut", [1, 7, 32, 63])
def test_merge_does_not_depend_on_where_the_keys_are_cut(scores_and_values, cut):
    """Cutting 64 keys anywhere and merging gives the uncut answer."""
    s, v = scores_and_values
    left = block_state(s[..., :cut], v[..., :cut, :])
    right = block_state(s[..., cut:], v[..., cut:, :])
    assert_close(finish(merge(left, right)), finish(block_state(s, v)), rtol=1e-12, atol=1e-13)
    assert_close(merge(left, right), merge(right, left))


def test_merge_is_associative(scores_and_values):
    """(a + b) + c = a + (b + c): blocks may be merged in a tree, on many workers."""
    s, v = scores_and_values
    a, b, c = (block_state(s[..., i:j], v[..., i:j, :]) for i, j in ((0, 9), (9, 40), (40, 64)))
    assert_close(merge(merge(a, b), c), merge(a, merge(b, c)), rtol=1e-12, atol=1e-13)


def test_the_empty_state_changes_nothing(scores_and_values):
    """Merging with no keys at all is exact, from both sides; two empty states stay empty."""
    state = block_state(*scores_and_values)
    none = empty_state((2, 3, 5), 4, dtype=torch.float64)
    for got in (merge(none, state), merge(state, none)):
        assert_close(got, state, rtol=0, atol=0)
    out, lse = finish(merge(none, none))
    assert out.eq(0).all() and lse.eq(-torch.inf).all()


def test_a_fully_masked_block_changes_nothing(scores_and_values):
    """Scores of -inf alone contribute no weight and no NaN."""
    s, v = scores_and_values
    state = block_state(s, v)
    assert_close(merge(state, block_state(torch.full_like(s, -torch.inf), v)), state, rtol=0, atol=0)


@pytest.mark.parametrize("sizes", [[64], [1] * 64, [30, 1, 33]])
def test_streaming_attention_reads_every_block_once(sizes):
    """Keys from a one-shot iterator, in blocks of any size, give plain attention and its lse."""
    q, k, v = rand(1, 2, 5, 8, times=5), rand(1, 2, 64, 8, seed=1), rand(1, 2, 64, 8, seed=2)
    blocks = zip(k.split(sizes, dim=2), v.split(sizes, dim=2), strict=True)
    assert_close(streaming_attention(q, blocks), naive_attention(q, k, v, return_lse=True))
    assert next(blocks, None) is None


def test_streaming_attention_takes_values_of_another_width():
    """Values may be narrower than keys, and axes before (q, dim) are optional."""
    q, k, v = rand(5, 8), rand(6, 8, seed=1), rand(6, 3, seed=2)
    assert_close(streaming_attention(q, [(k, v)], scale=0.1)[0], torch.softmax(0.1 * q @ k.T, -1) @ v)


def test_streaming_attention_without_a_block_says_so():
    """No block, no answer: the width of the values is unknown."""
    with pytest.raises(ValueError, match="no block arrived"):
        streaming_attention(rand(5, 8), iter(()))


def test_the_states_carry_gradients():
    """Autograd through merge and finish is the gradient of softmax."""
    s, v = rand(3, 10).requires_grad_(), rand(10, 2, seed=1).requires_grad_()

    def merged(s, v):
        return finish(merge(block_state(s[:, :4], v[:4]), block_state(s[:, 4:], v[4:])))

    assert torch.autograd.gradcheck(merged, (s, v))
