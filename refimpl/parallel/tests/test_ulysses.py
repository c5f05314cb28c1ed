"""Ulysses, alone and inside a ring, is attention in one process; every rank sends what the formula says."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh

from refimpl.experiments.sequence_parallel import DIM, accounted, inputs, largest_error, on_this_rank, whole
from refimpl.parallel import ulysses
from refimpl.parallel.ring import LAYOUTS, positions, spans
from refimpl.parallel.tests.ranks import run_ranks
from refimpl.parallel.ulysses import hybrid_attention, hybrid_positions, kv_heads_of, ulysses_attention

EXACT = 1e-12
HEADS = [(4, 4), (4, 2), (4, 1), (5, 5), (6, 2), (6, 3), (7, 1), (9, 3), (10, 5)]


def one_rank(seq, heads, kv_heads, causal):
    """out, dq, dk, dv of this rank's tokens."""
    at = positions(seq, dist.get_world_size(), dist.get_rank())

    def attend(q, k, v):
        return ulysses_attention(q, k, v, seq=seq, causal=causal)

    return on_this_rank(attend, at, *inputs(seq, heads, kv_heads))


def one_of_mesh(shape, seq, heads, kv_heads, layout, causal):
    """The tokens of this rank of a (ring, ulysses) mesh, and out, dq, dk, dv of them."""
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("ring", "ulysses"))
    around, inside = mesh.get_group("ring"), mesh.get_group("ulysses")
    at = hybrid_positions(seq, shape[0], dist.get_rank(around), shape[1], dist.get_rank(inside), layout)

    def attend(q, k, v):
        groups = {"ring_group": around, "ulysses_group": inside}
        return hybrid_attention(q, k, v, seq=seq, causal=causal, layout=layout, **groups)

    return at, on_this_rank(attend, at, *inputs(seq, heads, kv_heads))


@given(st.integers(1, 30), st.integers(1, 4), st.sampled_from(HEADS), st.booleans())
@settings(deadline=None, max_examples=25)
def test_any_length_and_any_heads_equal_one_process(seq, ranks, heads, causal):
    """Neither tokens nor heads need divide; fewer kv heads than ranks; gradients, too, within 1e-12 in float64."""
    parts = run_ranks(ranks, one_rank, seq, *heads, causal)
    where = [positions(seq, ranks, rank) for rank in range(ranks)]
    assert largest_error(parts, where, whole(*inputs(seq, *heads), causal)) <= EXACT


@given(st.sampled_from([(2, 2), (1, 2), (3, 1), (2, 3)]), st.integers(1, 30), st.sampled_from(LAYOUTS), st.booleans())
@settings(deadline=None, max_examples=15)
def test_a_mesh_of_ring_and_ulysses_equals_one_process(shape, seq, layout, causal):
    """More ranks than kv heads, any length; each rank of the mesh holds other tokens."""
    parts = run_ranks(shape[0] * shape[1], one_of_mesh, shape, seq, 6, 3, layout, causal)
    where = [at for at, _ in parts]
    assert torch.cat(where).sort().values.equal(torch.arange(seq))
    assert largest_error([tensors for _, tensors in parts], where, whole(*inputs(seq, 6, 3), causal)) <= EXACT


@pytest.mark.parametrize("heads,kv_heads", HEADS)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_a_rank_receives_the_kv_heads_that_its_query_heads_read_and_no_other(heads, kv_heads, ranks):
    """By the definition of grouped heads: query head h reads h // (heads // kv_heads)."""
    for own, needed in zip(spans(heads, ranks), kv_heads_of(heads, kv_heads, ranks), strict=True):
        assert set(needed) == {h // (heads // kv_heads) for h in own}


def test_heads_that_divide_are_not_copied_for_the_local_attention():
    """8 query and 2 kv heads on 2 ranks: each attends 4 on 1; on 4 ranks 2 on 1; 6 on 2 by 4 ranks has one odd cut."""
    shapes = []

    def seen(heads, kv_heads):
        def attend(q, k, v):
            shapes.append((dist.get_world_size(), q.shape[1], k.shape[1]))
            return torch.zeros_like(q)

        q, k, v, _ = (x[:, :, :2] for x in inputs(8, heads, kv_heads))
        ulysses_attention(q, k, v, seq=2 * dist.get_world_size(), attend=attend)

    for ranks, heads in ((2, 8), (4, 8), (4, 6)):
        run_ranks(ranks, seen, heads, 2)
    assert sorted(shapes[:2]) == [(2, 4, 1)] * 2
    assert sorted(shapes[2:6]) == [(4, 2, 1)] * 4
    assert sorted(shapes[6:]) == [(4, 1, 1), (4, 1, 1), (4, 2, 1), (4, 2, 2)]


def counted(seq, heads, kv_heads):
    """Bytes that this rank sends, and what the formula says."""
    rank, ranks = dist.get_rank(), dist.get_world_size()

    def attend(q, k, v):
        return ulysses_attention(q, k, v, seq=seq)

    sent = accounted(attend, positions(seq, ranks, rank), *inputs(seq, heads, kv_heads))
    sizes = {"heads": heads, "kv_heads": kv_heads, "dim": DIM, "batch": 2, "itemsize": 8}
    return sent, ulysses.sent_bytes(seq, ranks, rank, **sizes)


@given(st.integers(1, 30), st.integers(1, 4), st.sampled_from(HEADS))
@settings(deadline=None, max_examples=8)
def test_counted_bytes_are_the_formulas(seq, ranks, heads):
    """Each rank, each pass, whatever divides."""
    assert all(sent == formula for sent, formula in run_ranks(ranks, counted, seq, *heads))


def test_four_tensors_lose_one_nth_and_travel():
    """4 T (N - 1) / N there and back again where all divides, on every rank; with one kv head k and v weigh less."""
    tensor = 16 // 4 * 8 * 8 * 4  # T: 16 tokens on 4 ranks, 8 heads of 8 numbers of 4 bytes
    for rank in range(4):
        sent = ulysses.sent_bytes(16, 4, rank, heads=8, kv_heads=8, dim=8, itemsize=4)
        assert sent == (4 * tensor * 3 // 4,) * 2
        few = ulysses.sent_bytes(16, 4, rank, heads=8, kv_heads=1, dim=8, itemsize=4)
        assert few[0] == 2 * tensor * 3 // 4 + 2 * 3 * tensor // 8


def test_more_ranks_than_heads_are_sent_to_the_ring():
    """An error on every rank, before anything is sent, with both ways out."""
    with pytest.raises(ValueError, match=r"2 heads cannot be dealt to 3 ranks; use a ring, or hybrid_attention"):
        run_ranks(3, one_rank, 9, 2, 2, False)


def test_a_wrong_shard_is_refused():
    """Tokens of the whole sequence in place of the rank's own."""

    def uncut():
        q, k, v, _ = inputs(8, 4, 4)
        ulysses_attention(q, k, v, seq=8)

    with pytest.raises(ValueError, match=r"of 8 tokens on 2 ranks, rank \d holds 4, given q \(2, 4, 8, 8\)"):
        run_ranks(2, uncut)


def test_the_exchange_alone_refuses_a_piece_of_another_length():
    """`gather_tokens` is told who has how much, and checks its own part."""

    def wrong():
        ulysses.gather_tokens(torch.zeros(1, 2, 3, 4), spans(2, 2), spans(8, 2))

    with pytest.raises(ValueError, match=r"rank \d has 4 of 8 tokens, given \(1, 2, 3, 4\)"):
        run_ranks(2, wrong)
