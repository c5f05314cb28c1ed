"""Long-Short Range Attention: two branches that do not mix, as many weights as attention, maps that can be watched."""

import pytest
import torch
from torch.testing import assert_close

from refimpl.attention import multi_head_attention, naive_attention
from refimpl.lsra import (
    LongShortRangeAttention,
    light_convolution,
    lite_decoder,
    local_share,
    mass_by_distance,
    matched_ffn,
    watch_maps,
)
from refimpl.transformer import DecoderOnly, EncoderBlock, TransformerConfig

CONFIG = TransformerConfig(vocab=31, model=16, heads=4, layers=2)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def layer():
    torch.manual_seed(0)
    made = LongShortRangeAttention(CONFIG, kernel=3).double()
    torch.nn.init.normal_(made.w_taps)
    return made


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_the_convolution_is_a_weighted_average_of_neighbours(causal, kernel):
    """One number at a time, by the formula; channels of a head share its softmax."""
    x, w = draw(2, 7, 6), draw(3, kernel, seed=1)
    got, taps = light_convolution(x, w, causal=causal), w.softmax(-1)
    before = kernel - 1 if causal else kernel // 2
    for b in range(2):
        for i in range(7):
            for c in range(6):
                inside = [(t, i + t - before) for t in range(kernel) if 0 <= i + t - before < 7]
                want = sum(taps[c // 2, t] * x[b, j, c] for t, j in inside)
                assert_close(got[b, i, c], torch.as_tensor(want), rtol=0, atol=1e-12)


def test_gradients_of_the_convolution_are_right():
    """Against finite differences, for inputs and taps."""
    inputs = draw(1, 4, 2).requires_grad_(), draw(2, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: light_convolution(x, w, causal=True), inputs)


@pytest.mark.parametrize("causal", [False, True])
def test_the_first_half_is_attention_over_the_first_half(layer, causal):
    """Equal to `multi_head_attention` of the same matrices; the other half has no say in it, and none the other way."""
    x = draw(2, 9, 16)
    out, a = layer(x, causal=causal), layer.attention
    want = multi_head_attention(x[..., :8], a.w_q, a.w_k, a.w_v, a.w_o, heads=2, causal=causal)
    assert_close(out[..., :8], want, rtol=0, atol=1e-12)
    other = layer(torch.cat((draw(2, 9, 8, seed=5), x[..., 8:]), dim=-1), causal=causal)
    assert torch.equal(other[..., 8:], out[..., 8:]) and not torch.allclose(other[..., :8], out[..., :8])


def test_the_second_half_sees_no_farther_than_its_kernel(layer):
    """Changing a token moves the convolution's half at the 3 tokens of its kernel, the attention's half everywhere."""
    x = draw(1, 12, 16)
    changed = x.clone()
    changed[:, 5] += 1.0
    moved = (layer(changed) - layer(x)).abs().amax((0, 2))
    assert (moved > 0).all()
    near = (layer(changed) - layer(x))[..., 8:].abs().amax((0, 2))
    assert near.nonzero()[:, 0].tolist() == [4, 5, 6]


def test_a_causal_layer_never_sees_the_future(layer):
    """Both halves before the changed token stay as they are."""
    x = draw(1, 12, 16)
    changed = x.clone()
    changed[:, 5:] += 1.0
    assert torch.equal(layer(changed, causal=True)[:, :5], layer(x, causal=True)[:, :5])


def test_padding_changes_nothing(layer):
    """Whatever stands behind the mask, real tokens get the same output in both halves."""
    x, real = draw(1, 10, 16), torch.arange(10)[None] < 7
    other = torch.where(real[..., None], x, 99.0)
    mask = real[:, None, None, :]
    assert_close(layer(x, mask=mask)[:, :7], layer(other, mask=mask)[:, :7], rtol=0, atol=1e-12)
    assert_close(layer(x, mask=mask)[:, :7], layer(x[:, :7]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("model", "heads", "kernel", "ffn"), [(16, 4, 3, None), (64, 4, 15, None), (48, 2, 31, 48)])
def test_the_matched_block_has_as_many_weights(model, heads, kernel, ffn):
    """Counted, biases and norms included: at most half a neuron apart."""
    config = TransformerConfig(31, model, heads, 1, ffn=ffn)
    wider = TransformerConfig(31, model, heads, 1, ffn=matched_ffn(config, kernel=kernel))
    plain, lite = EncoderBlock(config), lite_decoder(wider, kernels=[kernel]).blocks[0]
    counts = [sum(p.numel() for p in block.parameters()) for block in (plain, lite)]
    assert abs(counts[1] - counts[0]) <= model + 1
    assert sum(p.numel() for p in lite.attention.parameters()) == 7 * model**2 // 4 + heads // 2 * kernel


def test_a_lite_decoder_is_a_causal_language_model():
    """Logits of a prefix do not depend on what follows; every block has its own kernel."""
    torch.manual_seed(0)
    model = lite_decoder(CONFIG, kernels=(3, 5))
    assert [block.attention.w_taps.shape[1] for block in model.blocks] == [3, 5]
    ids = torch.randint(31, (2, 12))
    assert_close(model(ids)[:, :6], model(ids[:, :6]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("build", [DecoderOnly, lambda config: lite_decoder(config, kernels=(3, 3))])
def test_watched_maps_are_those_that_attention_used(build):
    """The output is unchanged, each layer leaves one map, rows add to 1, and attention is put back, on errors too."""
    torch.manual_seed(0)
    model, ids = build(CONFIG), torch.randint(31, (2, 10))
    before = model(ids)
    with watch_maps(model) as maps:
        assert_close(model(ids), before)
    assert [p.shape[-2:] for p in maps] == [(10, 10)] * 2
    for p in maps:
        assert_close(p.sum(-1), torch.ones_like(p[..., 0]))
        assert not p.triu(1).any()
    with pytest.raises(KeyError), watch_maps(model):
        raise KeyError
    inner = model.blocks[0].attention
    assert getattr(inner, "attention", inner).attend is naive_attention


def test_watched_maps_respect_a_mask():
    """Padding gets no attention."""
    torch.manual_seed(0)
    layer, real = LongShortRangeAttention(CONFIG, kernel=3), torch.tensor([[True] * 4 + [False] * 2])
    with watch_maps(layer) as maps:
        layer(torch.randn(1, 6, 16), mask=real[:, None, None, :])
    assert (maps[0][..., 4:] == 0).all()


def test_mass_by_distance_reads_the_diagonals():
    """A map that looks 2 back, one that looks everywhere alike, one at a time and mixed."""
    back = torch.zeros(1, 1, 10, 10)
    back[..., torch.arange(2, 10), torch.arange(8)] = 1.0
    assert mass_by_distance(back, start=4).tolist() == [0, 0, 1, 0]
    even = torch.ones(10, 10).tril() / torch.arange(1, 11)[:, None]
    wanted = sum(1 / (i + 1) for i in range(4, 10)) / 6
    assert mass_by_distance(even[None, None], start=4).tolist() == pytest.approx([wanted] * 4)
    both = torch.cat((back, even[None, None]))
    assert local_share(both, near=2, start=4) == pytest.approx(wanted)
    assert local_share(both, near=3, start=4) == pytest.approx(1.5 * wanted + 0.5)


def test_errors_name_what_was_given_and_the_way_out(layer):
    """Odd widths, an even kernel that looks both ways, a mask of pairs, kernels for another number of layers."""
    with pytest.raises(ValueError, match=r"model and heads must be even .* heads=3, kernel=3"):
        LongShortRangeAttention(TransformerConfig(31, 18, 3, 1), kernel=3)
    with pytest.raises(ValueError, match="6 channels must divide into 4 heads"):
        light_convolution(draw(1, 5, 6), draw(4, 3), causal=True)
    with pytest.raises(ValueError, match="must be odd, given 2"):
        light_convolution(draw(1, 5, 6), draw(2, 2), causal=False)
    with pytest.raises(ValueError, match="a mask hides tokens"):
        layer(draw(1, 5, 16), mask=torch.ones(1, 1, 5, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"one kernel per layer, given \[3\] for 2 layers"):
        lite_decoder(CONFIG, kernels=[3])
