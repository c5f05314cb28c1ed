"""Caches: decoding through them equals reading everything again, and they hold the bytes that the formula says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from refimpl.attention import attention, naive_attention
from refimpl.cost_model import ModelShape
from refimpl.kv_cache import Cache, EvictingCache, KVCache, PagedKVCache, cached_attention, split_attention, window
from refimpl.kv_cache.decode import split_states
from refimpl.memory_model import kv_cache_bytes
from refimpl.meter import Meter
from refimpl.models.llama import LlamaConfig, replace_attention
from refimpl.models.toy import toy_llama
from refimpl.online_softmax import finish, merge

SIZES = {"layers": 2, "model": 32, "heads": 4, "dim": 8}
KV_HEADS = [4, 2, 1]  # multi-head, grouped-query, multi-query


def llama(kv_heads=2):
    config = LlamaConfig(**SIZES, kv_heads=kv_heads, ffn=48, vocab=97, context=64, rope_base=100.0, norm_eps=1e-5)
    return toy_llama(config, seed=1)


def tokens(n, batch=1, seed=0):
    return torch.randint(97, (batch, n), generator=torch.Generator().manual_seed(seed))


def qkv(batch=3, heads=6, kv_heads=2, q_len=1, capacity=50, dim=16, dtype=torch.float64):
    draw = torch.Generator().manual_seed(capacity)
    shapes = (heads, q_len), (kv_heads, capacity), (kv_heads, capacity)
    return [torch.randn(batch, h, n, dim, generator=draw, dtype=dtype) for h, n in shapes]


def static(model):
    return KVCache(model, 24, batch=2)


def paged(model):
    pool = PagedKVCache(model, 20, block_size=5)
    return pool.batch(pool.add(), pool.add())


# --- cached decoding equals full recomputation -----------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", KV_HEADS)
@pytest.mark.parametrize("make", [static, paged])
@pytest.mark.parametrize("cuts", [[24], [13, 11], [1] * 24, [5, 1, 18]])
def test_reading_in_pieces_through_a_cache_equals_reading_at_once(make, kv_heads, cuts):
    """Prefill, decoding steps and anything between, for every way of sharing key/value heads."""
    model, ids = llama(kv_heads), tokens(24, batch=2)
    cache = make(model)
    got = torch.cat([model(piece, cache) for piece in ids.split(cuts, dim=1)], dim=1)
    assert isinstance(cache, Cache) and cache.length == 24
    assert_close(got, model(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kv_heads", KV_HEADS)
def test_sequences_of_a_ragged_batch_decode_as_if_alone(kv_heads):
    """Three texts of 3, 17 and 9 tokens are read one by one, then decoded together for 6 steps."""
    model, pool = llama(kv_heads), PagedKVCache(llama(kv_heads), 20, block_size=4)
    texts = [tokens(n + 6, seed=n) for n in (3, 17, 9)]
    sequences = [pool.add() for _ in texts]
    for text, sequence in zip(texts, sequences, strict=True):
        model(text[:, :-6], pool.batch(sequence))
    batch = pool.batch(*sequences)
    steps = [model(torch.cat([t[:, t.shape[1] - 6 + i, None] for t in texts]), batch) for i in range(6)]
    assert batch.lengths == [9, 23, 15] and batch.length == 23
    for i, text in enumerate(texts):
        assert_close(torch.cat(steps, dim=1)[i], model(text)[0, -6:], rtol=1e-4, atol=1e-4)


def test_a_replaced_attention_also_works_on_a_paged_cache():
    """The cache stores, the model's attention looks: with one that returns zeros the output is another."""
    model, ids = llama(), tokens(10, batch=2)
    want = model(ids)
    with replace_attention(model, lambda q, k, v, causal: naive_attention(q, k, v, causal=causal)):
        assert_close(model(ids, paged(model)), want, rtol=1e-4, atol=1e-4)
    with replace_attention(model, lambda q, k, v, causal: torch.zeros_like(q)):
        assert not torch.allclose(model(ids, paged(model)), want, rtol=1e-2, atol=1e-2)


