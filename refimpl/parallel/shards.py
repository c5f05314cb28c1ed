"""One flat tensor in N shards: gathered when a layer works, reduced when its gradient is there. What ZeRO is made of.

Parameters of a unit (a layer, say) are laid end to end and padded to N equal parts, whatever their shapes, so each
collective is one call over even parts. The padding is at most N - 1 numbers per unit and stays zero.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from refimpl.parallel.collectives import all_gather_single, reduce_scatter_single
from refimpl.shapes import Tensor

__all__ = ["Unit"]


class _Weights(torch.autograd.Function):
    """Where a unit's weights enter the graph, and where their gradient leaves it."""

    @staticmethod
    def forward(ctx, anchor, unit, done):
        ctx.unit, ctx.done = unit, done
        return unit.full.detach()

    @staticmethod
    def backward(ctx, gradient):
        ctx.unit.receive(gradient)
        ctx.done(ctx.unit)
        return None, None, None


class Unit:
    """Parameters that are gathered, reduced and stored together, as one flat tensor of N equal shards.

    shard     this rank's part in the dtype of the work       full      all parts, or None where they are not here
    master    the same numbers in the optimizer's dtype       gradient  the average for this shard, or None
    """

    def __init__(self, parameters: dict[nn.Parameter, list], stage: int, dtype: torch.dtype | None, group):
        self.owners = list(parameters.values())  # per parameter: the (module, attribute, name) that hold it
        self.shapes = [p.shape for p in parameters]
        self.stage, self.group, self.ranks = stage, group, dist.get_world_size(group)
        flat = torch.cat([p.detach().flatten() for p in parameters])
        self.pad = -len(flat) % self.ranks
        flat = nn.functional.pad(flat, (0, self.pad))
        mine = flat.chunk(self.ranks)[dist.get_rank(group)]
        full = flat.to(dtype or flat.dtype)
        self.full: Tensor | None = full if stage < 3 else None
        shard = full.chunk(self.ranks)[dist.get_rank(group)]
        self.shard = shard.clone() if stage == 3 else shard  # otherwise a view: no number is kept twice
        self.master = self.shard if full.dtype == flat.dtype else mine.clone()
        self.gradient: Tensor | None = None
        self.whole_gradient: Tensor | None = None  # stage 1 keeps it until the step
        self.arriving = self.leaving = None  # communication under way: (tensors, its handle)
        self.anchor = torch.empty(0, requires_grad=True)  # makes autograd call us back

    def start_gather(self):
        """All-gather of the shards, unless the weights are here or on their way."""
        if self.full is None and self.arriving is None:
            full = self.shard.new_empty(self.shard.numel() * self.ranks)
            self.arriving = full, all_gather_single(full, self.shard, group=self.group, async_op=True)

    def gather(self) -> Tensor:
        self.start_gather()
        if self.arriving is not None:
            self.full, work = self.arriving
            work.wait()
            self.arriving = None
        return self.full

    def forget(self):
        """Keep the shard only (stage 3)."""
        if self.stage == 3:
            if self.arriving is not None:
                self.gather()  # memory that is being written to is not given up
            self.full = None

    def weights(self, flat: Tensor) -> list[tuple[Tensor, list]]:
        """Each parameter as a view of the flat tensor, with those that hold it."""
        *pieces, _ = flat.split([*(shape.numel() for shape in self.shapes), self.pad])
        return [(piece.view(shape), o) for piece, shape, o in zip(pieces, self.shapes, self.owners, strict=True)]

    def install(self, done: Callable[["Unit"], None]):
        """Give the modules their weights, views of `full` whose gradients come back as one flat gradient."""
        for weight, owners in self.weights(_Weights.apply(self.anchor, self, done)):
            for module, attribute, _ in owners:
                setattr(module, attribute, weight)

    def remove(self):
        """Take the weights, or the parameters of the beginning, away from the modules."""
        for module, attribute, _ in (place for owners in self.owners for place in owners):
            module._parameters.pop(attribute, None)
            module.__dict__.pop(attribute, None)

    def receive(self, gradient: Tensor):
        """The gradient of the whole unit on this rank's part of the batch."""
        if self.stage > 1:
            self.start_reduce(gradient)
        elif self.whole_gradient is None:
            self.whole_gradient = gradient
        else:
            self.whole_gradient += gradient

    def start_reduce(self, gradient: Tensor):
        """Reduce-scatter: of the average over the ranks each keeps its shard."""
        self.finish_reduce()
        shard = torch.empty_like(self.shard)
        work = reduce_scatter_single(shard, gradient, group=self.group, async_op=True)
        self.leaving = shard, gradient, work  # the whole gradient lives until it is sent

    def finish_reduce(self):
        if self.leaving is not None:
            shard, _, work = self.leaving
            work.wait()
            shard /= self.ranks  # after the sum: N times fewer numbers
            self.gradient = shard if self.gradient is None else self.gradient + shard
            self.leaving = None

    def settle(self):
        """After this, `gradient` is final."""
        if self.whole_gradient is not None:
            self.start_reduce(self.whole_gradient)
            self.whole_gradient = None
        self.finish_reduce()
