"""Formulas equal counts on running code, exactly; the numbers of the lectures follow, or do not, and by how much."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from refimpl.attention import naive_attention
from refimpl.cost_model import (
    GPT2_XL,
    OPT,
    Cost,
    ModelShape,
    backward,
    block_matmuls,
    forward,
    matmul,
    message_bytes,
    parameters,
    rule_of_six,
    score_elements,
    total,
    training_step,
)
from refimpl.flash_attention.simulator import attention_flops, standard_formula
from refimpl.meter import Meter
from refimpl.models.llama import Llama, LlamaConfig, replace_attention
from refimpl.transformer import DecoderOnly, TransformerConfig

SHAPE = ModelShape(layers=3, model=16, heads=4, vocab=23, ffn=40)
LLAMA = LlamaConfig(
    layers=2, model=24, heads=6, kv_heads=2, dim=8, ffn=20, vocab=31, context=64, rope_base=1e4, norm_eps=1e-5
)


def decoder_only(shape):
    return DecoderOnly(TransformerConfig(shape.vocab, shape.model, shape.heads, shape.layers, shape.ffn))


def ids(batch, tokens, vocab=23):
    return torch.randint(vocab, (batch, tokens), generator=torch.Generator().manual_seed(0))


# --- FLOPs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch,tokens", [(1, 1), (1, 17), (3, 32), (2, 64)])
def test_forward_flops_equal_two_independent_counters(batch, tokens):
    """Our dispatch mode and PyTorch's FlopCounterMode on the running model give the formula's integer."""
    model = decoder_only(SHAPE)
    with Meter() as ours, FlopCounterMode(display=False) as theirs:
        model(ids(batch, tokens))
    assert ours.flops == theirs.get_total_flops() == total(forward(SHAPE, batch=batch, tokens=tokens)).flops


@pytest.mark.parametrize("batch,tokens", [(1, 17), (3, 32)])
@pytest.mark.parametrize("recompute", [False, True])
def test_training_flops_equal_two_independent_counters(batch, tokens, recompute):
    """Forward and backward are 1 : 2; checkpointing every block adds the blocks' forward, and not the head's."""
    model = decoder_only(SHAPE)
    with Meter() as ours, FlopCounterMode(display=False) as theirs:
        x = model.embedding(ids(batch, tokens))
        for block in model.blocks:
            x = checkpoint(block, x, causal=True, use_reentrant=False) if recompute else block(x, causal=True)
        model.embedding.logits(x).sum().backward()
    step = training_step(SHAPE, batch=batch, tokens=tokens, recompute=recompute)
    assert ours.flops == theirs.get_total_flops() == total(step).flops
    assert step["backward"].flops == 2 * step["forward"].flops


@pytest.mark.parametrize("tokens,cached,last", [(9, 0, None), (9, 0, 1), (1, 12, None), (4, 8, 2)])
def test_flops_of_a_real_llama_with_grouped_heads_and_a_cache(tokens, cached, last):
    """SwiGLU's third matrix, 2 kv heads for 6, a decode step against cached keys, logits of the last tokens only."""
    from refimpl.models.llama import KVCache

    model = Llama(LLAMA).requires_grad_(False)
    cache = KVCache(model, 32)
    if cached:
        model(ids(1, cached, 31), cache)
    with replace_attention(model, naive_attention), Meter() as meter:
        model(ids(1, tokens, 31), cache, last=last)
    shape = ModelShape.of(LLAMA)
    assert meter.flops == total(forward(shape, batch=1, tokens=tokens, cached=cached, last=last)).flops


def test_every_part_of_a_block_has_its_matmuls_flops_and_bytes():
    """One layer, matmul by matmul: q, k, v; S and P V; output; two of the feed-forward network; the head."""
    shape = ModelShape(layers=1, model=16, heads=4, vocab=23, ffn=40)
    with Meter() as meter:
        decoder_only(shape)(ids(2, 32))
    parts, m = forward(shape, batch=2, tokens=32, itemsize=4), meter.matmuls
    for name, its in {"projections": m[:3], "output": m[5:6], "ffn": m[6:8], "lm head": m[8:]}.items():
        assert parts[name] == Cost(sum(x.flops for x in its), sum(x.bytes for x in its)), name
    # softmax reads S and writes P, which is no matmul: 2 more passes over h B N² elements of 4 bytes
    softmax = 2 * score_elements(shape, batch=2, tokens=32) * 4
    assert parts["attention"] == Cost(sum(x.flops for x in m[3:5]), sum(x.bytes for x in m[3:5]) + softmax)


