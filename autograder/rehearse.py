"""Grade a class that never existed, before a real one is: `autograder rehearse`, `make grade`.

Makes a course folder of its own, releases every lab, hands in the notebooks of `autograder.synthetic`, and runs the
real commands as an instructor would: once killed while judging, once killed while recording, then to the end, then
again. The gradebook must equal what the lab itself says, question by question; feedback must hold nothing hidden.
"""

import argparse
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from autograder.cli import interpret_without_gpu, open_course
from autograder.hidden import hidden_numbers, secret_texts, significant, visible
from autograder.judge.cycle import default_jobs
from autograder.judge.intake import load_release
from autograder.judge.tiers import NOT_FOR_GRADES, machine_tier
from autograder.labs import Lab, all_labs, find_lab
from autograder.plain import execute_plainly
from autograder.rehearsal import (
    Rehearsal,
    command,
    contents,
    grade_arguments,
    gradebook,
    hidden_seed,
    kill_when,
    make_course,
)
from autograder.synthetic import Classroom, Student, expected

WHOLE = 2  # without --lab, so many labs (those with the most questions) get the whole class; two minutes each

DESCRIPTION = """Grade a synthetic class with known scores, with the real commands, in a temporary course folder.
Two runs are killed on the way; the last one repeats a finished one. Exit status 1 if anything is not as it must be.
The two labs with the most questions, or those named with --lab, get the whole class of twenty; the others six.
With --kills a class of fifty of one lab is graded instead, while its processes are killed at so many random moments."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = parser().parse_args(argv)
    interpret_without_gpu()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="rehearsal-"))
    try:
        labs, whole = choose(arguments)
        if arguments.kills:
            return int(importlib.import_module("autograder.kills").rehearse_kills(folder, labs, arguments))
        return rehearse(folder, labs, whole, open_course(arguments).root, arguments.jobs or default_jobs())
    finally:
        if arguments.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="autograder rehearse", description=DESCRIPTION)
    result.add_argument("--lab", action="append", default=[], help="only this lab; may be repeated [default: all]")
    result.add_argument("--course", type=Path, default=None, help="course folder whose settings are copied")
    result.add_argument("--jobs", type=int, default=None, help="submissions judged at once [default: one per core]")
    result.add_argument("--kills", type=int, default=0, metavar="N", help="kill -9 at N random moments instead")
    result.add_argument("--students", type=int, default=50, help="with --kills: how many [default: 50]")
    result.add_argument("--seed", type=int, default=None, help="with --kills: replay the moments of an earlier run")
    result.add_argument("--keep", action="store_true", help="leave the temporary course folder behind")
    return result


def choose(arguments: argparse.Namespace) -> tuple[list[Lab], set[str]]:
    """The labs, and the names of those that get the whole class."""
    if arguments.lab:
        named = [find_lab(name) for name in arguments.lab]
        return named, {lab.slug for lab in named}
    labs = all_labs()
    largest = sorted(labs, key=lambda lab: -len(lab.questions))[:WHOLE]
    return labs, {lab.slug for lab in largest}


def rehearse(folder: Path, labs: Sequence[Lab], whole: set[str], settings: Path, jobs: int) -> int:
    """The whole rehearsal; prints a table per lab."""
    start = time.monotonic()
    course, copies = make_course(folder, labs, settings)
    os.environ["COURSE_LABS"] = str(copies[0].folder.parent)
    faults = []
    for lab in copies:
        run = Rehearsal(course, lab, jobs, lab.slug in whole)
        play(run)
        print(table(run), flush=True)
        faults += [f"{lab.slug}: {fault}" for fault in run.faults]
    for fault in faults:
        print(f"FAULT {fault}", file=sys.stderr)
    verdict = f"{len(faults)} faults" if faults else "every score is as expected"
    warning = f" {NOT_FOR_GRADES}" if machine_tier() == "T0" else ""
    print(f"{len(copies)} labs in {time.monotonic() - start:.0f} s: {verdict}.{warning}")
    return 1 if faults else 0


def play(run: Rehearsal) -> None:
    """Every step, timed."""
    thorough = (grade_again, search_feedback, plain_nbgrader) if run.whole else (search_feedback,)
    kills = (grade_and_be_killed,) if run.whole else ()
    for step in (release, hand_in, *kills, grade_to_the_end, compare, *thorough):
        begin = time.monotonic()
        step(run)
        run.seconds[step.__name__] = time.monotonic() - begin


# --- the steps ------------------------------------------------------------------------------------------


def release(run: Rehearsal) -> None:
    """`autograder release`: equal to the lab's notebook byte for byte, or it fails."""
    made = command(run, "release", run.lab.slug)
    run.expect(made.returncode == 0, f"release: {made.stderr.strip()[-300:]}")


def hand_in(run: Rehearsal) -> None:
    run.students = Classroom(run.lab, load_release(run.lab.folder)).students(run.whole)
    run.inbox.mkdir(parents=True)
    for student in run.students:
        (run.inbox / f"{student.name}.ipynb").write_bytes(student.bytes())


def grade_and_be_killed(run: Rehearsal) -> None:
    """SIGKILL twice: with some verdicts written, and with some grades recorded. What was finished must survive."""
    verdicts = run.course.root / ".judge" / "verdicts" / run.lab.slug
    recorded = run.course.root / ".judge" / "recorded" / run.lab.slug
    kill_when(run, lambda: len(list(verdicts.glob("[!.]*.json"))) >= 3)
    before = contents(verdicts)
    run.expect(
        3 <= len(before) < len(run.graded), f"killed while judging, with {len(before)} verdicts: not in the middle"
    )
    kill_when(run, lambda: len(list(recorded.glob("[!.]*.json"))) >= 2)
    after = contents(verdicts)
    kept = [name for name in before if after.get(name) == before[name]]
    run.expect(kept == list(before), f"after the kill {len(before) - len(kept)} finished verdicts were lost")


