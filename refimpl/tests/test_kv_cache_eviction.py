"""A budget of entries: what each policy keeps, counted, and that nothing else is ever looked at."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from refimpl.attention import causal_mask, naive_attention
from refimpl.kv_cache import EvictingCache, heavy_hitters, random, sink_window, topk_attention, window
from refimpl.models.llama import LlamaConfig, capture_qkv, replace_attention
from refimpl.models.toy import toy_llama

TINY = LlamaConfig(
    layers=2, model=32, heads=4, kv_heads=2, dim=8, ffn=48, vocab=97, context=64, rope_base=100.0, norm_eps=1e-5
)
POLICIES = {"window": window, "sinks": sink_window(2), "h2o": heavy_hitters(3), "random": random(1)}


@pytest.fixture
def model():
    return toy_llama(TINY, seed=1)


def tokens(n, batch=2, seed=0):
    return torch.randint(TINY.vocab, (batch, n), generator=torch.Generator().manual_seed(seed))


def masked(mask):
    """The model's attention with this boolean mask in place of the causal one."""
    return lambda q, k, v, causal: naive_attention(q, k, v, mask=mask)


# --- against masks ---------------------------------------------------------------------------------------------------


def test_a_window_of_b_lets_each_query_see_b_tokens_itself_among_them(model):
    """The real loop with an overwritten buffer equals one pass under a banded mask."""
    ids, mask = tokens(30), causal_mask(30, 30) & ~causal_mask(30, 30).tril(-7)
    with replace_attention(model, masked(mask)):
        want = model(ids)
    assert mask.sum(-1).max() == 7
    assert_close(model(ids, EvictingCache(model, 7, window, batch=2)), want, rtol=1e-4, atol=1e-4)


def test_sinks_are_the_first_tokens_and_count_in_the_budget(model):
    """Budget 7 with 2 sinks: tokens 0 and 1 and the last 5; positions stay those of the text."""
    ids, mask = tokens(30), causal_mask(30, 30) & ~causal_mask(30, 30).tril(-5)
    mask[:, :2] = causal_mask(30, 30)[:, :2]
    mask[5, 2:] = causal_mask(30, 30)[5, 2:]  # the sixth and seventh token still find an empty slot
    mask[6, 2:] = causal_mask(30, 30)[6, 2:]
    with replace_attention(model, masked(mask)):
        want = model(ids)
    assert mask.sum(-1).max() == 7
    assert_close(model(ids, EvictingCache(model, 7, sink_window(2), batch=2)), want, rtol=1e-4, atol=1e-4)


def h2o_by_sets(q, k, v, budget, recent):
    """Algorithm 1 of Zhang et al. with Python sets, one key/value head: q (group, n, dim), k and v (n, dim)."""
    kept, score, outputs = [], {}, []
    for now in range(len(k)):
        if len(kept) == budget:
            kept.remove(min((j for j in kept if j <= now - recent), key=score.get))
        kept.append(now)
        score[now] = 0.0
        weights = torch.softmax(q[:, now] @ k[kept].T / math.sqrt(k.shape[1]), dim=-1)
        for j, w in zip(kept, weights.sum(0).tolist(), strict=True):
            score[j] += w
        outputs.append(weights @ v[kept])
    return torch.stack(outputs, dim=1), set(kept)


@pytest.mark.parametrize(("budget", "recent"), [(8, 4), (8, 1), (5, 5), (40, 20)])
def test_heavy_hitters_are_those_of_the_papers_algorithm(model, budget, recent):
    """The first layer, whose input no eviction has touched: kept positions and outputs of every key/value head."""
    ids, cache = tokens(30, batch=1), EvictingCache(model, budget, heavy_hitters(recent))
    with capture_qkv(model, [0]) as seen:
        model(ids)
    q, k, v = (x[0] for x in seen[0])
    out = cache.attend(0, *seen[0], naive_attention)
    for head in range(2):
        want, kept = h2o_by_sets(q[2 * head : 2 * head + 2], k[head], v[head], budget, recent)
        assert set(cache.places[0, 0, head].tolist()) - {-1} == kept
        assert_close(out[0, 2 * head : 2 * head + 2], want)


# --- for every policy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
def test_a_budget_that_is_never_reached_changes_nothing(model, name):
    """30 tokens in 30 slots: full attention."""
    ids = tokens(30)
    cache = EvictingCache(model, 30, POLICIES[name], batch=2)
    assert_close(model(ids, cache), model(ids), rtol=1e-4, atol=1e-4)
    assert cache.evicted == 0


@pytest.mark.parametrize("name", POLICIES)
def test_reading_at_once_is_reading_one_by_one(model, name):
    """The decoding loop and one call over all tokens: same entries, same logits, same count of evictions."""
    ids = tokens(26)
    policy = (lambda: random(1)) if name == "random" else (lambda: POLICIES[name])
    if name == "random":  # dice fall per layer in one order, per token in the other: compare a single layer
        model.layers = model.layers[:1]
    loop, once = (EvictingCache(model, 9, policy(), batch=2) for _ in range(2))
    steps = [model(token, loop) for token in ids.split(1, dim=1)]
    assert_close(torch.cat(steps, dim=1), model(ids, once), rtol=1e-4, atol=1e-4)
    assert torch.equal(loop.places.sort().values, once.places.sort().values)
    assert loop.evicted == once.evicted == 26 - 9


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 12), st.integers(0, 25), st.sampled_from(sorted(POLICIES)))
def test_no_head_of_any_layer_ever_holds_more_than_the_budget(budget, n, name):
    """Counted in every layer, sequence and head: min(tokens, budget) different positions, the newest among them."""
    model = toy_llama(TINY, seed=1)
    cache = EvictingCache(model, budget, POLICIES[name], batch=2)
    for token in tokens(n).split(1, dim=1) if n else ():
        model(token, cache)
        assert (cache.places == cache.length - 1).any(-1).all()
    held = min(n, budget)
    assert (cache.kept == held).all() and cache.evicted == n - held
    assert all(len(set(row) - {-1}) == held for row in cache.places.flatten(0, 2).tolist())