def test_backward_bytes_equal_the_counted_matmuls():
    """dX and dW touch X, W and dY again: every linear part moves twice its forward bytes, counted."""
    shape = ModelShape(layers=1, model=16, heads=4, vocab=23, ffn=40)
    out = decoder_only(shape)(ids(2, 32)).sum()
    with Meter() as meter:
        out.backward()
    square = [x for x in meter.matmuls if 32 in (x.inner, x.cols) and x.batch == 2 * 4]  # the products with S or P
    linear = [x for x in meter.matmuls if x not in square]
    assert len(square) == 4
    parts = backward(shape, batch=2, tokens=32, itemsize=4)
    attention = parts.pop("attention")
    assert total(parts) == Cost(sum(x.flops for x in linear), sum(x.bytes for x in linear))
    assert attention.flops == sum(x.flops for x in square)


@pytest.mark.parametrize("n,dim,heads", [(64, 16, 4), (33, 8, 2)])
def test_attention_agrees_with_the_simulator_of_unit_04(n, dim, heads):
    """FLOPs and bytes of Algorithm 0, forward and backward, and FLOPs of the recomputing kernel."""
    shape = ModelShape(layers=1, model=dim * heads, heads=heads)
    sizes = {"batch": 1, "tokens": n, "itemsize": 2}
    one, both = standard_formula(n, dim), standard_formula(n, dim, backward=True)
    fore, back = forward(shape, **sizes)["attention"], backward(shape, **sizes)["attention"]
    assert (fore.flops, fore.bytes) == (heads * attention_flops(n, dim), heads * one.bytes(2))
    assert back.flops == heads * attention_flops(n, dim, backward=True) - fore.flops
    assert back.bytes == heads * (both.bytes(2) - one.bytes(2))
    fused = training_step(shape, **sizes, fused=True)
    plain = training_step(shape, **sizes)
    extra = attention_flops(n, dim, backward=True, recompute=True) - attention_flops(n, dim, backward=True)
    assert total(fused).flops - total(plain).flops == heads * extra
    assert total(fused).bytes < total(plain).bytes


def test_one_matmul_by_hand():
    """(2, 3) by (3, 5), half precision: 60 FLOPs, 31 elements of 2 bytes; costs add and multiply."""
    cost = matmul(2, 3, 5)
    assert cost == Cost(60, 62)
    assert matmul(2, 3, 5, batch=4, itemsize=4) == Cost(240, 4 * 31 * 4) == matmul(2, 3, 5, itemsize=4) * 4
    assert (cost + cost) == cost * 2
    assert cost.intensity == 60 / 62


def test_decoding_one_token_reads_every_weight_for_two_flops():
    """In 16 bits about 1 FLOP per byte, whatever the model; a prompt of 1,024 tokens reaches hundreds."""
    step = total(forward(GPT2_XL, batch=1, tokens=1, cached=1023))
    prompt = total(forward(GPT2_XL, batch=1, tokens=1024, fused=True))
    assert 0.9 < step.intensity < 1.1
    assert prompt.intensity > 200


def test_the_rule_of_six_leaves_out_the_score_matrix():
    """6 N D is exact but for attention's products: 10 % of GPT-2 XL at N = 1,024, more than all else at 16,384."""

    def share(tokens):
        step = total(training_step(GPT2_XL, batch=1, tokens=tokens)).flops
        embeddings = GPT2_XL.positions * GPT2_XL.model  # looked up, never multiplied
        return step / rule_of_six(sum(parameters(GPT2_XL).values()) - embeddings, tokens)

    assert share(1024) == pytest.approx(1.10, abs=0.01)
    assert share(16_384) > 2


# --- the quadratic wall ----------------------------------------------------------------------------------------------


