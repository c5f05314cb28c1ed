"""Layers over quantized weights: LLM.int8(), QLoRA, the paged optimizer, experts in three values."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from refimpl.meter import saved_for_backward
from refimpl.models.llama import LlamaConfig
from refimpl.models.toy import toy_llama
from refimpl.quantization import (
    Int8Linear,
    Int8Product,
    PagedAdamW,
    QLoRALinear,
    int8_linear,
    int8_matmul,
    nf4_linear,
    outlier_features,
    quantize,
    quantize_nf4,
    replaced_linears,
    rounded,
    sqnr_db,
)
from refimpl.quantization.experts import quantize_experts
from refimpl.quantization.swap import linears

VECTOR_WISE, TENSOR_WISE = Int8Product(threshold=None), Int8Product("tensor", "tensor", None)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- LLM.int8() ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 9), st.integers(1, 70), st.integers(1, 9))
@example(2, 1, 3)  # where torch's own product reads foreign memory
@settings(max_examples=20, deadline=None)
def test_the_integer_product_is_exact(tokens, features, out):
    """Any sizes, no token and one feature included: what int64 gives."""
    draw = torch.Generator().manual_seed(features)
    a, b = (torch.randint(-127, 128, (n, features), dtype=torch.int8, generator=draw) for n in (tokens, out))
    assert torch.equal(int8_matmul(a, b).long(), a.long() @ b.long().T)


def test_the_integer_product_does_not_saturate():
    """4,096 products of 127 * 127 add up to 66 million: far beyond 16 bits."""
    a = torch.full((3, 4096), 127, dtype=torch.int8)
    assert (int8_matmul(a, -a) == -127 * 127 * 4096).all()
    with pytest.raises(TypeError, match="int8, given"):
        int8_matmul(a.int(), a)


def test_scales_leave_the_sum_when_they_belong_to_rows():
    """Vector-wise codes dequantized and multiplied in float64 are the integer product times both scales."""
    x, w = normal(7, 40), normal(12, 40, seed=1)
    codes = quantize(x, 8), quantize(w, 8)
    exact = codes[0].dequantize().double() @ codes[1].dequantize().double().T
    assert_close(int8_linear(x, codes[1], VECTOR_WISE).double(), exact, rtol=0, atol=1e-5)


def test_a_finer_scale_and_a_split_each_bring_the_output_nearer():
    """With two large features: per tensor, per token and channel, and with the outliers apart, in that order."""
    x, w = normal(64, 256), normal(128, 256, seed=1)
    x[:, [3, 77]] *= 40
    noise = {
        how: sqnr_db(x.double() @ w.double().T, int8_linear(x, quantize(w, 8, group=how.w_group), how))
        for how in (TENSOR_WISE, VECTOR_WISE, Int8Product())
    }
    a, b, c = noise.values()
    assert outlier_features(x).nonzero().flatten().tolist() == [3, 77]
    assert b > a + 3 and c > b + 3 and c > 35


def test_the_outliers_are_exact_to_half_precision():
    """Where every feature is an outlier, only W's codes and the float16 rounding of both factors are left."""
    x, w = normal(8, 32).sign() * 8, quantize(normal(16, 32, seed=1), 8)
    exact = x.double() @ w.dequantize().double().T
    assert_close(int8_linear(x, w).double(), exact, rtol=0, atol=32 * 8 * 2**-11 * 4)
    assert torch.equal(int8_linear(x, w, Int8Product(threshold=9.0)), int8_linear(x, w, VECTOR_WISE))


def test_without_activation_codes_only_the_weights_are_rounded():
    """x_group None: the plain product with the dequantized weights, in x's dtype; bias and batch axes kept."""
    layer, x = nn.Linear(32, 8), normal(2, 3, 32)
    weight = quantize(layer.weight.detach(), 8).dequantize()
    ours = Int8Linear(layer, Int8Product(None))(x)
    assert_close(ours, x @ weight.T + layer.bias)
    assert Int8Linear(layer)(x.bfloat16()).dtype == torch.promote_types(torch.bfloat16, layer.bias.dtype)


def test_layers_are_replaced_within_the_with_and_stand_again_after_it():
    """Every linear layer of a Llama, also when the body fails; the same objects afterwards."""
    model = toy_llama(LlamaConfig(2, 32, 4, 2, 8, 48, 97, 64, 100.0, 1e-5))
    ids, before = torch.arange(12)[None], linears(model)
    plain = model(ids)
    with pytest.raises(KeyError), replaced_linears(model, lambda name, layer: Int8Linear(layer)):
        assert not linears(model) and sqnr_db(plain, model(ids)) > 25
        raise KeyError
    assert len(before) == 2 * 7 and all(now is before[name] for name, now in linears(model).items())
    assert torch.equal(model(ids), plain)
    with replaced_linears(model, rounded(lambda w: quantize(w, 8).dequantize())):
        assert 25 < sqnr_db(plain, model(ids)) < math.inf


# --- QLoRA -----------------------------------------------------------------------------------------------------------


