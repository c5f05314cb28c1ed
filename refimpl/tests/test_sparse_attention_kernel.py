"""The block-sparse kernel: in the interpreter on a CPU, compiled on a GPU; judged in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from refimpl import aot
from refimpl._triton import HAS_TRITON
from refimpl.attention import naive_attention
from refimpl.sparse_attention import (
    bigbird_blocks,
    block_layout,
    both,
    by_blocks,
    causal,
    dense_mask,
    either,
    global_tokens,
    longformer,
    sliding_window,
)
from refimpl.sparse_attention import block_sparse_attention as eager
from refimpl.sparse_attention.kernel import BLOCKS, HEAD_DIMS, block_sparse_attention, tiles_of

PATTERNS = {
    "full": lambda i, j: (i == i) & (j == j),
    "causal": causal,
    "causal window": sliding_window(30, causal=True),
    "dilated": sliding_window(20, dilation=3),
    "longformer": longformer(16, [0, 50]),
    "bigbird": both(by_blocks(bigbird_blocks(10, window=3, random=1, first=1, causal=True), 16), causal),
}


def qkv(q_len, k_len, device, heads=(2, 2), dim=16, dtype=torch.float32):
    draw = torch.Generator().manual_seed(q_len + k_len + dim)
    shapes = ((heads[0], q_len), (heads[1], k_len), (heads[1], k_len))
    return [torch.randn(1, h, n, dim, generator=draw).to(device, dtype) for h, n in shapes]


def exact(q, k, v, pattern):
    mask = dense_mask(pattern, q.shape[2], k.shape[2]).to(q.device)
    return naive_attention(q.double(), k.double(), v.double(), mask=mask, return_lse=True)


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize(("q_len", "k_len", "block"), [(128, 128, 32), (77, 77, 16), (20, 100, 64), (130, 130, 128)])
def test_any_pattern_is_the_masked_attention(device, name, q_len, k_len, block):
    """Lengths that fill their tiles and lengths that do not; fewer queries than keys; the kernel's tiles are smaller
    than the layout's where its blocks are large."""
    q, k, v = qkv(q_len, k_len, device, heads=(2, 1))
    layout = block_layout(PATTERNS[name], q_len, k_len, block=block)
    got = block_sparse_attention(q, k, v, layout, return_lse=True)
    for a, b in zip(got, exact(q, k, v, PATTERNS[name]), strict=True):
        assert_close(a.double(), b, rtol=0, atol=4e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [64, 128])
def test_half_precision_errs_no_more_than_twice_pytorchs_own(device, dtype, dim):
    """In the interpreter bfloat16 is computed in float32; output keeps the input's dtype."""
    q, k, v = qkv(100, 100, device, (4, 2), dim, dtype)
    pattern = PATTERNS["causal window"]
    want = exact(q, k, v, pattern)[0]
    got = block_sparse_attention(q, k, v, block_layout(pattern, 100, block=32))
    naive = naive_attention(q, k, v, mask=dense_mask(pattern, 100).to(q.device))
    assert got.dtype == dtype
    ulp = torch.finfo(dtype).eps * want.abs().max()
    assert (got - want).abs().max() <= 2 * (naive - want).abs().max() + 2 * ulp


def test_queries_without_a_key_give_zero(device):
    """More queries than keys, causal: the first rows have no tile at all, others have a row of a tile."""
    q, k, v = qkv(70, 40, device)
    out, lse = block_sparse_attention(q, k, v, block_layout(causal, 70, 40, block=16), return_lse=True)
    assert (out[:, :, :30] == 0).all() and (lse[:, :, :30] == -torch.inf).all()
    assert_close(out.double(), exact(q, k, v, causal)[0], rtol=0, atol=4e-6)


def test_views_inside_buffers_of_nan_are_read_exactly(device):
    """Heads out of order in memory, NaN behind the last token and in tiles that are not in the layout."""
    pattern = sliding_window(16, causal=True)
    q, k, v = qkv(90, 90, device)
    want = exact(q, k, v, pattern)[0]
    buffers = torch.full((3, 1, 128, 2, 16), torch.nan, device=device)
    for buffer, x in zip(buffers, (q, k, v), strict=True):
        buffer[:, :90] = x.transpose(1, 2)
    q, k, v = (buffer[:, :90].transpose(1, 2) for buffer in buffers)
    layout = block_layout(pattern, 90, block=16)
    assert_close(block_sparse_attention(q, k, v, layout).double(), want, rtol=0, atol=4e-6)
    k[:, :, :32], v[:, :, :32] = torch.nan, torch.nan  # two columns of tiles that the last rows of tiles never name
    got = block_sparse_attention(q, k, v, layout)
    assert torch.isnan(got[:, :, 31]).all() and torch.equal(got[:, :, 64:].double().isfinite(), want[:, :, 64:] < 1e9)


