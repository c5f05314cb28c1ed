"""The Llama itself, on tiny random weights: its parts against their formulas, its cache against no cache."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from refimpl.attention import attention, naive_attention
from refimpl.models import KVCache, Llama, LlamaConfig, capture_qkv, generate, perplexity, replace_attention
from refimpl.models.llama import MLP, RMSNorm, fast_attention
from refimpl.models.toy import TOY, toy_llama

TINY = LlamaConfig(
    layers=3, model=32, heads=4, kv_heads=2, dim=8, ffn=48, vocab=97, context=64, rope_base=100.0, norm_eps=1e-5
)


@pytest.fixture
def model():
    return toy_llama(TINY, seed=1)


def tokens(n, seed=0):
    return torch.randint(TINY.vocab, (1, n), generator=torch.Generator().manual_seed(seed))


def test_rms_norm_gives_rows_of_root_mean_square_one():
    """Scaling the input changes nothing, the mean stays, and the weight multiplies last."""
    x = torch.randn(5, 32) * 7 + 3
    norm = RMSNorm(32, 1e-12)
    assert_close(norm(x).square().mean(-1), torch.ones(5))
    assert_close(norm(100 * x), norm(x))
    norm.weight.data.fill_(2.0)
    assert_close(norm(x), 2 * x / x.square().mean(-1, keepdim=True).sqrt())


def test_rms_norm_survives_massive_activations_in_float16():
    """The largest residual feature of SmolLM2, 23,936, squares to 5.7e8; float16 ends at 65,504."""
    x = torch.ones(1, 32, dtype=torch.float16)
    x[0, 3] = 23_936.0
    out = RMSNorm(32, 1e-5).half()(x)
    assert_close(out[0, 3].item(), math.sqrt(32), rtol=2e-3, atol=0)


def test_the_feed_forward_block_gates_with_silu_of_the_gate():
    """down(silu(gate(x)) * up(x)): with gate and up exchanged the block is another function."""
    mlp, x = MLP(TINY), torch.randn(5, TINY.model)
    gate, up = x @ mlp.gate_proj.weight.T, x @ mlp.up_proj.weight.T
    assert_close(mlp(x), (gate * torch.sigmoid(gate) * up) @ mlp.down_proj.weight.T)


def test_qkv_have_the_shapes_of_grouped_query_attention(model):
    """Four query heads, two key/value heads, one entry per layer."""
    with capture_qkv(model) as seen:
        model(tokens(11))
    assert sorted(seen) == [0, 1, 2]
    assert [tuple(x.shape) for x in seen[1]] == [(1, 4, 11, 8), (1, 2, 11, 8), (1, 2, 11, 8)]
    assert all(x.is_contiguous() for x in seen[1])


def test_captured_qkv_are_the_layers_real_inputs(model):
    """Attention over the captured tensors, projected, is what the layer adds to the residual stream."""
    ids = tokens(11)
    with capture_qkv(model, [1]) as seen:
        model(ids)
    assert list(seen) == [1]
    block, x = model.layers[1], model.residual(ids, depth=1)
    added = block.self_attn.o_proj(naive_attention(*seen[1], causal=True).transpose(1, 2).flatten(2))
    assert_close(added, block.self_attn(block.input_layernorm(x), torch.arange(11)))


def test_captured_qkv_do_not_change_with_the_cache(model):
    """They are copies: the cache goes on writing into its own buffers."""
    cache = KVCache(model, 12)
    with capture_qkv(model, [0]) as seen:
        model(tokens(5), cache)
    k = seen[0][1]
    before = k.clone()
    cache.keys.zero_()
    assert_close(k, before)


@pytest.mark.parametrize("impl", ["naive", "tiled"])
def test_the_courses_attention_gives_the_same_logits(model, impl):
    """`replace_attention` with refimpl.attention.attention changes rounding only, with and without a cache."""
    ids, want = tokens(20), model(tokens(20))

    def chosen(q, k, v, causal):
        return attention(q, k, v, causal=causal, impl=impl)

    with replace_attention(model, chosen):
        assert_close(model(ids), want, rtol=1e-4, atol=1e-4)
        cache = KVCache(model, 20)
        parts = [model(ids[:, :13], cache), model(ids[:, 13:], cache)]
    assert_close(torch.cat(parts, dim=1), want, rtol=1e-4, atol=1e-4)


def test_replaced_attention_is_restored_even_after_an_error(model):
    """One layer can be replaced alone; leaving the block, by whatever door, brings the model back."""
    ids, want = tokens(9), model(tokens(9))

    def zeros(q, k, v, causal):
        return torch.zeros_like(q)

    with replace_attention(model, {1: zeros}):
        assert not torch.allclose(model(ids), want)
        with pytest.raises(ZeroDivisionError), replace_attention(model, zeros):
            raise ZeroDivisionError
        assert model.layers[1].self_attn.attend is zeros
        assert model.layers[0].self_attn.attend is fast_attention
    assert_close(model(ids), want)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("q_len", "k_len"), [(1, 7), (3, 7), (7, 7)])
def test_fast_attention_aligns_the_last_query_with_the_last_key(causal, q_len, k_len):
    """PyTorch's fused kernel behind it aligns the first ones; here it must agree with the naive form."""
    rng = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, q_len, 8, generator=rng)
    k, v = (torch.randn(2, 2, k_len, 8, generator=rng) for _ in range(2))
    assert_close(fast_attention(q, k, v, causal=causal), naive_attention(q, k, v, causal=causal))


