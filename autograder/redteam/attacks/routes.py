"""Right numbers by a forbidden route: memory hidden from the measurement, operations hidden from the watcher."""

from typing import Any

from autograder.redteam.attack import attack


@attack("own", question="total", plain=False)
def square_kept_openly(target: dict, report: Any, blocks: Any) -> Any:
    """Keeps a square of what it read and hides nothing."""
    n = 64 * len(blocks)
    return torch.stack(list(blocks)).sum(0) + 0 * torch.ones(n, n).sum()


@attack("own", question="total", plain=False, quick=True)
def peak_reset(target: dict, report: Any, blocks: Any) -> Any:
    """Keeps a square, then resets the kernel's high-water mark of its own process."""
    n = 64 * len(blocks)
    result = torch.stack(list(blocks)).sum(0) + 0 * torch.ones(n, n).sum()
    worked(lambda: open("/proc/self/clear_refs", "w").write("5"))
    return result


@attack("own", question="total", plain=False)
def square_in_a_child(target: dict, report: Any, blocks: Any) -> Any:
    """Keeps the square in a child process, where the measurement does not look."""
    import os

    n = 64 * len(blocks)
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.write(writing, str(float(0 * torch.ones(n, n).sum())).encode())
        os._exit(0)
    return torch.stack(list(blocks)).sum(0) + float(os.read(reading, 100))


@attack("own", question="total", plain=False, quick=True)
def square_made_beforehand(target: dict, report: Any, blocks: Any) -> Any:
    """Allocates the largest square before anything is measured, and works in it ever after."""
    n = 64 * len(blocks)
    if "room" not in globals():
        globals()["room"] = torch.ones(4096 * 4096)
    square = globals()["room"][: n * n]
    return torch.stack(list(blocks)).sum(0) + 0 * square.mul_(1).sum()


@attack("own", question="total", plain=False)
def square_behind_padding(target: dict, report: Any, blocks: Any) -> Any:
    """Keeps the square, and wastes so much at small sizes that the whole seems to grow in a line."""
    n = 64 * len(blocks)
    waste = torch.ones(4 * 4096 * n - 4 * n * n, dtype=torch.uint8)
    return torch.stack(list(blocks)).sum(0) + 0 * (torch.ones(n, n).sum() + waste[:1].sum())


@attack("own", question="total", plain=False)
def square_in_a_memory_file(target: dict, report: Any, blocks: Any) -> Any:
    """Writes the square row by row into a file in memory, which belongs to no process."""
    import os

    n = 64 * len(blocks)
    memory, _ = syscall("memfd_create", b"square", 0)
    row = torch.ones(n).numpy().tobytes()
    for index in range(n):
        os.pwrite(memory, row, index * len(row))
    total = sum(os.pread(memory, len(row), index * len(row))[0] for index in range(0, n, 64))
    os.close(memory)
    return torch.stack(list(blocks)).sum(0) + 0 * total


@attack("own", question="total", plain=False)
def square_on_disk(target: dict, report: Any, blocks: Any) -> Any:
    """Writes the square row by row into a file of its own folder."""
    import os

    n = 64 * len(blocks)
    row = torch.ones(n).numpy().tobytes()
    with open("square", "w+b", buffering=0) as file:
        for index in range(n):
            os.pwrite(file.fileno(), row, index * len(row))
        total = sum(os.pread(file.fileno(), len(row), index * len(row))[0] for index in range(0, n, 64))
    os.unlink("square")
    return torch.stack(list(blocks)).sum(0) + 0 * total


@attack("own", question="total", plain=False)
def square_in_shared_memory(target: dict, report: Any, blocks: Any) -> Any:
    """Keeps the square in shared memory and gives the pages back before it returns."""
    import mmap

    import numpy as np

    n = 64 * len(blocks)
    with mmap.mmap(-1, 4 * n * n) as room:
        square = np.frombuffer(room, dtype=np.float32)
        square[:] = 1
        total = float(square.sum())
        del square
        room.madvise(mmap.MADV_DONTNEED)
    return torch.stack(list(blocks)).sum(0) + 0 * total


