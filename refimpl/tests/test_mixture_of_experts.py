"""Routing equals its definition, grouped experts equal dense ones, hashes are what the paper's table names."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from refimpl.meter import Meter
from refimpl.mixture_of_experts import hash_layers
from refimpl.mixture_of_experts.eager import (
    MixtureOfExperts,
    dense_experts,
    expert_flops,
    grouped_experts,
    grouped_matmul,
    sort_by_expert,
)
from refimpl.mixture_of_experts.routing import (
    NOWHERE,
    Routing,
    capacity,
    dropped,
    load,
    load_balance_loss,
    switch_routing,
    to_fixed,
    top_k_routing,
    within_capacity,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def weights(experts, model=6, hidden=5):
    return draw(experts, model, hidden, seed=1), draw(experts, hidden, model, seed=2)


def one_token_at_a_time(x, routing, w_1, w_2):
    """The oracle: a loop over tokens and choices, as the formula is written."""
    y = torch.zeros_like(x)
    for t in range(len(x)):
        for e, weight in zip(routing.expert[t].tolist(), routing.weight[t], strict=True):
            if e != NOWHERE:
                y[t] += weight * (torch.relu(x[t] @ w_1[e]) @ w_2[e])
    return y


# --- routing ---------------------------------------------------------------------------------------------


def test_top_k_takes_the_largest_and_softmax_over_them():
    """By hand: logits 1, 3, 2 with k = 2."""
    routing = top_k_routing(torch.tensor([[1.0, 3.0, 2.0]]), 2)
    assert routing.expert.tolist() == [[1, 2]]
    assert_close(routing.weight, torch.softmax(torch.tensor([[3.0, 2.0]]), dim=1))


def test_switch_weighs_by_the_gate_over_all_experts():
    """The weight is p, not 1: else the gate would have no gradient."""
    logits = draw(4, 3).requires_grad_()
    routing = switch_routing(logits)
    assert_close(routing.weight[:, 0], logits.softmax(1).max(1).values)
    routing.weight.sum().backward()
    assert logits.grad.abs().sum() > 0


def test_equal_gates_go_to_the_lower_number():
    """On every machine."""
    assert top_k_routing(torch.zeros(2, 4), 2).expert.tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("k", [0, 4])
def test_a_k_that_cannot_be_is_refused(k):
    """Between 1 and the number of experts."""
    with pytest.raises(ValueError, match="between 1 and 3 experts"):
        top_k_routing(torch.zeros(1, 3), k)


def test_later_tokens_of_a_full_expert_drop():
    """Room 2: tokens 0 and 1 stay with expert 0, token 3 drops, the lone token of expert 1 stays."""
    full = within_capacity(to_fixed(torch.tensor([0, 0, 1, 0]), 3), 2)
    assert full.expert[:, 0].tolist() == [0, 0, 1, NOWHERE] and full.weight[:, 0].tolist() == [1, 1, 1, 0]
    assert dropped(full) == 1 and load(full).tolist() == [2, 1, 0]


def test_first_choices_come_before_second_ones():
    """A later token's first choice beats an earlier token's second."""
    routing = Routing(torch.tensor([[1, 0], [0, 1]]), torch.full((2, 2), 0.5), 2)
    kept = within_capacity(routing, 1)
    assert kept.expert.tolist() == [[1, NOWHERE], [0, NOWHERE]] and dropped(kept) == 0


def test_capacity_is_the_papers_formula():
    """factor * tokens / experts, rounded up."""
    assert capacity(100, 8, factor=1.25) == 16 and capacity(100, 8, factor=1, choices=2) == 25
    with pytest.raises(ValueError, match="must be positive"):
        capacity(100, 8, factor=0)


def test_the_balance_loss_is_one_at_best_and_experts_at_worst():
    """Equal gates and equal shares give 1; everything to one of four gives 4."""
    even = torch.eye(4).repeat(3, 1) * 50
    crowded = torch.tensor([[50.0, 0, 0, 0]]).repeat(12, 1)
    assert float(load_balance_loss(even, top_k_routing(even, 1))) == pytest.approx(1)
    assert float(load_balance_loss(crowded, top_k_routing(crowded, 1))) == pytest.approx(4)


def test_the_balance_loss_pushes_the_crowded_gate_down():
    """The gradient is largest for the expert that most tokens chose."""
    logits = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0]], requires_grad=True)
    load_balance_loss(logits, top_k_routing(logits, 1)).backward()
    assert logits.grad.sum(0)[0] > logits.grad.sum(0)[1:].max()


# --- experts ---------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(0, 20), experts=st.integers(1, 6), data=st.data())
def test_grouped_and_dense_equal_one_token_at_a_time(tokens, experts, data):
    """With empty experts, dropped tokens and no tokens at all."""
    k = data.draw(st.integers(1, experts))
    routing = top_k_routing(draw(tokens, experts, seed=3), k)
    if data.draw(st.booleans()):
        routing = within_capacity(routing, data.draw(st.integers(1, 4)))
    x, (w_1, w_2) = draw(tokens, 6, seed=4), weights(experts)
    wanted = one_token_at_a_time(x, routing, w_1, w_2)
    assert_close(dense_experts(x, routing, w_1, w_2), wanted)
    assert_close(grouped_experts(x, routing, w_1, w_2), wanted)


def test_gradients_are_right_for_tokens_weights_and_gate():
    """Against finite differences, through routing and both products."""
    x, gate, (w_1, w_2) = draw(4, 3).requires_grad_(), draw(3, 3, seed=5).requires_grad_(), weights(3, 3, 2)

    def layer(x, gate, w_1, w_2):
        return grouped_experts(x, top_k_routing(x @ gate, 2), w_1, w_2)

    assert torch.autograd.gradcheck(layer, (x, gate, w_1.requires_grad_(), w_2.requires_grad_()))


def test_compute_grows_with_choices_and_not_with_experts():
    """Counted FLOPs: the formula; the dense form costs experts / choices times as much."""
    x = draw(32, 6)
    for experts in (4, 8):
        routing, (w_1, w_2) = top_k_routing(draw(32, experts, seed=6), 2), weights(experts)
        with Meter() as grouped:
            grouped_experts(x, routing, w_1, w_2)
        with Meter() as dense:
            dense_experts(x, routing, w_1, w_2)
        assert grouped.flops == expert_flops(32, choices=2, model=6, hidden=5)
        assert dense.flops == grouped.flops * experts // 2


def test_rows_are_sorted_by_expert_and_dropped_ones_left_out():
    """Token of each row, weight of each row, rows per expert."""
    routing = Routing(torch.tensor([[2], [0], [NOWHERE], [2]]), torch.tensor([[0.1], [0.2], [0.0], [0.4]]), 3)
    token, weight, counts = sort_by_expert(routing)
    assert token.tolist() == [1, 0, 3] and counts.tolist() == [1, 0, 2]
    assert_close(weight, torch.tensor([0.2, 0.1, 0.4]))


def test_grouped_matmul_equals_torchs():
    """PyTorch's own grouped product on the same groups, in float32."""
    if not hasattr(torch, "_grouped_mm"):
        pytest.skip("needs torch._grouped_mm")
    rows, w, counts = draw(24, 16).float(), draw(3, 16, 8).float(), torch.tensor([8, 0, 16])
    theirs = torch._grouped_mm(rows, w, offs=counts.cumsum(0).to(torch.int32))
    assert_close(grouped_matmul(rows, w, counts), theirs, rtol=0, atol=2e-5)


