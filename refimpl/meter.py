"""Counters that watch PyTorch work: every matmul with its FLOPs and bytes, the largest tensor, what is alive at once.

Formulas in `cost_model` say what a transformer must cost; these say what one did cost. Tests hold the two equal.
Counts depend on shapes alone, so they are the same on every machine and in every run.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from refimpl.shapes import Tensor

__all__ = ["Matmul", "Memory", "Meter", "Saved", "saved_for_backward"]

aten = torch.ops.aten
# where the two factors stand among an operation's arguments
FACTORS = {aten.mm: (0, 1), aten.bmm: (0, 1), aten.addmm: (1, 2), aten.baddbmm: (1, 2)}


class Matmul(NamedTuple):
    """`batch` products of (rows, inner) by (inner, cols)."""

    batch: int
    rows: int
    inner: int
    cols: int
    itemsize: int  # bytes per element

    @property
    def flops(self) -> int:
        """A multiplication and an addition for each of batch * rows * inner * cols."""
        return 2 * self.batch * self.rows * self.inner * self.cols

    @property
    def bytes(self) -> int:
        """Both factors read once, the product written once."""
        elements = self.rows * self.inner + self.inner * self.cols + self.rows * self.cols
        return self.batch * elements * self.itemsize


class Memory(TorchDispatchMode):
    """Within `with Memory() as memory:` every tensor that is made is seen, forward and backward, until it is freed.

    memory.largest_shape  shape of the largest tensor that was made; memory.largest_bytes its bytes
    memory.alive_bytes    bytes alive now, of tensors made inside; memory.peak_bytes the most there were at once
    """

    def __init__(self):
        super().__init__()
        self.largest_shape: tuple[int, ...] = ()
        self.largest_bytes = self.peak_bytes = self.alive_bytes = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        inputs = {_key(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and _key(tensor) not in inputs:  # a view is not a new tensor
                self._made(tensor)
        return out

    def _made(self, tensor: Tensor):
        storage = tensor.untyped_storage()
        if storage.nbytes() > self.largest_bytes:
            self.largest_bytes, self.largest_shape = storage.nbytes(), tuple(tensor.shape)
        if (key := _key(tensor)) not in self._alive:
            self._alive.add(key)
            self.alive_bytes += storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, self.alive_bytes)
            weakref.finalize(storage, self._freed, key, storage.nbytes())

    def _freed(self, key: int, nbytes: int):
        self._alive.discard(key)
        self.alive_bytes -= nbytes


class Meter(Memory):
    """Memory, and every matmul: within `with Meter() as meter:` every operation is seen, forward and backward.

    meter.matmuls  each matmul in the order of execution; `len` is how many
    meter.flops    of all of them
    A fused attention kernel hides its matmuls in one operation, so it is refused rather than counted as nothing.
    """

    def __init__(self):
        super().__init__()
        self.matmuls: list[Matmul] = []

    @property
    def flops(self) -> int:
        return sum(matmul.flops for matmul in self.matmuls)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet = func.overloadpacket
        if "scaled_dot_product" in str(packet):
            raise ValueError(f"Meter: {packet} does its matmuls inside one kernel; count with naive_attention instead")
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if packet in FACTORS:
            self.matmuls.append(_matmul(*(args[i] for i in FACTORS[packet])))
        return out


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _matmul(a: Tensor, b: Tensor) -> Matmul:
    batch = a.shape[0] if a.ndim == 3 else 1
    return Matmul(batch, a.shape[-2], a.shape[-1], b.shape[-1], a.element_size())


@dataclass
class Saved:
    """What autograd keeps for the backward pass: shapes and bytes, each memory once."""

    shapes: list[tuple[int, ...]]
    bytes: int

    @property
    def elements(self) -> int:
        return sum(torch.Size(shape).numel() for shape in self.shapes)


@contextmanager
def saved_for_backward(*not_counted: Tensor) -> Iterator[Saved]:
    """Within the `with`, collect the tensors that operations save for their gradients.

    Parameters are there anyway: pass them (and inputs that are yours) as `not_counted`.
    """
    saved, seen = Saved([], 0), {_key(tensor) for tensor in not_counted}
    keep = []  # while we hold them no memory is freed and given out again under an old key

    def pack(tensor):
        if _key(tensor) not in seen:
            seen.add(_key(tensor))
            keep.append(tensor)
            saved.shapes.append(tuple(tensor.shape))
            saved.bytes += tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
