"""Judge many submissions at once: worker processes, each with a zygote of its own, that write verdict files.

Every worker process is a pool of one: when it dies or stops answering, it is replaced and only the submission it had
is tried again. A submission that hangs ends by itself (judge.TOTAL_SECONDS); the patience here is for a judge that
hangs. The wait for a free GPU comes before it.
"""

import contextlib
import ctypes
import multiprocessing
import os
import queue
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing.util import Finalize
from pathlib import Path

import torch

from autograder.judge.cells import Release
from autograder.judge.intake import load_release
from autograder.judge.judge import TOTAL_SECONDS, judge_notebook
from autograder.judge.slots import gpu_slot, gpus_of
from autograder.judge.trouble import refuse_if_full
from autograder.judge.vault import Vault
from autograder.judge.verdict import save
from autograder.judge.zygote import SandboxError, Zygote
from autograder.labs import Lab, load_lab

PR_SET_PDEATHSIG = 1
PATIENCE = TOTAL_SECONDS + 120  # seconds for a submission's deadline in all, booting a zygote, and the oracle's share
ATTEMPTS = 2


@dataclass(frozen=True)
class Job:
    """One submission to judge, as plain data for a worker process."""

    lab: Path
    notebook: Path
    student: str
    seed: int
    draw: str
    vault: Path
    gpu: str | None = None  # the device that whoever asks holds for it; None: the worker waits for one, "": none needed


# --- the pool, in the process that was started ----------------------------------------------------------


def run_jobs(waiting: Sequence[Job], jobs: int) -> Iterator[tuple[str, str]]:
    """(student, "" or what went wrong) as each submission is done; in this process when there is one worker."""
    if min(jobs, len(waiting)) <= 1:
        with Worker() as worker:
            for job in waiting:
                yield job.student, worker.judge(job)
        return
    free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
    slots = [Slot() for _ in range(min(jobs, len(waiting)))]
    for slot in slots:
        free.put(slot)
    with ThreadPoolExecutor(len(slots)) as threads:
        futures = {threads.submit(in_free_slot, free, job): job.student for job in waiting}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:  # a full disk, Ctrl-C: whoever is at work is not waited for
            for slot in slots:
                slot.closed = True
                slot.drop()
            threads.shutdown(wait=False, cancel_futures=True)
            raise
        finally:  # before the threads end: a worker dies with the thread that started it
            for slot in slots:
                slot.close()


def in_free_slot(free: "queue.SimpleQueue[Slot]", job: Job) -> str:
    slot = free.get()
    try:
        return slot.judge(job)
    finally:
        free.put(slot)


class Slot:
    """One worker process, made when first needed and again after it died."""

    def __init__(self) -> None:
        self.pool: ProcessPoolExecutor | None = None
        self.pid = 0
        self.closed = False

    def judge(self, job: Job) -> str:
        """What the worker says; a second one is asked when the first dies over it."""
        for _ in range(ATTEMPTS):
            if self.closed:
                return "not judged: the run was stopped"
            try:
                return self.ask(job)
            except BrokenProcessPool:
                self.drop()
            except TimeoutError:
                self.drop()
                return f"the judge itself took more than {PATIENCE:.0f} s and was stopped; run the command again"
        return f"the judge's own process ended {ATTEMPTS} times over this submission; run the command again"

    def ask(self, job: Job) -> str:
        if self.pool is None:
            context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
            self.pool = ProcessPoolExecutor(1, context, initializer=start_worker)
            self.pid = self.pool.submit(os.getpid).result(PATIENCE)
        with gpu_slot(gpus_of(load_lab(job.lab))) as gpu:
            return self.pool.submit(in_worker, replace(job, gpu=gpu or "")).result(PATIENCE)

    def drop(self) -> None:
        """End the worker process; its zygote follows it, and the runners their zygote."""
        pool, self.pool = self.pool, None
        if pool is not None:
            with contextlib.suppress(ProcessLookupError):
                if self.pid:
                    os.kill(self.pid, signal.SIGKILL)
            pool.shutdown(wait=True, cancel_futures=True)
        self.pid = 0

    def close(self) -> None:
        """No more submissions: the worker ends its zygotes and then itself."""
        self.closed = True
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
        self.pool = None


# --- a worker -------------------------------------------------------------------------------------------


class Worker:
    """Judges one submission after another, with one zygote per lab and GPU."""

    def __init__(self) -> None:
        self.zygotes: dict[tuple[Path, str | None], Zygote] = {}
        self.labs: dict[Path, tuple[Lab, Release]] = {}

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        for zygote in self.zygotes.values():
            zygote.close()

    def judge(self, job: Job) -> str:
        """Write the verdict; returns what went wrong, or "". A sandbox that broke is tried once more."""
        says = ""
        for attempt in range(ATTEMPTS):
            try:
                self.write_verdict(job)
                return ""
            except Exception as problem:
                self.forget(job.lab)
                if not isinstance(problem, (SandboxError, OSError)):
                    return f"{type(problem).__name__}: {problem}"
                if attempt:  # the first time, the disk may have been full of what the submission wrote
                    refuse_if_full(problem, job.vault)
                says = f"{type(problem).__name__}: {problem}"
        return says

    def write_verdict(self, job: Job) -> None:
        if job.lab not in self.labs:
            self.labs[job.lab] = load_lab(job.lab), load_release(job.lab)
        lab, release_ = self.labs[job.lab]
        with gpu_slot(gpus_of(lab) if job.gpu is None else ()) as free:
            gpu = job.gpu or free
            verdict = judge_notebook(
                lab, job.notebook, job.seed, student=job.student, draw=job.draw,
                zygote=self.zygote(lab, gpu), release=release_,
            )  # fmt: skip
        save(verdict, Vault(job.vault))

    def zygote(self, lab: Lab, gpu: str | None) -> Zygote:
        """The warm process of (lab, GPU): what it forks sees that GPU alone."""
        if (lab.folder, gpu) not in self.zygotes:
            if gpu is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            self.zygotes[lab.folder, gpu] = Zygote(lab.imports)
        return self.zygotes[lab.folder, gpu]

    def forget(self, lab: Path) -> None:
        """After any trouble the next submission gets a new zygote."""
        for key in [key for key in self.zygotes if key[0] == lab]:
            self.zygotes.pop(key).close()


_worker: Worker | None = None


def start_worker() -> None:
    """In a new worker process: one thread, and no life after the parent's (a killed run leaves nobody behind)."""
    global _worker
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us in order
    torch.set_num_threads(1)
    _worker = Worker()
    Finalize(None, _worker.__exit__, exitpriority=1)  # a process of multiprocessing's ends without atexit


def in_worker(job: Job) -> str:
    assert _worker is not None
    return _worker.judge(job)
