"""NF4: 4-bit codes whose 16 values are quantiles of the normal distribution, in blocks of 64 with one maximum each.

Trained weights look normal once divided by the largest of their block, so values that hold equal shares of a normal
distribution are used about equally often; evenly spaced ones are not. Double quantization puts the maxima, half a bit
per weight in float32, into 8 bits themselves. Bytes are those of bitsandbytes.
Source: S1, "QLoRA"; Dettmers et al. 2023, sections 2 and 3 and appendix E; Dettmers 2016 (the 8-bit values).
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch.nn.functional import embedding, pad

from refimpl.quantization.uniform import pack
from refimpl.shapes import Float, Integer, Tensor

__all__ = ["ENDS", "NF4", "PRINTED_ENDS", "NF4Tensor", "dynamic_map", "normal_float", "quantize_nf4"]

# Where the probabilities begin and end (step 1 and 2): the mean of 31/32 and 29/30 down to 1/2, which is left out, in 8
# and in 7 steps. The slide prints them rounded.
HIGH = (31 / 32 + 29 / 30) / 2  # 0.9677083
ENDS = (HIGH, 0.5 + (HIGH - 0.5) / 8, 0.5 + (HIGH - 0.5) / 7)  # 0.9677083, 0.5584635, 0.5668155
PRINTED_ENDS = (0.97, 0.56, 0.57)

# The data type as published (appendix E) and as libraries store it; `normal_float()` gives it to 2e-7.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip

SECOND_BLOCK = 256  # maxima that share one float32 in double quantization


def normal_float(ends: tuple[float, float, float] = ENDS) -> Float[Tensor, "16"]:
    """The 16 values by the five steps of the slide, ascending, in float64; ends: (high, low of set I, of set II)."""
    high, low_1, low_2 = ends
    set_1 = torch.linspace(low_1, high, 8, dtype=torch.float64)  # step 1
    set_2 = torch.linspace(low_2, high, 7, dtype=torch.float64)  # step 2
    z_1, z_2 = torch.special.ndtri(set_1), -torch.special.ndtri(set_2)  # step 3
    values = torch.cat((z_1, torch.zeros(1, dtype=torch.float64), z_2)).sort().values  # step 4
    return values / values.abs().max()  # step 5


@cache
def dynamic_map() -> Float[Tensor, "256"]:
    """256 values in [-1, 1], dense near 0: one bit sign, zeros for a power of ten, the rest a fraction. Ascending.

    With e powers below 1 (e = 0 … 6) a sign has 2^(6 - e) fractions, the mid-points of as many equal parts of
    [0.1, 1]; 0 and 1 complete them. 8-bit optimizers and double quantization use it.
    """
    values = [0.0, 1.0]
    for power in range(7):
        ends = torch.linspace(0.1, 1, 2**power + 1)
        means = (ends[:-1] + ends[1:]) / 2 * 10 ** (power - 6)
        values += means.tolist() + (-means).tolist()
    return torch.tensor(sorted(values))


@dataclass(frozen=True)
class NF4Tensor:
    """Packed codes and what their blocks' maxima are."""

    packed: Integer[Tensor, "n_bytes"]  # two codes per byte, the first in the high half
    absmax: Float[Tensor, "blocks"] | Integer[Tensor, "blocks"]  # float32, or uint8 codes of `dynamic_map`
    second: Float[Tensor, "second_blocks"] | None  # the maxima's own maxima, with double quantization
    offset: Float[Tensor, ""] | None  # the mean that was taken from the maxima before
    shape: torch.Size
    block: int = 64
    codebook: tuple[float, ...] = NF4

    def maxima(self) -> Float[Tensor, "blocks"]:
        """max |w| of each block, float32, dequantized where it was quantized."""
        if self.second is None:
            return self.absmax
        values = dynamic_map().to(self.absmax.device)[self.absmax.int()]
        return values * self.second.repeat_interleave(SECOND_BLOCK)[: len(values)] + self.offset

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "*shape"]:
        """codebook[code] * max of its block, computed in float32."""
        n = math.prod(self.shape)
        values = torch.tensor(self.codebook, device=self.packed.device)
        pairs = torch.cartesian_prod(values, values)  # what each of the 256 bytes stands for
        flat = embedding(self.packed.int(), pairs).flatten()[:n]
        blocks = pad(flat, (0, -n % self.block)).view(-1, self.block) * self.maxima()[:, None]
        return blocks.flatten()[:n].view(self.shape).to(dtype)

    @property
    def nbytes(self) -> int:
        """Codes, maxima, and what double quantization adds."""
        return sum(t.nbytes for t in (self.packed, self.absmax, self.second, self.offset) if t is not None)

    @property
    def bits_per_weight(self) -> float:
        """8 nbytes / weights: 4.5, or 4 + 8/64 + 32/(64 * 256) = 4.127 (and 4 bytes for the mean)."""
        return 8 * self.nbytes / math.prod(self.shape)


def quantize_nf4(
    w: Float[Tensor, "*shape"], *, block: int = 64, double: bool = True, codebook: tuple[float, ...] = NF4
) -> NF4Tensor:
    """w in 4-bit codes: per `block` neighbours the largest magnitude, and the nearest of 16 values times it.

    `codebook`: another ascending 16 values in [-1, 1], to compare with. A block of zeros comes back exactly. The last
    block may be shorter. Raises ValueError where w is empty or holds inf or NaN.
    """
    if w.numel() == 0 or not torch.isfinite(w).all():
        raise ValueError(
            f"quantize_nf4: w must hold finite numbers, given shape {tuple(w.shape)} with inf, NaN or none"
        )
    blocks = pad(w.flatten().float(), (0, -w.numel() % block)).view(-1, block)
    absmax = blocks.abs().amax(1)
    scaled = blocks / absmax.where(absmax > 0, 1)[:, None]
    codes = _nearest(scaled, torch.tensor(codebook, device=w.device)).flatten()
    codes = codes[: w.numel() + w.numel() % 2]  # a last half byte holds the code of 0
    second = offset = None
    if double:
        offset = absmax.mean()
        absmax, second = _quantize_maxima(absmax - offset)
    return NF4Tensor(pack(codes, 4), absmax, second, offset, w.shape, block, tuple(codebook))


def _nearest(x: Tensor, values: Tensor) -> Tensor:
    """Index of the nearest of ascending values: how many of the half-way points lie below x."""
    return torch.bucketize(x, (values[1:] + values[:-1]) / 2).to(torch.uint8)


def _quantize_maxima(centred: Tensor) -> tuple[Tensor, Tensor]:
    """(8-bit codes, one float32 per SECOND_BLOCK of them)."""
    blocks = pad(centred, (0, -len(centred) % SECOND_BLOCK)).view(-1, SECOND_BLOCK)
    second = blocks.abs().amax(1)
    codes = _nearest(blocks / second.where(second > 0, 1)[:, None], dynamic_map().to(centred.device))
    return codes.flatten()[: len(centred)], second
