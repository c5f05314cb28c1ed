"""Verdicts into nbgrader's gradebook, then feedback pages: one process, one transaction per student."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from autograder.judge.cells import Release
from autograder.judge.course import Course, Progress, last_line
from autograder.judge.gradebook import OneVisit
from autograder.judge.intake import Refused, load_release, take_in
from autograder.judge.judge import basis
from autograder.judge.locks import try_lock
from autograder.judge.refusals import write_pages
from autograder.judge.trouble import full, says_full, space_in
from autograder.judge.vault import write_atomically
from autograder.judge.verdict import BadVerdict, CycleError, bank_version, check, load
from autograder.labs import Lab
from autograder.nbgrader import lab_of, minimum_tier


def record(course: Course, lab: Lab, students: Iterable[str] = ()) -> Progress:
    """Put every verdict into nbgrader's gradebook; no valid verdict means an error output and no points."""
    lab_of.cache_clear()
    release_, bank = load_release(lab.folder), bank_version(lab)
    progress, wanted = Progress(), set(students)
    submitted = {s: p for s, p in course.submitted(lab).items() if not wanted or s in wanted}
    with recording(course) as visit:
        recorded = course.api.get_autograded_students(lab.slug)
        for student, path in tqdm(submitted.items(), desc=f"record {lab.slug}", disable=None):
            try:
                stamp = mark(course, lab, release_, bank, student, path)
            except (BadVerdict, Refused) as problem:
                stamp, progress.problems[student] = "", str(problem)
            if stamp and student in recorded and stamp == written(course.vault.recorded_path(lab.slug, student)):
                progress.kept.append(student)
            else:
                record_one(course, lab, student, stamp, visit, progress)
    return progress


@contextlib.contextmanager
def recording(course: Course) -> Iterator[OneVisit]:
    """The one process that may write grades; a full disk ends it with the way out."""
    lock = try_lock(course.vault.folder / "record.lock")
    if lock is None:
        raise CycleError(
            f"another process is recording grades of {course.root}. Wait until it is done and run the "
            "same command again."
        )
    with space_in(course.root), lock, OneVisit(course.api.coursedir.db_url) as visit:
        yield visit


def record_one(course: Course, lab: Lab, student: str, stamp: str, visit: OneVisit, progress: Progress) -> None:
    """All of one student's grades, or none: the mark that says so is gone before and there again after."""
    marker = course.vault.recorded_path(lab.slug, student)
    marker.unlink(missing_ok=True)
    result = visit.run(lambda: course.api.autograde(lab.slug, student, force=True))
    if not result["success"]:
        refuse_if_nbgrader_found_no_space(course, result)
        progress.problems.setdefault(student, last_line(result))
    elif stamp:
        write_atomically(marker, stamp)
        progress.done.append(student)


def mark(course: Course, lab: Lab, release_: Release, bank: str, student: str, path: Path) -> str:
    """What identifies a recorded grade: the verdict and the submitted bytes. BadVerdict if it may not count."""
    verdict = load(lab.slug, student, course.vault)
    now = basis(lab, take_in(path, release_, student), release_, verdict.draw)
    check(verdict, submission_sha256=now.submission_sha256, bank_version=bank, minimum_tier=minimum_tier(course.root))
    return hashes(verdict=course.vault.verdict_path(lab.slug, student), submitted=path)


def hashes(**files: Path) -> str:
    """The contents of some files, in a line."""
    return json.dumps({name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()})


def written(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def refuse_if_nbgrader_found_no_space(course: Course, result: dict[str, Any]) -> None:
    if says_full(f"{result.get('error')} {result.get('log')}"):
        raise full(course.root)


# --- feedback ---------------------------------------------------------------------------------


def write_feedback(course: Course, lab: Lab, students: Iterable[str] = (), *, fresh: bool = True) -> Progress:
    """One HTML page per student; without `fresh`, only where the graded notebook or the page is not as it was left."""
    progress, wanted = Progress(), set(students)
    with recording(course) as visit:
        graded = sorted(course.api.get_autograded_students(lab.slug))
        for student in tqdm([s for s in graded if not wanted or s in wanted], f"feedback {lab.slug}", disable=None):
            page = course.root / "feedback" / student / lab.slug / "lab.html"
            notebook = course.root / "autograded" / student / lab.slug / "lab.ipynb"
            marker = course.vault.page_path(lab.slug, student)
            if not fresh and page.is_file() and written(marker) == hashes(page=page, notebook=notebook):
                progress.kept.append(student)
                continue
            make = functools.partial(course.api.generate_feedback, lab.slug, student, force=True)
            result = visit.run(make, write=False)
            if result["success"]:
                write_atomically(marker, hashes(page=page, notebook=notebook))
                progress.done.append(student)
            else:
                refuse_if_nbgrader_found_no_space(course, result)
                progress.problems[student] = last_line(result)
        progress.done += write_pages(course.root / "feedback", course.vault.folder, lab.slug, graded, wanted)
    return progress


def scores(course: Course, lab: Lab) -> dict[str, dict[str, Any]]:
    """Student -> nbgrader's summary of the submission (score, max_score, needs_manual_grade, …)."""
    return {row["student"]: row for row in course.api.get_submissions(lab.slug) if row["autograded"]}
