"""Gates that gradients can close: a random number in [0, 1] that is exactly 0, or exactly 1, with positive probability.

    u ~ U(0, 1)
    s = sigmoid((log u - log(1 - u) + log alpha) / beta)      "concrete": nearly binary, differentiable in log alpha
    z = min(1, max(0, s (zeta - gamma) + gamma))              stretched to (gamma, zeta) = (-0.1, 1.1), then cut: "hard"

    P(z != 0) = sigmoid(log alpha - beta log(-gamma / zeta))

The sum of P(z != 0) is the expected L0 norm, and it has a gradient where the L0 norm itself has none.
Source: Louizos et al. 2018, "Learning sparse neural networks through L0 regularization", equations 9 to 13.
"""

import math

import torch
from torch import nn

from refimpl.shapes import Float, Tensor

__all__ = ["BETA", "GAMMA", "ZETA", "HardConcrete"]

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # temperature and ends of the stretch, as published


class HardConcrete(nn.Module):
    """Gates of any shape, each with its own log alpha. open_at: P(z != 0) at the start."""

    def __init__(self, *shape: int, open_at: float = 0.99):
        super().__init__()
        start = math.log(open_at / (1 - open_at)) + BETA * math.log(-GAMMA / ZETA)
        self.log_alpha = nn.Parameter(torch.full(shape, start))

    def sample(self, rng: torch.Generator | None = None) -> Float[Tensor, "..."]:
        """One draw of z; differentiable in log alpha where 0 < z < 1."""
        u = torch.rand(self.log_alpha.shape, generator=rng, dtype=self.log_alpha.dtype).clamp(1e-6, 1 - 1e-6)
        return _stretch(((u.logit() + self.log_alpha) / BETA).sigmoid())

    def expected(self) -> Float[Tensor, "..."]:
        """P(z != 0) of each gate."""
        return (self.log_alpha - BETA * math.log(-GAMMA / ZETA)).sigmoid()

    def typical(self) -> Float[Tensor, "..."]:
        """z without chance, for use after training: min(1, max(0, sigmoid(log alpha) (zeta - gamma) + gamma))."""
        return _stretch(self.log_alpha.sigmoid())


def _stretch(s: Tensor) -> Tensor:
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
