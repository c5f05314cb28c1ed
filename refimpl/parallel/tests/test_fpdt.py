"""FPDT gives the same numbers with one chunk of queries and two of keys on the device; every byte is foretold."""

import time

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.experiments.sequence_parallel import DIM, inputs, largest_error, on_this_rank, whole
from refimpl.parallel.fpdt import (
    Cost,
    Timing,
    balance_chunk,
    choose_chunk,
    fpdt_attention,
    fpdt_positions,
    measure_chunks,
    predicted,
)
from refimpl.parallel.stage import Stage
from refimpl.parallel.tests.ranks import run_ranks

EXACT = 1e-12


def counted(stage):
    """What was counted since the last call."""
    cost = Cost(stage.bytes_in, stage.bytes_out, stage.peak_bytes)
    stage.reset()
    return cost


def both_passes(seq, heads, kv_heads, chunks, causal, dtype=torch.float64, buffers=2, **options):
    """The rank's tokens, out, dq, dk, dv of them, and what the stage counted forward and backward."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    at, stage, costs = fpdt_positions(seq, chunks, ranks, rank), Stage(buffers=buffers, **options), []

    def attend(q, k, v):
        out = fpdt_attention(q, k, v, seq=seq, chunks=chunks, causal=causal, stage=stage)
        costs.append(counted(stage))
        return out

    tensors = on_this_rank(attend, at, *inputs(seq, heads, kv_heads, dtype=dtype))
    assert stage.held_bytes == 0
    return at, tensors, (*costs, counted(stage))


def expected(seq, chunks, heads, kv_heads, **options):
    return predicted(seq, chunks, heads=heads, kv_heads=kv_heads, dim=DIM, batch=2, **options)


# --- the same numbers, and the foretold bytes -------------------------------------------------------------------------


@given(
    st.integers(1, 40), st.integers(1, 6), st.sampled_from([(4, 4), (4, 2), (3, 1)]), st.booleans(), st.integers(1, 3)
)
@settings(deadline=None, max_examples=30)
def test_any_length_in_any_chunks_equals_attention_and_costs_what_was_predicted(seq, chunks, heads, causal, buffers):
    """Within 1e-12 in float64, forward and backward; transfers and peak to the byte, u | seq or not, any buffers."""
    chunks = min(chunks, seq)
    at, tensors, costs = both_passes(seq, *heads, chunks, causal, buffers=buffers)
    assert largest_error([tensors], [at], whole(*inputs(seq, *heads), causal)) <= EXACT
    assert costs == expected(seq, chunks, *heads, causal=causal, buffers=buffers, dtype=torch.float64)


@pytest.mark.parametrize("chunks", [2, 4, 8, 16])
def test_the_device_holds_q_plus_twice_kv_over_u(chunks):
    """The formula of the paper's double buffer, exactly, from two chunks on; and what came in: q + kv (u + 1) / 2."""
    q, kv = 2 * 4 * 32 * DIM * 8, 2 * 2 * 4 * 32 * DIM * 8  # bytes of q, and of k and v, for 32 tokens
    forward = both_passes(32, 4, 4, chunks, True)[2][0]
    assert forward.peak_bytes * chunks == q + 2 * kv
    assert 2 * forward.bytes_in == 2 * q + kv * (chunks + 1)
    single = both_passes(32, 4, 4, chunks, True, buffers=1)[2][0]
    assert single.peak_bytes * chunks == q + kv and single.bytes_in == forward.bytes_in


def test_one_chunk_has_nothing_to_prefetch():
    """u = 1 is everything at once: q + kv, not q + 2 kv."""
    q, kv = 2 * 4 * 32 * DIM * 8, 2 * 2 * 4 * 32 * DIM * 8
    assert both_passes(32, 4, 4, 1, True)[2][0] == Cost(q + kv, q + q // DIM, q + kv)


def test_half_precision_adds_up_in_float32():
    """bfloat16: 13 partial results and gradients lose no more than rounding input and output; dq travels in float32."""
    at, tensors, costs = both_passes(39, 4, 2, 13, True, dtype=torch.bfloat16)
    want = whole(*inputs(39, 4, 2, dtype=torch.bfloat16), True)
    once = max(float((x - x.bfloat16().double()).abs().max()) for x in want)
    assert largest_error([tensors], [at], want) <= 3 * once
    assert costs == expected(39, 13, 4, 2, dtype=torch.bfloat16)


# --- with Ulysses ----------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 30), st.integers(2, 4), st.integers(1, 4), st.sampled_from([(4, 4), (4, 1), (6, 2)]), st.booleans()
)
@settings(deadline=None, max_examples=15)
def test_composed_with_ulysses_it_equals_one_process(seq, ranks, chunks, heads, causal):
    """Each chunk through an all-to-all; uneven heads and chunks; forward and backward within 1e-12 in float64."""
    chunks = min(chunks, seq)
    parts = run_ranks(ranks, both_passes, seq, *heads, chunks, causal)
    where = [at for at, _, _ in parts]
    assert torch.cat(where).sort().values.equal(torch.arange(seq))
    assert largest_error([t for _, t, _ in parts], where, whole(*inputs(seq, *heads), causal)) <= EXACT


