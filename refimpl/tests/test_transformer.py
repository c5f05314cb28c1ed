"""Blocks, models and greedy decoding against an independent fp64 oracle and PyTorch's own layers; matmuls counted."""

import importlib.util
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from refimpl import transformer
from refimpl.attention import attention
from refimpl.cost_model import block_matmuls
from refimpl.meter import Meter
from refimpl.shapes import AXES
from refimpl.transformer import (
    DecoderBlock,
    DecoderOnly,
    EncoderBlock,
    EncoderDecoder,
    EncoderOnly,
    MultiHeadAttention,
    TransformerConfig,
    greedy_decoding,
    head_by_head,
)

SMALL = TransformerConfig(vocab=11, model=8, heads=2, layers=2, ffn=12)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(kind, *arguments, seed=0):
    """A module in fp64 whose every parameter is random: zero biases and unit norms would hide mistakes."""
    module = kind(*arguments).double()
    for i, p in enumerate(module.parameters()):
        p.data = draw(*p.shape, seed=seed + i) * (0.5 if p.ndim == 2 else 1.0)
    return module


# --- an oracle that shares no line with the module: numpy, loops over batch, heads and queries ------------------------


def oracle_attention(layer, x, c, allowed):
    """allowed(i, j): may query i look at key j?"""
    w_q, w_k, w_v, w_o = (w.detach().numpy() for w in (layer.w_q, layer.w_k, layer.w_v, layer.w_o))
    width = w_q.shape[1] // layer.heads
    out = np.zeros((len(x), w_q.shape[1]))
    for h in range(layer.heads):
        cols = slice(h * width, (h + 1) * width)
        for i in range(len(x)):
            scores = [x[i] @ w_q[:, cols] @ (c[j] @ w_k[:, cols]) / math.sqrt(width) for j in range(len(c))]
            weights = np.array([math.exp(s) if allowed(i, j) else 0.0 for j, s in enumerate(scores)])
            out[i, cols] = sum(p * (c[j] @ w_v[:, cols]) for j, p in enumerate(weights / weights.sum()))
    return out @ w_o


def oracle_ffn(layer, x):
    w_1, b_1, w_2, b_2 = (p.detach().numpy() for p in (layer.w_1, layer.b_1, layer.w_2, layer.b_2))
    return np.maximum(0, x @ w_1 + b_1) @ w_2 + b_2


def oracle_norm(norm, x):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + norm.eps) * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def residual(x, f, norm, first):
    return x + f(oracle_norm(norm, x)) if first else oracle_norm(norm, x + f(x))


def oracle_encoder_block(block, x, allowed):
    x = residual(x, lambda y: oracle_attention(block.attention, y, y, allowed), block.norm_1, block.norm_first)
    return residual(x, lambda y: oracle_ffn(block.ffn, y), block.norm_2, block.norm_first)


def oracle_decoder_block(block, x, z, allowed):
    first = block.norm_first
    x = residual(x, lambda y: oracle_attention(block.self_attention, y, y, causally), block.norm_1, first)
    x = residual(x, lambda y: oracle_attention(block.cross_attention, y, z, allowed), block.norm_2, first)
    return residual(x, lambda y: oracle_ffn(block.ffn, y), block.norm_3, first)


