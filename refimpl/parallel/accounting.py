"""What one rank communicates and keeps: collectives, bytes of payload sent, the most memory at once.

    with Account() as account:
        step()
    account.sent      {"all_reduce": 1024, …}: bytes that this rank sends, by the standard cost below
    account.calls     {"all_reduce": 3, …}
    account.total     sum of sent
    account.peak_bytes, account.alive_bytes, account.largest_bytes: of tensors made inside, as in `refimpl.meter`

Counted is the payload of the best-known algorithm, a ring where there is one, not what a backend puts on the wire:
gloo's reduce-scatter sends as much as an all-reduce, and only the network interface's counter shows it.
With N ranks and n bytes handed in, a rank sends

    all_reduce       2 n (N-1)/N    reduce-scatter, then all-gather
    reduce_scatter   n (N-1)/N      all but its own part
    all_gather       n (N-1)        n is one rank's part; of the gathered N n that is (N-1)/N
    all_to_all       n - own part   (N-1)/N of n where parts are even
    broadcast        n at the root, 0 elsewhere: a pipeline passes on what it receives, and that is not counted here
    reduce           0 at the root, n elsewhere        gather   the same
    scatter          n - own part at the root          send     n

Where N does not divide, the ring's parts differ by one element and the ranks' bytes by a few: exact integers, whose sum
over the ranks is the formula's.
Source: Patarasuk and Yuan 2009 (ring all-reduce); Rajbhandari et al. 2020, section 7.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import torch.distributed as dist

from refimpl.meter import Memory
from refimpl.shapes import Tensor

__all__ = ["Account", "ring_parts"]


class Account(Memory):
    """Sees every operation of `torch.distributed` below Python's functions, so DTensor's and FSDP's as well.

    It is a dispatch mode: PyTorch hands it each operation of the thread that entered it, and autograd those of the
    backward pass, on whichever thread that runs. Groups that are written in Python (a test's relay) are not seen.
    """

    def __init__(self):
        super().__init__()
        self.sent: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.sent.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional"):
            self._count(func.overloadpacket.__name__, args)
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _count(self, operation: str, args: Sequence):
        if operation in COSTS:
            name, cost = COSTS[operation]
            self.calls[name] += 1
            if sent := cost(args):
                self.sent[name] += sent
        elif operation not in FREE:
            raise NotImplementedError(f"Account: no cost is known for {operation}; add it to COSTS in {__name__}")


def ring_parts(elements: int, ranks: int) -> list[int]:
    """Elements of each rank's part in a ring: as even as they come, the longer parts first."""
    size, longer = divmod(elements, ranks)
    return [size + (rank < longer) for rank in range(ranks)]


def all_reduce_bytes(n: int, itemsize: int, rank: int, ranks: int) -> int:
    """All parts but its own on the way to the sums, then all but its right neighbour's on the way back."""
    parts = ring_parts(n, ranks)
    return (2 * n - parts[rank] - parts[(rank + 1) % ranks]) * itemsize


def _group(args: Sequence) -> dist.ProcessGroup:
    """The process group among an operation's arguments, boxed (c10d) or by its name, always last (functional)."""
    for argument in args:
        if "ProcessGroup" in str(getattr(argument, "_type", lambda: "")()):
            return dist.ProcessGroup.unbox(argument)
    return dist.distributed_c10d._resolve_process_group(args[-1])


def _tensors(value: Tensor | Sequence) -> list[Tensor]:
    """One tensor, or a list of them, or a list of lists."""
    return [value] if isinstance(value, Tensor) else [tensor for item in value for tensor in _tensors(item)]


def _bytes(value: Tensor | Sequence) -> int:
    return sum(tensor.nbytes for tensor in _tensors(value))


def _all_reduce(args: Sequence) -> int:
    group = _group(args)
    tensors = _tensors(args[0])
    return sum(all_reduce_bytes(x.numel(), x.element_size(), group.rank(), group.size()) for x in tensors)


def _all_gather(given: int) -> Callable[[Sequence], int]:
    return lambda args: _bytes(args[given]) * (_group(args).size() - 1)


def _reduce_scatter(given: int) -> Callable[[Sequence], int]:
    def cost(args):
        size = _group(args).size()
        return _bytes(args[given]) // size * (size - 1)

    return cost


def _all_to_all_list(args: Sequence) -> int:
    """Outputs, inputs."""
    return _bytes(args[1]) - args[1][_group(args).rank()].nbytes


def _all_to_all_single(given: int, splits: int) -> Callable[[Sequence], int]:
    """Parts are rows of the tensor; no splits: equal parts."""

    def cost(args):
        x, group = args[given], _group(args)
        rows = args[splits] or [x.shape[0] // group.size()] * group.size()
        return x.nbytes // max(x.shape[0], 1) * (x.shape[0] - rows[group.rank()])

    return cost


def _rooted(root: int, *, at_root: Callable[[Sequence], int], elsewhere: Callable[[Sequence], int]):
    """The root's number stands at `root`: a rank of the group."""
    return lambda args: (at_root if args[root] == _group(args).rank() else elsewhere)(args)


def _nothing(args: Sequence) -> int:
    return 0


def _payload(args: Sequence) -> int:
    return _bytes(args[0])


def _scattered(args: Sequence) -> int:
    return _bytes(args[1]) - args[1][0][_group(args).rank()].nbytes


# operation of PyTorch -> (name here, cost of its arguments); the numbers are places among the arguments
COSTS: dict[str, tuple[str, Callable[[Sequence], int]]] = {
    "allreduce_": ("all_reduce", _all_reduce),
    "allreduce_coalesced_": ("all_reduce", _all_reduce),
    "all_reduce": ("all_reduce", _all_reduce),
    "all_reduce_": ("all_reduce", _all_reduce),
    "all_reduce_coalesced": ("all_reduce", _all_reduce),
    "allgather_": ("all_gather", _all_gather(1)),
    "_allgather_base_": ("all_gather", _all_gather(1)),
    "allgather_coalesced_": ("all_gather", _all_gather(1)),
    "allgather_into_tensor_coalesced_": ("all_gather", _all_gather(1)),
    "all_gather_into_tensor": ("all_gather", _all_gather(0)),
    "all_gather_into_tensor_out": ("all_gather", _all_gather(0)),
    "all_gather_into_tensor_coalesced": ("all_gather", _all_gather(0)),
    "reduce_scatter_": ("reduce_scatter", _reduce_scatter(1)),
    "_reduce_scatter_base_": ("reduce_scatter", _reduce_scatter(1)),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", _reduce_scatter(1)),
    "reduce_scatter_tensor": ("reduce_scatter", _reduce_scatter(0)),
    "reduce_scatter_tensor_coalesced": ("reduce_scatter", _reduce_scatter(0)),
    "alltoall_": ("all_to_all", _all_to_all_list),
    "alltoall_base_": ("all_to_all", _all_to_all_single(1, 4)),
    "all_to_all_single": ("all_to_all", _all_to_all_single(0, 2)),
    "broadcast_": ("broadcast", _rooted(2, at_root=_payload, elsewhere=_nothing)),
    "broadcast": ("broadcast", _rooted(1, at_root=_payload, elsewhere=_nothing)),
    "reduce_": ("reduce", _rooted(3, at_root=_nothing, elsewhere=_payload)),
    "gather_": ("gather", _rooted(3, at_root=_nothing, elsewhere=lambda args: _bytes(args[1]))),
    "scatter_": ("scatter", _rooted(3, at_root=_scattered, elsewhere=_nothing)),
    "send": ("send", _payload),
}
FREE = {"recv_", "recv_any_source_", "barrier", "monitored_barrier_", "wait_tensor", "_wrap_tensor_autograd"}
