"""SGD in two passes, as it is printed, beside LOMO's one; `lomo` is the reference's module."""

from typing import Any

import torch
from torch import nn


def network() -> nn.Module:
    """Three matrices, the first one the largest, with numbers that every machine has."""
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.sin(torch.arange(1.0, parameter.numel() + 1)).view_as(parameter))
    return model


def steps(lomo: Any, count: int = 5, lr: float = 0.1) -> dict[str, float]:
    """Distance of the weights after `count` steps, and bytes of gradients alive at once, largest parameter, all."""
    plain, fused = network(), network()
    updates = lomo.Lomo(fused.parameters(), lr=lr)
    x = torch.cos(torch.arange(24.0, dtype=torch.float64)).view(4, 6)
    for _ in range(count):
        gradients = torch.autograd.grad(plain(x).square().mean(), list(plain.parameters()))  # grad = dL/dp
        with torch.no_grad():
            for parameter, gradient in zip(plain.parameters(), gradients, strict=True):
                parameter.sub_(lr * gradient)  # p = p - lr * grad
        updates.step(fused(x).square().mean())  # p = p - lr * dL/dp
    sizes = [parameter.nbytes for parameter in plain.parameters()]
    return {
        "distance": largest_distance(plain, fused), "moved": largest_distance(plain, network()),
        "peak": updates.peak_gradient_bytes, "largest": max(sizes), "all": sum(sizes),
    }  # fmt: skip


def largest_distance(one: nn.Module, other: nn.Module) -> float:
    """Between two networks' weights."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)
