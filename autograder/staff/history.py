"""`autograder history LAB STUDENT`: how a grade came about: intake, verdicts old and new, the gradebook, decisions."""

from collections.abc import Iterator, Sequence

from nbgrader.api import MissingEntry

from autograder.cli import open_course
from autograder.judge.course import Course
from autograder.judge.receipt import load_receipt
from autograder.judge.verdict import BadVerdict, load
from autograder.labs import Lab, find_lab
from autograder.sanitize import show_hidden
from autograder.staff import log
from autograder.staff.explain import parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = parser("history", __doc__).parse_args(argv)
    course, lab = open_course(arguments), find_lab(arguments.lab)
    print("\n".join(show_hidden(line) for line in history(course, lab, arguments.student)))
    return 0


def history(course: Course, lab: Lab, student: str) -> Iterator[str]:
    """How the grade came about: intake, verdicts old and new, the gradebook, and what staff decided."""
    yield f"{lab.slug}, {student}"
    receipt = load_receipt(course.vault.folder, lab.slug, student)
    yield f"  last file: {receipt.file}, {receipt.state}" if receipt else "  no file was collected by `autograder`"
    folder = course.vault.folder / "replaced" / lab.slug
    for path in sorted(folder.glob(f"{student}-[0-9]*.json")):
        yield f"  replaced verdict of {path.stem.removeprefix(student + '-')}: {path}"
    try:
        verdict = load(lab.slug, student, course.vault)
        yield f"  verdict of {verdict.created}: {verdict.earned:g} points, tier {verdict.tier}"
    except BadVerdict as problem:
        yield f"  {problem}"
    yield from gradebook_lines(course, lab, student)
    for entry in log.read(course.vault):
        if entry["lab"] == lab.slug and entry["student"] == student:
            points = f"{entry['old']:g} -> {entry['new']:g}"
            yield f"  {entry['when']} {entry['who']}: {entry['what']}, {points}, because: {entry['why']}"


def gradebook_lines(course: Course, lab: Lab, student: str) -> Iterator[str]:
    with course.api.gradebook as gradebook:
        try:
            submission = gradebook.find_submission(lab.slug, student)
        except MissingEntry:
            yield "  not in the gradebook"
            return
        penalty = submission.late_submission_penalty or 0
        extra = f", extension {submission.extension}" if submission.extension else ""
        yield f"  handed in {submission.timestamp or 'at an unknown time'}{extra}; late penalty {penalty:g}"
        for notebook in submission.notebooks:
            for grade in notebook.grades:
                by = "the judge" if grade.auto_score is not None else "nobody yet"
                if grade.manual_score is not None:
                    by = "a person" + (", to be looked at again" if grade.needs_manual_grade else "")
                yield f"  {grade.name}: {grade.score:g} of {grade.max_score:g}, by {by}"
