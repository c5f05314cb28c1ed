"""A multi-rank program in one process: a thread per rank, and one hub between them.

For the student's own notebook and for the oracle. Threads, because a rank of the notebook needs the notebook's own
functions: a new process would have to run its cells again, and a fork of a process with torch's thread pool hangs. The
judge gives each rank a process of its own (judge/remote.py); both count by the same hub.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from autograder.hub import Hub, HubError, Tensors
from autograder.sandbox.relay import RelayError, joined

_one_program = threading.Lock()  # torch.distributed's idea of the world is swapped while one runs


class DirectLine:
    """Reaches the hub from a thread of the same process; what is posted is a copy."""

    def __init__(self, hub: Hub, rank: int) -> None:
        self.hub, self.rank = hub, rank

    def post(self, number: int, operation: dict, tensors: Tensors) -> None:
        self.hub.post(self.rank, number, operation, [tensor.clone() for tensor in tensors])

    def wait(self, number: int) -> Tensors:
        try:
            return self.hub.wait(self.rank, number)
        except HubError as problem:
            raise RelayError(str(problem)) from None


class Ranks:
    """The threads of one run: what each returned, or raised."""

    def __init__(self, world: int, program: Callable[[int], Any]) -> None:
        self.hub, self.program = Hub(world), program
        self.values: dict[int, Any] = {}
        self.errors: dict[int, BaseException] = {}

    def be(self, rank: int) -> None:
        """The body of one thread."""
        how = "has finished"
        try:
            # A backward pass that communicates stays in the thread that knows its rank.
            with (
                torch.autograd.set_multithreading_enabled(False),
                joined(DirectLine(self.hub, rank), rank, self.hub.world),
            ):
                self.values[rank] = self.program(rank)
        except BaseException as error:
            self.errors[rank], how = error, f"ended with {type(error).__name__}"
        self.hub.end(rank, how)

    def run(self) -> list[Any]:
        """Start every rank and wait; the first error that is not another rank's consequence is raised."""
        threads = [
            threading.Thread(target=self.be, args=(rank,), daemon=True, name=f"rank {rank}")
            for rank in range(self.hub.world)
        ]
        with _one_program, a_world_per_thread():
            for thread in threads:
                thread.start()
            try:
                for thread in threads:
                    while thread.is_alive():
                        thread.join(0.2)
            except BaseException:  # Ctrl-C, or a deadline
                self.hub.stop("stopped: the program was interrupted")
                raise
        for error in sorted(self.errors.values(), key=lambda error: isinstance(error, RelayError)):
            raise error
        return [self.values[rank] for rank in range(self.hub.world)]


@contextlib.contextmanager
def a_world_per_thread() -> Iterator[None]:
    """torch.distributed with a rank, a default group and subgroups of its own in every thread."""
    from torch._C._distributed_c10d import _set_thread_isolation_mode  # type: ignore[attr-defined]
    from torch.distributed import distributed_c10d
    from torch.testing._internal.distributed.multi_threaded_pg import ThreadLocalWorld

    before = distributed_c10d._world
    distributed_c10d._world = ThreadLocalWorld()  # type: ignore[assignment]
    _set_thread_isolation_mode(True)
    try:
        yield
    finally:
        _set_thread_isolation_mode(False)
        distributed_c10d._world = before
