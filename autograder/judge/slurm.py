"""Judge on a SLURM cluster: a class is cut into chunks, each chunk is one task of a job array.

Verdicts meet in the vault, which lies on a folder that all nodes share, so `record` needs nothing new. What travels to
a node is a pickled `Chunk`: paths, student ids, versions. Nothing of a student's is ever pickled, no seed travels
(the node reads it from the vault), and nothing that a task wrote is unpickled here: a task answers with one small JSON
file per submission. A node that dies costs its chunk a requeue; what was judged there before is not judged again.
"""

import contextlib
import fcntl
import json
import math
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from autograder.judge.slots import has_kernels
from autograder.judge.tiers import at_least, machine_tier, why_not
from autograder.judge.vault import Vault, write_atomically
from autograder.judge.verdict import CycleError, bank_version, judge_version
from autograder.judge.workers import PATIENCE, Job, run_jobs
from autograder.labs import Lab, load_lab
from autograder.nbgrader import minimum_tier, settings

CHUNK = 16  # submissions per task: enough to pay for its start, few enough to spread a class and to lose little
ASK_AGAIN = 1.0  # seconds between two looks at the queue
DEAF_SECONDS = 900.0  # a controller that restarts is waited for
LEAVE_SECONDS = 30.0  # for tasks that were ended to be gone
AGAIN = "run the command again: only what is unfinished is judged"


# --- what is asked of the cluster -----------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """[slurm] of course.toml: what one task gets, and how many run at once."""

    tasks: int = 4
    cores: int = 2  # of a task, and so many submissions at once in it
    memory_gb: int = 12  # of a task
    gpus: int = 0  # of a task of a lab with kernels
    minutes: int = 24 * 60  # no task asks for more; one that needs longer is queued again where it stopped
    partition: str = ""
    account: str = ""
    sbatch: dict[str, Any] = field(default_factory=dict)  # any other option of sbatch, such as qos

    @classmethod
    def of(cls, course: Path, **changes: Any) -> "Request":
        """The course's settings; what `changes` gives (and is not None) counts more."""
        table = settings(course).get("slurm", {})
        known = {option.name for option in fields(cls)}
        if unknown := sorted(set(table) - known):
            raise CycleError(f"{course}/course.toml: [slurm] has no {unknown}; it has {sorted(known)}")
        return cls(**{**table, **{name: value for name, value in changes.items() if value is not None}})

    def parameters(self, name: str, longest: int, kernels: bool) -> dict[str, Any]:
        """submitit's names for it. `longest`: submissions in the longest chunk."""
        minutes = math.ceil(math.ceil(longest / self.cores) * PATIENCE / 60) + 5
        asked: dict[str, Any] = {
            "job_name": name,
            "time": min(minutes, self.minutes),
            "mem": f"{self.memory_gb}GB",
            "cpus_per_task": self.cores,
            "array_parallelism": self.tasks,
            "additional_parameters": {"requeue": True, **self.sbatch},
        }
        named = {"partition": self.partition, "account": self.account}
        asked |= {option: value for option, value in named.items() if value}
        return asked | ({"gres": f"gpu:{self.gpus}"} if kernels and self.gpus else {})


# --- on a node ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """The submissions of one array task; called on a node, where only the vault's folder tells what is hidden."""

    jobs: tuple[Job, ...]  # without seeds
    outcomes: Path
    bank: str
    judge: str
    minimum: str  # tier
    at_once: int

    def __call__(self) -> None:
        """Judge what has no outcome yet, and write down each outcome as it is there."""
        settle_in()
        lab = load_lab(self.jobs[0].lab)
        waiting = [job for job in self.jobs if not outcome_path(self.outcomes, job.student).exists()]
        if refusal := self.refusal(lab):
            for job in waiting:
                self.tell(job.student, refusal)
            return
        seed = Vault(self.jobs[0].vault).seed(lab.slug, self.bank)
        for student, says in run_jobs([replace(job, seed=seed) for job in waiting], self.at_once):
            self.tell(student, says)

    def checkpoint(self) -> Any:
        """submitit asks for this when the time limit nears: the same chunk, which skips what it has done."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def refusal(self, lab: Lab) -> str:
        """Why this node must not judge: too weak a sandbox, or not the code that the run was started with."""
        tier, node = machine_tier(), socket.gethostname()
        if not at_least(tier, self.minimum):
            asks = f"node {node} judges in tier {tier}, the course asks for {self.minimum}"
            return f"{asks} ({why_not(self.minimum)}): see `autograder doctor` there"
        if (bank_version(lab), judge_version()) != (self.bank, self.judge):
            return f"node {node} has other checks or another grader than the machine that started the run: update it"
        vault = Vault(self.jobs[0].vault)
        if vault.draw(vault.seed(lab.slug, self.bank)) != self.jobs[0].draw:
            return (
                f"node {node} sees another vault than the machine that started the run: {vault.folder} must be shared"
            )
        return ""

    def tell(self, student: str, says: str) -> None:
        outcome = {"says": says, "node": socket.gethostname(), "task": os.environ.get("SLURM_ARRAY_TASK_ID", "")}
        write_atomically(outcome_path(self.outcomes, student), json.dumps(outcome) + "\n")


def settle_in() -> None:
    """Before torch and Triton are used: one thread each, and no GPU but those that SLURM gave to this task."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if not os.environ.get("SLURM_JOB_GPUS"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ.setdefault("TRITON_INTERPRET", "1")


def outcome_path(folder: Path, student: str) -> Path:
    return folder / f"{student}.json"


# --- where the run is started ---------------------------------------------------------------------------


