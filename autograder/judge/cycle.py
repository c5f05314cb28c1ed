"""Grade a class: release → collect → judge → record → feedback → CSV, each step restartable.

`judge` works in parallel and touches no database: it writes one signed verdict per submission and skips those that
would only repeat. `record` is one process, nbgrader's own Autograde with JudgeCells in place of Execute. A problem
with one submission is a line in the result, never the end of the run; files are replaced whole, so that a killed run
loses nothing.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nbgrader.apps.api import NbGraderAPI
from nbgrader.plugins import CsvExportPlugin
from sqlalchemy.exc import SAWarning
from tqdm import tqdm
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

from autograder.judge.cells import Release
from autograder.judge.intake import STUDENT, Refused, load_release, parse, read_bytes, take_in
from autograder.judge.judge import basis, refuse_if_lacking
from autograder.judge.tiers import at_least, machine_tier
from autograder.judge.vault import Vault, write_atomically
from autograder.judge.verdict import BadVerdict, CycleError, bank_version, check, load
from autograder.judge.workers import Job, run_jobs
from autograder.labs import Lab
from autograder.nbgrader import install, lab_of, minimum_tier, settings

WRITE_SOURCE = (
    "import sys; from pathlib import Path; from course.notebooks import write_source;"
    "write_source(Path(sys.argv[1]), Path(sys.argv[2]))"
)


@dataclass
class Progress:
    """What a step did: students by outcome, and one line per problem."""

    done: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)  # nothing had changed
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return f"{len(self.done)} done, {len(self.kept)} unchanged, {len(self.problems)} with problems"


@dataclass
class Course:
    """A course folder: nbgrader's root, with nbgrader_config.py, course.toml and the judge's private .judge."""

    root: Path

    def __post_init__(self) -> None:
        self.root = self.root.resolve()
        if not (self.root / "nbgrader_config.py").is_file():
            raise CycleError(f"{self.root} is no course folder: it has no nbgrader_config.py. Name one with --course.")
        # nbgrader calls `alembic` by name when it makes a gradebook; it lies beside this Python.
        tools = str(Path(sys.executable).parent)
        if tools not in os.environ.get("PATH", "").split(os.pathsep):
            os.environ["PATH"] = os.pathsep.join([tools, os.environ.get("PATH", "")])

    @cached_property
    def vault(self) -> Vault:
        return Vault(self.root / ".judge")

    @cached_property
    def config(self) -> Config:
        config = Config(PyFileConfigLoader("nbgrader_config.py", path=str(self.root)).load_config())
        config.CourseDirectory.root = str(self.root)
        config.NbGraderAPI.log_level = "WARN"
        return install(config)

    @cached_property
    def api(self) -> NbGraderAPI:
        return open_api(self.config)

    def submitted(self, lab: Lab) -> dict[str, Path]:
        """Student -> submitted notebook."""
        found = sorted((self.root / "submitted").glob(f"*/{lab.slug}/lab.ipynb"))
        return {path.parents[1].name: path for path in found}


def open_api(config: Config) -> NbGraderAPI:
    """nbgrader as a library. Its queries flush while they build objects, and SQLAlchemy warns on every submission."""
    warnings.filterwarnings("ignore", message="Object of type .* not in session", category=SAWarning)
    return NbGraderAPI(config=config)


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


def succeed(result: dict[str, Any], what: str) -> None:
    """nbgrader's API answers with a dictionary; a failure becomes an exception with its last lines."""
    if not result["success"]:
        detail = (result.get("log") or result.get("error") or "").strip()
        raise CycleError(f"{what} failed:\n{detail[-2000:]}")


# --- collect ------------------------------------------------------------------------------------------


def collect(course: Course, lab: Lab, folder: Path | None = None) -> Progress:
    """Bring submissions into `submitted/`: from nbgrader's exchange, or from a folder of notebooks."""
    if folder is None:
        succeed(course.api.collect(lab.slug), f"collecting {lab.slug} (or name a folder with --from)")
        return Progress(done=list(course.submitted(lab)))
    if not folder.is_dir():
        raise CycleError(f"{folder} is no folder; --from names one with <student>.ipynb or <student>/lab.ipynb")
    progress = Progress()
    for student, path in sorted(found_in(folder, lab.slug).items()):
        try:
            take_over(course, lab, student, path, progress)
        except (Refused, OSError) as problem:
            progress.problems[student] = str(problem)
    return progress


def found_in(folder: Path, slug: str) -> dict[str, Path]:
    """Student -> notebook, from `<student>.ipynb`, `<student>/lab.ipynb` or `<student>/<slug>/lab.ipynb`."""
    found = {path.stem: path for path in folder.glob("*.ipynb")}
    found |= {path.parent.name: path for path in folder.glob("*/lab.ipynb")}
    return found | {path.parents[1].name: path for path in folder.glob(f"*/{slug}/lab.ipynb")}


def take_over(course: Course, lab: Lab, student: str, path: Path, progress: Progress) -> None:
    """Copy one notebook, unchanged, if it can be one."""
    if not STUDENT.fullmatch(student):
        raise Refused(f"{student!r} is no student id: letters, digits and _ . @ - only")
    content = read_bytes(path, student)
    parse(content)
    target = course.root / "submitted" / student / lab.slug / "lab.ipynb"
    if target.is_file() and target.read_bytes() == content:
        progress.kept.append(student)
        return
    write_atomically(target, content.decode("utf-8"), mode=0o644)
    stamp = path.with_name("timestamp.txt")
    if path.name == "lab.ipynb" and stamp.is_file() and not stamp.is_symlink():
        write_atomically(target.with_name("timestamp.txt"), stamp.read_text(encoding="utf-8")[:100], mode=0o644)
    progress.done.append(student)


