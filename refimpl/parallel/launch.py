"""Run a function on several ranks, from a script or a notebook cell, and get back what each rank returned.

    def mean(x):                                       # any function, also one of the same notebook
        dist.all_reduce(x)
        return x / dist.get_world_size()

    launch(mean, 2, torch.ones(3))                     # [tensor([1., 1., 1.]), tensor([1., 1., 1.])]

The function travels by cloudpickle to processes that torchrun starts anew: nothing is forked, so threads and CUDA in
the caller do no harm. What comes back is data, read without running anything. A failure in any rank is an exception
here, with the rank's own lines; ranks that wait for each other end with their stacks; and however the call ends,
even by the death of the caller, no process stays behind.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, SIGUSR1
from typing import Any

from refimpl.parallel._failure import LaunchError, LaunchTimeout, RankError, first_failure, where_they_are

__all__ = ["Job", "LaunchError", "LaunchTimeout", "RankError", "launch"]

START_SECONDS = 120  # for imports and the meeting of the ranks; a loaded laptop takes a while
RUNNER = Path(__file__).with_name("_runner.py")
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


def launch(
    fn: Callable[..., Any],
    nproc: int = 2,
    *args: Any,
    backend: str = "auto",
    timeout: float | int = 60,
    engine: str = "local",
    nnodes: int = 1,
    **kwargs: Any,
) -> list[Any]:
    """[fn(*args, **kwargs) of rank 0, of rank 1, …] on `nproc` processes on each of `nnodes` nodes.

    In fn the default process group is ready: `torch.distributed` works, `dist.get_rank()` says who this is. fn may be
    a closure and use globals of the notebook; modules are imported anew. It returns tensors (they arrive on the CPU),
    numbers, strings, None, and lists, tuples, sets and dicts of them. What it prints appears here, marked by rank.
    Random numbers: every rank starts with the same default seed, as every Python process does.

    backend   "gloo", "nccl", or "auto": nccl where there is a GPU for each process of a node
    timeout   seconds for fn, from the moment when every rank has entered it; starting takes some seconds on top
    engine    "local": torchrun here. "slurm", "kubernetes": the same runner as a job there, over `nnodes` nodes
    Raises RankError where a rank failed, LaunchTimeout with each rank's stack where it takes too long; the folder with
    all logs is named and kept. After a good call nothing remains.
    """
    _check(fn, nproc, timeout, engine, nnodes)
    run = run_locally if engine == "local" else _engine(engine)
    shared = None if engine == "local" else Path.cwd()  # other nodes see the folder of the notebook, not our /tmp
    folder = Path(tempfile.mkdtemp(prefix="launch-", dir=shared))
    job = Job(folder, nproc, nnodes, timeout)
    try:
        job.prepare(fn, args, kwargs, backend, watched=engine == "local")
        run(job)
        results = job.results()
    except LaunchError:
        raise  # the logs stay
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    return results


def _check(fn, nproc: int, timeout: float | int, engine: str, nnodes: int):
    if not callable(fn):
        raise TypeError(f"launch: fn is what each rank calls; given {fn!r}. Write launch(f, 2, x), not launch(f(x), 2)")
    if nproc < 1 or nnodes < 1 or timeout <= 0:
        raise ValueError(f"launch: {nproc=}, {nnodes=} are at least 1 and {timeout=} is above 0 seconds")
    if engine == "local" and nnodes > 1:
        raise ValueError(f"launch: engine='local' is this one machine; for {nnodes=} choose 'slurm' or 'kubernetes'")


def _engine(name: str) -> Callable[["Job"], None]:
    from refimpl.parallel import engines

    if name not in engines.ENGINES:
        raise ValueError(f"launch: {name=} is no engine; choose 'local', {', '.join(map(repr, engines.ENGINES))}")
    return engines.ENGINES[name]


@dataclass
class Job:
    """One launch as a folder of files; an engine is a function that takes a Job and returns when its agents ended."""

    folder: Path  # on several nodes: one that all of them see
    nproc: int  # per node
    nnodes: int
    timeout: float | int
    _shown: dict[int, int] = field(default_factory=dict)  # rank -> bytes of its output that were printed here

    @property
    def ranks(self) -> int:
        return self.nproc * self.nnodes

    def prepare(self, fn, args, kwargs, backend: str, *, watched: bool):
        """Write what the ranks read. `watched`: they end as soon as nobody holds the lock of `held`."""
        import cloudpickle

        path = [entry or str(Path.cwd()) for entry in sys.path]  # "" is the folder of the notebook
        settings = {"backend": backend, "timeout": self.timeout, "path": path, "watched": watched}
        try:
            payload = cloudpickle.dumps((fn, args, kwargs))
        except Exception as problem:
            raise TypeError(
                f"launch: {fn!r} or its arguments cannot be sent to other processes: {problem}. Create files, locks, "
                "generators and connections inside the function"
            ) from problem
        (self.folder / "settings.json").write_text(json.dumps(settings))
        (self.folder / "payload.pkl").write_bytes(payload)
        (self.folder / "alive").touch()

    def agent(self, node: int | str, *options: str) -> list[str]:
        """The command of one node: torchrun, with `options` that say how the nodes meet, over the runner."""
        size = [f"--nnodes={self.nnodes}", f"--nproc-per-node={self.nproc}"]
        logs = f"--log-dir={self.folder / 'torchrun'}"  # else it leaves a folder in /tmp each time
        how = ["--max-restarts=0", "--monitor-interval=0.1", logs, *options]
        return [sys.executable, str(RUNNER), "agent", str(self.folder), str(node), *size, *how]

    @contextmanager
    def held(self) -> Iterator[None]:
        """While this is entered, and this process lives, watched ranks run."""
        import fcntl

        with (self.folder / "alive").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def ready(self) -> bool:
        """Every rank has entered fn."""
        return all(self._file(rank, "ready").exists() for rank in range(self.ranks))

    def show_output(self, *, last: bool = False):
        """Print what the ranks printed since, whole lines only until the last time."""
        for rank in range(self.ranks):
            path, seen = self._file(rank, "out"), self._shown.get(rank, 0)
            if path.exists():
                new = path.read_bytes()[seen:]
                new = new if last else new[: new.rfind(b"\n") + 1]
                self._shown[rank] = seen + len(new)
                for line in new.decode(errors="replace").splitlines():
                    print(f"rank {rank} | {line}")

    def results(self) -> list[Any]:
        """What each rank returned; raises the first failure."""
        import torch

        if failure := first_failure(self.folder, self.ranks):
            raise failure
        files = [self._file(rank, "result.pt") for rank in range(self.ranks)]
        return [torch.load(file, weights_only=True) for file in files]

    def timed_out(self, *, ask: bool = True) -> LaunchTimeout:
        """Say where the ranks are; `ask` those of this machine for their stacks first."""
        seconds, what = (self.timeout, "no result") if self.ready() else (START_SECONDS, "not every rank started")
        if ask:
            self._signal(SIGUSR1)
            time.sleep(0.5)  # the stacks are written by the ranks
        return LaunchTimeout(f"{what} after {seconds} s\n{where_they_are(self.folder, self.ranks)}", self.folder)

    def kill(self):
        """End every rank of this machine, and what it started."""
        self._signal(SIGKILL)

    def _signal(self, signal: int):
        for path in self.folder.glob("rank*.pid"):
            with suppress(ProcessLookupError):
                (os.killpg if signal == SIGKILL else os.kill)(int(path.read_text()), signal)

    def _file(self, rank: int, kind: str) -> Path:
        return self.folder / f"rank{rank}.{kind}"


def run_locally(job: Job):
    """torchrun on this machine; whatever ends this function ends its processes."""
    environment = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": LOOPBACK, **os.environ, "PYTHONUNBUFFERED": "1"}
    # A free port, found by torchrun; and no look-up of this machine's name, which a laptop may not know.
    command = job.agent(0, "--standalone", "--local-addr=127.0.0.1")
    with job.held(), (job.folder / "agent0.log").open("wb") as log:
        agent = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _watch(agent, job)
        finally:
            agent.kill()  # first, so that it starts no more
            agent.wait()
            job.kill()
            job.show_output(last=True)


def _watch(agent: subprocess.Popen, job: Job):
    """Return when the agent has ended; raise when time is up."""
    begun, entered = time.monotonic(), None
    while agent.poll() is None:
        job.show_output()
        if entered is None and job.ready():
            entered = time.monotonic()
        limit = begun + START_SECONDS if entered is None else entered + job.timeout
        if time.monotonic() > limit:
            raise job.timed_out()
        time.sleep(0.02)
