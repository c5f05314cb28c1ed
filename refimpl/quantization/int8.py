"""LLM.int8(): integer products with one scale per token and per output channel, and outliers in 16 bits.

    y[t, o] = x_scale[t] w_scale[o] * sum_k x_code[t, k] w_code[o, k]         k without outlier: int8 x int8 -> int32
            + sum_k x[t, k] w[o, k]                                           k with |x[t, k]| >= 6 for some token: fp16

A scale belongs to a whole row of x or of w because only then it leaves the sum over k. An outlier in x makes the other
features of its token coarse, whatever the scale; taken out of the integer product it makes none.
Source: S1, "LLM.int8()"; Dettmers et al. 2022, section 3.
"""

from dataclasses import dataclass

import torch
from torch import nn

from refimpl.quantization.uniform import Uniform, quantize
from refimpl.shapes import Bool, Float, Integer, Tensor

__all__ = ["THRESHOLD", "Int8Linear", "Int8Product", "int8_linear", "int8_matmul", "outlier_features"]

THRESHOLD = 6.0  # the paper's: magnitude from which a feature is an outlier


def int8_matmul(
    a: Integer[Tensor, "tokens features"], b: Integer[Tensor, "out features"]
) -> Integer[Tensor, "tokens out"]:
    """A B^T in int32, exact: int8 x int8 products of 2 tokens features out operations.

    `torch._int_mm` where the processor has integer dot products in its matrix units (VNNI, AMX, tensor cores). CUDA's
    takes more than 16 tokens and sizes that 8 divides; anything else there goes through float64, exact and slow.
    """
    if a.dtype != torch.int8 or b.dtype != torch.int8:
        raise TypeError(f"int8_matmul: codes must be int8, given {a.dtype} and {b.dtype}")
    if a.shape[1] == 1:  # torch 2.13's _int_mm reads foreign memory on a CPU here
        return a.int() * b.int().T
    if a.is_cuda and (len(a) <= 16 or a.shape[1] % 8 or len(b) % 8):
        return (a.double() @ b.double().T).to(torch.int32)
    return torch._int_mm(a.contiguous(), b.T)


def outlier_features(x: Float[Tensor, "tokens features"], threshold: float = THRESHOLD) -> Bool[Tensor, "features"]:
    """Which features reach the threshold in at least one token."""
    return (x.abs() >= threshold).any(dim=0)


@dataclass(frozen=True)
class Int8Product:
    """How a layer multiplies; the default is LLM.int8()."""

    x_group: str | None = "row"  # "row": a scale per token, "tensor": one for all, None: x stays as it is
    w_group: str = "row"  # "row": a scale per output channel
    threshold: float | None = THRESHOLD  # None: no decomposition


def int8_linear(
    x: Float[Tensor, "tokens features"], w: Uniform, how: Int8Product = Int8Product(), bias: Tensor | None = None
) -> Float[Tensor, "tokens out"]:
    """x W^T + bias from 8-bit weights, in x's dtype.

    The outliers' product multiplies float16 numbers (bfloat16 where x is bfloat16) and adds in float32; its columns of
    W come from their codes, so that no second copy of them is kept. Reads out * features bytes of weights, a quarter of
    float32. Raises ValueError where x holds inf or NaN.
    """
    if how.x_group is None:
        y = x @ w.dequantize().to(x.dtype).T
    else:
        outliers = None if how.threshold is None else outlier_features(x, how.threshold)
        split = outliers is not None and bool(outliers.any())
        codes = quantize(x.masked_fill(outliers, 0) if split else x, 8, group=how.x_group)
        y = int8_matmul(codes.codes, w.codes) * codes.step.float() * w.step.float().T
        if split:
            y += _outlier_product(x, w, outliers.nonzero()[:, 0])
        y = y.to(x.dtype)
    return y if bias is None else y + bias


def _outlier_product(x: Tensor, w: Uniform, columns: Tensor) -> Tensor:
    """x[:, columns] W[:, columns]^T, 16-bit factors and a 32-bit sum, as a tensor core does it."""
    half = torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float16
    part = w.codes[:, columns].to(w.step.dtype) * w.step
    return x[:, columns].to(half).float() @ part.to(half).float().T


class Int8Linear(nn.Module):
    """A linear layer that keeps 8-bit weights: one byte each and four per output channel. Inference only."""

    def __init__(self, linear: nn.Linear, how: Int8Product = Int8Product()):
        super().__init__()
        self.weight, self.how = quantize(linear.weight.detach(), 8, group=how.w_group), how
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch out"]:
        return int8_linear(x.flatten(0, -2), self.weight, self.how, self.bias).unflatten(0, x.shape[:-1])
