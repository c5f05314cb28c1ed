"""Ranks as threads of this process: real gloo groups, no start of a process, and coverage sees every line.

PyTorch keeps the default group in one module-level object. For its own tests it has a thread-local one; with that in
place each thread calls `init_process_group` as if it were alone. Tests of whole processes use `launch`.
"""

import datetime
import os
import sys
import threading
from collections.abc import Callable
from unittest import mock

import torch
import torch.distributed as dist
from torch.testing._internal.distributed import multi_threaded_pg

from refimpl.parallel.launch import LOOPBACK

SECONDS = 15  # a rank that waits for another one that has failed
one_world_at_a_time = threading.Lock()


def run_ranks(ranks: int, function: Callable, *args, **kwargs) -> list:
    """[function(*args, **kwargs) on rank 0, on rank 1, …]; the first rank's error is raised here."""
    store, results, errors = dist.HashStore(), [None] * ranks, []
    excepthook = sys.excepthook

    def body(rank):
        try:
            torch.set_num_threads(1)
            dist.init_process_group(
                "gloo", rank=rank, world_size=ranks, store=store, timeout=datetime.timedelta(seconds=SECONDS)
            )
            try:
                results[rank] = function(*args, **kwargs)
            finally:
                dist.destroy_process_group()
        except Exception as error:
            errors.append(error)

    with one_world_at_a_time, mock.patch.dict(os.environ, {"GLOO_SOCKET_IFNAME": LOOPBACK}):
        multi_threaded_pg._install_threaded_pg()
        torch._C._distributed_c10d._set_thread_isolation_mode(True)  # every thread names its groups for itself
        try:
            threads = [threading.Thread(target=body, args=(rank,), daemon=True) for rank in range(ranks)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(2 * SECONDS)
        finally:
            torch._C._distributed_c10d._set_thread_isolation_mode(False)
            multi_threaded_pg._uninstall_threaded_pg()
            sys.excepthook = excepthook  # init_process_group puts the rank before every line of it
    if errors:
        raise errors[0]
    if stuck := [rank for rank, thread in enumerate(threads) if thread.is_alive()]:
        raise TimeoutError(f"run_ranks: ranks {stuck} of {ranks} did not return within {2 * SECONDS} s")
    return results


def as_launch(function: Callable, ranks: int = 2, *args, backend: str = "gloo", timeout: float = 60, **kwargs) -> list:
    """`run_ranks` with the arguments of `refimpl.parallel.launch`, for code that is given one or the other."""
    return run_ranks(ranks, function, *args, **kwargs)