def grade_to_the_end(run: Rehearsal) -> None:
    """The third run: exit status 1, because one student handed in no notebook, and everybody else graded."""
    made = grade(run)
    refused = [student.name for student in run.students if student.refused]
    run.expect(made.returncode == 1, f"grade ended with {made.returncode}: {made.stderr.strip()[-500:]}")
    complained = re.findall(r"^  (\S+): ", made.stderr, re.M)
    run.expect(
        sorted(set(complained)) == sorted(refused), f"problems reported for {complained}, expected for {refused}"
    )


def compare(run: Rehearsal) -> None:
    """The gradebook against the lab, question by question."""
    seed, book = hidden_seed(run), gradebook(run)
    for student in run.graded:
        wanted = run.wanted[student.name] = expected(run.lab, student, seed)
        got = book.get(student.name, {})
        run.expect(got == wanted, f"{student.name}: gradebook {got}, expected {wanted}")
    strangers = set(book) - {student.name for student in run.graded}
    run.expect(not strangers, f"graded without a notebook: {strangers}")


def grade_again(run: Rehearsal) -> None:
    """The fourth run changes no verdict, no grade and no page."""
    before = everything(run)
    grade(run)
    after = everything(run)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    run.expect(not changed, f"a second run changed {changed}")


def search_feedback(run: Rehearsal) -> None:
    """No hidden input, expected value, seed or check source in any page, and no live markup."""
    found = {page.parents[1].name for page in (run.course.root / "feedback").glob(f"*/{run.lab.slug}/*.html")}
    missing, strangers = {s.name for s in run.graded} - found, found - {s.name for s in run.students}
    run.expect(not missing and not strangers, f"feedback pages: missing {missing}, of nobody {strangers}")
    numbers, secrets = hidden_numbers(run.lab, hidden_seed(run)), secret_texts(run.lab)
    for student in run.graded:
        page = run.course.root / "feedback" / student.name / run.lab.slug / "lab.html"
        if not page.is_file():
            continue
        for fault in faults_of_page(page.read_text(encoding="utf-8"), student, numbers, secrets):
            run.faults.append(f"feedback of {student.name} {fault}")


def faults_of_page(page: str, student: Student, numbers: set[str], secrets: list[str]) -> Iterator[str]:
    """What one feedback page shows and must not, apart from what the student wrote."""
    shown, own = visible(page), student.bytes().decode("utf-8", "replace")
    found = sorted((numbers & set(significant(shown))) - set(significant(own)))
    if found:
        yield f"shows hidden numbers: {found[:3]}"
    told = [secret for secret in secrets if secret in shown and json.dumps(secret)[1:-1] not in own]
    if told:
        yield f"shows check source: {told[:2]}"
    if re.search(r"<script>alert|<img src=x|href=.javascript", page):
        yield "holds live markup"
    said, due = NOT_FOR_GRADES in shown, machine_tier() == "T0"
    if said != due:
        yield f"{'says' if said else 'does not say'} {NOT_FOR_GRADES!r}"


def plain_nbgrader(run: Rehearsal) -> None:
    """nbgrader as it comes, with Execute: the same check cell gives its points to a right answer only."""
    question = next(q for q in run.lab.checks.values() if not run.lab.questions[q.name].needs)
    wrong = f"def {question.answer}(*args, **kwargs):\n    return None\n"
    full = run.lab.questions[question.name].points
    for name, source, points in (("plain-wrong", wrong, 0.0), ("plain-right", run.lab.solution(question.name), full)):
        got = execute_plainly(run.course, run.lab, name, question.name, source)
        run.expect(got == points, f"plain nbgrader gives {name} {got} points for {question.name}, expected {points}")


# --- parts ----------------------------------------------------------------------------------------------


def grade(run: Rehearsal) -> subprocess.CompletedProcess[str]:
    return command(run, *grade_arguments(run))


def everything(run: Rehearsal) -> dict[str, Any]:
    """Verdicts, grades, pages and the CSV file of this lab."""
    root, slug = run.course.root, run.lab.slug
    found: dict[str, Any] = {f"verdict {n}": c for n, c in contents(root / ".judge" / "verdicts" / slug).items()}
    found |= {f"page {p.parents[1].name}": p.read_bytes() for p in (root / "feedback").glob(f"*/{slug}/*.html")}
    found |= {f"grade {name}": points for name, points in gradebook(run).items()}
    return found | {"csv": (root.parent / "grades.csv").read_bytes()}


def table(run: Rehearsal) -> str:
    """student | expected | gradebook, and where the time went."""
    book = gradebook(run)
    possible = sum(run.lab.questions[name].points for name in run.lab.checks)
    lines = [f"\n{run.lab.slug}: {len(run.students)} students, {possible:g} points on code questions"]
    lines += [f"{'student':16} {'expected':>8} {'gradebook':>9}   what they handed in"]
    for student in run.students:
        wanted = "none" if student.refused else f"{sum(run.wanted[student.name].values()):g}"
        got = f"{sum(book[student.name].values()):g}" if student.name in book else "none"
        lines.append(
            f"{student.name:16} {wanted:>8} {got:>9}   {student.says}{'' if wanted == got else '   <-- FAULT'}"
        )
    times = ", ".join(f"{name.replace('_', ' ')} {seconds:.0f} s" for name, seconds in run.seconds.items())
    return "\n".join([*lines, f"({times})"])