def test_the_layer_learns_through_its_gate_and_reports_its_load():
    """Every parameter that was used has a gradient; capacity drops tokens and their output is 0."""
    torch.manual_seed(0)
    layer = MixtureOfExperts(6, 5, experts=3, choices=2).double()
    y = layer(draw(2, 7, 6))
    (y.square().sum() + layer.balance).backward()
    assert y.shape == (2, 7, 6) and int(load(layer.routing).sum()) == 28
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
    tight = MixtureOfExperts(6, 5, experts=3, room=1).double()
    out = tight(draw(1, 10, 6))
    assert dropped(tight.routing) >= 7 and int((out == 0).all(-1).sum()) == dropped(tight.routing)


def test_a_hash_takes_the_gates_place():
    """With a fixed routing the gate is not asked and has no gradient."""
    layer = MixtureOfExperts(6, 5, experts=2).double()
    layer(draw(4, 6), to_fixed(torch.tensor([0, 1, 0, 1]), 2, dtype=torch.float64)).sum().backward()
    assert layer.gate.weight.grad is None and layer.w_1.grad is not None


# --- hash layers ------------------------------------------------------------------------------------------

IDS = torch.randint(40, (3, 30), generator=torch.Generator().manual_seed(0)) ** 2 // 40  # small ids are frequent


