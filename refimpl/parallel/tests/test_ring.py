"""Ring Attention on any number of ranks is attention in one process; who works how much, and what is sent, is exact."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from refimpl.experiments.sequence_parallel import DIM, accounted, inputs, largest_error, on_this_rank, whole
from refimpl.flash_attention import flash_attention
from refimpl.parallel import ring
from refimpl.parallel.ring import LAYOUTS, positions, ring_attention, shard, spans, tile, tokens, unshard, work
from refimpl.parallel.tests.ranks import run_ranks
from refimpl.transformer import EncoderBlock, TransformerConfig

EXACT = 1e-12
seqs, ranks_, layouts = st.integers(1, 40), st.integers(1, 5), st.sampled_from(LAYOUTS)


def one_rank(seq, heads, kv_heads, causal, layout, dtype=torch.float64, size=1.0):
    """What a rank does; returns out, dq, dk, dv of its tokens."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    at = positions(seq, ranks, rank, layout)

    def attend(q, k, v):
        return ring_attention(q, k, v, seq=seq, causal=causal, layout=layout)

    return on_this_rank(attend, at, *inputs(seq, heads, kv_heads, dtype=dtype, size=size))


def error(ranks, seq, heads, kv_heads, causal, layout, **options):
    """Largest difference between the ring and one process, forward and backward."""
    parts = run_ranks(ranks, one_rank, seq, heads, kv_heads, causal, layout, **options)
    where = [positions(seq, ranks, rank, layout) for rank in range(ranks)]
    return largest_error(parts, where, whole(*inputs(seq, heads, kv_heads, **options), causal))


# --- layouts ---------------------------------------------------------------------------------------------------------


@given(seqs, ranks_, layouts)
@settings(deadline=None)
def test_every_token_has_one_rank_and_ranks_differ_by_two_tokens_at_most(seq, ranks, layout):
    """Any length, also fewer tokens than ranks; positions rise, so a rank's own block is an ordinary triangle."""
    held = [positions(seq, ranks, rank, layout) for rank in range(ranks)]
    assert torch.cat(held).sort().values.equal(torch.arange(seq))
    assert all((at.diff() > 0).all() for at in held)
    assert [len(at) for at in held] == [tokens(seq, ranks, rank, layout) for rank in range(ranks)]
    assert max(map(len, held)) - min(map(len, held)) <= (2 if layout == "zigzag" else 1)


@given(seqs, ranks_, layouts)
@settings(deadline=None)
def test_unshard_puts_together_what_shard_cut(seq, ranks, layout):
    """Along any axis."""
    x = torch.arange(3 * seq).view(3, seq)
    assert unshard([shard(x, ranks, r, layout, dim=1) for r in range(ranks)], layout, dim=1).equal(x)


@given(seqs, ranks_, layouts, st.booleans())
@settings(deadline=None)
def test_tiles_of_all_ranks_are_the_mask_and_nothing_else(seq, ranks, layout, causal):
    """Every pair that the mask allows is in exactly one tile, no other pair is in any; `scores` counts them."""
    seen = torch.zeros(seq, seq, dtype=torch.int)
    for mine in range(ranks):
        for theirs in range(ranks):
            if made := tile(seq, ranks, mine, theirs, layout, causal):
                at, them = (positions(seq, ranks, r, layout) for r in (mine, theirs))
                part = torch.ones(len(at[made.rows]), len(them[made.cols]), dtype=torch.int)
                part = part.tril() if made.causal else part
                assert not made.causal or part.shape[0] == part.shape[1]
                assert made.scores == part.sum()
                seen[at[made.rows, None], them[made.cols]] += part
    assert seen.equal(torch.ones_like(seen).tril() if causal else torch.ones_like(seen))
    assert sum(map(sum, work(seq, ranks, layout, causal))) == seen.sum()


