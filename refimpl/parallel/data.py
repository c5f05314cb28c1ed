"""Data parallelism: each rank has the whole model and its own part of the batch; gradients are averaged between them.

    model = …                                   # built alike on each rank; rank 0's weights win
    data = DataParallel(model)
    loss(model(my_part)).backward()             # full buckets travel while the backward pass goes on
    data.finish()                               # now each .grad is the average over the ranks
    optimizer.step()

With equal parts the average of the ranks' mean gradients is the gradient of the whole batch's mean, so all weights stay
equal to those of one process. Bytes sent per rank and step: 2 Ψ (N-1)/N times the gradient's itemsize, Ψ parameters on
N ranks. Memory per rank: everything, and one more copy of the gradients as buckets.
Source: Li et al. 2020 (PyTorch Distributed: bucketing, overlap).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn

from refimpl.shapes import Tensor

__all__ = ["Bucket", "DataParallel", "broadcast_weights", "fill_buckets"]


def broadcast_weights(model: nn.Module, group: dist.ProcessGroup | None = None):
    """Parameters and buffers of the group's rank 0 on every rank. Sent: their bytes, once."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor, group_src=0, group=group)


class Bucket:
    """Gradients that travel together: one buffer, of which each parameter's .grad becomes a view."""

    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters = parameters
        self.buffer = parameters[0].new_zeros(sum(p.numel() for p in parameters))
        parts = self.buffer.split([p.numel() for p in parameters])
        self.views = {p: part.view(p.shape) for p, part in zip(parameters, parts, strict=True)}
        self.missing, self.work = set(parameters), None

    def collect(self, parameter: nn.Parameter):
        """Move the gradient into the buffer, where it is not there yet; none counts as zero."""
        view = self.views[parameter]
        if parameter.grad is None:
            view.zero_()
        elif parameter.grad.data_ptr() != view.data_ptr():
            view.copy_(parameter.grad)
        parameter.grad = view
        self.missing.discard(parameter)

    def start(self, group: dist.ProcessGroup | None):
        """Begin to average over the ranks."""
        self.buffer /= dist.get_world_size(group)  # before the sum: it cannot overflow where the average does not
        self.work = dist.all_reduce(self.buffer, group=group, async_op=True)

    def wait(self):
        self.work.wait()
        self.missing, self.work = set(self.parameters), None


def fill_buckets(parameters: Iterable[nn.Parameter], bucket_bytes: int) -> list[Bucket]:
    """Buckets of at most `bucket_bytes` (or one parameter), one dtype each, last parameters first.

    The backward pass reaches the last layers first: their bucket is full, and leaves, while it still works.
    """
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for parameter in reversed([p for p in parameters if p.requires_grad]):
        fits = buckets and buckets[-1][0].dtype == parameter.dtype and size + parameter.nbytes <= bucket_bytes
        if fits:
            buckets[-1].append(parameter)
        else:
            buckets.append([parameter])
        size = (size if fits else 0) + parameter.nbytes
    return [Bucket(each) for each in buckets]


class DataParallel:
    """Hooks on the parameters of `model` average its gradients, bucket by bucket, as the backward pass makes them.

    A parameter that got no gradient on this rank counts as zero. Gradients may be accumulated: inside `no_sync`
    backward passes stay local, and the next one outside sends the sum. Buckets start in one order on every rank, also
    where gradients come in another.
    """

    def __init__(self, model: nn.Module, *, group: dist.ProcessGroup | None = None, bucket_bytes: int = 25 * 2**20):
        broadcast_weights(model, group)
        self.group, self.local = group, False
        self.buckets = fill_buckets(model.parameters(), bucket_bytes)
        self.started = 0  # buckets before this one are on their way
        self.home = {parameter: bucket for bucket in self.buckets for parameter in bucket.parameters}
        for parameter in self.home:
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def _arrived(self, parameter: nn.Parameter):
        if self.local:
            return
        self.home[parameter].collect(parameter)
        self._start_full()

    def _start_full(self):
        while self.started < len(self.buckets) and not self.buckets[self.started].missing:
            self.buckets[self.started].start(self.group)
            self.started += 1

    def finish(self):
        """Wait until every gradient is the average; call it between the backward pass and what reads gradients."""
        for bucket in self.buckets:
            for parameter in tuple(bucket.missing):
                bucket.collect(parameter)
        self._start_full()
        for bucket in self.buckets:
            bucket.wait()
        self.started = 0

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Gradients of backward passes inside are added up on this rank alone."""
        self.local = True
        try:
            yield
        finally:
            self.local = False


def shard_batch(batch: Tensor, rank: int, ranks: int) -> Tensor:
    """The rows of rank `rank`; equal parts, because the average of averages is the average only then."""
    if len(batch) % ranks:
        raise ValueError(f"shard_batch: {len(batch)} rows do not divide among {ranks} ranks; drop or pad some")
    return batch.chunk(ranks)[rank]
