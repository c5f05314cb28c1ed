"""The naive forms against PyTorch's own, and the one entry point."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - PyTorch's own convention
from torch.testing import assert_close

from refimpl.attention import (
    _choose,
    attention,
    causal_mask,
    check_qkv,
    multi_head_attention,
    naive_attention,
    repeat_kv,
    rope,
    sinusoidal_positions,
)
from refimpl.flash_attention import kernel


def qkv(batch=2, heads=4, kv_heads=4, q_len=7, k_len=7, dim=8, dtype=torch.float64):
    draw = torch.Generator().manual_seed(q_len * 1000 + k_len)
    return (
        torch.randn(batch, h, n, dim, generator=draw, dtype=dtype)
        for h, n in ((heads, q_len), (kv_heads, k_len), (kv_heads, k_len))
    )


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("causal", [False, True])
def test_naive_attention_is_pytorchs_attention(kv_heads, causal):
    """Same numbers as scaled_dot_product_attention, grouped heads included."""
    q, k, v = qkv(kv_heads=kv_heads)
    want = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    assert_close(naive_attention(q, k, v, causal=causal), want)


def test_scale_and_mask_mean_what_pytorch_means():
    """A boolean mask says where a query may look; scale replaces dim ** -0.5."""
    q, k, v = qkv(q_len=5, k_len=9)
    mask = torch.rand(2, 1, 5, 9, generator=torch.Generator().manual_seed(0)) < 0.7
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)
    assert_close(naive_attention(q, k, v, mask=mask, scale=0.3), want)


def test_causal_aligns_the_last_query_with_the_last_key():
    """Two queries at the end of five keys see 4 and 5 of them: what decoding needs, not what SDPA's is_causal does."""
    assert causal_mask(2, 5).tolist() == [[True] * 4 + [False], [True] * 5]
    q, k, v = qkv(q_len=7, k_len=7)
    assert_close(naive_attention(q[:, :, 5:], k, v, causal=True), naive_attention(q, k, v, causal=True)[:, :, 5:])


def test_causal_and_mask_hold_together():
    """Given both, a key must be allowed by both."""
    q, k, v = qkv()
    mask = torch.ones(7, 7, dtype=torch.bool)
    mask[:, 2] = False
    assert_close(
        naive_attention(q, k, v, causal=True, mask=mask), naive_attention(q, k, v, mask=mask & causal_mask(7, 7))
    )


def test_lse_is_the_natural_logarithm_of_the_sum():
    """exp(S - lse) sums to one."""
    q, k, v = qkv()
    _, lse = naive_attention(q, k, v, return_lse=True)
    assert_close(torch.exp(q @ k.mT * 8**-0.5 - lse[..., None]).sum(-1), torch.ones_like(lse))


@pytest.mark.parametrize("impl", ["naive", "tiled"])
def test_a_query_with_no_key_gives_zero_and_zero_gradients(impl):
    """More queries than keys under a causal mask: the first rows see nothing, and no NaN appears."""
    q, k, v = (x.requires_grad_() for x in qkv(q_len=5, k_len=3))
    out, lse = attention(q, k, v, causal=True, impl=impl, return_lse=True)
    out.sum().backward()
    assert (out[:, :, :2] == 0).all()
    assert (lse[:, :, :2] == -torch.inf).all() and lse[:, :, 2:].isfinite().all()
    assert (q.grad[:, :, :2] == 0).all()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


@pytest.mark.parametrize("impl", ["auto", "tiled"])
def test_every_implementation_gives_the_same_answer(impl):
    """The entry point changes the cost, not the result."""
    q, k, v = qkv(heads=6, kv_heads=2, q_len=9, k_len=13)
    want = attention(q, k, v, causal=True, impl="naive", return_lse=True)
    assert_close(attention(q, k, v, causal=True, impl=impl, return_lse=True), want)


def test_auto_takes_the_naive_form_for_a_mask():
    """Only the naive form knows arbitrary masks, so a mask chooses it."""
    q, k, v = qkv()
    mask = causal_mask(7, 7)
    assert_close(attention(q, k, v, mask=mask), attention(q, k, v, causal=True))


def test_errors_say_what_was_given_and_the_way_out():
    """A wrong call is answered in words."""
    q, k, v = qkv()
    with pytest.raises(ValueError, match="impl='tiled' takes no mask; use impl='naive'"):
        attention(q, k, v, mask=causal_mask(7, 7), impl="tiled")
    with pytest.raises(ValueError, match=r"multiple of kv heads, given q \(2, 4, 7, 8\), k \(2, 3"):
        naive_attention(q, k[:, :3], v[:, :3])
    with pytest.raises(ValueError, match=r"one dtype for all.*convert with"):
        naive_attention(q.float(), k, v)
    with pytest.raises(ValueError, match="4 query heads cannot share 3 kv heads"):
        repeat_kv(k[:, :3], 4)
    with pytest.raises(ValueError, match="impl='flash' is unknown; choose naive, tiled, triton or auto"):
        inspect.unwrap(attention)(q, k, v, impl="flash")  # beneath the type checker, as a student calls it
    with pytest.raises(ValueError, match=r"must be \(batch, heads, seq, dim\), given q \(4, 7, 8\)"):
        check_qkv(q[0], k[0], v[0], None, where="here")
    with pytest.raises(ValueError, match="share batch and dim, k and v every axis"):
        check_qkv(q, k, v[:, :, 1:], None, where="here")
    with pytest.raises(ValueError, match="width 7 cannot be cut into 2 heads"):
        multi_head_attention(torch.zeros(1, 2, 7), *[torch.zeros(7, 7)] * 4, heads=2)
    with pytest.raises(ValueError, match=r"dim must be even to form pairs, given x \(1, 3\)"):
        rope(torch.zeros(1, 3), torch.arange(1))


