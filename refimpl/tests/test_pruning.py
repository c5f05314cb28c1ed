"""Single weights: exactly N stay, torch agrees, patterns pack and unpack, weights come back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.ao.pruning import WeightNormSparsifier
from torch.nn.utils import prune
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass
from torch.testing import assert_close

from refimpl.models.llama import LlamaConfig
from refimpl.models.toy import toy_llama
from refimpl.pruning import (
    budgets,
    input_norms,
    keep_largest,
    keep_largest_global,
    keep_largest_per_layer,
    keep_largest_per_row,
    n_m_bits_per_weight,
    n_m_mask,
    pack_n_m,
    pruned,
    unpack_n_m,
    wanda_scores,
)
from refimpl.quantization.swap import linears


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model():
    return toy_llama(LlamaConfig(2, 32, 4, 2, 8, 48, 97, 600, 100.0, 1e-5))


# --- the budget ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 7), st.integers(1, 9), st.integers(1, 4), st.data())
def test_exactly_n_stay_however_many_scores_are_equal(rows, cols, values, data):
    """Few different values, as after quantization; none that stays is smaller than one that goes."""
    scores = torch.randint(values, (rows, cols), generator=torch.Generator().manual_seed(rows * cols)).float()
    keep = data.draw(st.integers(0, rows * cols))
    mask = keep_largest(scores, keep)
    assert int(mask.sum()) == keep
    if 0 < keep < rows * cols:
        assert scores[mask].min() >= scores[~mask].max()


def test_of_equal_scores_the_first_stay():
    """The choice is the same on every machine."""
    assert keep_largest(torch.ones(2, 3), 4).tolist() == [[True, True, True], [True, False, False]]
    assert keep_largest_per_row(torch.ones(2, 3), 2).tolist() == [[True, True, False]] * 2
    assert keep_largest_per_row(torch.ones(1, 3), 0).tolist() == [[False] * 3]
    assert n_m_mask(torch.ones(1, 8), 2, 4).tolist() == [[True, True, False, False] * 2]


def test_magnitude_equals_torchs_l1_unstructured():
    """torch.nn.utils.prune removes the same weights of a layer."""
    weight = randn(17, 23)
    layer = torch.nn.Linear(23, 17, bias=False)
    layer.weight.data.copy_(weight)
    prune.l1_unstructured(layer, "weight", amount=200)
    assert torch.equal(keep_largest(weight.abs(), 17 * 23 - 200), layer.weight_mask.bool())


def test_a_global_budget_equals_torchs_and_lets_a_layer_of_small_weights_go():
    """torch.nn.utils.prune.global_unstructured, two layers of which one is 100 times smaller."""
    layers = {name: torch.nn.Linear(12, 8, bias=False) for name in "ab"}
    layers["a"].weight.data.copy_(randn(8, 12))
    layers["b"].weight.data.copy_(randn(8, 12, seed=1) / 100)
    masks = keep_largest_global({name: layer.weight.detach().abs() for name, layer in layers.items()}, 90)
    prune.global_unstructured(
        [(layer, "weight") for layer in layers.values()], pruning_method=prune.L1Unstructured, amount=2 * 96 - 90
    )
    assert all(torch.equal(masks[name], layer.weight_mask.bool()) for name, layer in layers.items())
    assert masks["a"].sum() > 80


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.data())
def test_a_budget_is_dealt_out_whole(sizes, data):
    """Shares add up to the budget, and each is within 1 of its proportion."""
    keep = data.draw(st.integers(0, sum(sizes)))
    shares = budgets(sizes, keep)
    assert sum(shares) == keep
    assert all(abs(share - size * keep / sum(sizes)) < 1 for share, size in zip(shares, sizes, strict=True))


def test_layers_keep_the_same_share_and_together_exactly_n():
    """Three matrices of odd sizes, one of small weights that a global budget would empty."""
    scores = {"a": randn(7, 5).abs(), "b": randn(3, 11, seed=1).abs() / 100, "c": randn(13, 2, seed=2).abs()}
    masks = keep_largest_per_layer(scores, 47)
    assert sum(int(m.sum()) for m in masks.values()) == 47
    assert [int(m.sum()) for m in masks.values()] == budgets([35, 33, 26], 47)


def test_rows_keep_the_same_number():
    """Also where one row's scores are all larger than another's."""
    scores = randn(6, 10).abs() * torch.arange(1, 7)[:, None]
    mask = keep_largest_per_row(scores, 3)
    assert mask.sum(1).tolist() == [3] * 6
    assert all(scores[i][mask[i]].min() > scores[i][~mask[i]].max() for i in range(6))


@pytest.mark.parametrize("keep", [-1, 13])
def test_an_impossible_budget_is_refused(keep):
    """The message says what was asked and what there is."""
    with pytest.raises(ValueError, match=f"keep={keep} of 12"):
        keep_largest(torch.ones(3, 4), keep)


def test_nan_scores_are_refused():
    """NaN has no place in an order; it would count as the largest."""
    with pytest.raises(ValueError, match="1 of 4 scores are NaN"):
        keep_largest(torch.tensor([1.0, float("nan"), 2.0, 3.0]), 2)


# --- n:m -------------------------------------------------------------------------------------------------------------


def test_two_of_four_equals_torchs_sparsifier():
    """torch.ao's WeightNormSparsifier at blocks of 1 x 4 with two zeros each."""
    layer = torch.nn.Sequential(torch.nn.Linear(16, 8, bias=False))
    layer[0].weight.data.copy_(randn(8, 16))
    sparsifier = WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
    sparsifier.prepare(layer, config=[{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    theirs = layer[0].parametrizations.weight[0].mask.bool()
    assert torch.equal(n_m_mask(randn(8, 16).abs(), 2, 4), theirs)


def test_packed_values_equal_those_of_torchs_semi_structured_format():
    """The half-width matrix that cutlass reads holds our values; torch keeps their positions in 2 bits each."""
    weight = randn(32, 64).half()
    mask = n_m_mask(weight.abs(), 2, 4)
    values, positions = pack_n_m(weight, mask, 2, 4)
    theirs, meta = sparse_semi_structured_from_dense_cutlass(weight * mask)
    assert torch.equal(values, theirs)
    bits = 8 * (theirs.nbytes + meta.nbytes) / weight.numel()
    assert bits == n_m_bits_per_weight(2, 4, 16) == 9.0
    assert torch.equal(unpack_n_m(values, positions, 2, 4), weight * mask)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 8), st.data())
def test_every_pattern_keeps_n_of_m_and_unpacks_to_itself(rows, groups, m, data):
    """Any n and m, 1:1 to 8:8."""
    n = data.draw(st.integers(1, m))
    weight = randn(rows, groups * m, seed=m)
    mask = n_m_mask(weight.abs(), n, m)
    assert (mask.view(rows, groups, m).sum(-1) == n).all()
    assert torch.equal(unpack_n_m(*pack_n_m(weight, mask, n, m), n, m), weight * mask)


def test_patterns_that_do_not_fit_are_refused():
    """A row that m does not divide; a mask of another pattern."""
    with pytest.raises(ValueError, match="2:4 needs"):
        n_m_mask(torch.ones(2, 6), 2, 4)
    with pytest.raises(ValueError, match="does not keep 2 of every 4"):
        pack_n_m(torch.ones(1, 4), torch.tensor([[True, True, True, False]]), 2, 4)


# --- Wanda -----------------------------------------------------------------------------------------------------------


def test_wanda_scores_equal_a_loop_over_weights_and_tokens():
    """Each is the norm of what the output loses over all tokens when that weight alone goes."""
    weight, x = randn(5, 7), randn(11, 7, seed=1)
    layer = torch.nn.Linear(7, 5, bias=False)
    layer.weight.data.copy_(weight)
    norms = input_norms(torch.nn.ModuleDict({"up": layer}), lambda: layer(x[None]))["up"]
    scores = wanda_scores(weight, norms)
    for i in range(5):
        for j in range(7):
            without = weight.clone()
            without[i, j] = 0
            assert_close(scores[i, j], (x @ weight.T - x @ without.T).norm(), rtol=1e-5, atol=1e-6)


def test_input_norms_add_up_over_passes_and_leave_no_hooks():
    """Two texts read one after the other count like their tokens together."""
    lm, ids = model(), torch.arange(24).view(2, 12)
    both = input_norms(lm, lambda: [lm(text[None]) for text in ids])
    one = input_norms(lm, lambda: lm(ids))
    assert both.keys() == linears(lm).keys()
    for name, norms in one.items():
        assert_close(both[name], norms, rtol=1e-4, atol=1e-5)
    assert not any(m._forward_pre_hooks for m in lm.modules())
    with pytest.raises(ValueError, match="no token"):
        input_norms(lm, lambda: None)


def test_wanda_keeps_a_small_weight_on_a_large_input():
    """Magnitude removes it and loses the output; this is the case that the method was made for."""
    weight = torch.tensor([[0.1, 1.0, 0.9, 0.8]])
    norms = torch.tensor([100.0, 1.0, 1.0, 1.0])
    assert keep_largest_per_row(wanda_scores(weight, norms), 1).tolist() == [[True, False, False, False]]
    assert keep_largest_per_row(weight, 1).tolist() == [[False, True, False, False]]


# --- a model ---------------------------------------------------------------------------------------------------------


def test_pruned_weights_are_zero_inside_and_back_afterwards():
    """Exactly the budget is nonzero in the `with`; bit for bit as before after it, an error inside included."""
    lm = model()
    before = {name: p.clone() for name, p in lm.named_parameters()}
    weights = {name: layer.weight.abs() for name, layer in linears(lm).items()}
    masks = keep_largest_global(weights, 5_000)
    with pytest.raises(KeyError), pruned(lm, masks):
        assert sum(int(layer.weight.count_nonzero()) for layer in linears(lm).values()) == 5_000
        raise KeyError
    assert all(torch.equal(p, before[name]) for name, p in lm.named_parameters())


def test_pruning_keeps_trainable_weights_trainable():
    """The mask works on the values, not on the graph."""
    layer = torch.nn.ModuleDict({"up": torch.nn.Linear(4, 4, bias=False)})
    with pruned(layer, {"up": torch.eye(4, dtype=torch.bool)}):
        layer["up"](torch.ones(1, 4)).sum().backward()
    assert layer["up"].weight.requires_grad and layer["up"].weight.grad.abs().sum() == 16
