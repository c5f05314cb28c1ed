"""Grade a class: release → collect → judge → record → feedback → CSV, each step restartable.

`judge` works in parallel and touches no database: it writes one signed verdict per submission and skips those that
would only repeat. `record` is one process, nbgrader's own Autograde with JudgeCells in place of Execute. A problem
with one submission is a line in the result, never the end of the run; files are replaced whole, so that a killed run
loses nothing.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from autograder.judge.cells import Release
from autograder.judge.course import Course, Progress, open_api, succeed
from autograder.judge.inbox import collect, found_in
from autograder.judge.intake import Refused, load_release, take_in
from autograder.judge.judge import basis, refuse_if_lacking
from autograder.judge.receipt import refused, save_receipt
from autograder.judge.record import record, scores, write_feedback
from autograder.judge.tiers import at_least, machine_tier
from autograder.judge.trouble import space_in
from autograder.judge.vault import Vault
from autograder.judge.verdict import BadVerdict, CycleError, bank_version, load
from autograder.judge.workers import Job, run_jobs
from autograder.labs import Lab
from autograder.nbgrader import minimum_tier, settings

__all__ = [
    "Course", "CycleError", "Progress", "collect", "default_jobs", "found_in", "judge", "open_api", "record", "release",
    "scores", "write_feedback",
]  # fmt: skip

WRITE_SOURCE = (
    "import sys; from pathlib import Path; from course.notebooks import write_source;"
    "write_source(Path(sys.argv[1]), Path(sys.argv[2]))"
)


# --- release ------------------------------------------------------------------------------------------


def release(course: Course, lab: Lab, *, publish: bool = False) -> Path:
    """Make nbgrader's release of `lab` and prove that it is, byte for byte, the notebook in the lab's folder."""
    source = course.root / "source" / lab.slug
    source.mkdir(parents=True, exist_ok=True)
    # A command, not an import: the grader knows nothing of how the course builds its notebooks.
    command = [sys.executable, "-c", WRITE_SOURCE, str(lab.folder), str(source / "lab.ipynb")]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise CycleError(f"{lab.slug} could not be built:\n{made.stderr.strip()[-2000:]}")
    for name in lab.data:
        shutil.copy(lab.folder / name, source / name)
    succeed(course.api.generate_assignment(lab.slug, force=True), f"release of {lab.slug}")
    set_deadline(course, lab)
    released, committed = course.root / "release" / lab.slug / "lab.ipynb", lab.folder / "lab.ipynb"
    if not committed.is_file() or released.read_bytes() != committed.read_bytes():
        raise CycleError(
            f"{released} differs from {committed}: build it again with `python -m course notebooks {lab.folder}`"
        )
    if publish:
        succeed(course.api.release_assignment(lab.slug), f"publishing {lab.slug}")
    return released


def set_deadline(course: Course, lab: Lab) -> None:
    """Put the deadline of course.toml into the gradebook, where nbgrader's late policy reads it."""
    deadline = settings(course.root).get("deadlines", {}).get(lab.slug)
    with course.api.gradebook as gradebook:
        gradebook.update_or_create_assignment(lab.slug, duedate=deadline.isoformat() if deadline else None)


# --- judge --------------------------------------------------------------------------------------------


Engine = Callable[[Sequence[Job], int], Iterator[tuple[str, str]]]


def judge(
    course: Course,
    lab: Lab,
    *,
    jobs: int = 1,
    new_seed: bool = False,
    students: Iterable[str] = (),
    engine: Engine = run_jobs,
) -> Progress:
    """A verdict for every submission that has none that fits; `engine` judges the jobs, so many at once."""
    refuse_if_lacking(lab)
    if not getattr(engine, "nodes_decide_tier", False):
        require_tier(course)
    progress = Progress()
    with space_in(course.vault.folder):
        waiting = find_waiting(course, lab, new_seed, set(students), progress)
        for student, says in tqdm(engine(waiting, jobs), total=len(waiting), desc=f"judge {lab.slug}", disable=None):
            if says:
                progress.problems[student] = says
            else:
                progress.done.append(student)
    return progress


def find_waiting(course: Course, lab: Lab, new_seed: bool, wanted: set[str], progress: Progress) -> list[Job]:
    """The submissions to judge; those that took longest the last time come first, so that none trails at the end."""
    release_, vault = load_release(lab.folder), course.vault
    seed = vault.seed(lab.slug, bank_version(lab), new=new_seed)
    draw = vault.draw(seed)
    waiting = []
    for student, path in course.submitted(lab).items():
        if wanted and student not in wanted:
            continue
        try:
            fits = still_fits(vault, lab, release_, path, student, draw)
        except Refused as problem:
            vault.verdict_path(lab.slug, student).unlink(missing_ok=True)
            save_receipt(vault.folder, lab.slug, student, refused(path.name, problem))
            progress.problems[student] = str(problem)
            continue
        if fits:
            progress.kept.append(student)
        else:
            waiting.append(Job(lab.folder, path, student, seed, draw, vault.folder))
    return sorted(waiting, key=lambda job: -seconds_before(vault, lab, job.student))


def seconds_before(vault: Vault, lab: Lab, student: str) -> float:
    """How long the student's last submission took to judge; 0 where nobody knows. A guess: no signature is checked."""
    try:
        return float(json.loads(vault.verdict_path(lab.slug, student).read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def require_tier(course: Course) -> None:
    tier, minimum = machine_tier(), minimum_tier(course.root)
    if not at_least(tier, minimum):
        raise CycleError(
            f"this machine judges in tier {tier}, {course.root}/course.toml asks for {minimum} (minimum_tier under "
            f'[grading]). For a class that counts, use such a machine; to practise, write minimum_tier = "{tier}".'
        )


def still_fits(vault: Vault, lab: Lab, release_: Release, path: Path, student: str, draw: str) -> bool:
    """Whether there is a valid verdict on exactly this submission."""
    submission = take_in(path, release_, student)
    try:
        return load(lab.slug, student, vault).fits(basis(lab, submission, release_, draw))
    except BadVerdict:
        return False


def default_jobs() -> int:
    return max(1, min(os.cpu_count() or 1, 8))