def test_gradients_are_those_of_the_eager_form(device):
    """Through out and lse, two query heads per key head."""
    pattern = PATTERNS["longformer"]
    layout = block_layout(pattern, 60, block=16)
    grads = []
    for attend in (block_sparse_attention, eager):
        inputs = [x.requires_grad_() for x in qkv(60, 60, device, (4, 2))]
        out, lse = attend(*inputs, layout.to(device), return_lse=True)
        grads.append(torch.autograd.grad(out.square().sum() + lse.sin().sum(), inputs))
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, rtol=0, atol=2e-5)


@settings(max_examples=8, deadline=None)
@given(lengths=st.tuples(st.integers(0, 50), st.integers(1, 50)), name=st.sampled_from(sorted(PATTERNS)))
def test_ragged_lengths_of_any_kind(lengths, name):
    """Lengths drawn at random, none among them."""
    if not HAS_TRITON:
        pytest.skip("needs Triton, whose wheels are for Linux only")
    q, k, v = qkv(*lengths, "cuda" if torch.cuda.is_available() else "cpu")
    got = block_sparse_attention(q, k, v, block_layout(PATTERNS[name], *lengths, block=16))
    assert_close(got.double(), exact(q, k, v, PATTERNS[name])[0], rtol=0, atol=4e-6)


def test_global_rows_go_first(device):
    """The order of launch is by number of entries, whatever their place; every row is computed once."""
    pattern = either(sliding_window(8), global_tokens([70]))
    layout = block_layout(pattern, 96, block=16)
    assert layout.order[0] == 70 // 16 and sorted(layout.order.tolist()) == list(range(6))
    q, k, v = qkv(96, 96, device)
    got = block_sparse_attention(q, k, v, layout)
    assert_close(got.double(), exact(q, k, v, pattern)[0], rtol=0, atol=4e-6)


def test_errors_name_what_was_given_and_the_way_out(device):
    """A dim and a block without a kernel, float64, another length's layout."""
    q, k, v = qkv(40, 40, device)
    layout = block_layout(causal, 40, block=16)
    with pytest.raises(ValueError, match=r"given dim 8 in torch\.float32; use the eager form"):
        block_sparse_attention(*(x[..., :8] for x in (q, k, v)), layout)
    with pytest.raises(ValueError, match=r"given dim 16 in torch\.float64"):
        block_sparse_attention(*(x.double() for x in (q, k, v)), layout)
    with pytest.raises(ValueError, match="given 20; make another layout"):
        block_sparse_attention(q, k, v, block_layout(causal, 40, block=20))
    with pytest.raises(ValueError, match="the layout is of 39 queries and 40 keys"):
        block_sparse_attention(q, k, v, block_layout(causal, 39, 40, block=16))


def test_the_kernels_tiles_divide_the_layouts_blocks():
    """At every dimension, block, precision and GPU: a block is cut without remainder."""
    for arch in aot.ARCHS:
        for dim in HEAD_DIMS:
            for block in BLOCKS:
                for dtype in (torch.float32, torch.bfloat16):
                    c = tiles_of(dim, block, dtype, arch)
                    assert block % c.block_q == 0 and block % c.block_k == 0 and min(c.block_q, c.block_k) >= 16


def test_every_shipped_configuration_is_handed_to_the_compiler():
    """Two dimensions and two blocks, or all four of each and both precisions, two GPUs."""
    assert len(aot.jobs(["sparse_attention"])) == 2 * 2 * 2
    assert len(aot.jobs(["sparse_attention"], everything=True)) == 2 * 4 * 4 * 2


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton, whose wheels are for Linux only")
def test_the_kernel_compiles_for_real_gpus_without_spills():
    """Dimensions and blocks 64 and 128, sm_80 and sm_90; tiles arrive by asynchronous copies, tensor cores are used."""
    rows = aot.report("sparse_attention")
    assert len(rows) == 8 and {row["arch"] for row in rows} == {80, 90}
    assert all(row["spills"] == 0 and row["tensor_core"] > 0 and row["async_copies"] > 0 for row in rows)