def test_doubling_the_length_quadruples_the_score_matrix_and_nothing_else():
    """The largest tensor measured is h B N², 4 times as much for each doubling; the FLOPs fit a N + b N² exactly."""
    shape = ModelShape(layers=2, model=16, heads=4, vocab=23)
    model, found = decoder_only(shape), {}
    for n in (64, 128, 256):
        with torch.no_grad(), Meter() as meter:
            model(ids(2, n))
        assert meter.largest_bytes == 4 * score_elements(shape, batch=2, tokens=n)
        assert meter.largest_shape[-2:] == (n, n)
        found[n] = (meter.largest_bytes, meter.flops)
    assert found[128][0] == 4 * found[64][0] and found[256][0] == 4 * found[128][0]
    quadratic = (found[128][1] - 2 * found[64][1]) / (128**2 - 2 * 64**2)
    assert found[256][1] - 2 * found[128][1] == quadratic * (256**2 - 2 * 128**2)
    assert quadratic == 4 * shape.layers * 2 * shape.model


def test_messages_grow_with_the_length_and_gradients_do_not():
    """S0's "larger messages on the network": linear in N for three kinds of parallelism, constant for the fourth."""
    short, long = (message_bytes(GPT2_XL, batch=4, tokens=n, workers=8) for n in (1024, 2048))
    assert {name: long[name] / short[name] for name in short} == {"pipeline": 2, "tensor": 2, "ring": 2, "data": 1}


def test_message_bytes_are_those_of_the_tensors_that_would_be_sent():
    """Cut a model between two blocks: the tensor at the cut. Its attention: the keys and values of one worker."""
    model, shape = decoder_only(SHAPE), SHAPE
    x = model.blocks[0](model.embedding(ids(2, 24)), causal=True)
    keys = x[:, :8] @ model.blocks[1].attention.w_k  # one of three workers
    expected = message_bytes(shape, batch=2, tokens=24, workers=3, itemsize=4)
    assert expected["pipeline"] == expected["tensor"] == x.nbytes
    assert expected["ring"] == 2 * keys.nbytes
    assert expected["data"] == 4 * sum(p.numel() for p in model.parameters() if p.ndim == 2)


# --- parameters ------------------------------------------------------------------------------------------------------


def test_parameters_are_the_matrices_of_a_real_model():
    """Decoder-only and Llama, grouped heads, gate and untied head: every 2-D weight, not one more."""
    assert sum(parameters(SHAPE).values()) == sum(p.numel() for p in decoder_only(SHAPE).parameters() if p.ndim == 2)
    for tied in (True, False):
        config = LlamaConfig(**{**vars(LLAMA), "tied": tied})
        matrices = sum(p.numel() for p in Llama(config).parameters() if p.ndim == 2)
        assert sum(parameters(ModelShape.of(config)).values()) == matrices


def test_a_block_has_12_d_squared_parameters():
    """4 d² in attention and 8 d² in a feed-forward network four times as wide."""
    counts = parameters(ModelShape(layers=7, model=64, heads=4))
    assert counts["attention"] + counts["ffn"] == 12 * 7 * 64**2


@pytest.mark.parametrize("name", OPT)
def test_the_opt_table_follows_from_12_l_d_squared_and_embeddings(name):
    """Every size of the lecture's table within 3 %, from layers and width alone."""
    printed = float(name[:-1]) * {"M": 1e6, "B": 1e9}[name[-1]]
    shape = OPT[name]
    computed = 12 * shape.layers * shape.model**2 + (shape.vocab + shape.positions) * shape.model
    assert sum(parameters(shape).values()) == computed
    assert computed == pytest.approx(printed, rel=0.03)


def test_the_slide_counts_three_matmuls_too_few_in_a_decoder_block():
    """Its own encoder count, applied twice, gives 10h + 2 + 2; printed: 10h + 1."""
    encoder, decoder = block_matmuls(8), block_matmuls(8, decoder=True)
    assert sum(encoder.values()) == 3 * 8 + 2 * 8 + 1 + 2
    attention = {name: 2 * n for name, n in encoder.items() if name != "ffn"}
    assert decoder == attention | {"ffn": encoder["ffn"]}
    assert sum(decoder.values()) - (10 * 8 + 1) == 3
