"""Judge many submissions at once: worker processes, each with a zygote of its own, that write verdict files."""

import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from autograder.judge.cells import Release
from autograder.judge.intake import load_release
from autograder.judge.judge import judge_notebook
from autograder.judge.vault import Vault
from autograder.judge.verdict import save
from autograder.judge.zygote import Zygote
from autograder.labs import Lab, load_lab

PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """One submission to judge, as plain data for a worker process."""

    lab: Path
    notebook: Path
    student: str
    seed: int
    draw: str
    vault: Path


def run_jobs(waiting: Sequence[Job], jobs: int) -> Iterator[tuple[str, str]]:
    """(student, "" or what went wrong) as each submission is done; in this process when there is one worker."""
    if min(jobs, len(waiting)) <= 1:
        with Worker() as worker:
            for job in waiting:
                yield job.student, worker.judge(job)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(min(jobs, len(waiting)), context, initializer=start_worker) as pool:
        futures = {pool.submit(in_worker, job): job.student for job in waiting}
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except BrokenProcessPool:
                yield futures[future], "the judge's own process ended; run the command again"


class Worker:
    """Judges one submission after another with one zygote."""

    def __init__(self) -> None:
        self.zygotes: dict[Path, Zygote] = {}
        self.labs: dict[Path, tuple[Lab, Release]] = {}

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        for zygote in self.zygotes.values():
            zygote.close()

    def judge(self, job: Job) -> str:
        """Write the verdict; returns what went wrong, or ""."""
        try:
            if job.lab not in self.labs:
                lab = load_lab(job.lab)
                self.labs[job.lab] = lab, load_release(job.lab)
            lab, release_ = self.labs[job.lab]
            if job.lab not in self.zygotes:
                self.zygotes[job.lab] = Zygote(lab.imports)
            verdict = judge_notebook(
                lab, job.notebook, job.seed, student=job.student, draw=job.draw,
                zygote=self.zygotes[job.lab], release=release_,
            )  # fmt: skip
            save(verdict, Vault(job.vault))
        except Exception as problem:
            self.forget(job.lab)
            return f"{type(problem).__name__}: {problem}"
        return ""

    def forget(self, lab: Path) -> None:
        """After any trouble the next submission gets a new zygote."""
        zygote = self.zygotes.pop(lab, None)
        if zygote is not None:
            zygote.close()


_worker: Worker | None = None


def start_worker() -> None:
    """In a new worker process: one thread, and no life after the parent's (a killed run leaves nobody behind)."""
    global _worker
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    torch.set_num_threads(1)
    _worker = Worker()


def in_worker(job: Job) -> str:
    assert _worker is not None
    return _worker.judge(job)
