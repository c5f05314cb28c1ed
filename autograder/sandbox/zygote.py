"""Import the heavy libraries once, then fork one runner per session, each shut in by the same tier.

    python -I …/sandbox/zygote.py FD TIER [module …]
    python -I …/sandbox/zygote.py --probe TIER

FD is a SOCK_SEQPACKET socket to the judge, served by `spawner`. The zygote executes no student code and
holds no secret. A probe starts and ends one empty session in TIER and prints what it met with.
"""

import contextlib
import ctypes
import gc
import importlib
import importlib.util
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
M_MMAP_THRESHOLD = -3
PROBE_BYTES = 1 << 30


def load_sandbox() -> None:
    """Make this folder importable as the package `sandbox`, without putting any folder on sys.path."""
    spec = importlib.util.spec_from_file_location(
        "sandbox", HERE / "__init__.py", submodule_search_locations=[str(HERE)]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["sandbox"] = package
    spec.loader.exec_module(package)


def leave_course() -> None:
    """An editable install puts the repository on sys.path; the sandbox takes it off."""
    sys.path[:] = [entry for entry in sys.path if not (Path(entry) / "refimpl").is_dir()]


def preload(modules: list[str]) -> bool:
    """Import what graded cells use, single-threaded: an OpenMP pool would not survive the fork. -> is there a GPU?"""
    import torch

    torch.set_num_threads(1)
    torch.ones(2, 2) @ torch.ones(2, 2)
    gpu = torch.cuda.is_available()
    if not gpu:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported for the first time
    for name in modules:
        with contextlib.suppress(ImportError):  # a cell that needs it will say so itself
            importlib.import_module(name)
    importlib.import_module("sandbox.runner").warm_up()
    importlib.import_module("sandbox.stub")
    gc.collect()
    gc.freeze()  # a collection in a runner would copy every page of what is imported here
    return gpu


def serve_cells(oracle: int) -> None:
    """In a runner that is shut in: execute cells and answer calls."""
    if sys.platform == "linux":
        # Give large blocks back to the system on free, so that a peak seen from outside is the answer's own.
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    from sandbox import runner, stub  # type: ignore[import-not-found]

    stub.install()
    runner.serve(socket.socket(fileno=oracle), runner.fresh_namespace())


def main(argv: list[str]) -> None:
    load_sandbox()
    leave_course()
    if argv[0] == "--probe":
        print(json.dumps(probe(argv[1])))
        return
    from sandbox import spawner

    with socket.socket(fileno=int(argv[0])) as control:
        try:
            fence = ready_fence(argv[1], lambda: preload(argv[2:]))
        except (OSError, ImportError, RuntimeError) as problem:  # RuntimeError: pyseccomp without its library
            control.send(json.dumps({"error": f"{type(problem).__name__}: {problem}"}).encode())
            return
        control.send(b'{"ready": true}')
        spawner.Spawner(control, fence, serve_cells).serve()


def ready_fence(tier: str, load: Callable[[], bool]) -> Any:
    """The tier's fence with all that can be made before the first session; `load` imports and tells of a GPU."""
    from sandbox import confine, system

    fence = confine.fence(tier)
    fence.enter()
    if sys.platform == "linux":
        system.prctl(system.PR_SET_CHILD_SUBREAPER, 1)
    fence.prepare(gpu=load())
    return fence


def wait_for_hangup(oracle: int) -> None:
    os.read(oracle, 1)


def probe(tier: str) -> dict:
    """Start and end one empty session in `tier`; {"error"} says which step this machine does not give."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        fence = ready_fence(tier, lambda: False)
    except (OSError, ImportError, RuntimeError) as problem:
        return {"error": f"{type(problem).__name__}: {problem}"}
    from sandbox import spawner
    from sandbox.confine import Order

    sessions = spawner.Spawner(theirs, fence, wait_for_hangup)
    oracle, runners_end = socket.socketpair()
    made = sessions.spawn(Order(PROBE_BYTES, 1 << 20), runners_end.detach())
    sessions.close()
    oracle.close()
    ours.close()
    return {**made, "limits": fence.describe()}


if __name__ == "__main__":
    main(sys.argv[1:])
