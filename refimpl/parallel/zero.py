"""ZeRO: data parallelism in which no rank keeps what another rank keeps.

    zero = Zero(model, partial(torch.optim.AdamW, lr=1e-3), stage=3, units=model.layers)
    loss(model(my_part)).backward()
    zero.clip_grad_norm(1.0)
    zero.step()

Bytes per rank for Ψ parameters, N ranks, Adam, in mixed precision (bf16 work, fp32 state) and in fp32:

    stage   weights   gradients   state         mixed, N = 4   fp32               sent per step, in weights
    1       2Ψ        2Ψ          12Ψ/N         7Ψ             4Ψ + 4Ψ + 8Ψ/N     2Ψ (N-1)/N
    2       2Ψ        2Ψ/N        12Ψ/N         5.5Ψ           4Ψ + 4Ψ/N + 8Ψ/N   2Ψ (N-1)/N
    3       2Ψ/N      2Ψ/N        12Ψ/N         4Ψ             16Ψ/N              3Ψ (N-1)/N

Parameters are flattened by unit (a layer, say), padded to N equal shards, and rank r owns shard r: only it keeps
optimizer state for it. A unit's gradients are reduce-scattered when its backward pass is through; after the step the
new weights are all-gathered (stages 1, 2), or each unit's are whenever it is at work and forgotten after (stage 3).
Source: Rajbhandari et al. 2020 (ZeRO), sections 5 and 7; Zhao et al. 2023 (FSDP: flat units, prefetch).
"""

from collections.abc import Callable, Iterable
from functools import wraps

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from refimpl.parallel.collectives import all_gather_single
from refimpl.parallel.data import broadcast_weights
from refimpl.parallel.shards import Unit
from refimpl.shapes import Tensor

__all__ = ["Zero"]


