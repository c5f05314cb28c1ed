"""The far side of `launch`, run as a script: the agent of a node (torchrun), and each of the ranks that it starts.

    python _runner.py agent FOLDER NODE [torchrun's options]      one per node; starts the ranks and watches them
    python _runner.py rank FOLDER                                 one per rank, from torchrun, which sets RANK and so on

Everything goes through files in FOLDER: settings.json and payload.pkl come in; rank<r>.{out,err,pid,ready,stack} tell
what the rank does; it ends with rank<r>.result.pt (data, no pickled objects) or rank<r>.error.json.
"""

import faulthandler
import json
import os
import signal
import sys
import threading
import traceback
from datetime import timedelta
from pathlib import Path

DATA = "tensors, numbers, strings, None, and lists, tuples, sets and dicts of them"


def main(role: str, folder: str, *arguments: str):
    settings = json.loads((Path(folder) / "settings.json").read_text())
    sys.path[:] = settings["path"]  # what the caller can import; not this script's own folder
    if settings["watched"]:
        threading.Thread(target=end_with_the_caller, args=(folder,), daemon=True).start()
    if role == "agent":
        agent(Path(folder), *arguments)
    else:
        rank(Path(folder), settings)


def end_with_the_caller(folder: str):
    """The caller holds a lock for as long as it lives and wants us: the system gives it to us when it is gone."""
    import fcntl

    with Path(folder, "alive").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        alone = os.getpgrp() == os.getpid()  # torchrun gives each rank a session; what it started goes with it
        (os.killpg if alone else os.kill)(os.getpid(), signal.SIGKILL)


def agent(folder: Path, node: str, *options: str):
    """torchrun, and afterwards a note of which ranks died of what: {rank: exit code}, minus the signal's number."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.main([*options, __file__, "rank", str(folder)])
    except ChildFailedError as error:
        codes = {str(rank): failure.exitcode for rank, failure in error.failures.items()}
        _write(folder / f"agent{node}.json", json.dumps(codes))
        raise SystemExit(1) from None


def rank(folder: Path, settings: dict):
    """Join the others, call fn, leave its result."""
    mine = str(folder / f"rank{os.environ['RANK']}.")
    _own_files(mine)
    try:
        _work(mine, folder, settings)
    except BaseException as error:
        traceback.print_exception(error)
        _write(Path(mine + "error.json"), json.dumps(describe(error)))
        _leave(1)
    _leave(0)


def _own_files(mine: str):
    """Output and errors into files, and the Python stack into one on SIGUSR1 or a crash: before torch is imported."""
    for descriptor, kind in ((1, "out"), (2, "err")):
        with Path(mine + kind).open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    stack = os.open(mine + "stack", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    faulthandler.enable(file=stack, all_threads=False)
    faulthandler.register(signal.SIGUSR1, file=stack, all_threads=False)
    _write(Path(mine + "pid"), str(os.getpid()))


def _work(mine: str, folder: Path, settings: dict):
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    backend, local = settings["backend"], int(os.environ["LOCAL_RANK"])
    if backend == "auto":
        backend = "nccl" if torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]) else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(local)
    # Longer than the caller waits: a deadlock is told by its stacks, not by the first group that gives up.
    patience = timedelta(seconds=settings["timeout"] + 60)
    store, me, world = next(rendezvous("env://", timeout=patience))
    dist.init_process_group(backend, store=store, rank=me, world_size=world, timeout=patience)

    import cloudpickle

    fn, args, kwargs = cloudpickle.loads((folder / "payload.pkl").read_bytes())
    _write(Path(mine + "ready"), "")
    result = plain(fn(*args, **kwargs))
    torch.save(result, mine + "result.tmp")
    Path(mine + "result.tmp").rename(mine + "result.pt")
    store.set(f"finished/{me}", "")  # whoever left earlier would close its connections under the others
    store.wait([f"finished/{other}" for other in range(world)], patience)
    dist.destroy_process_group()


def plain(value, at: str = "result"):
    """`value` as data that reads back without running anything: tensors on the CPU, numbers, strings, containers."""
    import torch

    if value is None:
        return value
    for kind in (bool, int, float, complex, str, bytes):
        if isinstance(value, kind):
            return kind(value)
    if type(value) in (torch.Tensor, torch.nn.Parameter):
        return value.detach().cpu().clone()  # a view would bring all of its memory
    if isinstance(value, dict):
        return {plain(key, f"a key of {at}"): plain(item, f"{at}[{key!r}]") for key, item in value.items()}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return kind(plain(item, f"{at}[{i}]") for i, item in enumerate(value))
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a NumPy scalar
        return plain(value.item(), at)
    raise TypeError(f"fn returned {at} of type {type(value).__name__}, which is no data. Return {DATA}")


def describe(error: BaseException) -> list[dict]:
    """The error and what it came from, oldest first, as data: the caller has the source of its cells, we have not."""
    chain: list[dict] = []
    while error is not None and len(chain) < 5:
        frames = [(f.filename, f.lineno, f.name) for f in traceback.extract_tb(error.__traceback__)]
        chain.append({
            "type": type(error).__name__,
            "message": "\n".join([str(error), *getattr(error, "__notes__", [])]),
            "frames": [frame for frame in frames if frame[0] != __file__],
            "direct": error.__cause__ is not None,
        })  # fmt: skip
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return chain[::-1]


def _write(path: Path, text: str):
    """Whole or not at all, for readers who look at any moment."""
    part = path.with_suffix(path.suffix + ".tmp")
    part.write_text(text)
    part.rename(path)


def _leave(code: int):
    """At once: a thread that still waits in a collective must not hold up the end."""
    sys.stdout.flush()
    sys.stderr.flush()
    if "coverage" in sys.modules and (measured := sys.modules["coverage"].Coverage.current()):
        measured.stop()  # in our own tests; it would save at the exit that we skip
        measured.save()
    os._exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
