"""The Triton kernels against the naive form in float64: in the interpreter on a CPU, compiled on a GPU.

The interpreter takes about 8 ms per tile whatever its size, so lengths and tiles are chosen to hit each edge once.
"""

import pytest
import torch
from torch.testing import assert_close

from refimpl._triton import INTERPRET, Config
from refimpl.attention import attention, naive_attention
from refimpl.flash_attention.kernel import flash_attention

SMALL = Config(16, 16)
EDGE = Config(32, 64)

# heads, kv_heads, q_len, k_len, dim, config
CASES = [
    (1, 1, 1, 1, 16, SMALL),
    (2, 1, 17, 17, 32, SMALL),
    (2, 2, 77, 77, 64, EDGE),
    (2, 1, 77, 77, 16, Config(64, 32)),
    (4, 1, 130, 130, 64, Config(64, 64)),
    (1, 1, 130, 130, 128, Config(64, 64)),
    (2, 2, 200, 200, 32, Config(64, 64)),
    (4, 2, 17, 77, 64, SMALL),
    (1, 1, 130, 200, 128, EDGE),
    (2, 1, 200, 77, 64, Config(64, 32)),  # causal: the first 123 queries see no key
    (1, 1, 1, 130, 32, EDGE),
]


def qkv(heads, kv_heads, q_len, k_len, dim, device, dtype=torch.float32):
    draw = torch.Generator().manual_seed(q_len * 1000 + k_len)
    shapes = ((heads, q_len), (kv_heads, k_len), (kv_heads, k_len))
    return [torch.randn(1, h, n, dim, generator=draw).to(device, dtype) for h, n in shapes]


def gradients(attend, inputs, **options):
    """out, lse, dq, dk, dv of a loss that weighs every element of out and lse differently."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out, lse = attend(*inputs, return_lse=True, **options)
    draw = torch.Generator().manual_seed(5)
    weights = [torch.randn(x.shape, generator=draw).to(x) for x in (out, lse)]
    seen = lse.isfinite()
    ((out * weights[0]).sum() + (lse[seen] * weights[1][seen]).sum()).backward()
    return [out, lse, *(x.grad for x in inputs)]


def in_double(inputs, **options):
    return gradients(naive_attention, [x.double() for x in inputs], **options)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c[0]}of{c[1]}-{c[2]}x{c[3]}-D{c[4]}-{c[5].block_q}x{c[5].block_k}"
)
def test_kernels_are_within_5e_6_of_float64(device, causal, case):
    """out, lse, dq, dk and dv: causal and full, grouped heads, any lengths, dim 16 to 128, rows that see no key."""
    *shape, config = case
    inputs = qkv(*shape, device)
    got = gradients(flash_attention, inputs, causal=causal, config=config)
    assert_close([x.double() for x in got], in_double(inputs, causal=causal), rtol=0, atol=5e-6)


def test_rows_with_no_key_give_zero_minus_infinity_and_zero_gradients(device):
    """Exactly zero, not almost."""
    inputs = qkv(2, 2, 20, 4, 16, device)
    out, lse, dq, dk, dv = gradients(flash_attention, inputs, causal=True, config=SMALL)
    assert (out[:, :, :16] == 0).all() and (dq[:, :, :16] == 0).all()
    assert (lse[:, :, :16] == -torch.inf).all() and lse[:, :, 16:].isfinite().all()
    assert all(x.isfinite().all() for x in (dk, dv))


def test_keys_beyond_the_causal_tile_are_never_read(device):
    """NaN in keys and values after a query tile changes nothing in it: tiles are skipped, not masked."""
    q, k, v = qkv(1, 1, 64, 64, 16, device)
    want = flash_attention(q, k, v, causal=True, config=SMALL)
    k[:, :, 32:], v[:, :, 32:] = torch.nan, torch.nan
    got = flash_attention(q, k, v, causal=True, config=SMALL)
    assert torch.equal(got[:, :, :32], want[:, :, :32])
    assert got[:, :, 32:].isnan().all()


def test_the_backward_skips_the_same_tiles(device):
    """NaN keys leave dq of earlier queries alone; NaN early queries leave dk and dv of later keys alone."""
    inputs = qkv(1, 1, 64, 64, 16, device)
    options = {"causal": True, "config": SMALL}
    want = gradients(flash_attention, inputs, **options)
    late, early = ([x.clone() for x in inputs] for _ in range(2))
    late[1][:, :, 32:] = torch.nan
    early[0][:, :, :32] = torch.nan
    assert torch.equal(gradients(flash_attention, late, **options)[2][:, :, :32], want[2][:, :, :32])
    for got, clean in zip(gradients(flash_attention, early, **options)[3:], want[3:], strict=True):
        assert torch.equal(got[:, :, 32:], clean[:, :, 32:])


@pytest.mark.parametrize("causal", [False, True])
def test_views_inside_a_buffer_of_nan_are_read_exactly(device, causal):
    """Strided q, k, v with NaN all around them, and ragged tiles: nothing outside the view leaks in."""
    inputs = qkv(2, 1, 37, 21, 16, device)
    views = []
    for x in inputs:
        buffer = x.new_full([n + 40 for n in x.shape[:3]] + [16], torch.nan)
        views.append(buffer[20:21, 20 : 20 + x.shape[1], 20 : 20 + x.shape[2]].copy_(x))
    got = gradients(flash_attention, views, causal=causal, config=SMALL)
    assert_close([x.double() for x in got], in_double(inputs, causal=causal), rtol=0, atol=5e-6)


def test_sequence_first_layout_is_read_in_place(device):
    """(batch, seq, heads, dim) in memory, as projections leave it, and features that are not adjacent."""
    inputs = qkv(2, 2, 20, 20, 16, device)
    want = in_double(inputs)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    spread = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in inputs]
    for views in (turned, spread):
        assert not any(x.is_contiguous() for x in views)
        got = gradients(flash_attention, views, config=SMALL)
        assert_close([x.double() for x in got], want, rtol=0, atol=5e-6)


def test_the_same_input_twice_gives_the_same_bits(device):
    """No atomics, so no order of summation is left to chance."""
    inputs = qkv(4, 2, 40, 40, 32, device)
    first, second = (gradients(flash_attention, inputs, causal=True, config=SMALL) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_large_logits_do_not_overflow(device):
    """Logits in the thousands: the running maximum keeps every exponent below zero."""
    q, k, v = qkv(1, 1, 32, 48, 16, device)
    got = flash_attention(q * 30, k * 30, v, scale=0.5, config=SMALL)
    assert_close(
        got.double(), naive_attention(*(x.double() for x in (q * 30, k * 30, v)), scale=0.5), rtol=0, atol=1e-4
    )


def test_scores_far_below_zero_do_not_overflow_at_the_ragged_end(device):
    """Every lse near -110: a lane beyond the last key has score 0, and exp(0 + 110) must not reach a gradient."""
    q, k, v = qkv(1, 1, 20, 21, 16, device)
    inputs = [q / 10 + 2.7, k / 10 - 2.7, v]
    got = gradients(flash_attention, inputs, scale=1.0, config=SMALL)
    assert got[1].max() < -95
    for a, b in zip(got, in_double(inputs, scale=1.0), strict=True):
        assert (a - b).abs().max() <= 5e-5 * b.abs().max()  # a score of 110 is itself stored to 4e-6


def test_the_default_configuration_and_the_entry_point_agree(device):
    """attention(impl="triton") is this kernel with the table's tiles."""
    inputs = qkv(2, 1, 70, 70, 64, device)
    got = gradients(attention, inputs, causal=True, impl="triton")
    assert_close([x.double() for x in got], in_double(inputs, causal=True), rtol=0, atol=5e-6)