class Slurm:
    """An engine of `cycle.judge`: the same jobs, judged by the nodes of a cluster."""

    nodes_decide_tier = True

    def __init__(self, course: Path, **changes: Any) -> None:
        self.course, self.request = course, Request.of(course, **changes)
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise CycleError(
                "--engine slurm needs SLURM's commands (sbatch, srun, squeue, scancel), and they are not on the PATH. "
                "Run this where jobs are submitted, or leave --engine out to judge on this machine."
            )

    def __call__(self, waiting: Sequence[Job], at_once: int) -> Iterator[tuple[str, str]]:
        """(student, "" or what went wrong), as the outcomes arrive."""
        if not waiting:
            return
        lab = load_lab(waiting[0].lab)
        home = waiting[0].vault / "slurm" / lab.slug
        with alone(home):
            sweep(home)
            run = Run(home / secrets.token_hex(4), f"autograder-{lab.slug}")
            run.submit(self.cut(lab, waiting, at_once, run.outcomes), self.request, has_kernels(lab))
            yield from run.follow([job.student for job in waiting])

    def cut(self, lab: Lab, waiting: Sequence[Job], at_once: int, outcomes: Path) -> list[Chunk]:
        """Dealt like cards, so that what takes long (it comes first) is spread."""
        count = max(min(self.request.tasks, len(waiting)), math.ceil(len(waiting) / CHUNK))
        bank, judge, minimum = bank_version(lab), judge_version(), minimum_tier(self.course)
        without_seed = [replace(job, seed=0) for job in waiting]
        hands = [tuple(without_seed[start::count]) for start in range(count)]
        return [Chunk(hand, outcomes, bank, judge, minimum, at_once) for hand in hands]


@dataclass
class Run:
    """One job array and its folder: tasks, logs, outcomes."""

    folder: Path
    prefix: str

    @property
    def name(self) -> str:
        return f"{self.prefix}-{self.folder.name}"

    @property
    def outcomes(self) -> Path:
        return self.folder / "outcomes"

    def submit(self, chunks: Sequence[Chunk], request: Request, kernels: bool) -> None:
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        self.outcomes.mkdir(mode=0o700, parents=True)
        executor = SlurmExecutor(self.folder / "tasks")
        longest = max(len(chunk.jobs) for chunk in chunks)
        executor.update_parameters(**request.parameters(self.name, longest, kernels))
        try:
            with executor.batch():
                for chunk in chunks:
                    executor.submit(chunk)
        except (FailedJobError, FailedSubmissionError) as problem:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise CycleError(f"SLURM did not take the job: {problem}\nCorrect [slurm] in course.toml.") from None

    def follow(self, students: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Each outcome once, then who has none when nothing is queued any more. Ended early, it ends the array."""
        missing = set(students)
        try:
            while missing:
                queue = ask_queue(self.name)  # first, so that an outcome written before a task left is seen below
                for student in sorted(missing):
                    if (says := read_outcome(self.outcomes, student)) is not None:
                        missing.remove(student)
                        yield student, says
                if not queue or all(task.held for task in queue):
                    break
                time.sleep(ASK_AGAIN if missing else 0)
        finally:
            end_tasks(self.name)
        for student in sorted(missing):
            yield student, f"its task on the cluster ended without a verdict (logs: {self.folder / 'tasks'}); {AGAIN}"
        if not missing:
            shutil.rmtree(self.folder, ignore_errors=True)


def read_outcome(folder: Path, student: str) -> str | None:
    try:
        return str(json.loads(outcome_path(folder, student).read_text(encoding="utf-8"))["says"])
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def alone(home: Path) -> Iterator[None]:
    """One run per lab at a time: a second would judge the same submissions."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CycleError(f"another run judges {home.name} on the cluster: wait for it, or end it") from None
        yield


def sweep(home: Path) -> None:
    """End the tasks of runs that were killed, and remove their folders: their verdicts are in the vault already."""
    for folder in sorted(path for path in home.iterdir() if path.is_dir()):
        end_tasks(f"autograder-{home.name}-{folder.name}")
        shutil.rmtree(folder, ignore_errors=True)


# --- SLURM's commands -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One line of squeue."""

    id: str
    state: str
    reason: str

    @property
    def held(self) -> bool:
        """Queued for ever: an administrator, or SLURM after too many failed starts, stopped it."""
        return self.state == "PENDING" and "held" in self.reason.lower()


def ask_queue(name: str) -> list[Task]:
    """What of the array `name` waits or runs. A controller that does not answer is asked again for a while."""
    command, deadline = ["squeue", "-h", "--array", f"--name={name}", "-o", "%i|%T|%r"], time.monotonic() + DEAF_SECONDS
    while True:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode == 0:
            return [Task(*line.strip().split("|", 2)) for line in made.stdout.splitlines()]
        if time.monotonic() > deadline:
            raise CycleError(f"SLURM's controller has not answered for {DEAF_SECONDS / 60:.0f} minutes; {AGAIN}")
        tqdm.write(f"SLURM does not answer ({made.stderr.strip()[-200:]}); asking again")
        time.sleep(10 * ASK_AGAIN)


def end_tasks(name: str) -> None:
    """Cancel what is left of an array, and wait until it is gone; nothing happens where nothing is left."""
    deadline = time.monotonic() + LEAVE_SECONDS
    if not ask_queue(name):
        return
    subprocess.run(["scancel", f"--name={name}"], capture_output=True, check=False)
    while ask_queue(name) and time.monotonic() < deadline:
        time.sleep(ASK_AGAIN / 4)
