"""Memory formulas equal what autograd keeps and what is alive, exactly; the gigabytes of the lectures follow."""

import pytest
import torch

from refimpl.cost_model import GPT2_XL, ModelShape, parameters, score_elements
from refimpl.memory_model import (
    activation_elements,
    does_it_fit,
    inference_memory,
    kv_cache_bytes,
    saved_per_token,
    training_memory,
    working_set_elements,
)
from refimpl.meter import Meter, saved_for_backward
from refimpl.models.llama import KVCache, Llama, LlamaConfig
from refimpl.transformer import EncoderBlock, TransformerConfig

GB = 10**9


def block(shape):
    return EncoderBlock(TransformerConfig(1, shape.model, shape.heads, shape.layers, shape.ffn))


def test_a_model_of_1_5_billion_needs_3_gb_to_hold_and_24_gb_to_train():
    """2Ψ = 3 GB of weights; 2Ψ + 2Ψ + 12Ψ = 24 GB of states: 6 GB weights and gradients, 18 GB for Adam."""
    states = training_memory(1_500_000_000)
    assert states["weights"] == 3 * GB
    assert states["weights"] + states["gradients"] == 6 * GB
    assert sum(states.values()) == 24 * GB
    assert sum(parameters(GPT2_XL).values()) == pytest.approx(1.5e9, rel=0.04)


def test_the_7b_example_takes_14_14_28_28_28_gigabytes():
    """Weights, gradients, master weights, momentum, variance."""
    assert [size // GB for size in training_memory(7 * GB).values()] == [14, 14, 28, 28, 28]


def test_other_optimizers_keep_less():
    """K = 12, 8 and 4 bytes per parameter; an unknown name is refused with the known ones."""
    sums = [sum(training_memory(1, optimizer=name).values()) for name in ("adam", "sgd with momentum", "sgd")]
    assert sums == [16, 12, 8]
    with pytest.raises(ValueError, match="optimizer='lion' is unknown; choose one of adam, sgd"):
        training_memory(1, optimizer="lion")


def test_the_60_gigabytes_of_activations_leave_out_80_more():
    """12 d B N L in fp16, N = 1,024, batch 32: 60.4 GB. The score matrix h B N² L, which S3 calls the largest: 80.5."""
    sizes = {"batch": 32, "tokens": 1024}
    published = 2 * activation_elements(GPT2_XL, **sizes)
    whole = 2 * activation_elements(GPT2_XL, **sizes, score_matrix=True)
    assert published == 2 * 12 * 1600 * 32 * 1024 * 48 == pytest.approx(60.4 * GB, rel=1e-3)
    assert whole - published == 2 * 48 * score_elements(GPT2_XL, **sizes) == pytest.approx(80.5 * GB, rel=1e-3)


@pytest.mark.parametrize("batch,tokens,model,heads", [(3, 10, 8, 2), (2, 64, 16, 4), (2, 33, 24, 3)])
def test_autograd_keeps_twelve_d_the_score_matrix_and_four(batch, tokens, model, heads):
    """The published 12 d is what PyTorch keeps of a block, but for h N per token and 4 statistics: to the element."""
    shape = ModelShape(layers=1, model=model, heads=heads)
    layer, x = block(shape), torch.randn(batch, tokens, model, requires_grad=True)
    with saved_for_backward(*layer.parameters()) as saved:
        layer(x)
    per_token = saved_per_token(shape, tokens)
    assert saved.elements == batch * tokens * sum(per_token.values())
    assert saved.bytes == 4 * saved.elements
    assert sum(per_token.values()) == 12 * model + heads * tokens + 4
    named = activation_elements(shape, batch=batch, tokens=tokens, score_matrix=True)
    assert saved.elements == named + 4 * batch * tokens
    # 12 d without the score matrix is an undercount that grows with N
    assert activation_elements(shape, batch=batch, tokens=tokens) == named - score_elements(
        shape, batch=batch, tokens=tokens
    )


@pytest.mark.parametrize("ffn", [8, 40])
def test_saved_activations_follow_the_width_of_the_feed_forward_network(ffn):
    """The 12 is 8 + ffn / d: with another width it is another number."""
    shape = ModelShape(layers=1, model=8, heads=2, ffn=ffn)
    layer, x = block(shape), torch.randn(3, 10, 8, requires_grad=True)
    with saved_for_backward(*layer.parameters()) as saved:
        layer(x)
    assert saved.elements == 3 * 10 * sum(saved_per_token(shape, 10).values()) == 3 * 10 * (8 * 8 + ffn + 2 * 10 + 4)


@pytest.mark.parametrize("tokens,model,heads", [(64, 16, 4), (16, 32, 2), (40, 8, 2)])
def test_the_working_set_of_inference_is_what_is_alive_at_the_peak(tokens, model, heads):
    """Attention's S, P and six copies of x, or the feed-forward network's two hidden layers: the larger, exactly."""
    shape = ModelShape(layers=1, model=model, heads=heads)
    layer = block(shape)
    with torch.no_grad(), Meter() as meter:
        x = torch.randn(3, tokens, model)
        layer(x)
    assert meter.peak_bytes == 4 * working_set_elements(shape, batch=3, tokens=tokens)


def test_a_cache_of_keys_and_values_has_the_bytes_of_its_formula():
    """2 L kv_heads dim N B itemsize, against the tensors of a real cache; SmolLM2-135M: 23,040 bytes per token."""
    config = LlamaConfig(2, 24, 6, 2, 8, 20, 31, 64, 1e4, 1e-5)
    cache = KVCache(Llama(config), 50, batch=3)
    expected = kv_cache_bytes(ModelShape.of(config), tokens=50, batch=3, itemsize=4)
    assert expected == cache.keys.nbytes + cache.values.nbytes
    smol = ModelShape(layers=30, model=576, heads=9, kv_heads=3, dim=64, ffn=1536, vocab=49_152, gated=True)
    assert kv_cache_bytes(smol, tokens=1) == 23_040


def test_does_it_fit_32_gigabytes():
    """S3's question: the 3 GB model runs there; its states alone would fit, with 60 GB of activations they do not."""
    states = training_memory(1_500_000_000)
    activations = {"activations": 2 * activation_elements(GPT2_XL, batch=32, tokens=1024)}
    answer = does_it_fit(inference_memory(GPT2_XL, batch=1, tokens=1024), 32 * GB)
    assert answer.fits and answer.left == 32 * GB - answer.needed
    assert does_it_fit(states, 32 * GB).fits
    whole = does_it_fit(states | activations, 32 * GB)
    assert not whole.fits and whole.left < 0
    assert not does_it_fit(training_memory(7 * GB), 80 * GB).fits
    assert does_it_fit({"exactly": 32}, 32).fits


def test_inference_memory_names_its_three_parts():
    """Weights once, a cache that grows with the text, activations of one layer at a time: not 48 times them."""
    short, long = (inference_memory(GPT2_XL, batch=2, tokens=n) for n in (512, 1024))
    assert short["weights"] == long["weights"] == 2 * sum(parameters(GPT2_XL).values())
    assert long["kv cache"] == 2 * short["kv cache"] == 2 * 2 * 48 * 1600 * 1024 * 2
    assert long["activations"] == 2 * short["activations"] == 2 * (2 * 1600 + 2 * 6400) * 2 * 1024
    naive = inference_memory(GPT2_XL, batch=2, tokens=1024, score_matrix=True)
    assert naive["activations"] == 2 * 2 * 1024 * (6 * 1600 + 2 * 25 * 1024)