def oracle_embedding(embedding, ids):
    E = embedding.weight.detach().numpy()
    d = E.shape[1]
    pe = np.array(
        [[(math.sin, math.cos)[i % 2](p / 10_000 ** (i // 2 * 2 / d)) for i in range(d)] for p in range(len(ids))]
    )
    return E[ids] * math.sqrt(d) + pe


def causally(i, j):
    return j <= i


def anywhere(i, j):
    return True


def each(function, *batches):
    """The oracle works on one sequence at a time."""
    return torch.from_numpy(np.stack([function(*(b.numpy() for b in row)) for row in zip(*batches, strict=True)]))


# --- blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_the_encoder_block_is_the_formula(norm_first, causal):
    """LayerNorm(x + Sublayer(x)) for attention and feed-forward, against loops in numpy."""
    block = made(EncoderBlock, TransformerConfig(11, 8, 2, 1, 12, norm_first=norm_first))
    x = draw(2, 5, 8)
    want = each(lambda y: oracle_encoder_block(block, y, causally if causal else anywhere), x)
    assert_close(block(x, causal=causal), want)


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_decoder_block_is_the_formula(norm_first):
    """Masked self-attention, cross-attention with queries from x and keys from z, feed-forward; lengths may differ."""
    block = made(DecoderBlock, TransformerConfig(11, 8, 2, 1, 12, norm_first=norm_first))
    x, z = draw(2, 5, 8), draw(2, 7, 8, seed=9)
    assert_close(block(x, z), each(lambda y, c: oracle_decoder_block(block, y, c, anywhere), x, z))


def copy_attention(theirs: nn.MultiheadAttention, ours: MultiHeadAttention):
    theirs.in_proj_weight.data = torch.cat([w.data.T for w in (ours.w_q, ours.w_k, ours.w_v)])
    theirs.out_proj.weight.data = ours.w_o.data.T
    theirs.in_proj_bias.data.zero_()  # the paper's attention has no biases
    theirs.out_proj.bias.data.zero_()


def copy_rest(theirs, ours, norms):
    theirs.linear1.weight.data, theirs.linear1.bias.data = ours.ffn.w_1.data.T, ours.ffn.b_1.data
    theirs.linear2.weight.data, theirs.linear2.bias.data = ours.ffn.w_2.data.T, ours.ffn.b_2.data
    for i in range(1, norms + 1):
        getattr(theirs, f"norm{i}").load_state_dict(getattr(ours, f"norm_{i}").state_dict())


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_encoder_block_is_pytorchs_layer(norm_first):
    """nn.TransformerEncoderLayer with our weights copied in gives our numbers, padding mask included."""
    ours = made(EncoderBlock, TransformerConfig(11, 8, 2, 1, 12, norm_first=norm_first))
    theirs = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, norm_first=norm_first).double()
    copy_attention(theirs.self_attn, ours.attention)
    copy_rest(theirs, ours, 2)
    x, real = draw(3, 6, 8), torch.tensor([[True] * 6, [True] * 4 + [False] * 2, [True] * 2 + [False] * 4])
    assert_close(ours(x, mask=real[:, None, None]), theirs(x, src_key_padding_mask=~real))


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_decoder_block_is_pytorchs_layer(norm_first):
    """nn.TransformerDecoderLayer with our weights copied in gives our numbers."""
    ours = made(DecoderBlock, TransformerConfig(11, 8, 2, 1, 12, norm_first=norm_first))
    theirs = nn.TransformerDecoderLayer(8, 2, 12, dropout=0.0, batch_first=True, norm_first=norm_first).double()
    copy_attention(theirs.self_attn, ours.self_attention)
    copy_attention(theirs.multihead_attn, ours.cross_attention)
    copy_rest(theirs, ours, 3)
    x, z = draw(2, 5, 8), draw(2, 7, 8, seed=9)
    hidden = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    assert_close(ours(x, z), theirs(x, z, tgt_mask=hidden))


def test_heads_in_turn_and_heads_at_once_are_the_same_attention():
    """One wide matmul for all heads is the h small ones of the formula: outputs and gradients agree."""
    layer = made(MultiHeadAttention, SMALL)
    x, z = draw(2, 5, 8), draw(2, 7, 8, seed=1)
    mask = torch.tensor([True] * 5 + [False] * 2).expand(2, 1, 1, 7)
    results = []
    for mode in (False, True):
        layer.head_by_head = mode
        out = layer(x, z, mask=mask)
        results.append((out, *torch.autograd.grad(out.square().sum(), [layer.w_q, layer.w_o])))
    assert_close(*results)


def test_a_faster_attention_can_take_the_place_of_the_naive_one():
    """The tiled form of unit 04, whole model, same logits."""
    fast = DecoderOnly(TransformerConfig(11, 8, 2, 2, attend=attention)).double()
    naive = DecoderOnly(TransformerConfig(11, 8, 2, 2)).double()
    naive.load_state_dict(fast.state_dict())
    ids = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(0))
    assert_close(fast(ids), naive(ids))


# --- matmul counts ---------------------------------------------------------------------------------------------------


def counted(module, *inputs):
    with torch.no_grad(), Meter() as meter:
        module(*inputs)
    return len(meter.matmuls)


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_an_encoder_block_has_3h_2h_1_and_2_matmuls(heads):
    """Counted in the running block, head by head: 3h projections, 2h attention, 1 output, 2 feed-forward."""
    block, x = EncoderBlock(TransformerConfig(11, 8, heads, 1)), torch.randn(2, 5, 8)
    with head_by_head(block):
        assert counted(block.attention, x) == 3 * heads + 2 * heads + 1
        assert counted(block.ffn, x) == 2
        assert counted(block, x) == 3 * heads + 2 * heads + 1 + 2 == sum(block_matmuls(heads).values())


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_a_decoder_block_has_10h_2_and_2_matmuls_and_not_the_slides_number(heads):
    """10h + 2 + 2 counted. The slide's "10k for attention, 1 for the feed-forward network" is 3 short."""
    block, x, z = DecoderBlock(TransformerConfig(11, 8, heads, 1)), torch.randn(2, 5, 8), torch.randn(2, 6, 8)
    with head_by_head(block):
        assert counted(block, x, z) == 10 * heads + 2 + 2 == sum(block_matmuls(heads, decoder=True).values())
        assert counted(block, x, z) - (10 * heads + 1) == 3
    assert counted(block, x, z) == 14, "at once: 3 + 2 + 1 for each attention and 2, whatever the number of heads"


# --- models ----------------------------------------------------------------------------------------------------------


def some_ids(batch, seq, seed=0):
    return torch.randint(11, (batch, seq), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_decoder_only_model_is_the_oracle_from_ids_to_logits(norm_first):
    """Embedding times sqrt(d), positions, causal blocks, the last norm of pre-norm, the tied head."""
    config = TransformerConfig(11, 8, 2, 2, 12, norm_first=norm_first)
    model, ids = made(DecoderOnly, config), some_ids(2, 6)

    def oracle(row):
        x = oracle_embedding(model.embedding, row)
        for block in model.blocks:
            x = oracle_encoder_block(block, x, causally)
        return (oracle_norm(model.norm, x) if norm_first else x) @ model.embedding.weight.detach().numpy().T

    # positions are float32 by design: 6 sines of angles below 6 carry its 6e-8
    assert_close(model(ids), each(oracle, ids), rtol=1e-5, atol=1e-5)


def test_the_encoder_decoder_is_the_oracle_from_ids_to_logits():
    """Source through the encoder, target through decoder blocks that look at z, one vocabulary."""
    model, source, target = made(EncoderDecoder, SMALL), some_ids(2, 7), some_ids(2, 4, seed=1)

    def oracle(x_ids, y_ids):
        z, y = (oracle_embedding(model.embedding, row) for row in (x_ids, y_ids))
        for block in model.encoder:
            z = oracle_encoder_block(block, z, anywhere)
        for block in model.decoder:
            y = oracle_decoder_block(block, y, z, anywhere)
        return y @ model.embedding.weight.detach().numpy().T

    assert_close(model(source, target), each(oracle, source, target), rtol=1e-5, atol=1e-5)


def test_a_later_token_never_changes_an_earlier_logit():
    """Decoder-only, and the target side of the encoder-decoder."""
    model, both = made(DecoderOnly, SMALL), made(EncoderDecoder, SMALL)
    ids, other = some_ids(1, 6), some_ids(1, 6)
    other[:, 4:] = (other[:, 4:] + 1) % 11
    z = both.encode(some_ids(1, 5, seed=3))
    assert torch.equal(model(ids)[:, :4], model(other)[:, :4])
    assert torch.equal(both.decode(ids, z)[:, :4], both.decode(other, z)[:, :4])
    assert not torch.allclose(model(ids)[:, 4:], model(other)[:, 4:])


def test_an_encoder_sees_the_whole_text_and_no_padding():
    """A change in the last token reaches the class scores; a change in the padding does not, nor does its amount."""
    model, ids = made(EncoderOnly, SMALL, 3), some_ids(1, 6)
    real = torch.tensor([[True] * 4 + [False] * 2])
    changed = ids.clone()
    changed[:, 5] = (ids[:, 5] + 1) % 11
    assert not torch.allclose(model(ids), model(changed))
    assert torch.equal(model(ids, real), model(changed, real))
    assert_close(model(ids, real), model(ids[:, :4]))
    assert model(ids).shape == (1, 3)


def test_padding_of_the_source_is_invisible_to_the_decoder():
    """Cross-attention under the same mask: a padded source gives the logits of the unpadded one."""
    model, source, target = made(EncoderDecoder, SMALL), some_ids(1, 6), some_ids(1, 3, seed=1)
    real = torch.tensor([[True] * 4 + [False] * 2])
    padded = model.decode(target, model.encode(source, real), real)
    assert_close(padded, model(source[:, :4], target))


def test_heads_must_divide_the_width():
    """8 features in 3 heads is refused in words, at once."""
    with pytest.raises(ValueError, match="model=8 cannot be cut into 3 heads"):
        TransformerConfig(11, 8, 3, 1)


# --- greedy decoding -------------------------------------------------------------------------------------------------


def test_greedy_decoding_takes_the_largest_logit_and_shows_every_partial_output():
    """Next token = last + 1 by construction: the steps show 3, 4, 5 one by one."""

    def successor(ids):
        return 9.0 * nn.functional.one_hot((ids + 1) % 11, 11).double()

    steps = list(greedy_decoding(successor, torch.tensor([[7, 2]]), new_tokens=3))
    assert [step.chosen for step in steps] == [3, 4, 5]
    assert [step.ids.tolist() for step in steps] == [[[7, 2, 3]], [[7, 2, 3, 4]], [[7, 2, 3, 4, 5]]]
    assert all(step.probabilities.argmax() == step.chosen for step in steps)
    assert_close(steps[0].probabilities.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_greedy_decoding_stops_after_the_stop_token():
    """The stop token is the last one; fewer steps than allowed."""
    steps = list(
        greedy_decoding(
            lambda ids: nn.functional.one_hot(ids + 1, 11).double(), torch.tensor([[2]]), new_tokens=9, stop=4
        )
    )
    assert steps[-1].ids.tolist() == [[2, 3, 4]]


def test_an_encoder_decoder_learns_to_reverse_and_decodes_token_by_token():
    """Trained for a few seconds on reversing four letters: greedy decoding spells the source backwards and stops."""
    torch.manual_seed(0)
    start, stop = 8, 9
    model = EncoderDecoder(TransformerConfig(vocab=10, model=32, heads=4, layers=1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(250):
        source = torch.randint(8, (64, 4))
        edge = torch.ones(64, 1, dtype=torch.long)
        target = torch.cat((start * edge, source.flip(1), stop * edge), dim=1)
        loss = nn.functional.cross_entropy(model(source, target[:, :-1]).flatten(0, 1), target[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for row in ([5, 1, 7, 2], [0, 0, 3, 6]):
        z = model.encode(torch.tensor([row]))
        decode = greedy_decoding(lambda y, z=z: model.decode(y, z), torch.tensor([[start]]), new_tokens=9, stop=stop)
        assert [step.chosen for step in decode] == [*reversed(row), stop]


# --- the house -------------------------------------------------------------------------------------------------------


def test_every_axis_in_a_signature_is_in_the_glossary():
    """A reader who meets an axis name can look it up."""
    found = re.findall(r'(?:Float|Int|Bool)\[Tensor, "([^"]*)"', Path(transformer.__file__).read_text())
    names = {name.strip("*") for shape in found for name in shape.split()} - {"1", "_"}
    assert names and names <= AXES.keys()


@pytest.mark.skipif(not importlib.util.find_spec("jaxtyping"), reason="needs jaxtyping")
def test_an_encoder_output_of_the_wrong_width_is_refused():
    """x and z must have one width; without shape checking the matmul refuses it."""
    block = DecoderBlock(SMALL)
    with pytest.raises(Exception, match=r"model|shapes cannot be multiplied"):
        block(torch.zeros(1, 3, 8), torch.zeros(1, 3, 6))