def test_evicted_entries_are_gone(model):
    """After a window has passed, another beginning of the text makes no difference: it is nowhere in memory."""
    ids, other = tokens(40, batch=1), tokens(40, batch=1)
    other[:, :20] = tokens(20, batch=1, seed=5)
    reach = TINY.layers * 4  # what the last query sees, directly and through the layer below
    a, b = (model(x, EvictingCache(model, 5, window))[:, 20 + reach :] for x in (ids, other))
    assert torch.equal(a, b)
    assert not torch.allclose(model(ids)[:, 20 + reach :], model(other)[:, 20 + reach :])


def test_the_budget_must_hold_the_newcomer(model):
    """Zero entries cannot be attended."""
    with pytest.raises(ValueError, match="budget must be at least 1 entry, given 0"):
        EvictingCache(model, 0, window)


@pytest.mark.parametrize("policy", [sink_window(5), heavy_hitters(6)])
def test_a_policy_that_protects_every_entry_is_refused(model, policy):
    """With 5 slots, 5 sinks or 6 recent tokens leave nobody to evict; 4 and 5 do."""
    with pytest.raises(ValueError, match="protects all 5 entries"):
        model(tokens(6), EvictingCache(model, 5, policy, batch=2))


# --- Top-K -----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(1, 12), st.integers(1, 20), st.booleans())
def test_top_k_is_softmax_over_the_k_largest_scores(q_len, k_len, keep, causal):
    """Against a loop over rows with a sort; fewer keys than k are all kept; a query without a key gives 0."""
    draw = torch.Generator().manual_seed(q_len + 20 * k_len)
    q = torch.randn(2, 4, q_len, 8, generator=draw, dtype=torch.float64)
    k, v = (torch.randn(2, 2, k_len, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    got = topk_attention(q, k, v, keep=keep, causal=causal)
    for b, h, i in ((b, h, i) for b in range(2) for h in range(4) for i in range(q_len)):
        seen = max(0, k_len - q_len + i + 1) if causal else k_len
        scores = q[b, h, i] @ k[b, h // 2, :seen].T / math.sqrt(8)
        best = sorted(range(seen), key=lambda j: -scores[j])[:keep]
        want = torch.softmax(scores[best], 0) @ v[b, h // 2, best] if best else torch.zeros(8, dtype=torch.float64)
        assert_close(got[b, h, i], want)


def test_top_k_with_all_keys_is_attention(model):
    """In the model too, and with a cache: the last query meets all keys."""
    ids, want = tokens(20), model(tokens(20))
    with replace_attention(model, lambda q, k, v, causal: topk_attention(q, k, v, keep=20)):
        assert_close(model(ids), want, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="keep must be at least 1 key, given 0"):
        topk_attention(*(torch.zeros(1, 1, 1, 8) for _ in range(3)), keep=0)


# --- an independent implementation -----------------------------------------------------------------------------------


def transformers_model(model, **options):
    """The same weights in transformers' Mistral (with a sliding window) or Llama."""
    transformers = pytest.importorskip("transformers", reason="needs the peers extra: pip install '.[peers]'")
    sizes = {
        "vocab_size": TINY.vocab, "hidden_size": TINY.model, "intermediate_size": TINY.ffn, "head_dim": TINY.dim,
        "num_hidden_layers": TINY.layers, "num_attention_heads": TINY.heads, "num_key_value_heads": TINY.kv_heads,
        "max_position_embeddings": TINY.context, "rms_norm_eps": TINY.norm_eps, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": TINY.rope_base},
    }  # fmt: skip
    kind = "Mistral" if options else "Llama"
    config = getattr(transformers, f"{kind}Config")(**sizes, **options, attn_implementation="eager")
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    weights = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    theirs.load_state_dict(weights | {"lm_head.weight": model.embed_tokens.weight})
    return theirs


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")  # of transformers, about its own future
def test_our_window_is_that_of_transformers(model):
    """Mistral's sliding-window cache, decoding token by token, and its masked pass: both give our logits."""
    theirs, ids = transformers_model(model, sliding_window=7), tokens(30)
    with torch.no_grad():
        ours = model(ids, EvictingCache(model, 7, window, batch=2))
        assert_close(theirs(ids).logits, ours, rtol=1e-4, atol=1e-4)
        past, steps = None, []
        for token in ids.split(1, dim=1):
            out = theirs(token, past_key_values=past, use_cache=True)
            past = out.past_key_values
            steps.append(out.logits)
    assert past.layers[0].keys.shape[2] == 6  # it keeps the past of the window; the newcomer is the seventh
    assert_close(torch.cat(steps, dim=1), ours, rtol=1e-4, atol=1e-4)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")  # of transformers, about its own future
def test_our_sinks_are_a_mask_in_transformers(model):
    """It has no sink cache any more; its Llama under the mask of 2 sinks and the last 5 gives our logits."""
    theirs, ids = transformers_model(model), tokens(30)
    i, j = torch.arange(30)[:, None], torch.arange(30)
    mask = (j <= i) & ((j < 2) | (i - j < 5) | (i < 7))
    with torch.no_grad():
        bias = torch.zeros(30, 30).masked_fill(~mask, torch.finfo(torch.float32).min)
        want = theirs(ids, attention_mask=bias.expand(2, 1, 30, 30)).logits
        ours = model(ids, EvictingCache(model, 7, sink_window(2), batch=2))
    assert_close(ours, want, rtol=1e-4, atol=1e-4)
