"""Uniform quantization: a group of numbers becomes small integers, one step size and at most one offset.

    symmetric   code = round(x / step),          step = max |x| / (2^(bits-1) - 1),  x ~ step * code
    asymmetric  code = round((x - low) / step),  step = (max x - low) / (2^bits - 1),  x ~ step * code + low

with low = min x. The error of a number is at most step / 2, so the group decides: one large number makes every other
one coarse. Every byte is counted as it would be stored, packed. Source: S1, "Quantization"; Q4_1 is llama.cpp's format.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from refimpl.shapes import Float, Integer, Tensor

__all__ = ["Group", "Uniform", "from_groups", "pack", "quantize", "quantize_q4_1", "sqnr_db", "to_groups",
           "twos_complement", "unpack"]  # fmt: skip

Group = int | str  # "tensor", "row", "column", or a number of neighbours in a row


def twos_complement(code: str) -> int:
    """The integer that a string of bits means: the first bit counts negatively. "10" is -2, "01" is 1."""
    if not code or set(code) - {"0", "1"}:
        raise ValueError(f"twos_complement: a code is a string of 0 and 1, given {code!r}")
    return int(code, 2) - (int(code[0]) << len(code))


@dataclass(frozen=True)
class Uniform:
    """Codes with what is needed to read them."""

    codes: Integer[Tensor, "*shape"]  # int8 (symmetric) or uint8 (asymmetric), one byte each here, `bits` in storage
    step: Float[Tensor, "groups 1"]
    low: Float[Tensor, "groups 1"] | None  # None: symmetric
    group: Group
    bits: int

    def dequantize(self) -> Float[Tensor, "*shape"]:
        """step * code + low, group by group, in the dtype of `step`."""
        groups = to_groups(self.codes, self.group).to(self.step.dtype) * self.step
        return from_groups(groups if self.low is None else groups + self.low, self.group, self.codes.shape)

    @property
    def nbytes(self) -> int:
        """Packed codes, steps and offsets."""
        return (
            math.ceil(self.codes.numel() * self.bits / 8)
            + self.step.nbytes
            + (self.low.nbytes if self.low is not None else 0)
        )


def quantize(x: Float[Tensor, "*shape"], bits: int, *, group: Group = "row", symmetric: bool = True) -> Uniform:
    """x in codes of 2 to 8 bits, rounded to the nearest (ties to even).

    One step per tensor, row, column, or `group` neighbours of a row. Symmetric codes are -(2^(bits-1) - 1) … that: the
    most negative one stays unused, so that -x has the codes of x. Groups of one value or of zeros come back exactly.
    Raises ValueError for other bits, groups that do not divide a row, and inf or NaN.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"quantize: bits must be 2 to 8, given {bits}")
    if not torch.isfinite(x).all():
        raise ValueError("quantize: x holds inf or NaN, which has no step size; find where it comes from first")
    groups = to_groups(x, group)
    if symmetric:
        low, top = None, 2 ** (bits - 1) - 1
        step = groups.abs().amax(1, keepdim=True) / top
    else:
        low, top = groups.amin(1, keepdim=True), 2**bits - 1
        step = (groups.amax(1, keepdim=True) - low) / top
    shifted = groups if low is None else groups - low
    codes = (shifted / step.where(step > 0, 1)).round().clamp(-top if symmetric else 0, top)
    codes = from_groups(codes.to(torch.int8 if symmetric else torch.uint8), group, x.shape)
    return Uniform(codes, step, low, group, bits)


def to_groups(x: Tensor, group: Group) -> Tensor:
    """x as (groups, size): a row of the result shares its step size, or its palette."""
    if group == "tensor":
        return x.reshape(1, -1)
    if group == "row":
        return x.reshape(-1, x.shape[-1])
    if group == "column":
        return x.reshape(-1, x.shape[-1]).T
    if not isinstance(group, int) or group < 1 or x.shape[-1] % group:
        raise ValueError(
            f"group={group!r}: choose 'tensor', 'row', 'column' or a size that divides a row of {x.shape[-1]}"
        )
    return x.reshape(-1, group)


def from_groups(groups: Tensor, group: Group, shape: torch.Size) -> Tensor:
    """The inverse of `to_groups`."""
    return (groups.T if group == "column" else groups).reshape(shape)


def pack(codes: Integer[Tensor, "n"], bits: int) -> Integer[Tensor, "n_bytes"]:
    """Codes of 1, 2, 4 or 8 bits in ceil(n bits / 8) bytes, the first in the highest bits; negative ones by their bits.

    The last byte is filled up with zeros.
    """
    per_byte = _per_byte(bits)
    codes = torch.nn.functional.pad(codes.to(torch.uint8) & (2**bits - 1), (0, -len(codes) % per_byte))
    return (codes.view(-1, per_byte) << _shifts(bits, codes.device)).sum(1, dtype=torch.uint8)


def unpack(packed: Integer[Tensor, "n_bytes"], bits: int, n: int, *, signed: bool = False) -> Integer[Tensor, "n"]:
    """The first n codes of what `pack` made: uint8, or int8 with `signed`."""
    _per_byte(bits)
    codes = ((packed[:, None] >> _shifts(bits, packed.device)) & (2**bits - 1)).flatten()[:n]
    if not signed:
        return codes
    wide = codes.to(torch.int16)
    return (wide - ((wide >> (bits - 1)) << bits)).to(torch.int8)


def _per_byte(bits: int) -> int:
    if bits not in (1, 2, 4, 8):
        raise ValueError(f"pack: codes of 1, 2, 4 or 8 bits fit a byte, given {bits}")
    return 8 // bits


def _shifts(bits: int, device: torch.device) -> Tensor:
    return torch.arange(8 - bits, -1, -bits, dtype=torch.uint8, device=device)


def sqnr_db(x: Float[Tensor, "*shape"], approximation: Float[Tensor, "*shape"]) -> float:
    """Signal to quantization noise, 10 log10(sum x² / sum (x - approximation)²) in dB; one more bit adds about 6."""
    noise = (x.double() - approximation.double()).square().sum()
    return (10 * torch.log10(x.double().square().sum() / noise)).item()


def quantize_q4_1(x: np.ndarray) -> np.ndarray:
    """llama.cpp's Q4_1: float32 (..., 32 n) -> uint8 (..., 20 n). `refimpl.models.gguf.dequantize_q4_1` reads it.

    Asymmetric, 4 bits, groups of 32: 2 bytes step (float16), 2 bytes low (float16), 16 bytes of codes, number j in the
    low half of byte j and number j + 16 in the high half: 5 bits per weight. Codes are rounded before step and low are,
    with the reciprocal of the step, halves up: byte for byte what the package `gguf` writes.
    """
    if x.shape[-1] % 32:
        raise ValueError(f"quantize_q4_1: rows are cut into blocks of 32, given rows of {x.shape[-1]}")
    blocks = x.astype(np.float32).reshape(*x.shape[:-1], -1, 32)
    low = blocks.min(-1, keepdims=True)
    step = (blocks.max(-1, keepdims=True) - low) / 15
    inverse = np.divide(1, step, out=np.zeros_like(step), where=step != 0)
    codes = ((blocks - low) * inverse + np.float32(0.5)).astype(np.uint8).clip(0, 15)
    halves = codes[..., :16] | codes[..., 16:] << 4
    parts = (step.astype(np.float16).view(np.uint8), low.astype(np.float16).view(np.uint8), halves)
    return np.concatenate(parts, axis=-1).reshape(*x.shape[:-1], -1)