def test_gradients_pass_through_the_codes_to_input_and_factors():
    """The same as with the dequantized matrix as a dense constant; gradcheck in float64; W has no gradient."""
    layer, x = QLoRALinear(nn.Linear(24, 10), rank=3).double(), normal(2, 5, 24, dtype=torch.float64)
    layer.lora_b.data.copy_(normal(10, 3, seed=2))
    dense = layer.weight.dequantize(torch.float64)
    want = x @ (dense + layer.scale * layer.lora_b @ layer.lora_a).T + layer.bias
    assert_close(layer(x), want, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(layer, x.requires_grad_())
    trained = [name for name, p in layer.named_parameters() if name.startswith("lora")]
    assert trained == ["lora_a", "lora_b"] and sum(p.numel() for p in (layer.lora_a, layer.lora_b)) == 3 * (24 + 10)


def test_before_training_the_layer_is_its_quantized_base():
    """B is zero; nothing dequantized is kept for the backward pass, a dense constant would be."""
    linear, x = nn.Linear(128, 64, bias=False), normal(4, 128)
    layer = QLoRALinear(linear)
    assert torch.equal(layer(x), x @ layer.weight.dequantize().T)
    x.requires_grad_()
    with saved_for_backward() as ours:
        nf4_linear(x, layer.weight)
    with saved_for_backward(x) as dense:
        x @ layer.weight.dequantize().T
    assert ours.bytes == 0 and dense.bytes == 4 * 128 * 64


def test_training_the_factors_repairs_a_shifted_matrix():
    """Target: the quantized base plus a matrix of rank 2. The loss falls a hundredfold, the codes stay."""
    linear, x = nn.Linear(32, 16, bias=False), normal(256, 32)
    layer = QLoRALinear(linear, rank=2)
    packed = layer.weight.packed.clone()
    target = x @ (layer.weight.dequantize() + 0.1 * normal(16, 2, seed=3) @ normal(2, 32, seed=4)).T
    optimizer, losses = torch.optim.Adam([layer.lora_a, layer.lora_b], lr=0.02), []
    for _ in range(200):
        loss = (layer(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 100 and torch.equal(layer.weight.packed, packed)


# --- the paged optimizer ---------------------------------------------------------------------------------------------


def parameters():
    return [nn.Parameter(normal(*shape, seed=i)) for i, shape in enumerate([(30, 10), (7,), (5, 5, 5)])]


@pytest.mark.parametrize("room", [None, 0, 8 * 64 * 3])
def test_paging_changes_no_number(room):
    """torch's AdamW after six steps, with all pages near, with one at a time, and with three."""
    ours, theirs = parameters(), parameters()
    paged = PagedAdamW(ours, lr=0.1, page=64, room=room)
    adam = torch.optim.AdamW(theirs, lr=0.1, foreach=False)
    for step in range(6):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = normal(*a.shape, seed=100 + step)
            b.grad = a.grad.clone()
        paged.step()
        adam.step()
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-6)
    if room is None:
        assert paged.faults == 0 and paged.host.bytes_out == 0


def test_pages_move_on_demand_and_every_byte_is_counted():
    """300 + 7 + 125 numbers in pages of 64: eight pages, 8 bytes per number. With room for all nothing moves."""
    weights = parameters()
    paged = PagedAdamW(weights, page=64)
    for w in weights:
        w.grad = torch.ones_like(w)
    paged.step()
    assert len(paged.pages) == 5 + 1 + 2 and paged.near_bytes == 8 * 432 and paged.host.bytes_out == 0
    paged.resize(8 * 64)  # a spike: all but the last page leave
    assert paged.near_bytes <= 8 * 64 and paged.host.held_bytes + paged.near_bytes == 8 * 432
    paged.step()
    assert paged.faults == 8 and paged.host.bytes_in == 8 * 432  # in a fixed order, each comes when it has just left
    assert paged.near_bytes <= 8 * 64 and paged.peak_bytes == 8 * 432
    paged.resize(None)
    paged.step()
    before = paged.faults
    paged.step()
    assert paged.faults == before and paged.near_bytes == 8 * 432 and paged.host.held_bytes == 0


def test_a_parameter_without_gradient_is_left_alone():
    """No gradient, no page, no update."""
    weights = parameters()
    weights[0].grad = torch.ones_like(weights[0])
    before, paged = weights[1].clone(), PagedAdamW(weights)
    paged.step()
    assert torch.equal(weights[1], before) and set(paged.near) == {0}
    paged.zero_grad()
    assert weights[0].grad is None


# --- experts ---------------------------------------------------------------------------------------------------------


def test_experts_in_three_values_take_less_than_a_bit_where_rows_have_outliers():
    """Heavy-tailed rows become mostly zeros and cost under one bit each; values are the row's extremes and 0."""
    w = normal(4, 32, 512).pow(5)
    q = quantize_experts(w)
    assert q.zeros > 0.97 and q.bits_per_weight < 0.3
    back = q.dequantize()
    assert ((back == 0) | (back == w.amin(-1, keepdim=True)) | (back == w.amax(-1, keepdim=True))).all()
    assert (back.amax(-1) == w.amax(-1)).all() and (back.amin(-1) == w.amin(-1)).all()


def test_three_equal_shares_cost_the_logarithm_of_three():
    """The entropy of a uniform choice, and 32 bits per row of 300."""
    w = torch.tensor([-1.0, 0.0, 1.0]).repeat(100).expand(2, 4, 300)
    q = quantize_experts(w)
    assert torch.equal(q.dequantize(), w)
    assert q.bits_per_weight == pytest.approx(math.log2(3) + 32 / 300, rel=1e-6)


def test_double_quantized_bytes_of_a_layer():
    """QLoRA's base: 128 * 64 weights in half a byte, 128 maxima in one, one float32 for them and one for their mean."""
    assert quantize_nf4(normal(64, 128)).nbytes == 64 * 128 // 2 + 128 + 4 + 4
