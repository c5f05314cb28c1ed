"""The tiled forward and backward against the naive form in float64."""

import pytest
import torch
from torch.testing import assert_close

from refimpl.attention import naive_attention
from refimpl.flash_attention import flash_attention, flash_backward, flash_forward
from refimpl.flash_attention.eager import Tiles

LENGTHS = [(1, 1), (17, 17), (77, 77), (130, 130), (200, 200), (130, 200), (200, 77), (1, 130)]


def qkv(heads, kv_heads, q_len, k_len, dim, batch=1, dtype=torch.float64):
    draw = torch.Generator().manual_seed(q_len * 1000 + k_len)
    shapes = ((heads, q_len), (kv_heads, k_len), (kv_heads, k_len))
    return [torch.randn(batch, h, n, dim, generator=draw, dtype=dtype) for h, n in shapes]


def gradients(attend, inputs, causal):
    """out, lse, dq, dk, dv of a loss that weighs every element of out and lse differently."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out, lse = attend(*inputs, causal=causal, return_lse=True)
    draw = torch.Generator().manual_seed(5)
    weights = [torch.randn(x.shape, generator=draw, dtype=torch.float64).to(x.dtype) for x in (out, lse)]
    seen = lse.isfinite()
    ((out * weights[0]).sum() + (lse[seen] * weights[1][seen]).sum()).backward()
    return out, lse, *(x.grad for x in inputs)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("q_len,k_len", LENGTHS)
@pytest.mark.parametrize("heads,kv_heads,blocks", [(2, 2, (32, 64)), (4, 2, (64, 48)), (4, 1, (256, 512))])
def test_tiled_equals_naive_forward_and_backward(causal, q_len, k_len, heads, kv_heads, blocks):
    """Any length, any blocks, grouped heads: output, lse and all gradients to float64 rounding."""
    inputs = qkv(heads, kv_heads, q_len, k_len, dim=16, batch=2)

    def tiled(q, k, v, **options):
        return flash_attention(q, k, v, block_q=blocks[0], block_k=blocks[1], **options)

    got, want = gradients(tiled, inputs, causal), gradients(naive_attention, inputs, causal)
    assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dim", [16, 33, 64, 128])
@pytest.mark.parametrize("q_len,k_len", [(130, 130), (77, 200)])
def test_float32_is_within_5e_6_of_float64(dim, q_len, k_len):
    """Forward and backward in single precision, judged by double precision."""
    inputs = qkv(4, 2, q_len, k_len, dim)
    single = gradients(flash_attention, [x.float() for x in inputs], causal=True)
    double = gradients(naive_attention, inputs, causal=True)
    assert_close([x.double() for x in single], list(double), rtol=0, atol=5e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads,kv_heads", [(2, 2), (2, 1)])
def test_gradcheck_in_float64(causal, heads, kv_heads):
    """Every partial derivative of out and lse against finite differences, across tile borders."""
    inputs = [x.requires_grad_() for x in qkv(heads, kv_heads, 5, 7, dim=3)]

    def attend(q, k, v):
        return flash_attention(q, k, v, causal=causal, block_q=2, block_k=3, return_lse=True)

    assert torch.autograd.gradcheck(attend, inputs)


def test_rows_with_no_key_give_zero_minus_infinity_and_zero_gradients():
    """Five queries, three keys, causal: the first two see nothing, in every tile size."""
    inputs = qkv(2, 2, 5, 3, dim=4)
    for blocks in ((1, 1), (2, 2), (8, 8)):

        def tiled(q, k, v, blocks=blocks, **options):
            return flash_attention(q, k, v, block_q=blocks[0], block_k=blocks[1], **options)

        out, lse, dq, dk, dv = gradients(tiled, inputs, causal=True)
        assert (out[:, :, :2] == 0).all() and (dq[:, :, :2] == 0).all()
        assert (lse[:, :, :2] == -torch.inf).all() and lse[:, :, 2:].isfinite().all()
        assert all(x.isfinite().all() for x in (dq, dk, dv))


def test_keys_beyond_the_causal_tile_are_never_read():
    """NaN in all keys and values after a query tile changes nothing in it: tiles are skipped, not masked."""
    q, k, v = qkv(2, 2, 64, 64, dim=8)
    want = flash_attention(q, k, v, causal=True, block_q=16, block_k=16)
    k[:, :, 32:], v[:, :, 32:] = torch.nan, torch.nan
    got = flash_attention(q, k, v, causal=True, block_q=16, block_k=16)
    assert torch.equal(got[:, :, :32], want[:, :, :32])
    assert got[:, :, 32:].isnan().all()


def test_the_backward_skips_the_same_tiles():
    """NaN in late queries and their gradients leaves the gradients of early queries alone."""
    q, k, v = qkv(2, 2, 64, 64, dim=8)
    blocks = {"causal": True, "block_q": 16, "block_k": 16}
    out, lse = flash_forward(q, k, v, **blocks)
    want = flash_backward(q, k, v, out, lse, torch.ones_like(out), **blocks)
    k[:, :, 32:], v[:, :, 32:] = torch.nan, torch.nan
    got = flash_backward(q, k, v, out, lse, torch.ones_like(out), **blocks)
    assert torch.equal(got[0][:, :, :32], want[0][:, :, :32])


def test_views_inside_a_buffer_of_nan_are_read_exactly():
    """Non-contiguous q, k, v with NaN all around them: nothing outside the view leaks in."""
    inputs = qkv(2, 2, 37, 37, dim=8)
    views = [nan_padded(x) for x in inputs]
    assert not any(x.is_contiguous() for x in views)
    assert_close(gradients(flash_attention, views, True), gradients(naive_attention, inputs, True))


def nan_padded(x):
    """A view equal to x, cut from a larger buffer whose other elements are NaN."""
    buffer = x.new_full([n + 3 for n in x.shape], torch.nan)
    view = buffer[tuple(slice(1, n + 1) for n in x.shape)]
    return view.copy_(x)


def test_the_same_input_twice_gives_the_same_bits():
    """No order of summation is left to chance."""
    inputs = qkv(4, 2, 130, 130, dim=16, dtype=torch.float32)
    first, second = (gradients(flash_attention, inputs, True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_inputs_stay_as_they_were():
    """The in-place arithmetic works on tiles, never on what the caller owns."""
    inputs = qkv(2, 2, 40, 40, dim=8)
    copies = [x.clone() for x in inputs]
    gradients(flash_attention, inputs, True)
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    """Half-precision inputs: the error is the rounding of the output, and lse stays float32."""
    inputs = [x.to(dtype) for x in qkv(2, 2, 130, 130, dim=32)]
    out, lse = flash_attention(*inputs, causal=True, return_lse=True)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    want = naive_attention(*(x.double() for x in inputs), causal=True)
    assert (out.double() - want).abs().max() <= torch.finfo(dtype).eps * want.abs().max()


def test_causal_tiles_are_half_of_all_tiles():
    """8 x 8 tiles: 36 are visited, of which 8 need a mask."""
    q, k, _ = qkv(1, 1, 128, 128, dim=4)
    tiles = Tiles(q, k, True, 16, 16)
    visited = [(rows, cols) for rows in tiles.row_tiles() for cols in tiles.col_tiles(rows)]
    masked = [t for t in visited if tiles.mask_(torch.zeros(16, 16), *t).isinf().any()]
    assert (len(visited), len(masked)) == (36, 8)


def test_saved_tensors_are_linear_in_length():
    """What waits for the backward is q, k, v, out and lse: no tensor with two length axes."""
    saved = []
    q, k, v = (x.requires_grad_() for x in qkv(2, 2, 256, 256, dim=8))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.shape) or x, lambda x: x):
        flash_attention(q, k, v)
    assert len(saved) == 5 and max(s.numel() for s in saved) == 2 * 256 * 8
