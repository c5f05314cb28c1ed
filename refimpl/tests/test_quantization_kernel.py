"""Quantized products in Triton: in the interpreter on a CPU, compiled on a GPU."""

import pytest
import torch
from torch.testing import assert_close

from refimpl._triton import INTERPRET
from refimpl.quantization import int8_matmul, quantize, quantize_nf4
from refimpl.quantization.kernel import int8_scaled_matmul, nf4_matmul


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def on(w, device):
    """An NF4Tensor with its parts on the device."""
    from dataclasses import replace

    parts = {n: getattr(w, n) for n in ("packed", "absmax", "second", "offset")}
    return replace(w, **{n: p if p is None else p.to(device) for n, p in parts.items()})


@pytest.mark.parametrize("sizes", [(1, 17, 5), (33, 100, 40), (64, 128, 32), (0, 16, 8)])
def test_the_integer_sum_is_exact_and_scaled_once(device, sizes):
    """Ragged sizes, one token and none: with scales of one the output is the int32 product itself."""
    tokens, features, out = sizes
    draw = torch.Generator().manual_seed(features)
    x, w = (torch.randint(-127, 128, (n, features), dtype=torch.int8, generator=draw).to(device) for n in (tokens, out))
    ones = torch.ones(tokens, device=device), torch.ones(out, device=device)
    assert torch.equal(int8_scaled_matmul(x, w, *ones).int(), int8_matmul(x, w))
    scales = (torch.rand(n, generator=draw).to(device) for n in (tokens, out))
    x_scale, w_scale = scales
    want = int8_matmul(x, w).double() * x_scale[:, None] * w_scale
    got = int8_scaled_matmul(x, w, x_scale, w_scale)
    assert_close(got.double(), want, rtol=2.5e-7, atol=0)


def test_views_between_other_codes_are_read_exactly(device):
    """Rows with a stride, a transposed matrix: nothing around them is touched."""
    buffer = torch.full((20, 64), 127, dtype=torch.int8, device=device)
    codes = quantize(normal(20, 48), 8).codes.to(device)
    buffer[:, :48] = codes
    ones = torch.ones(20, device=device)
    want = int8_matmul(codes, codes)
    assert torch.equal(int8_scaled_matmul(buffer[:, :48], buffer[:, :48], ones, ones).int(), want)
    assert torch.equal(int8_scaled_matmul(codes, codes.T.contiguous().T, ones, ones).int(), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_int8_rounds_its_output_once(device, dtype):
    """The float32 result rounded to the asked type."""
    x, w = (quantize(normal(9, 64, seed=i), 8) for i in (0, 1))
    args = [t.to(device) for t in (x.codes, w.codes, x.step, w.step)]
    assert torch.equal(int8_scaled_matmul(*args, dtype), int8_scaled_matmul(*args).to(dtype))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("sizes", [(1, 64, 33), (19, 192, 40), (0, 64, 8)])
def test_nf4_is_the_product_with_the_dequantized_matrix(device, sizes, double):
    """Few and more tokens, several blocks per row, both kinds of maxima; float32, judged in float64."""
    tokens, features, out = sizes
    x, w = normal(tokens, features).to(device), on(quantize_nf4(normal(out, features, seed=1), double=double), device)
    want = x.double() @ w.dequantize(torch.float64).T
    assert_close(nf4_matmul(x, w).double(), want, rtol=0, atol=4e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nf4_in_half_precision_errs_no_more_than_twice_the_eager_product(device, dtype):
    """x as a view of wider rows; the output keeps x's type. In the interpreter bfloat16 is computed in float32."""
    wide, w = normal(17, 160).to(device, dtype), on(quantize_nf4(normal(24, 128, seed=1)), device)
    x = wide[:, :128]
    want = x.double() @ w.dequantize(torch.float64).T
    got, eager = nf4_matmul(x, w), x @ w.dequantize(dtype).T
    ulp = torch.finfo(dtype).eps * want.abs().max()
    assert got.dtype == dtype and (got - want).abs().max() <= 2 * (eager - want).abs().max() + 2 * ulp


@pytest.mark.parametrize("block", [16, 32, 128])
def test_other_blocks_take_smaller_or_several_steps(device, block):
    """A step never crosses a block: blocks of 16 and 32 shorten it, 128 shares one maximum between two."""
    x, w = normal(3, 256).to(device), on(quantize_nf4(normal(8, 256, seed=1), block=block), device)
    assert_close(nf4_matmul(x, w).double(), x.double() @ w.dequantize(torch.float64).T, rtol=0, atol=4e-5)


def test_what_the_kernels_cannot_read_is_refused_in_words(device):
    """Types, shapes, scales and blocks across rows."""
    x, w = quantize(normal(4, 64), 8).codes.to(device), quantize(normal(5, 32), 8).codes.to(device)
    with pytest.raises(ValueError, match="must be int8"):
        int8_scaled_matmul(x, w, x[:, 0], w[:, 0])
    with pytest.raises(ValueError, match="a scale per row"):
        int8_scaled_matmul(x, x, x[0], x[:, 0])
    with pytest.raises(ValueError, match="multiple of the block 64"):
        nf4_matmul(normal(2, 32).to(device), on(quantize_nf4(normal(4, 32)), device))


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRET or not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_configuration_runs_on_this_gpu():
    """Large enough for several programs, both token tiles, float32 and bfloat16."""
    for dtype in (torch.bfloat16, torch.float32):
        for tokens in (5, 300):
            x, w = normal(tokens, 1024).to("cuda", dtype), on(quantize_nf4(normal(520, 1024, seed=1)), "cuda")
            want = x.double() @ w.dequantize(torch.float64).T
            assert ((nf4_matmul(x, w) - want).norm() / want.norm()).item() < 5e-3
