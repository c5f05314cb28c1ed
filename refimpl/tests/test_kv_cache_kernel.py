"""Split decoding in Triton: in the interpreter on a CPU, compiled on a GPU; judged in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from refimpl import aot
from refimpl._triton import HAS_TRITON
from refimpl.kv_cache import PagedKVCache, cached_attention, decode_attention
from refimpl.models.llama import LlamaConfig
from refimpl.models.toy import toy_llama


def qkv(batch, heads, kv_heads, capacity, dim, device, dtype=torch.float32):
    draw = torch.Generator().manual_seed(capacity + dim)
    shapes = (heads, 1), (kv_heads, capacity), (kv_heads, capacity)
    return [torch.randn(batch, h, n, dim, generator=draw).to(device, dtype) for h, n in shapes]


def exact(q, k, v, lengths):
    return cached_attention(q.double(), k.double(), v.double(), lengths, return_lse=True)


@pytest.mark.parametrize("splits", [1, 3, 9, None])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2), (17, 1)])
def test_any_number_of_splits_is_attention_over_each_sequences_keys(device, heads, kv_heads, splits):
    """MHA, GQA and MQA with more heads than a tile has rows; lengths 0, 1, ragged, full; splits beyond the keys."""
    q, k, v = qkv(4, heads, kv_heads, 100, 16, device)
    lengths = torch.tensor([100, 0, 1, 37], device=device)
    out, lse = decode_attention(q, k, v, lengths, splits=splits, return_lse=True)
    want, want_lse = exact(q, k, v, lengths)
    assert_close(out.double(), want, rtol=0, atol=2e-6)
    assert_close(lse.double(), want_lse, rtol=0, atol=2e-6)
    assert (out[1] == 0).all() and (lse[1] == -torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_errs_no_more_than_twice_the_eager_form(device, dtype):
    """In the interpreter bfloat16 is computed in float32; output keeps the input's dtype."""
    q, k, v = qkv(2, 6, 2, 200, 64, device, dtype)
    lengths = torch.tensor([200, 131], device=device)
    got, (want, _) = decode_attention(q, k, v, lengths, splits=3), exact(q, k, v, lengths)
    eager = cached_attention(q, k, v, lengths)
    assert got.dtype == dtype
    ulp = torch.finfo(dtype).eps * want.abs().max()
    assert (got - want).abs().max() <= 2 * (eager - want).abs().max() + 2 * ulp


@pytest.mark.parametrize("dim", [32, 128])
def test_views_inside_buffers_of_nan_are_read_exactly(device, dim):
    """A cache larger than its sequences, heads out of order in memory: nothing beyond the lengths is touched."""
    q, k, v = qkv(2, 4, 2, 90, dim, device)
    lengths = torch.tensor([90, 33], device=device)
    want, _ = exact(q, k, v, lengths)
    buffers = torch.full((2, 2, 128, 2, dim), torch.nan, device=device)  # (k or v, batch, capacity, kv_heads, dim)
    for buffer, x in zip(buffers, (k, v), strict=True):
        for row, n in enumerate(lengths.tolist()):
            buffer[row, :n] = x[row, :, :n].transpose(0, 1)
    k, v = (buffer.transpose(1, 2) for buffer in buffers)
    assert_close(decode_attention(q, k, v, lengths, splits=3).double(), want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("block_size", [1, 5, 16])
def test_block_tables_lead_to_the_same_keys(device, block_size):
    """What sequences of 40, 3 and 17 tokens hold in a shuffled pool, attended through the tables: bit-equal."""
    config = LlamaConfig(1, 64, 4, 2, 16, 16, 97, 64, 100.0, 1e-5)
    pool = PagedKVCache(toy_llama(config).to(device), 70, block_size=block_size)
    pool.free = torch.randperm(70, generator=torch.Generator().manual_seed(1)).tolist()
    batch = pool.batch(pool.add(), pool.add(), pool.add())
    for sequence, n in zip(batch.sequences, (40, 3, 17), strict=True):
        pool.reserve(sequence, n)
        pool.lengths[sequence] = n
    pool.keys.normal_()
    pool.values.normal_()
    q, k, v = qkv(3, 4, 2, 40, 16, device)
    for row, (sequence, n) in enumerate(zip(batch.sequences, batch.lengths, strict=True)):
        k[row, :, :n], v[row, :, :n] = pool.read(0, sequence, n)
    table, lengths = batch.table()
    got = decode_attention(q, pool.keys[0], pool.values[0], lengths, table=table, splits=2)
    assert torch.equal(got, decode_attention(q, k, v, lengths, splits=2))
    assert_close(got.double(), exact(q, k, v, lengths)[0], rtol=0, atol=2e-6)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(0, 70), min_size=1, max_size=3), st.sampled_from([(2, 2), (3, 1)]), st.integers(1, 4))
def test_ragged_batches_of_any_kind(lengths, heads, splits):
    """Random lengths, zero among them."""
    if not HAS_TRITON:
        pytest.skip("needs Triton, whose wheels are for Linux only")
    where = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v = qkv(len(lengths), *heads, 70, 16, where)
    lengths = torch.tensor(lengths, device=where)
    got = decode_attention(q, k, v, lengths, splits=splits)
    assert_close(got.double(), exact(q, k, v, lengths)[0], rtol=0, atol=2e-6)


def test_an_empty_batch_is_an_empty_answer(device):
    """No launch, no error."""
    q, k, v = qkv(0, 4, 2, 30, 16, device)
    assert decode_attention(q, k, v, torch.zeros(0, dtype=torch.int32, device=device)).shape == (0, 4, 1, 16)


def test_errors_name_what_was_given_and_the_way_out(device):
    """More queries than one, a dim without a kernel, no split, lengths for another batch."""
    q, k, v = qkv(2, 4, 2, 30, 16, device)
    lengths = torch.tensor([30, 30], device=device)
    with pytest.raises(ValueError, match=r"one query per sequence, given q \(2, 4, 3, 16\); use cached_attention"):
        decode_attention(q.expand(-1, -1, 3, -1), k, v, lengths)
    with pytest.raises(ValueError, match="given dim 8 in"):
        decode_attention(*(x[..., :8] for x in (q, k, v)), lengths)
    with pytest.raises(ValueError, match="splits must be at least 1, given 0"):
        decode_attention(q, k, v, lengths, splits=0)
    with pytest.raises(ValueError, match=r"one length per sequence, given \(1,\) for batch 2"):
        decode_attention(q, k, v, lengths[:1])


def test_every_shipped_configuration_is_handed_to_the_compiler():
    """Split kernel static and paged and the merge, at two dimensions or all four and both precisions, two GPUs."""
    assert len(aot.jobs(["kv_cache"])) == 2 * 2 * 3
    jobs = aot.jobs(["kv_cache"], everything=True)
    assert len(jobs) == 2 * 4 * 2 * 3
    assert {job.constants.get("PAGE") for job in jobs} == {0, 16, None}


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton, whose wheels are for Linux only")
def test_both_kernels_compile_for_real_gpus_without_spills():
    """Static and paged, dimensions 64 and 128, sm_80 and sm_90; key tiles arrive by asynchronous copies."""
    rows = aot.report("kv_cache")
    assert len(rows) == 12 and {row["arch"] for row in rows} == {80, 90}
    assert all(row["spills"] == 0 for row in rows)
    assert all(row["async_copies"] > 0 for row in rows if row["kernel"].startswith("decode"))
