"""Uniform codes, palettes and NF4: tables exact, bytes counted, errors bounded by what the step size promises."""

import importlib.util
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from refimpl.models.gguf import dequantize_q4_1
from refimpl.quantization import (
    NF4,
    dynamic_map,
    kmeans_1d,
    normal_float,
    pack,
    palettize,
    palettize_picture,
    quantize,
    quantize_nf4,
    quantize_q4_1,
    sqnr_db,
    twos_complement,
    unpack,
)
from refimpl.quantization.nf4 import ENDS, PRINTED_ENDS
from refimpl.quantization.palettization import kmeans


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- uniform ---------------------------------------------------------------------------------------------------------


def test_two_bits_mean_what_the_table_says():
    """01 is 1, 00 is 0, 11 is -1, 10 is -2; and the packed bits of those integers are these strings."""
    table = {"01": 1, "00": 0, "11": -1, "10": -2}
    assert {code: twos_complement(code) for code in table} == table
    packed = pack(torch.tensor(list(table.values()), dtype=torch.int8), 2)
    assert f"{packed.item():08b}" == "".join(table)
    assert unpack(packed, 2, 4, signed=True).tolist() == list(table.values())
    with pytest.raises(ValueError, match="string of 0 and 1"):
        twos_complement("12")


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", ["tensor", "row", "column", 8])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_error_is_at_most_half_a_step(bits, group, symmetric):
    """For every granularity, each number by the step of its own group."""
    x = normal(3, 5, 16, dtype=torch.float64) * torch.arange(1, 17)
    q = quantize(x, bits, group=group, symmetric=symmetric)
    steps = quantize(x, bits, group=group, symmetric=symmetric).step
    of_each = {
        "tensor": lambda s: s.expand(15, 16),
        "row": lambda s: s.expand(15, 16),
        "column": lambda s: s.T.expand(15, 16),
    }
    each = of_each.get(group, lambda s: s.view(15, 2).repeat_interleave(8, dim=1))(steps).reshape(x.shape)
    assert ((x - q.dequantize()).abs() <= each / 2 * (1 + 1e-12)).all()
    assert q.codes.shape == x.shape and len(steps) == {"tensor": 1, "row": 15, "column": 16}.get(group, 30)


@pytest.mark.parametrize("symmetric", [True, False])
def test_extremes_come_back_and_constant_groups_too(symmetric):
    """The largest magnitude of a group is a code of its own; a group of zeros divides by no step."""
    x = torch.tensor([[-3.0, 1.0, 0.5, 3.0], [0.0, 0.0, 0.0, 0.0]])
    back = quantize(x, 4, symmetric=symmetric).dequantize()
    assert_close(back[0, [0, 3]], x[0, [0, 3]]) and torch.equal(back[1], x[1])
    if not symmetric:
        assert torch.equal(quantize(torch.full((2, 4), 0.3), 2, symmetric=False).dequantize(), torch.full((2, 4), 0.3))


def test_one_outlier_spoils_its_group_and_no_other():
    """A single 100 among normal numbers: per tensor everything is lost at 4 bits, in blocks of 16 only its block."""
    x = normal(32, 64)
    x[7, 9] = 100.0
    rest = torch.ones_like(x, dtype=torch.bool).view(-1, 16)
    rest[(7 * 64 + 9) // 16] = False
    errors = {g: (x - quantize(x, 4, group=g).dequantize()).view(-1, 16)[rest].square().mean() for g in ("tensor", 16)}
    assert errors["tensor"] > 0.9 and errors[16] < 0.02


def test_a_bit_is_six_decibels_and_bytes_are_counted():
    """SQNR of normal numbers grows by about 6.02 dB per bit; 4 bits with a float32 per 64 are 4.5 bits."""
    x = normal(64, 1024)
    noise = [sqnr_db(x, quantize(x, bits, group=64).dequantize()) for bits in (4, 5, 6, 7, 8)]
    assert all(5.5 < b - a < 6.8 for a, b in itertools.pairwise(noise))
    assert 8 * quantize(x, 4, group=64).nbytes / x.numel() == 4.5
    assert 8 * quantize(x, 4, group=64, symmetric=False).nbytes / x.numel() == 5.0


@given(st.integers(0, 70), st.sampled_from([1, 2, 4, 8]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_unpacking_undoes_packing(n, bits, signed):
    """Any length, any of the four sizes; bytes are as many as the bits need."""
    low = -(2 ** (bits - 1)) if signed else 0
    codes = torch.randint(low, low + 2**bits, (n,), generator=torch.Generator().manual_seed(n))
    codes = codes.to(torch.int8 if signed else torch.uint8)
    packed = pack(codes, bits)
    assert packed.nbytes == math.ceil(n * bits / 8) and torch.equal(unpack(packed, bits, n, signed=signed), codes)


def test_q4_1_is_the_librarys_byte_for_byte():
    """The package gguf on normal, tiny and constant blocks, and its dequantization of ours."""
    gguf = pytest.importorskip("gguf", reason="needs the package gguf: pip install gguf")
    x = np.concatenate([normal(6, 96).numpy(), 1e-6 * normal(2, 96).numpy(), np.full((1, 96), 0.7, np.float32)])
    ours = quantize_q4_1(x)
    assert np.array_equal(ours, gguf.quantize(x, gguf.GGMLQuantizationType.Q4_1))
    assert np.array_equal(dequantize_q4_1(ours), gguf.dequantize(ours, gguf.GGMLQuantizationType.Q4_1))
    assert 8 * ours.nbytes / x.size == 5


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: quantize(x, 1), "2 to 8"),
        (lambda x: quantize(x / 0, 4), "inf or NaN"),
        (lambda x: quantize(x, 4, group=5), "divides a row of 16"),
        (lambda x: pack(x[0].int(), 3), "1, 2, 4 or 8"),
        (lambda x: quantize_q4_1(x.numpy()), "blocks of 32"),
        (lambda x: palettize(x, 300), "1 to 256"),
        (lambda x: palettize(x / 0), "inf or NaN"),
        (lambda x: quantize_nf4(x[:0]), "finite numbers"),
    ],
)
def test_what_cannot_be_quantized_is_refused_in_words(call, words):
    """Each error names what was given or what would do."""
    with pytest.raises(ValueError, match=words):
        call(torch.ones(4, 16))