@pytest.mark.parametrize("cuts", [[20], [13, 7], [1] * 20, [5, 1, 14]])
def test_the_cache_changes_no_logit(model, cuts):
    """Reading 20 tokens in any pieces through the cache equals reading them at once."""
    ids, cache, parts = tokens(20), KVCache(model, 20), []
    for piece in ids.split(cuts, dim=1):
        parts.append(model(piece, cache))
    assert cache.length == 20
    assert_close(torch.cat(parts, dim=1), model(ids), rtol=1e-4, atol=1e-4)


def test_a_full_cache_refuses_more_and_says_how_large_it_is(model):
    """Writing past the buffer would silently drop keys."""
    cache = KVCache(model, 8)
    model(tokens(8), cache)
    with pytest.raises(ValueError, match="9 tokens in a cache for 8"):
        model(tokens(1), cache)


def test_a_text_longer_than_the_context_is_refused(model):
    """RoPE beyond the trained length gives numbers, but no sense."""
    with pytest.raises(ValueError, match="65 tokens, but this model was trained on 64"):
        model(tokens(65))


def test_logits_never_depend_on_later_tokens(model):
    """Changing token 12 leaves the logits of positions 0 to 11 as they are."""
    ids = tokens(20)
    other = ids.clone()
    other[0, 12] = (ids[0, 12] + 1) % TINY.vocab
    a, b = model(ids), model(other)
    assert_close(a[:, :12], b[:, :12])
    assert not torch.allclose(a[:, 12:], b[:, 12:])


def test_order_matters(model):
    """Without RoPE, attention would see the earlier tokens as a set."""
    ids = tokens(6)
    swapped = ids[:, [1, 0, 2, 3, 4, 5]]
    assert not torch.allclose(model(ids)[:, -1], model(swapped)[:, -1], atol=1e-3)


def test_last_asks_for_the_last_logits_only(model):
    """The output matrix is applied to the positions asked for."""
    assert_close(model(tokens(9), last=4), model(tokens(9))[:, -4:])
    assert model(tokens(9), last=4).shape == (1, 4, TINY.vocab)


def test_the_output_head_is_the_embedding_matrix_where_tied(model):
    """A change of one embedding row changes that token's logit everywhere; untied models have a matrix of their own."""
    assert model.lm_head is None
    x = model.residual(tokens(5))
    before = model.head(x)
    model.embed_tokens.weight[7] *= 2
    after = model.head(x)
    assert_close(after[..., 7], 2 * before[..., 7])
    assert_close(after[..., 8:], before[..., 8:])
    untied = Llama(LlamaConfig(**{**TINY.__dict__, "tied": False}))
    assert untied.lm_head.weight.shape == (TINY.vocab, TINY.model)


