"""QLoRA: a frozen 4-bit matrix, dequantized for each use, and a trained product of two thin ones beside it.

    y = x dequantize(W)^T + (alpha / rank) (x A^T) B^T          A (rank, in), B (out, rank), B starts at zero

Gradients go through the dequantized matrix to x and to A and B; W gets none. W is dequantized again in the backward
pass: kept from the forward pass it would cost what the 4 bits saved.
Source: S1, "QLoRA"; Dettmers et al. 2023, equation 5.
"""

import torch
from torch import nn

from refimpl.quantization.nf4 import NF4Tensor, quantize_nf4
from refimpl.shapes import Float, Tensor

__all__ = ["QLoRALinear", "nf4_linear"]


def nf4_linear(x: Float[Tensor, "*batch in_features"], w: NF4Tensor) -> Float[Tensor, "*batch out"]:
    """x dequantize(W)^T in x's dtype, differentiable in x. Saved for the backward pass: no tensor of its own."""
    return _NF4Linear.apply(x, w)


class _NF4Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.w = w
        return x @ w.dequantize(x.dtype).T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out):
        return d_out @ ctx.w.dequantize(d_out.dtype), None


class QLoRALinear(nn.Module):
    """A linear layer's weights in NF4, and rank * (in + out) numbers to train."""

    def __init__(
        self, linear: nn.Linear, *, rank: int = 8, alpha: float | int = 16, seed: int = 0, double: bool = True
    ):
        super().__init__()
        out, in_features = linear.weight.shape
        draw = torch.Generator().manual_seed(seed)
        self.weight, self.bias = quantize_nf4(linear.weight.detach(), double=double), linear.bias
        self.lora_a = nn.Parameter(torch.randn(rank, in_features, generator=draw) * in_features**-0.5)
        self.lora_b = nn.Parameter(torch.zeros(out, rank))
        self.scale = alpha / rank

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out"]:
        a, b = self.lora_a.to(x.dtype), self.lora_b.to(x.dtype)
        y = nf4_linear(x, self.weight) + self.scale * (x @ a.T) @ b.T
        return y if self.bias is None else y + self.bias