def test_float16_rounds_probabilities_and_nothing_else(device):
    """P is rounded to float16 for the second product, so the error is a few float16 roundings."""
    inputs = qkv(2, 1, 70, 70, 64, device, torch.float16)
    got = gradients(flash_attention, inputs, causal=True)
    assert [x.dtype for x in got] == [torch.float16, torch.float32, *[torch.float16] * 3]
    want = in_double(inputs, causal=True)
    for a, b in zip(got, want, strict=True):
        assert (a.double() - b).abs().max() <= 4 * torch.finfo(torch.float16).eps * b.abs().max()


@pytest.mark.skipif(not INTERPRET, reason="about Triton's interpreter, which is off here")
def test_bfloat16_in_the_interpreter_is_computed_in_float32():
    """The interpreter would read bfloat16's bits as integers, silently; we compute in float32 and round once."""
    inputs = qkv(2, 1, 40, 40, 32, "cpu", torch.bfloat16)
    got = gradients(flash_attention, inputs, causal=True)
    assert [x.dtype for x in got] == [torch.bfloat16, torch.float32, *[torch.bfloat16] * 3]
    for a, b in zip(got, in_double(inputs, causal=True), strict=True):
        assert (a.double() - b).abs().max() <= torch.finfo(torch.bfloat16).eps * b.abs().max()


def test_what_the_kernel_does_not_cover_is_refused_with_the_way_out(device):
    """dim 48 and float64 belong to the tiled form."""
    for x in (torch.zeros(1, 1, 4, 48, device=device), torch.zeros(1, 1, 4, 32, device=device, dtype=torch.float64)):
        with pytest.raises(ValueError, match="use impl='tiled'"):
            flash_attention(x, x, x)


def test_empty_inputs_are_no_error(device):
    """No query: an empty answer. No key: zeros and -inf."""
    q, k, v = qkv(1, 1, 5, 5, 16, device)
    assert flash_attention(q[:, :, :0], k, v).shape == (1, 1, 0, 16)
    out, lse, *_ = gradients(flash_attention, [q, k[:, :, :0], v[:, :, :0]])
    assert (out == 0).all() and (lse == -torch.inf).all()