def test_balanced_is_more_even_than_random():
    """Occurrences per expert: the largest load against the mean."""
    crowd = {}
    for name, hash_ in {
        "balanced": hash_layers.balanced(IDS.flatten(), 4, vocab=40), "random": hash_layers.random_fixed(4, vocab=40),
    }.items():  # fmt: skip
        counts = torch.bincount(hash_(IDS).flatten(), minlength=4)
        crowd[name] = float(counts.max() / counts.float().mean())
    assert crowd["balanced"] < 1.05 < crowd["random"]


def test_hashes_of_a_token_ignore_everything_else():
    """The same token, the same expert, wherever it stands."""
    for hash_ in (
        hash_layers.balanced(IDS.flatten(), 4, vocab=40), hash_layers.random_fixed(4, vocab=40),
        hash_layers.clusters(draw(40, 3), 4), hash_layers.dispersed(draw(40, 3), 4),
    ):  # fmt: skip
        experts = hash_(IDS)
        for token in IDS.unique():
            assert len(experts[token == IDS].unique()) == 1


def test_clusters_keep_similar_tokens_together_and_dispersed_apart():
    """Four clear groups of ten: one expert per group, or every expert in every group, each with ten tokens."""
    embedding = torch.eye(4).repeat_interleave(10, 0) * 10 + 0.1 * draw(40, 4).float()
    every = torch.arange(40)[None]
    together = hash_layers.clusters(embedding, 4)(every).view(4, 10)
    assert all(len(group.unique()) == 1 for group in together) and len(together[:, 0].unique()) == 4
    apart = hash_layers.dispersed(embedding, 4)(every)
    assert all(len(group.unique()) == 4 for group in apart.view(4, 10))
    assert torch.bincount(apart[0]).tolist() == [10] * 4


def test_position_previous_bigram_and_future_read_what_their_names_say():
    """Each on a text of four tokens."""
    x = torch.tensor([[5, 7, 5, 9]])
    table = hash_layers.random_fixed(1000, vocab=40)
    of = lambda *tokens: table(torch.tensor([tokens]))  # noqa: E731
    assert hash_layers.position(3)(x).tolist() == [[0, 1, 2, 0]]
    assert torch.equal(hash_layers.previous(table)(x), of(5, 5, 7, 5))
    assert torch.equal(hash_layers.future(table)(x), of(7, 5, 9, 9))
    assert torch.equal(hash_layers.future(table, lambda ids: ids + 1)(x), of(6, 8, 6, 10))
    pair = hash_layers.bigram(1000, vocab=40)
    again = pair(torch.tensor([[1, 5, 7], [2, 5, 7]]))
    assert again[0, 2] == again[1, 2] and again[0, 1] != again[1, 1]


def test_a_hash_that_reads_the_past_does_not_see_the_future():
    """Only the oracle's does: changing later tokens changes its experts, and no other's."""
    table = hash_layers.random_fixed(50, vocab=40)
    changed = IDS.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % 40
    causal = [hash_layers.position(4), hash_layers.previous(table), hash_layers.bigram(50, vocab=40), table]
    assert all(torch.equal(h(IDS)[:, :20], h(changed)[:, :20]) for h in causal)
    oracle = hash_layers.future(table)
    assert not torch.equal(oracle(IDS)[:, :20], oracle(changed)[:, :20])


def test_all_nine_types_of_the_table_are_there():
    """Under the table's names."""
    assert len(hash_layers.HASHES) == 9


def test_a_cluster_that_runs_empty_is_filled():
    """More clusters than different points: every point still gets a cluster, and the means stay finite."""
    nearest = hash_layers._k_means(torch.ones(6, 2), 3, seed=0)
    assert nearest.shape == (6,) and nearest.max() < 3
