"""The stage of a rehearsal: a course folder of its own, the real commands, and what they left in the gradebook."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autograder.judge.course import Course
from autograder.judge.tiers import machine_tier
from autograder.judge.verdict import bank_version
from autograder.labs import Lab, load_lab
from autograder.synthetic import Student

SECONDS = 6  # deadline of a case in the rehearsal: two students wait for it on purpose
STEP_TIMEOUT = 900


@dataclass
class Rehearsal:
    """One lab's class in one course folder; `faults` collects everything that is not as it must be."""

    course: Course
    lab: Lab
    jobs: int
    whole: bool = True  # every student and both kills, or the plain students once
    students: list[Student] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    wanted: dict[str, dict[str, float]] = field(default_factory=dict)  # student -> question -> points, from the lab

    @property
    def inbox(self) -> Path:
        return self.course.root.parent / "inbox" / self.lab.slug

    @property
    def graded(self) -> list[Student]:
        return [student for student in self.students if not student.refused]

    def expect(self, true: bool, fault: str) -> None:
        if not true:
            self.faults.append(fault)


def make_course(folder: Path, labs: Sequence[Lab], settings: Path) -> tuple[Course, list[Lab]]:
    """A course folder and copies of the labs, with a short deadline and with the tier that there is."""
    root = folder / "course"
    root.mkdir()
    for name in ("nbgrader_config.py", "course.toml"):
        if (settings / name).is_file():
            shutil.copy(settings / name, root / name)
    replace_in(root / "course.toml", r'minimum_tier\s*=\s*"[^"]*"', f'minimum_tier = "{machine_tier()}"')
    copies = []
    for lab in labs:
        target = folder / "labs" / lab.slug
        shutil.copytree(
            lab.folder, target, ignore=shutil.ignore_patterns("__pycache__", "kernel-*", ".ipynb_checkpoints")
        )
        text = (target / "lab.toml").read_text(encoding="utf-8")
        shorter = re.sub(r"(?m)^seconds\s*=.*$\n?", "", text)
        (target / "lab.toml").write_text(f"seconds = {SECONDS}\n{shorter}", encoding="utf-8")
        copies.append(load_lab(target))
    return Course(root), copies


def replace_in(path: Path, pattern: str, replacement: str) -> None:
    if path.is_file():
        path.write_text(re.sub(pattern, replacement, path.read_text(encoding="utf-8")), encoding="utf-8")


def command(run: Rehearsal, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One `autograder` command, as an instructor types it."""
    line = [sys.executable, "-m", "autograder", *arguments, "--course", str(run.course.root)]
    return subprocess.run(line, capture_output=True, text=True, timeout=STEP_TIMEOUT, check=False, env=environment(run))


def environment(run: Rehearsal) -> dict[str, str]:
    return {**os.environ, "COURSE_LABS": str(run.lab.folder.parent), "OMP_NUM_THREADS": "1"}


def grade_arguments(run: Rehearsal) -> list[str]:
    csv = run.course.root.parent / "grades.csv"
    return ["grade", run.lab.slug, "--from", str(run.inbox), "--jobs", str(run.jobs), "--csv", str(csv)]


def kill_when(run: Rehearsal, ready: Callable[[], bool]) -> None:
    """Start `autograder grade`, send SIGKILL to it (and to it alone) once `ready`."""
    line = [sys.executable, "-m", "autograder", *grade_arguments(run), "--course", str(run.course.root)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(line, env=environment(run), **quiet)  # type: ignore[call-overload]
    deadline = time.monotonic() + STEP_TIMEOUT
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[!.]*")) if path.is_file()}


def gradebook(run: Rehearsal) -> dict[str, dict[str, float]]:
    """Student -> code question -> points, as nbgrader has them."""
    book: dict[str, dict[str, float]] = {}
    with run.course.api.gradebook as opened:
        for submission in opened.assignment_submissions(run.lab.slug):
            grades = [grade for notebook in submission.notebooks for grade in notebook.grades]
            found = {grade.name.removeprefix("check-"): grade.score for grade in grades}
            book[submission.student.id] = {name: found[name] for name in run.lab.checks if name in found}
    return book


def hidden_seed(run: Rehearsal) -> int:
    return run.course.vault.seed(run.lab.slug, bank_version(run.lab))
