"""LOMO, low-memory optimization: each parameter is updated the moment its gradient exists, and the gradient is dropped.

    lomo = Lomo(model.parameters(), lr=1e-2)
    lomo.step(loss(model(x)))                   # backward pass and update in one

SGD needs no state, so all gradients at once, 2Ψ bytes in 16 bit, are the last big thing; here one parameter's gradient
is alive at a time. Under data parallelism the gradient is averaged over the ranks before the update: 2 Ψ (N-1)/N bytes
per rank as ever, but one collective per parameter, and the backward pass waits for each.
The norm of all gradients is known only when all have been seen, so clipping by it takes a first backward pass that
keeps nothing but the sum of squares: twice the backward FLOPs.
Source: Lv et al. 2023 (LOMO), algorithm 1 and section 3.3.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn

from refimpl.shapes import Float, Tensor

__all__ = ["Lomo"]


class Lomo:
    """SGD fused with the backward pass: p ← p - lr (g + weight_decay p).

    clip_value     each gradient's entries are cut to ± this
    clip_norm      all gradients are scaled so that their norm is at most this; costs a second backward pass
    group          average over its ranks; None: the default group, or this process alone where there is none
    lr             may be changed between steps
    peak_gradient_bytes   the most that .grad of all parameters held together, looked up whenever one arrives
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float | int, *, weight_decay: float | int = 0,
        clip_value: float | int | None = None, clip_norm: float | int | None = None,
        group: dist.ProcessGroup | None = None,
    ):  # fmt: skip
        self.parameters = [p for p in parameters if p.requires_grad]
        self.lr, self.weight_decay, self.clip_value, self.clip_norm = lr, weight_decay, clip_value, clip_norm
        self.group, self.ranks = group, dist.get_world_size(group) if dist.is_initialized() else 1
        self.scale, self.squares = 1.0, None
        self.norm: Float[Tensor, ""] | None = None  # of all gradients in the last step, with clip_norm
        self.peak_gradient_bytes = 0
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def step(self, loss: Float[Tensor, ""]):
        """Backward pass of `loss` and update of every parameter that it reaches."""
        self.scale = 1.0
        if self.clip_norm is not None:
            self.squares = torch.zeros((), dtype=torch.float32, device=loss.device)
            loss.backward(retain_graph=True)
            self.norm, self.squares = self.squares.sqrt(), None
            self.scale = (self.clip_norm / (self.norm + 1e-6)).clamp(max=1)
        loss.backward()

    @torch.no_grad()
    def _arrived(self, parameter: nn.Parameter):
        alive = sum(p.grad.nbytes for p in self.parameters if p.grad is not None)
        self.peak_gradient_bytes = max(self.peak_gradient_bytes, alive)
        gradient, parameter.grad = parameter.grad, None
        if self.ranks > 1:
            gradient /= self.ranks
            dist.all_reduce(gradient, group=self.group)
        if self.squares is not None:
            self.squares += gradient.float().square().sum()
        else:
            self._update(parameter, gradient)

    def _update(self, parameter: nn.Parameter, gradient: Tensor):
        """In place, so that nothing of the parameter's size is made."""
        if self.clip_value is not None:
            gradient.clamp_(-self.clip_value, self.clip_value)
        parameter.mul_(1 - self.lr * self.weight_decay)
        parameter.add_(gradient.mul_(self.scale), alpha=-self.lr)