@pytest.mark.parametrize(
    "dim,dtype,want", [(64, torch.float16, "triton"), (48, torch.float16, "tiled"), (64, torch.float64, "tiled")]
)
def test_auto_takes_the_kernel_on_a_gpu_where_it_covers_the_case(monkeypatch, dim, dtype, want):
    """Head dimension and dtype decide; what the kernel does not cover goes to the tiled form."""
    monkeypatch.setattr(kernel, "HAS_TRITON", True)
    on_gpu = SimpleNamespace(is_cuda=True, dtype=dtype, shape=(1, 1, 8, dim))
    assert _choose(on_gpu, None) == want


def test_grouped_heads_read_their_own_group():
    """Query head h reads kv head h // (heads // kv_heads)."""
    k = torch.arange(2.0).reshape(1, 2, 1, 1)
    assert repeat_kv(k, 6).flatten().tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("cross", [False, True])
def test_multi_head_attention_is_pytorchs_layer(cross):
    """Same weights, same output as nn.MultiheadAttention, for self-attention and for cross-attention."""
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(12, 3, bias=False, batch_first=True, dtype=torch.float64)
    x, context = torch.randn(2, 5, 12).double(), torch.randn(2, 8, 12).double()
    source = context if cross else x
    w_q, w_k, w_v = (w.T for w in layer.in_proj_weight.chunk(3))
    got = multi_head_attention(x, w_q, w_k, w_v, layer.out_proj.weight.T, heads=3, context=source if cross else None)
    assert_close(got, layer(x, source, source, need_weights=False)[0])


def test_multi_head_attention_shares_key_heads():
    """GQA with kv_heads = 1 equals full heads whose key and value weights are copies."""
    draw = torch.Generator().manual_seed(1)
    x, w_q, w_k, w_v, w_o = (torch.randn(*s, generator=draw) for s in ((2, 5, 8), (8, 8), (8, 2), (8, 2), (8, 8)))
    got = multi_head_attention(x, w_q, w_k, w_v, w_o, heads=4, kv_heads=1, causal=True)
    want = multi_head_attention(x, w_q, w_k.repeat(1, 4), w_v.repeat(1, 4), w_o, heads=4, causal=True)
    assert_close(got, want)


def test_sinusoidal_positions_follow_the_papers_formula():
    """PE(pos, 2i) = sin(pos / 10000^(2i/d)), PE(pos, 2i+1) = cos of the same angle."""
    table = sinusoidal_positions(50, 6)
    assert_close(table[7, 4], torch.sin(torch.tensor(7 / 10000 ** (4 / 6))))
    assert_close(table[7, 5], torch.cos(torch.tensor(7 / 10000 ** (4 / 6))))
    assert sinusoidal_positions(3, 5).shape == (3, 5)


def test_rope_makes_scores_depend_on_the_distance_alone():
    """Shift both tokens by 100 positions and q·k stays; shift one and it changes."""
    draw = torch.Generator().manual_seed(2)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=draw, dtype=torch.float64)

    def score(i, j):
        return (rope(q, torch.tensor([i])) * rope(k, torch.tensor([j]))).sum()

    assert_close(score(3, 1), score(103, 101))
    assert abs(score(3, 1) - score(4, 1)) > 1e-3


def test_rope_keeps_lengths_and_position_zero():
    """A rotation changes no norm, and by angle 0 nothing."""
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(3))
    turned = rope(x, torch.arange(5))
    assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert_close(turned[:, :, 0], x[:, :, 0])
    assert_close(
        rope(x[..., :1, :4], torch.tensor([1]))[..., 0],
        x[..., :1, 0] * torch.cos(torch.tensor(1.0)) - x[..., :1, 2] * torch.sin(torch.tensor(1.0)),
    )


def test_rope_in_float16_still_tells_far_positions_apart():
    """Angles are computed in float32: positions 8191 and 8192 differ by one full step."""
    x = torch.ones(1, 2, 4, dtype=torch.float16)
    turned = rope(x, torch.tensor([8191, 8192]))
    assert turned.dtype == torch.float16
    assert (turned[0, 0] - turned[0, 1]).abs().max() > 0.1