# --- palettization ---------------------------------------------------------------------------------------------------


def plain_lloyd(x, centres, steps):
    for _ in range(steps):
        nearest = (x[:, None] - centres).abs().argmin(1)
        centres = torch.stack([x[nearest == i].mean() if (nearest == i).any() else c for i, c in enumerate(centres)])
    return centres


@pytest.mark.parametrize("colours", [1, 2, 7, 16])
def test_sorted_lloyd_is_plain_lloyd(colours):
    """The same colours after the same number of steps, in float64, with one far outlier among the numbers."""
    x = torch.cat((normal(500, dtype=torch.float64), torch.tensor([40.0], dtype=torch.float64)))
    start = x.sort().values[((torch.arange(colours) + 0.5) * len(x) / colours).long()]
    assert_close(kmeans_1d(x[None], colours, steps=9)[0], plain_lloyd(x, start, 9), rtol=1e-12, atol=0)


def test_a_palette_is_a_fixed_point_and_indices_are_nearest():
    """Each colour is the mean of its numbers; no number has a nearer colour; more colours, less error."""
    w = normal(24, 64)
    p = palettize(w, 16)
    distance = (w.flatten()[:, None] - p.colours[0]).abs()
    assert_close(distance.gather(1, p.indices.flatten()[:, None].long())[:, 0], distance.amin(1))
    means = torch.stack([w[p.indices == i].mean() for i in range(16)])
    assert_close(means, p.colours[0], rtol=1e-5, atol=1e-6)
    errors = [sqnr_db(w, palettize(w, n).dequantize()) for n in (2, 4, 8, 16)]
    assert errors == sorted(errors) and errors[-1] > sqnr_db(w, quantize(w, 4, group="tensor").dequantize())


@pytest.mark.parametrize("group", ["tensor", "row", "column", 16])
def test_a_palette_per_group_counts_its_bytes(group):
    """Few different values come back exactly; bytes are packed indices and palettes."""
    w = torch.tensor([-1.0, 0.0, 0.5, 2.0])[torch.randint(0, 4, (8, 32), generator=torch.Generator().manual_seed(0))]
    p = palettize(w, 4, group=group)
    groups = {"tensor": 1, "row": 8, "column": 32}.get(group, 16)
    assert p.bits == 2 and p.nbytes == 8 * 32 * 2 // 8 + groups * 4 * 4
    if group == "tensor":
        assert torch.equal(p.dequantize(), w)
    assert p.dequantize().shape == w.shape


def test_a_picture_of_sixteen_colours_keeps_them():
    """A picture with 16 colours is unchanged; with 4 of them left, each pixel shows its nearest."""
    colours = torch.rand(16, 3, generator=torch.Generator().manual_seed(1))
    picture = colours[torch.arange(24 * 20).view(24, 20) % 16]
    indices, palette = palettize_picture(picture)
    assert_close(palette[indices], picture, rtol=0, atol=1e-6)
    indices, palette = palettize_picture(picture, 4)
    assert torch.equal(indices, torch.cdist(picture.view(-1, 3), palette).argmin(1).view(24, 20))