def test_depth_cuts_the_stack_of_blocks(model):
    """residual(depth=2) is block 1 after block 0, nothing else; depth 0 is the embedding."""
    ids, positions = tokens(6), torch.arange(6)
    x = model.embed_tokens(ids)
    assert_close(model.residual(ids, depth=0), x)
    for block in model.layers[:2]:
        x = block(x, positions)
    assert_close(model.residual(ids, depth=2), x)


def test_greedy_decoding_is_the_same_with_and_without_cache(model):
    """Fifteen tokens, each the argmax over everything before it."""
    ids = tokens(6)
    out = generate(model, ids, 15)
    assert torch.equal(out, generate(model, ids, 15, use_cache=False))
    assert torch.equal(out[:, 6:], model(out[:, :-1])[:, 5:].argmax(-1))


def test_decoding_stops_after_the_stop_token(model):
    """The stop token is kept, nothing follows it."""
    ids = tokens(6)
    free = generate(model, ids, 10)[0]
    stop = free[8].item()
    first = 6 + free[6:].tolist().index(stop)
    assert torch.equal(generate(model, ids, 10, stop=stop)[0], free[: first + 1])


def test_perplexity_of_equal_logits_is_the_size_of_the_vocabulary(model):
    """A model that knows nothing is as unsure as a fair die with `vocab` faces."""
    model.norm.weight.zero_()
    assert perplexity(model, tokens(40), window=16) == pytest.approx(TINY.vocab, rel=1e-5)


def test_perplexity_scores_each_window_from_its_second_token(model):
    """exp of the mean over windows of the loss; what does not fill a window is left out."""
    ids = tokens(40)
    logs = [model(x).log_softmax(-1)[0, :-1].gather(1, x[0, 1:, None]) for x in (ids[:, :16], ids[:, 16:32])]
    assert perplexity(model, ids, window=16) == pytest.approx(math.exp(-torch.cat(logs).mean().item()), rel=1e-5)
    with pytest.raises(ValueError, match="40 tokens do not fill one window of 41"):
        perplexity(model, ids, window=41)


def test_gradients_reach_every_weight(model):
    """Frozen by default for teaching; trainable when asked, with no part cut off from the loss."""
    assert not any(p.requires_grad for p in model.parameters())
    model.requires_grad_(True)
    model(tokens(9)).logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_heads_that_do_not_divide_are_refused():
    """Each key/value head serves the same number of query heads."""
    with pytest.raises(ValueError, match="given 4 and 3"):
        LlamaConfig(**{**TINY.__dict__, "kv_heads": 3})


def test_the_toy_has_smollm2s_attention_shapes_and_a_seed():
    """Notebooks index layer 22, head 8 and token 49,151; the same seed gives the same weights."""
    assert (TOY.layers, TOY.heads, TOY.kv_heads, TOY.dim, TOY.vocab) == (30, 9, 3, 64, 49_152)
    a, b, c = (toy_llama(TINY, seed=seed)(tokens(8)) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.allclose(a, c)


def test_models_run_where_only_torch_and_numpy_are_installed():
    """A GPU machine without gguf, tokenizers, safetensors and jaxtyping still imports the package and runs the toy."""
    program = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(['gguf', 'tokenizers', 'safetensors', 'jaxtyping', 'beartype'])\n"
        "from refimpl.models import sample_qkv\n"
        "print(*sample_qkv(32, layer=1)[0].shape)"
    )
    env = os.environ | {"COURSE_MODELS": "toy", "COURSE_CACHE": os.devnull}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, cwd=root, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("1 9 32 64\n", "")


def test_the_toys_logits_are_as_large_as_real_ones():
    """Row maxima beyond 11.09 overflow exp in float16: unit 03 can show it with toy weights too."""
    logits = toy_llama()(torch.arange(8)[None] + 97)
    assert logits.shape == (1, 8, 49_152)
    assert logits.isfinite().all()
    assert (logits.amax(-1) > 15).all()