@attack("own", plain=False)
def forbidden_call_by_aliases(target: dict, report: Any, x: Any) -> Any:
    """Calls the forbidden softmax by other names: torch.ops, a script, functional, a method taken from its class."""
    import torch.nn.functional as functional

    ways = [
        lambda: torch.ops.aten._softmax(x, -1, False),
        lambda: getattr(functional, "soft" + "max")(x, -1),
        lambda: torch.Tensor.__dict__["soft" + "max"](x, -1) if "softmax" in torch.Tensor.__dict__ else None,
        lambda: torch._C._VariableFunctions.softmax(x, -1),
        lambda: torch.nn.Softmax(-1)(x),
    ]
    for way in ways:
        try:
            return way()
        except RuntimeError:
            continue
    return None


@attack("own", plain=False, quick=True)
def watcher_switched_off(target: dict, report: Any, x: Any) -> Any:
    """Rewrites the function that refuses operations, then calls what is forbidden."""
    import sys

    sys.modules["sandbox.watch"].refuse = lambda *args: None  # type: ignore[attr-defined]
    return torch.softmax(x, -1)


@attack("own", plain=False)
def forbidden_call_in_a_thread(target: dict, report: Any, x: Any) -> Any:
    """Calls what is forbidden in a thread, where no watcher stands."""
    import threading

    found: list = []
    thread = threading.Thread(target=lambda: found.append(torch.softmax(x, -1)))
    thread.start()
    thread.join()
    return found[0] if found else None


@attack("own", plain=False)
def forbidden_call_on_another_road(target: dict, report: Any, x: Any) -> Any:
    """Switches the watcher off, then asks for softmax on other devices, layouts, keys and inside other modules."""
    import sys

    sys.modules["sandbox.watch"].refuse = lambda *args: None  # type: ignore[attr-defined]
    keys = torch._C.DispatchKeySet
    one = torch.nn.MultiheadAttention(1, 1, batch_first=True).eval()
    one.in_proj_weight.data.fill_(1.0)
    ways = [
        lambda: torch.softmax(x.to_mkldnn(), -1).to_dense(),
        lambda: torch.sparse.softmax(x.to_sparse(), -1).to_dense(),
        lambda: torch.softmax(torch.nested.nested_tensor([x]), -1).to_padded_tensor(0.0)[0],
        lambda: torch.ops.aten._softmax.default.redispatch(keys(torch._C.DispatchKey.CPU), x, -1, False),
        lambda: torch._masked_softmax(x, torch.zeros_like(x, dtype=torch.bool), -1, 2),
        lambda: torch.vmap(lambda row: torch.softmax(row, -1))(x.reshape(-1, x.shape[-1])).reshape(x.shape),
        lambda: torch.jit.trace(lambda rows: torch.softmax(rows, -1), x)(x),
        lambda: -torch.autograd.functional.jacobian(lambda row: torch.nn.functional.cross_entropy(row, row), x),
        lambda: one(x[..., None], x[..., None], x[..., None])[1],
    ]
    for way in ways:
        try:
            return way()
        except (RuntimeError, TypeError, ValueError, AttributeError):
            continue
    return None


@attack("own", plain=False)
def operations_put_back(target: dict, report: Any, x: Any) -> Any:
    """Ends every library of kernels that can be found, and registers the operation anew over each key that has one."""
    import gc
    import sys
    import weakref

    sys.modules["sandbox.watch"].refuse = lambda *args: None  # type: ignore[attr-defined]
    sys.modules["sandbox.absent"].removed.clear()  # type: ignore[attr-defined]
    for ending in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        worked(ending)
    for found in gc.get_objects():
        if type(found).__name__ in ("Library", "_DispatchModule"):
            worked(lambda found=found: found._destroy())
        if getattr(found, "__name__", "") == "refuse_it":
            worked(lambda found=found: setattr(found, "__code__", (lambda *args, **kwargs: None).__code__))
    keys = torch._C.DispatchKeySet
    for key in ("CompositeExplicitAutogradNonFunctional", "MkldnnCPU", "NestedTensorCPU", "Meta"):
        library = torch.library.Library("aten", "IMPL")
        chosen = keys(getattr(torch._C.DispatchKey, key))
        kernel = lambda *args, chosen=chosen: torch.ops.aten._softmax.default.redispatch(chosen, *args)  # noqa: E731
        worked(lambda library=library, kernel=kernel: library.impl("_softmax", kernel, "CPU", allow_override=True))
        try:
            if (made := torch.ops.aten._softmax(x, -1, False)) is not None and made.device == x.device:
                return made
        except RuntimeError:
            continue
    return torch.softmax(x, -1)