@pytest.mark.parametrize("chunks", [2, 4])
def test_on_two_ranks_each_device_holds_half_of_the_heads(chunks):
    """(q + 2 kv) / u of half of the heads and all tokens, and the transfers of those, on either rank."""
    for _, _, costs in run_ranks(2, both_passes, 32, 4, 4, chunks, True):
        assert costs == expected(32, chunks, 2, 2, dtype=torch.float64)


# --- the double buffer -----------------------------------------------------------------------------------------------


def test_chunks_arrive_while_the_device_computes():
    """A bus that takes 20 ms for a chunk, and 30 ms of work per chunk: two buffers wait for the first one only."""
    chunks = [(torch.zeros(1000),) for _ in range(5)]

    def waited(buffers):
        stage = Stage(bytes_per_s=4000 / 0.02)
        for _ in stage.stream(chunks, buffers=buffers):
            time.sleep(0.03)
        return stage.waited_s

    single, double = waited(1), waited(2)
    assert single >= 5 * 0.02 and double >= 0.02
    assert double < 0.6 * single  # 0.2 where nobody else needs the processor


def test_a_chunk_is_not_overwritten_while_it_is_read():
    """What was yielded stays until the next one is asked for, whatever arrives meanwhile."""
    chunks = [(torch.full((3,), float(n)),) for n in range(6)]
    for buffers in (1, 2, 3):
        for n, (x,) in enumerate(Stage().stream(chunks, buffers=buffers)):
            time.sleep(0.002)
            assert x.tolist() == [n] * 3


def test_leaving_early_gives_the_rooms_back():
    """An error in the middle of attention leaves no bytes held."""
    stage = Stage()
    stream = stage.stream([(torch.zeros(8),)] * 3, buffers=2)
    next(stream)
    assert stage.held_bytes == 2 * 8 * 4
    stream.close()
    assert stage.held_bytes == 0


# --- the chunk size --------------------------------------------------------------------------------------------------


def test_the_smallest_chunk_that_hides_its_transfer_is_chosen():
    """Compute 1, 4, 16 against transfer 3, 6, 12 in some unit: the third; with none it says by how much it fails."""
    timings = [Timing(64, 1.0, 3.0), Timing(128, 4.0, 6.0), Timing(256, 16.0, 12.0), Timing(512, 64.0, 24.0)]
    assert choose_chunk(timings) == choose_chunk(timings[::-1]) == 256
    with pytest.raises(ValueError, match="128 tokens compute 4 s and travel 6 s; measure longer chunks"):
        choose_chunk(timings[:2])


def test_every_size_is_measured_and_no_transfer_is_faster_than_the_bus():
    """Compute and transfer apart: the transfer of keys and values alone takes their bytes over the bus's rate."""
    timings = measure_chunks([16, 64], heads=4, kv_heads=2, dim=8, stage=Stage(bytes_per_s=1e6), repeats=2)
    assert [timing.chunk for timing in timings] == [16, 64]
    for chunk, compute_s, transfer_s in timings:
        assert compute_s > 0 and transfer_s >= 2 * 2 * chunk * 8 * 4 / 1e6


def test_the_balance_point_is_where_compute_and_transfer_meet():
    """Put into both formulas, they give the same time; a quarter of the kv heads needs a quarter of the chunk."""
    c = balance_chunk(3e14, 3e10, heads=32, kv_heads=32, itemsize=2)
    assert 4 * c**2 * 128 * 32 / 3e14 == pytest.approx(2 * c * 128 * 32 * 2 / 3e10)
    assert balance_chunk(3e14, 3e10, heads=32, kv_heads=8, itemsize=2) == c / 4


# --- errors ----------------------------------------------------------------------------------------------------------


def test_impossible_chunks_and_buffers_are_refused():
    """None, more than tokens, and no room at all."""
    q, k, v, _ = inputs(4, 2, 2)
    for chunks in (0, 5):
        with pytest.raises(ValueError, match=f"4 tokens make 1 to 4 chunks, given chunks={chunks}"):
            fpdt_attention(q, k, v, chunks=chunks)
    with pytest.raises(ValueError, match="at least one buffer"):
        Stage(buffers=0)


def test_a_shard_cut_without_chunks_is_refused():
    """9 tokens in 2 chunks on 2 ranks: 5 and 4, not 9."""

    def uncut():
        q, k, v, _ = inputs(9, 2, 2)
        fpdt_attention(q, k, v, chunks=2, seq=9)

    with pytest.raises(ValueError, match=r"fpdt_attention: of 9 tokens on 2 ranks, rank \d holds [45]"):
        run_ranks(2, uncut)


# --- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_streams_and_pinned_memory_give_the_same_numbers_and_counts():
    """The same calls with device='cuda': equal output, equal gradients, equal bytes."""
    at, tensors, costs = both_passes(200, 4, 2, 8, True, device="cuda")
    assert largest_error([tensors], [at], whole(*inputs(200, 4, 2), True)) <= EXACT
    assert costs == expected(200, 8, 4, 2, dtype=torch.float64)