class Zero:
    """Trains `model` in place; its parameters live in `units` from here on, and `state_dict` brings them together.

    units      modules that are gathered one at a time, in the order of the forward pass; what belongs to none of them,
               or to several (tied weights), forms a last unit that is gathered for the whole model
    dtype      of weights, gradients and their traffic (bf16, say); master weights and state keep the parameters' dtype
    optimizer  makes an optimizer from a list of flat tensors. It must treat each number alike (Adam, SGD), not norms of
               tensors (LAMB); one setting holds for all
    prefetch   stage 3: the next unit's weights travel while this one computes
    All parameters are trained. Forward and backward pass must run alike on every rank, each unit at most once.
    """

    def __init__(
        self, model: nn.Module, optimizer: Callable[[list[Tensor]], Optimizer], *, stage: int,
        units: Iterable[nn.Module] = (), dtype: torch.dtype | None = None, group: dist.ProcessGroup | None = None,
        prefetch: bool = True,
    ):  # fmt: skip
        if stage not in (1, 2, 3):
            raise ValueError(f"Zero: stage is 1 (state), 2 (and gradients) or 3 (and weights), given {stage}")
        broadcast_weights(model, group)
        self.group, self.stage, self.prefetch = group, stage, prefetch and stage == 3
        homes = _homes(model, list(units))
        self.of_module = {module: Unit(homes[module], stage, dtype, group) for module in homes if homes[module]}
        self.root, self.units = self.of_module.get(model), list(self.of_module.values())
        self.line = [unit for unit in self.units if unit is not self.root]  # they come one after the other
        self.at_work: list[Unit] = []
        self.reducing: Unit | None = None
        for module, unit in self.of_module.items():
            module.forward = self._around(unit, module.forward)
            unit.remove()
        if stage == 3:
            model.forward = self._remembering(model.forward)
        self.optimizer = optimizer([unit.master for unit in self.units])

    def _around(self, unit: Unit, forward: Callable) -> Callable:
        """`forward` of a module, with its unit's weights there while it runs and when its backward pass begins."""

        @wraps(forward)
        def run(*args, **kwargs):
            self._bring(unit, step=1)
            self.at_work.append(unit)
            unit.install(self._after_backward)
            try:
                out = forward(*args, **kwargs)
            finally:
                unit.remove()
                self.at_work.remove(unit)
                unit.forget()
            for tensor in tree_leaves(out):
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(lambda gradient: self._bring(unit, step=-1))
            return out

        return run

    def _bring(self, unit: Unit, step: int):
        """Gather a unit, and ask for the one that comes next in the forward (1) or the backward (-1) direction."""
        unit.gather()
        if self.prefetch:
            at = self.line.index(unit) + step if unit is not self.root else (0 if step == 1 else len(self.line) - 1)
            if 0 <= at < len(self.line):
                self.line[at].start_gather()

    def _remembering(self, forward: Callable) -> Callable:
        """The model's `forward`, whose graph remembers which weights the backward pass needs, not the weights."""

        def forget(tensor: Tensor):
            address = tensor.untyped_storage().data_ptr()
            unit = next((unit for unit in self.at_work if unit.full.data_ptr() == address), None)
            return (unit, tensor.size(), tensor.stride(), tensor.storage_offset()) if unit else tensor

        def recall(kept):
            return kept if isinstance(kept, Tensor) else kept[0].gather().as_strided(*kept[1:])

        @wraps(forward)
        def run(*args, **kwargs):
            with saved_tensors_hooks(forget, recall):
                return forward(*args, **kwargs)

        return run

    def _after_backward(self, unit: Unit):
        """Its weights are no longer needed; one reduce-scatter at a time is on its way behind the next unit's work."""
        unit.forget()
        if self.reducing not in (None, unit):
            self.reducing.finish_reduce()
        self.reducing = unit

    def clip_grad_norm(self, max_norm: float | int) -> Tensor:
        """Scale all gradients so that the norm of the whole is at most max_norm; returns the norm before.

        A rank sees only its shards: their squares are summed here, then over the ranks (one number travels).
        """
        gradients = self._gradients()
        exact = self.units[0].master  # its dtype: squares of bf16 numbers are not summed in bf16
        total = sum((g.to(exact.dtype).square().sum() for g in gradients), exact.new_zeros(()))
        dist.all_reduce(total, group=self.group)
        norm = total.sqrt()
        for gradient in gradients:
            gradient *= (max_norm / (norm + 1e-6)).clamp(max=1)
        return norm

    def _gradients(self) -> list[Tensor]:
        for unit in self.units:
            unit.settle()
        return [unit.gradient for unit in self.units if unit.gradient is not None]

    @torch.no_grad()
    def step(self):
        """Update this rank's shards, bring the others' (stages 1, 2), and forget the gradients."""
        self._gradients()
        for unit in self.units:
            unit.master.grad = None if unit.gradient is None else unit.gradient.to(unit.master.dtype)
        self.optimizer.step()
        self.zero_grad()
        self.spread()

    @torch.no_grad()
    def spread(self):
        """The weights of the work follow the master weights: after a step, and after a checkpoint was read."""
        for unit in self.units:
            unit.forget()  # a prefetched unit that nobody used would be out of date
            if unit.shard is not unit.master:
                unit.shard.copy_(unit.master)
            if self.stage < 3:
                all_gather_single(unit.full, unit.shard, group=self.group)

    def zero_grad(self):
        """Forget the gradients; `step` does it by itself."""
        for unit in self.units:
            unit.finish_reduce()
            unit.gradient = unit.whole_gradient = unit.master.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """Name of each parameter -> the whole of it, in the master's dtype, gathered: every rank calls this."""
        whole = {}
        for unit in self.units:
            flat = unit.master.new_empty(unit.master.numel() * unit.ranks)
            all_gather_single(flat, unit.master, group=self.group)
            for weight, owners in unit.weights(flat):
                whole |= {name: weight.clone() for _, _, name in owners}
        return whole

    def state_bytes(self) -> dict[str, int]:
        """Bytes that this rank holds now, measured: {"weights", "gradients", "optimizer"}."""
        held = {"weights": 0, "gradients": 0, "optimizer": 0}
        for unit in self.units:
            held["weights"] += unit.shard.nbytes if unit.full is None else unit.full.nbytes
            leaving = unit.leaving and unit.leaving[0]
            held["gradients"] += sum(g.nbytes for g in (unit.gradient, unit.whole_gradient, leaving) if g is not None)
            state = [x for x in self.optimizer.state[unit.master].values() if getattr(x, "ndim", 0)]  # not the count
            held["optimizer"] += sum(x.nbytes for x in state)
            held["optimizer"] += 0 if unit.master is unit.shard else unit.master.nbytes
        return held


def _homes(model: nn.Module, units: list[nn.Module]) -> dict[nn.Module, dict[nn.Parameter, list]]:
    """module -> {parameter: the (module, attribute, name) that hold it}, for the model (what is left) and each unit."""
    unit_of = {module: unit for unit in units for module in unit.modules()}
    if len(unit_of) != sum(len(list(unit.modules())) for unit in units):
        raise ValueError("Zero: two units share a module; units lie side by side, not inside each other")
    owners: dict[nn.Parameter, list] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{path}.{attribute}" if path else attribute
            owners.setdefault(parameter, []).append((module, attribute, name))
            if not parameter.requires_grad:
                raise ValueError(
                    f"Zero: {name} is frozen, but shards are trained as a whole; leave it out of the model"
                )
    homes: dict[nn.Module, dict[nn.Parameter, list]] = {model: {}, **{unit: {} for unit in units}}
    for parameter, places in owners.items():
        found = {unit_of.get(module, model) for module, _, _ in places}
        homes[found.pop() if len(found) == 1 else model][parameter] = places
    return homes