# --- judge --------------------------------------------------------------------------------------------


def judge(course: Course, lab: Lab, *, jobs: int = 1, new_seed: bool = False, students: Iterable[str] = ()) -> Progress:
    """A verdict for every submission that has none that fits."""
    refuse_if_lacking(lab)
    require_tier(course)
    release_, bank = load_release(lab.folder), bank_version(lab)
    seed = course.vault.seed(lab.slug, bank, new=new_seed)
    draw = course.vault.draw(seed)
    progress, waiting = Progress(), []
    wanted = set(students)
    for student, path in course.submitted(lab).items():
        if wanted and student not in wanted:
            continue
        try:
            fits = still_fits(course.vault, lab, release_, path, student, draw)
        except Refused as problem:
            course.vault.verdict_path(lab.slug, student).unlink(missing_ok=True)
            progress.problems[student] = str(problem)
            continue
        if fits:
            progress.kept.append(student)
        else:
            waiting.append(Job(lab.folder, path, student, seed, draw, course.vault.folder))
    for student, says in tqdm(run_jobs(waiting, jobs), total=len(waiting), desc=f"judge {lab.slug}", disable=None):
        if says:
            progress.problems[student] = says
        else:
            progress.done.append(student)
    return progress


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


# --- record, feedback, export --------------------------------------------------------------------------


def record(course: Course, lab: Lab, students: Iterable[str] = ()) -> Progress:
    """Put every verdict into nbgrader's gradebook; no valid verdict means an error output and no points."""
    lab_of.cache_clear()
    release_, bank = load_release(lab.folder), bank_version(lab)
    recorded = course.api.get_autograded_students(lab.slug)
    progress, wanted = Progress(), set(students)
    submitted = {s: p for s, p in course.submitted(lab).items() if not wanted or s in wanted}
    for student, path in tqdm(submitted.items(), desc=f"record {lab.slug}", disable=None):
        marker = course.vault.recorded_path(lab.slug, student)
        try:
            stamp = mark(course, lab, release_, bank, student, path)
        except (BadVerdict, Refused) as problem:
            stamp, progress.problems[student] = "", str(problem)
        if stamp and student in recorded and marker.is_file() and marker.read_text(encoding="utf-8") == stamp:
            progress.kept.append(student)
            continue
        marker.unlink(missing_ok=True)
        result = course.api.autograde(lab.slug, student, force=True)
        if not result["success"]:
            progress.problems.setdefault(student, last_line(result))
        elif stamp:
            write_atomically(marker, stamp)
            progress.done.append(student)
    return progress


def mark(course: Course, lab: Lab, release_: Release, bank: str, student: str, path: Path) -> str:
    """What identifies a recorded grade: the verdict and the submitted bytes. BadVerdict if it may not count."""
    verdict = load(lab.slug, student, course.vault)
    now = basis(lab, take_in(path, release_, student), release_, verdict.draw)
    check(verdict, submission_sha256=now.submission_sha256, bank_version=bank, minimum_tier=minimum_tier(course.root))
    signed = course.vault.verdict_path(lab.slug, student).read_bytes()
    return json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in
                       (("verdict", signed), ("submitted", path.read_bytes()))})  # fmt: skip


def last_line(result: dict[str, Any]) -> str:
    lines = (result.get("error") or result.get("log") or "nbgrader failed").strip().splitlines()
    return lines[-1]


def write_feedback(course: Course, lab: Lab, students: Iterable[str] = (), *, fresh: bool = True) -> Progress:
    """One HTML page per student; without `fresh`, only where a grade was recorded after the page was made."""
    progress, wanted = Progress(), set(students)
    graded = sorted(course.api.get_autograded_students(lab.slug))
    for student in tqdm([s for s in graded if not wanted or s in wanted], desc=f"feedback {lab.slug}", disable=None):
        page = course.root / "feedback" / student / lab.slug / "lab.html"
        notebook = course.root / "autograded" / student / lab.slug / "lab.ipynb"
        if page.is_file() and page.stat().st_mtime_ns > notebook.stat().st_mtime_ns and not fresh:
            progress.kept.append(student)
            continue
        result = course.api.generate_feedback(lab.slug, student, force=True)
        if result["success"]:
            progress.done.append(student)
        else:
            progress.problems[student] = last_line(result)
    return progress


def export(course: Course, to: Path) -> Path:
    """All grades as CSV, by nbgrader's own exporter."""
    with course.api.gradebook as gradebook:
        CsvExportPlugin(config=course.config, to=str(to)).export(gradebook)
    return to


def scores(course: Course, lab: Lab) -> dict[str, dict[str, Any]]:
    """Student -> nbgrader's summary of the submission (score, max_score, needs_manual_grade, …)."""
    return {row["student"]: row for row in course.api.get_submissions(lab.slug) if row["autograded"]}


def default_jobs() -> int:
    return max(1, min(os.cpu_count() or 1, 8))