def test_tokens_can_be_taken_back():
    """Speculation reads ahead and rejects: with `length` set back, what follows is as if they had never been read."""
    model, ids = llama(), tokens(12)
    cache = KVCache(model, 20)
    model(ids[:, :8], cache)
    model(tokens(5, seed=9), cache)
    cache.length = 8
    assert_close(model(ids[:, 8:], cache), model(ids)[:, 8:], rtol=1e-4, atol=1e-4)


# --- bytes and blocks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", KV_HEADS)
def test_bytes_are_two_l_hkv_d_n_itemsize(kv_heads, dtype):
    """The formula, the memory model and the allocated storage of all three caches say the same integer."""
    model = llama(kv_heads).to(dtype)
    want = 2 * 2 * kv_heads * 8 * 40 * 3 * dtype.itemsize
    shape = ModelShape(layers=2, model=32, heads=4, vocab=97, kv_heads=kv_heads, dim=8)
    assert kv_cache_bytes(shape, tokens=40, batch=3, itemsize=dtype.itemsize) == want
    paged_cache = PagedKVCache(model, 3 * 10, block_size=4)
    for cache in (KVCache(model, 40, batch=3), paged_cache, EvictingCache(model, 40, window, batch=3)):
        storage = cache.keys.untyped_storage().nbytes() + cache.values.untyped_storage().nbytes()
        assert cache.nbytes == storage == want
    assert paged_cache.block_bytes * 30 == want


def test_blocks_are_taken_as_tokens_come_and_given_back_at_the_end():
    """5 tokens in blocks of 4 are 2 blocks; a released sequence's blocks serve the next one."""
    model = llama()
    pool = PagedKVCache(model, 5, block_size=4)
    a, b = pool.add(), pool.add()
    model(tokens(5), pool.batch(a))
    model(tokens(4), pool.batch(b))
    assert (pool.tables[a], pool.tables[b], pool.free) == ([0, 1], [2], [4, 3])
    pool.release(a)
    assert sorted(pool.free) == [0, 1, 3, 4] and a not in pool.tables
    c = pool.add()
    model(tokens(12, seed=3), pool.batch(c))
    assert pool.tables[c] == [0, 1, 3] and c != a
    assert_close(model(tokens(1), pool.batch(b)), model(torch.cat((tokens(4), tokens(1)), 1))[:, -1:])


def test_an_empty_pool_says_what_is_missing():
    """Nothing is overwritten; the message has the way out."""
    model = llama()
    pool = PagedKVCache(model, 2, block_size=4)
    with pytest.raises(ValueError, match="needs 3 more blocks, 2 of 2 are free; release a sequence"):
        model(tokens(9), pool.batch(pool.add()))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6), st.booleans()), max_size=12), st.integers(1, 7))