def test_pieces_differ_by_one_at_most_and_the_longer_ones_come_first():
    """11 tokens on 4 ranks: 3, 3, 3, 2."""
    assert spans(11, 4) == [range(3), range(3, 6), range(6, 9), range(9, 11)]


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_zigzag_shares_causal_work_equally_where_the_last_contiguous_rank_does_almost_twice_the_mean(ranks):
    """max / mean: ((2N - 1) n + 1) / (N n + 1) -> (2N - 1) / N for pieces of n tokens, against exactly 1."""
    n = 1024

    def balance(layout):
        each = [sum(steps) for steps in work(ranks * n, ranks, layout)]
        return max(each) * ranks / sum(each)

    assert balance("zigzag") == 1
    assert balance("contiguous") == ((2 * ranks - 1) * n + 1) / (ranks * n + 1)
    assert balance("contiguous") == pytest.approx((2 * ranks - 1) / ranks, abs=2e-3)
    assert 1 < balance("striped") < 1 + 1 / n


# --- the same numbers as one process ---------------------------------------------------------------------------------


@given(seqs, st.integers(1, 4), st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]), st.booleans(), layouts)
@settings(deadline=None, max_examples=25)
def test_any_length_on_any_ranks_equals_one_process(seq, ranks, heads, causal, layout):
    """Output and gradients within 1e-12 in float64; grouped heads; also ranks without a token."""
    assert error(ranks, seq, *heads, causal, layout) <= EXACT


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ranks", [2, 4])
def test_large_scores_and_odd_lengths_do_not_hurt(ranks, layout):
    """Logits of some hundreds: partial results merge through their log-sum-exp, never through exp of a large number."""
    assert error(ranks, 37, 4, 2, True, layout, size=10.0) <= 1e-10


@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_precision_is_as_good_as_in_one_process(layout):
    """bfloat16 inputs: partial results and travelling gradients are float32, so only inputs and outputs are rounded."""
    q, k, v, d_out = inputs(48, 4, 2, dtype=torch.bfloat16)
    want = whole(q, k, v, d_out, True)
    alone = on_this_rank(lambda q, k, v: flash_attention(q, k, v, causal=True), torch.arange(48), q, k, v, d_out)
    own = max(float((a.double() - b).abs().max()) for a, b in zip(alone, want, strict=True))
    assert error(4, 48, 4, 2, True, layout, dtype=torch.bfloat16) <= 1.01 * own


def counted(seq, kv_heads, layout, dtype):
    """Bytes that this rank sends, and what the formula says."""
    rank, ranks = dist.get_rank(), dist.get_world_size()

    def attend(q, k, v):
        return ring_attention(q, k, v, seq=seq, layout=layout)

    sent = accounted(attend, positions(seq, ranks, rank, layout), *inputs(seq, 4, kv_heads, dtype=dtype))
    return sent, ring.sent_bytes(seq, ranks, rank, kv_heads=kv_heads, dim=DIM, batch=2, dtype=dtype, layout=layout)


@given(seqs, st.integers(1, 4), st.sampled_from([1, 2, 4]), layouts, st.sampled_from([torch.float64, torch.bfloat16]))
@settings(deadline=None, max_examples=8)
def test_counted_bytes_are_the_formulas(seq, ranks, kv_heads, layout, dtype):
    """Each rank, each pass, whatever the lengths of the blocks; gradients of half precision travel in float32."""
    assert all(sent == formula for sent, formula in run_ranks(ranks, counted, seq, kv_heads, layout, dtype))


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_sends_its_keys_and_values_n_minus_1_times(ranks):
    """2 (N - 1) T forward, 2 (N - 1) T + 2 N T backward, T the bytes of one local key tensor; exact integers."""
    tensor = 2 * 4 * 32 // ranks * DIM * 8
    there, home = 2 * (ranks - 1) * tensor, 2 * ranks * tensor
    for sent, _ in run_ranks(ranks, counted, 32, 4, "contiguous", torch.float64):
        assert sent == (there, there + home)


