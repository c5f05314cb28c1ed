"""After a check was corrected: `autograder regrade LAB --why "…"` shows every grade that changes, then writes them.

The submissions are judged again beside the verdicts that count, so that nothing moves before you have seen it. A grade
that falls is named, and written only with `--lower`. Old verdicts are kept, and the signed log says who did it and why.
"""

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autograder.cli import interpret_without_gpu, open_course, tell
from autograder.judge import cycle
from autograder.judge.course import Course, Progress
from autograder.judge.vault import Vault, write_atomically
from autograder.judge.verdict import BadVerdict, CycleError, Verdict, load
from autograder.labs import Lab, find_lab
from autograder.staff import late, log


@dataclass(frozen=True)
class Change:
    """One student's points before and after, by question; `before` is None where there was no verdict."""

    student: str
    before: Verdict | None
    after: Verdict

    def questions(self) -> list[tuple[str, float, float]]:
        """(question, old, new) of every question whose points differ."""
        old = {name: q["earned"] for name, q in self.before.questions.items()} if self.before else {}
        new = {name: q["earned"] for name, q in self.after.questions.items()}
        return [(n, old.get(n, 0.0), new.get(n, 0.0)) for n in {**old, **new} if old.get(n, 0.0) != new.get(n, 0.0)]

    @property
    def falls(self) -> bool:
        return any(new < old for _, old, new in self.questions())

    @property
    def earned(self) -> tuple[float, float]:
        return (self.before.earned if self.before else 0.0), self.after.earned

    def line(self) -> str:
        old, new = self.earned
        detail = ", ".join(f"{name} {a:g} -> {b:g}" for name, a, b in self.questions())
        return f"{self.student:24} {old:8g} -> {new:<8g} {detail}{'   FALLS' if self.falls else ''}"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = parser().parse_args(argv)
    interpret_without_gpu()
    if not arguments.why.strip():
        raise CycleError("--why is empty: students will ask, and so will you in a year")
    course, lab = open_course(arguments), find_lab(arguments.lab)
    with tempfile.TemporaryDirectory(prefix="regrade-", dir=course.vault.folder) as folder:
        beside, progress = judge_beside(course, lab, Path(folder), arguments.student, arguments.jobs)
        changes = compare(course, lab, beside, progress.done + progress.kept)
        status = tell("judged again", progress)
        print(table(lab, changes))
        if arguments.dry_run:
            print("--dry-run: nothing was written")
            return status
        falling = [change.student for change in changes if change.falls]
        if falling and not arguments.lower:
            print(
                f"nothing was written: {len(falling)} grades would fall ({', '.join(falling)}). If they must: --lower"
            )
            return 1
        adopt(course, lab, beside, progress.done + progress.kept)
        log.write(
            course.vault, [entry(lab, change, arguments.why) for change in changes] or [nothing(lab, arguments.why)]
        )
    students = [change.student for change in changes]
    if students:
        status |= tell("record", cycle.record(course, lab, students))
        late.settle(course, [lab.slug])
        status |= tell("feedback", cycle.write_feedback(course, lab, students))
    print(f"{len(changes)} grades changed and logged. `autograder export` writes them out.")
    return status


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="autograder regrade", description=__doc__.partition("\n")[0])
    result.add_argument("lab", help='the lab\'s folder name, or its number: "03"')
    result.add_argument("--why", required=True, help="the reason, for the log")
    result.add_argument("--student", action="append", default=[], metavar="ID", help="only this one; may be repeated")
    result.add_argument("--dry-run", action="store_true", help="show old and new grades, write nothing")
    result.add_argument("--lower", action="store_true", help="write grades that fall, too")
    result.add_argument("--jobs", type=int, default=None, help="submissions judged at once [default: one per core]")
    result.add_argument("--course", type=Path, default=None, help="course folder [default: ./course, or here]")
    return result


def judge_beside(
    course: Course, lab: Lab, folder: Path, students: list[str], jobs: int | None
) -> tuple[Vault, Progress]:
    """Judge into a vault of its own, with the course's key and seeds."""
    real = course.vault
    real.seed(lab.slug, cycle.bank_version(lab))  # drawn in the real vault, so that it is the one that stays
    shutil.copy2(real.folder / "key", folder / "key")
    shutil.copytree(real.folder / "seeds", folder / "seeds")
    aside = Course(course.root)
    aside.__dict__["vault"] = Vault(folder)
    progress = cycle.judge(aside, lab, jobs=jobs or cycle.default_jobs(), students=students)
    return aside.vault, progress


def compare(course: Course, lab: Lab, beside: Vault, students: Sequence[str]) -> list[Change]:
    """Who has other points now than before."""
    changes = []
    for student in sorted(students):
        try:
            before = load(lab.slug, student, course.vault)
        except BadVerdict:
            before = None
        change = Change(student, before, load(lab.slug, student, beside))
        if change.questions() or before is None:
            changes.append(change)
    return changes


def adopt(course: Course, lab: Lab, beside: Vault, students: Sequence[str]) -> None:
    """The new verdicts become the ones that count; the old ones are kept under the time at which they were made."""
    for student in students:
        old, new = course.vault.verdict_path(lab.slug, student), beside.verdict_path(lab.slug, student)
        if old.is_file():
            made = load_time(course, lab, student)
            write_atomically(
                course.vault.folder / "replaced" / lab.slug / f"{student}-{made}.json", old.read_text("utf-8")
            )
        write_atomically(old, new.read_text(encoding="utf-8"))


def load_time(course: Course, lab: Lab, student: str) -> str:
    try:
        return load(lab.slug, student, course.vault).created.replace(":", "")
    except BadVerdict:
        return "unsigned"


def table(lab: Lab, changes: Sequence[Change]) -> str:
    if not changes:
        return f"{lab.slug}: every grade stays as it is"
    rises = sum(change.earned[1] > change.earned[0] for change in changes)
    falls = sum(change.falls for change in changes)
    head = f"{lab.slug}: {len(changes)} grades change, {rises} rise, {falls} fall in some question (code questions)"
    return "\n".join([head, *(change.line() for change in changes)])


def entry(lab: Lab, change: Change, why: str) -> dict:
    old, new = change.earned
    banks = [change.before.bank_version if change.before else "", change.after.bank_version]
    about = {"what": log.REGRADE, "lab": lab.slug, "student": change.student, "why": why}
    return {**about, "old": old, "new": new, "questions": change.questions(), "bank": banks}


def nothing(lab: Lab, why: str) -> dict:
    return {"what": log.REGRADE, "lab": lab.slug, "student": "", "why": why, "old": 0.0, "new": 0.0, "questions": []}