def test_no_block_ever_belongs_to_two_sequences(history, size):
    """Whatever sequences come and go: every block is free or in one table, and tables are just long enough."""
    pool = PagedKVCache(llama(), 40, block_size=size)
    alive = []
    for which, new, leave in history:
        if leave and alive:
            pool.release(alive.pop(which % len(alive)))
        else:
            alive.append(pool.add())
            pool.reserve(alive[-1], new)
            pool.lengths[alive[-1]] = new
        owned = [block for table in pool.tables.values() for block in table]
        assert sorted(owned + pool.free) == list(range(40))
        assert all(len(pool.tables[s]) == -(-pool.lengths[s] // size) for s in alive)


# --- attention over a cache ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [6, 2, 1])
@pytest.mark.parametrize("q_len", [1, 4])
def test_cached_attention_is_causal_attention_over_the_first_lengths_keys(kv_heads, q_len):
    """Each row of a ragged batch equals the naive form on its own keys; NaN behind them is never seen."""
    q, k, v = qkv(kv_heads=kv_heads, q_len=q_len)
    lengths = torch.tensor([50, q_len, 23])
    for row, n in enumerate(lengths):
        k[row, :, n:] = v[row, :, n:] = torch.nan
    out, lse = cached_attention(q, k, v, lengths, return_lse=True)
    for row, n in enumerate(lengths):
        one = [x[row : row + 1, :, :end] for x, end in ((q, q_len), (k, n), (v, n))]
        want, want_lse = naive_attention(*one, causal=True, return_lse=True)
        assert_close(out[row : row + 1], want)
        assert_close(lse[row : row + 1], want_lse)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 21), min_size=1, max_size=4),
    st.sampled_from([(4, 4), (4, 2), (4, 1)]),
    st.integers(1, 40),
    st.integers(1, 3),
)
def test_any_number_of_splits_gives_the_same(lengths, heads, splits, q_len):
    """Also more splits than keys, empty sequences, and queries before the first key: 0, and lse -inf."""
    q, k, v = qkv(len(lengths), *heads, q_len, capacity=21, dim=8)
    lengths = torch.tensor(lengths)
    out, lse = split_attention(q, k, v, lengths, splits=splits, return_lse=True)
    whole, whole_lse = cached_attention(q, k, v, lengths, return_lse=True)
    assert_close(out, whole)
    assert_close(lse, whole_lse)
    blind = torch.arange(q_len) < q_len - lengths[:, None]  # (batch, q_len)
    assert (out.transpose(1, 2)[blind] == 0).all() and (lse.transpose(1, 2)[blind] == -torch.inf).all()
    assert lse.transpose(1, 2)[~blind].isfinite().all()


def test_partial_states_merge_in_any_order():
    """Flash-Decoding's workers finish when they finish."""
    q, k, v = qkv()
    lengths = torch.tensor([50, 1, 23])
    states = split_states(q, k, v, lengths, splits=5)
    a, b, c, d, e = states
    backwards = merge(merge(e, d), merge(c, merge(b, a)))
    assert_close(finish(backwards)[0].flatten(1, 2)[:, :, None], cached_attention(q, k, v, lengths))


def test_float32_errs_no_more_than_the_naive_form():
    """Judged in float64: within 4 times the naive form's error and 1e-6."""
    q, k, v = qkv(capacity=300)
    lengths = torch.tensor([300, 77, 130])
    exact = cached_attention(q, k, v, lengths)
    naive = torch.cat(
        [naive_attention(*(x[i : i + 1, :, :n].float() for x in (q, k, v))) for i, n in enumerate(lengths)]
    )
    ours = split_attention(*(x.float() for x in (q, k, v)), lengths, splits=7)
    assert (ours - exact).abs().max() <= 4 * (naive - exact).abs().max() + 1e-6


def test_errors_name_what_was_given():
    """No split, heads that cannot share."""
    q, k, v = qkv()
    with pytest.raises(ValueError, match="splits must be at least 1, given 0"):
        split_attention(q, k, v, torch.tensor([1, 1, 1]), splits=0)
    with pytest.raises(ValueError, match="multiple of kv heads"):
        split_attention(q[:, :5], k, v, torch.tensor([1, 1, 1]), splits=1)


# --- what prefill and decoding cost ----------------------------------------------------------------------------------


def test_a_decoding_step_multiplies_every_weight_once_and_looks_at_every_key_once():
    """Counted: 2 FLOPs per weight and token, 4 heads dim per key and query; prefill is N tokens of the same."""
    model, n = llama(), 30
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)  # the tied embedding is the output head
    with replace_attention(model, lambda q, k, v, causal: attention(q, k, v, causal=causal, impl="naive")):
        cache = KVCache(model, n + 1)
        with torch.no_grad(), Meter() as prefill:
            model(tokens(n), cache)
        with torch.no_grad(), Meter() as step:
            model(tokens(1), cache)
    assert prefill.flops == n * 2 * matrices + 2 * 4 * n * n * 4 * 8  # layers * 4 N² heads dim
    assert step.flops == 2 * matrices + 2 * 4 * (n + 1) * 4 * 8