def test_lloyd_in_space_and_on_the_line_agree_on_a_fixed_point():
    """From different starts, yet both end where one more plain step moves nothing."""
    x = normal(300, dtype=torch.float64)
    centres = kmeans(x[:, None], torch.ones_like(x), 4)[:, 0].sort().values
    assert_close(plain_lloyd(x, centres, 1), centres, rtol=0, atol=1e-12)


# --- NF4 -------------------------------------------------------------------------------------------------------------


def test_five_steps_with_exact_ends_give_the_published_values():
    """To 2e-7; with the ends as the slide rounds them one value is off by 5.4e-3."""
    assert [f"{end:.7f}" for end in ENDS] == ["0.9677083", "0.5584635", "0.5668155"]
    published = torch.tensor(NF4, dtype=torch.float64)
    assert (normal_float() - published).abs().max() < 2e-7
    assert 5.3e-3 < (normal_float(PRINTED_ENDS) - published).abs().max() < 5.5e-3


def test_nf4_holds_the_nearest_value_in_half_a_byte():
    """Every multiple of the block's maximum by a codebook value comes back; others go to the nearest."""
    values = torch.tensor(NF4)
    w = torch.cat((3 * values, 0.5 * values.flip(0), values, torch.zeros(16))).view(4, 16)
    assert_close(quantize_nf4(w, block=16, double=False).dequantize(), w, rtol=1e-6, atol=0)
    w = normal(5, 64)
    q = quantize_nf4(w, double=False)
    candidates = w.abs().amax(1)[:, None, None] * values
    assert_close(
        q.dequantize(),
        candidates.expand(5, 64, 16).gather(2, (w[..., None] - candidates).abs().argmin(2)[..., None])[..., 0],
    )
    assert q.packed.nbytes == 5 * 64 // 2


@given(st.integers(1, 700), st.booleans())
@settings(max_examples=20, deadline=None)
def test_any_number_of_weights_packs_into_the_bytes_it_needs(n, double):
    """Ragged last byte, block and second block; the error stays below half the widest gap of the codebook."""
    w = normal(n, seed=n)
    q = quantize_nf4(w, double=double)
    blocks = math.ceil(n / 64)
    extra = blocks + 4 * math.ceil(blocks / 256) + 4 if double else 4 * blocks
    assert q.nbytes == math.ceil(n / 2) + extra
    gap, slack = torch.tensor(NF4).diff().max() / 2, 0.05 if double else 1e-6
    assert (w - q.dequantize()).abs().max() <= (gap + slack) * w.abs().max()


def test_double_quantization_takes_half_a_bit_to_an_eighth():
    """4.5 bits per weight, and 4 + 8/64 + 32/(64 * 256) = 4.127 with 32 bits more for one mean; the error stays."""
    w = normal(256, 1024)
    plain, double = (quantize_nf4(w, double=d) for d in (False, True))
    assert plain.bits_per_weight == 4.5
    assert double.bits_per_weight == 4 + 8 / 64 + 32 / (64 * 256) + 32 / w.numel()
    assert round(double.bits_per_weight - 4, 3) == 0.127
    assert abs(sqnr_db(w, plain.dequantize()) - sqnr_db(w, double.dequantize())) < 0.1


def test_the_dynamic_map_has_256_different_values_and_is_dense_at_zero():
    """Ascending from -0.993 to 1 with 0 in it; the steps near 0 are ten thousand times finer than near 1."""
    values = dynamic_map()
    assert len(values.unique()) == 256 and torch.equal(values, values.sort().values)
    assert 0 in values and values[-1] == 1 and values[0] == -(1 - 0.9 / 128)
    assert values.diff().max() / values.diff().min() > 1e3


@pytest.mark.parametrize("shape", [(64, 64), (100, 80), (7, 29)])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.peers
def test_codes_maxima_and_values_are_bitsandbytes_own(shape, double):
    """Packed bytes, maxima, their 8-bit codes and the dequantized weights: equal, last ragged block included.

    Its 0.50.2 dequantizes rows that no block ends with wrongly on a CPU with AVX-512, so the numbers go in as one row.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("needs bitsandbytes: pip install '.[peers]'")
    import bitsandbytes.functional as bnb

    w = normal(*shape, seed=sum(shape)).flatten() * 0.02
    ours, (packed, state) = (
        quantize_nf4(w, double=double),
        bnb.quantize_4bit(w, quant_type="nf4", compress_statistics=double),
    )
    assert torch.equal(ours.packed, packed.flatten()) and torch.equal(ours.absmax, state.absmax)
    assert_close(torch.tensor(NF4), state.code.cpu(), rtol=0, atol=0)
    if double:
        assert_close(ours.second, state.state2.absmax, rtol=1e-6, atol=0)
        assert_close(dynamic_map(), state.state2.code, rtol=0, atol=1e-7)
    assert_close(ours.dequantize(), bnb.dequantize_4bit(packed, state).view_as(w), rtol=0, atol=1e-7)