def test_one_rank_needs_no_neighbour():
    """N = 1 is flash attention: nothing is sent, to itself neither."""
    assert error(1, 23, 4, 2, True, "zigzag") <= EXACT
    assert ring.sent_bytes(23, 1, 0, kv_heads=2, dim=8, dtype=torch.float64) == (0, 0)


def test_the_next_block_travels_while_this_one_is_computed(monkeypatch):
    """On each rank and in each pass: the hop starts, then the tile is computed, then the hop is waited for."""
    events = {}

    def watched(name, call):
        def run(*args, **kwargs):
            events.setdefault(dist.get_rank(), []).append(name)
            return call(*args, **kwargs)

        return run

    monkeypatch.setattr(ring.dist, "batch_isend_irecv", watched("start", dist.batch_isend_irecv))
    monkeypatch.setattr(ring._Hop, "wait", watched("wait", ring._Hop.wait))
    monkeypatch.setattr(ring, "flash_forward", watched("compute", ring.flash_forward))
    monkeypatch.setattr(ring, "flash_backward", watched("compute", ring.flash_backward))
    run_ranks(2, one_rank, 8, 1, 1, False, "contiguous")
    forward = ["start", "compute", "wait", "compute"]
    # keys on their way, compute, gradients on their way; compute beside them; both arrive; the gradients' last hop
    backward = ["start", "compute", "start", "wait", "compute", "wait", "start", "wait"]
    assert events == {0: forward + backward, 1: forward + backward}


def block_on_shards(seq):
    """A transformer block over this rank's tokens: its output, and its weights' gradients summed over the ranks."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    at = positions(seq, ranks, rank, "zigzag")

    def attend(q, k, v, *, causal, mask=None):
        return ring_attention(q, k, v, seq=seq, causal=True, layout="zigzag")

    out, gradients = block_pass(attend, seq, at)
    for gradient in gradients:
        dist.all_reduce(gradient)
    return at, out, gradients


def block_pass(attend, seq, at):
    """Forward and backward of one block on some tokens of a fixed input."""
    block = EncoderBlock(TransformerConfig(vocab=1, model=16, heads=4, layers=1, attend=attend)).double()
    draw = torch.Generator().manual_seed(3)
    for weight in block.parameters():
        torch.nn.init.normal_(weight, std=0.2, generator=draw)
    x, d_out = (torch.randn(2, seq, 16, generator=draw, dtype=torch.float64)[:, at] for _ in range(2))
    out = block(x)
    out.backward(d_out)
    return out.detach(), [weight.grad for weight in block.parameters()]


def test_a_transformer_block_needs_nothing_else_to_run_on_shards():
    """Everything but attention works token by token: `attend` is the ring, gradients of weights add up over ranks."""

    def attend(q, k, v, *, causal, mask=None):
        return flash_attention(q, k, v, causal=True)

    want, want_gradients = block_pass(attend, 21, slice(None))
    for at, out, gradients in run_ranks(3, block_on_shards, 21):
        assert_close(out, want[:, at], rtol=0, atol=EXACT)
        assert_close(gradients, want_gradients, rtol=0, atol=1e-11)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_a_shard_of_another_layout_is_refused_with_the_way_out():
    """5 tokens where 2 ranks hold 6 and 5 of 11: rank, layout, shapes and `shard` are named."""

    def wrong():
        q, k, v, _ = inputs(11, 2, 2)
        at = positions(11, 2, 1 - dist.get_rank())
        ring_attention(q[:, :, at], k[:, :, at], v[:, :, at], seq=11)

    with pytest.raises(ValueError, match=r"of 11 tokens on 2 ranks, rank \d holds \d .contiguous.*ring.shard"):
        run_ranks(2, wrong)


def test_an_unknown_layout_is_answered_with_the_known_ones():
    """Before anything is sent."""
    with pytest.raises(ValueError, match="'spiral' is unknown; choose one of contiguous, striped, zigzag"):
        positions(8, 2, 0, "spiral")
