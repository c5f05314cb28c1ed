"""Late work: extensions from `extensions.csv`, penalties counted anew whenever grades are written or leave.

nbgrader counts a penalty once, when a notebook is autograded: an extension granted later, a mark given later and a time
of submission that was corrected do not reach it. `settle` brings all of them up to date; it only reads and computes, so
running it twice changes nothing.
"""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from autograder.judge.course import Course
from autograder.judge.verdict import CycleError
from autograder.nbgrader import penalty, settings

FILE = "extensions.csv"
COLUMNS = ("student", "lab", "until", "why")
HELP = "The columns are student, lab (or `all`), until (2027-02-03T23:59Z, or days: 3), why."


@dataclass(frozen=True)
class Extension:
    """More time for one student: a moment, or a number of days after the deadline."""

    student: str
    lab: str
    until: datetime | None
    days: float
    why: str

    def over(self, due: datetime) -> timedelta:
        """How much time it adds; none where `until` lies before the deadline."""
        return max(timedelta(0), self.until - due) if self.until else timedelta(days=self.days)


def read_extensions(course: Course) -> list[Extension]:
    """The course's extensions; every problem in the file at once, each with its line."""
    path = course.root / FILE
    if not path.is_file():
        return []
    lines = csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig", errors="replace")))
    if set(lines.fieldnames or ()) != set(COLUMNS):
        raise CycleError(f"{path}: columns are {', '.join(lines.fieldnames or ())}. {HELP}")
    labs = set(settings(course.root).get("deadlines", {})) | {"all"}
    found, problems = [], []
    for line in lines:
        try:
            found.append(read_line(line, labs))
        except ValueError as problem:
            problems.append(f"line {lines.line_num}: {problem}")
    if problems:
        raise CycleError(f"{path}: {HELP}\n  " + "\n  ".join(problems))
    return found


def read_line(line: dict[str, Any], labs: set[str]) -> Extension:
    student, lab, until, why = ((line.get(name) or "").strip() for name in COLUMNS)
    if not student or not why:
        raise ValueError("student and why must be filled in: an extension without a reason cannot be defended")
    if lab not in labs:
        raise ValueError(f"no lab {lab!r} with a deadline in course.toml (there are: {', '.join(sorted(labs))})")
    if until.replace(".", "", 1).isdigit():
        return Extension(student, lab, None, float(until), why)
    moment = datetime.fromisoformat(until)
    return Extension(student, lab, moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC), 0, why)


def extension_for(extensions: Iterable[Extension], student: str, lab: str, due: datetime) -> timedelta | None:
    """The longest of what was granted, or None."""
    own = [each.over(due) for each in extensions if each.student == student and each.lab in (lab, "all")]
    return max(own, default=timedelta(0)) or None


def settle(course: Course, slugs: Iterable[str] | None = None) -> list[str]:
    """Extensions and penalties as they are today, of these labs or of all. Returns "lab/student" of what changed."""
    extensions, changed = read_extensions(course), []
    policy = settings(course.root).get("late", {})
    with course.api.gradebook as gradebook:
        for assignment in gradebook.assignments:
            if slugs is not None and assignment.name not in set(slugs):
                continue
            for submission in assignment.submissions:
                if update(course, submission, extensions, policy):
                    changed.append(f"{assignment.name}/{submission.student.id}")
                    course.vault.page_path(assignment.name, submission.student.id).unlink(missing_ok=True)
        gradebook.db.commit()
    return changed


def update(course: Course, submission: Any, extensions: list[Extension], policy: dict[str, Any]) -> bool:
    """One submission's time, extension and penalty; whether any of them changed."""
    name, student, due = submission.assignment.name, submission.student.id, submission.assignment.duedate
    before = (submission.timestamp, submission.extension, [n.late_submission_penalty for n in submission.notebooks])
    if not stamp_path(course, name, student).is_file():
        submission.timestamp = None  # a time that was taken back; nbgrader would keep it
    granted = extension_for(extensions, student, name, due.replace(tzinfo=UTC)) if due else None
    submission.extension = granted
    for notebook in submission.notebooks:
        notebook.late_submission_penalty = penalty(policy, notebook.score, submission.total_seconds_late)
    after = (submission.timestamp, submission.extension, [n.late_submission_penalty for n in submission.notebooks])
    return before != after


def stamp_path(course: Course, lab: str, student: str) -> Path:
    return course.root / "submitted" / student / lab / "timestamp.txt"
