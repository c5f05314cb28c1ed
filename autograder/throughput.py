"""How fast a class is graded, beside plain nbgrader: `autograder throughput`.

One assignment of five torch functions and seven hidden cases (each drawn twice), answered by a made-up class, is
judged with one worker and with two, taken through nbgrader's gradebook by `autograder judge` and `autograder record`,
and graded once more by `nbgrader autograde` with the same functions behind asserts. A second assignment makes it at
least two hundred cell grades that must be equal. All is timed in one run; a submission's own compute is measured apart.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nbformat
import torch
from nbgrader.api import Gradebook

from autograder import cli
from autograder.judge import cycle
from autograder.judge.cells import plain_python
from autograder.judge.course import Course
from autograder.judge.intake import load_release
from autograder.judge.tiers import machine_tier
from autograder.judge.verdict import CycleError
from autograder.judge.workers import Job, run_jobs
from autograder.labs import Lab, find_lab, load_lab
from autograder.synthetic import Classroom
from autograder.throughput_figures import Result, Spent, table
from autograder.throughput_labs import ASSIGNMENTS, Function, answers, fill, plain_source, write_lab

SEED = 20260101
# The builder of notebooks is the course's; the grader knows it as a command only.
BUILD = (
    "import sys; from pathlib import Path; from course.notebooks import open_source, student_text;"
    "folder = Path(sys.argv[1]); (folder / 'lab.ipynb').write_text(student_text(open_source(folder)))"
)
PLAIN_CONFIG = """c = get_config()
c.CourseDirectory.root = {root!r}
c.KernelManager.transport = "ipc"
c.KernelManager.ip = {kernel!r}
"""
DESCRIPTION = """Time the judge and the whole way into nbgrader's gradebook, beside `nbgrader autograde` on the same
functions, and compare every grade. With --class N, time one lab's class end to end instead."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 1 if a grade differs."""
    arguments = parser().parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    cli.interpret_without_gpu()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="throughput-"))
    try:
        if arguments.students:
            return time_class(folder, arguments)
        result = measure(folder, arguments.submissions, arguments.plain, arguments.workers)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(table(result))
    if arguments.json is not None:
        numbers = asdict(result) | {"times_faster": result.times_faster}
        arguments.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return 1 if result.unequal else 0


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="autograder throughput", description=DESCRIPTION)
    result.add_argument("--submissions", type=int, default=100, help="that we judge and record [default: 100]")
    result.add_argument("--plain", type=int, default=20, help="of them, that plain nbgrader grades [default: 20]")
    result.add_argument("--workers", type=int, default=2, help="the larger number of workers [default: 2]")
    result.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the figures as JSON, too")
    result.add_argument("--class", dest="students", type=int, default=0, metavar="N", help="time a class of N instead")
    result.add_argument("--lab", default="04", help="with --class: of which lab [default: 04]")
    result.add_argument("--course", type=Path, default=None, help="with --class: whose settings are copied")
    return result


def measure(folder: Path, submissions: int, plain: int, workers: int) -> Result:
    """Everything, step by step, each said when it begins."""
    result = Result(machine_tier(), os.cpu_count() or 1, submissions, plain)
    os.environ["COURSE_LABS"] = str(folder / "labs")
    course = make_course(folder / "course")
    for slug, functions in ASSIGNMENTS.items():
        first = slug == next(iter(ASSIGNMENTS))
        lab = make_lab(folder / "labs" / slug, functions)
        made = answers(functions, submissions if first else plain)
        cycle.release(course, lab)
        hand_in(course.root, lab.slug, load_release(lab.folder).notebook, made)
        if first:
            say(f"judging {submissions} submissions with 1 and with {workers} workers")
            result.own_ms = own_compute(lab, made)
            for count in (1, workers):
                boot, steady = time_judging(course, lab, made, count, folder / f"vault-{count}")
                result.boot_s = result.boot_s or boot
                result.judge_ms[count] = steady
                result.beyond_ms[count] = steady - result.own_ms / count
            say(f"judging and recording {submissions} submissions as commands")
        taken = time_commands(course, slug, workers)
        root = folder / f"plain-{slug}"
        say(f"nbgrader autograde on {plain} of them")
        spent = time_plain(root, slug, functions, dict(list(made.items())[:plain]))
        if first:
            result.judge_command, result.record_command = taken
            result.plain_command = spent
        compare(result, slug, functions, course, root, list(made)[:plain])
    return result


def say(text: str) -> None:
    print(f"… {text}", file=sys.stderr, flush=True)


# --- ours ---------------------------------------------------------------------------------------------


def make_course(root: Path) -> Course:
    """A course folder whose settings ask for the tier that there is."""
    root.mkdir(parents=True)
    shutil.copy(cli.open_course(argparse.Namespace(course=None)).root / "nbgrader_config.py", root)
    (root / "course.toml").write_text(f'[grading]\nminimum_tier = "{machine_tier()}"\n', encoding="utf-8")
    return Course(root)


def make_lab(folder: Path, functions: Sequence[Function]) -> Lab:
    write_lab(folder, functions)
    run([sys.executable, "-c", BUILD, str(folder)])
    return load_lab(folder)


def hand_in(root: Path, slug: str, release: Any, made: dict[str, dict[str, str]]) -> None:
    for student, sources in made.items():
        path = root / "submitted" / student / slug / "lab.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(nbformat.writes(fill(release, sources)), encoding="utf-8")


def time_judging(course: Course, lab: Lab, made: Iterable[str], workers: int, vault: Path) -> tuple[float, float]:
    """(seconds until the first verdict, ms per submission from then on) with so many workers."""
    paths = {student: course.root / "submitted" / student / lab.slug / "lab.ipynb" for student in made}
    waiting = [Job(lab.folder, path, student, SEED, "draw", vault) for student, path in paths.items()]
    start, ends = time.monotonic(), []
    for student, says in run_jobs(waiting, workers):
        ends.append(time.monotonic())
        if says:
            raise CycleError(f"{student} was not judged: {says}")
    # Every worker's first verdict pays for its boot; count from the moment when all of them are warm.
    warm = ends[2 * workers - 1]
    return ends[0] - start, 1000 * (ends[-1] - warm) / (len(ends) - 2 * workers)


def own_compute(lab: Lab, made: dict[str, dict[str, str]]) -> float:
    """ms per submission of the same definitions and the same calls in this process: no sandbox, no comparison."""
    spent = []
    for sources in made.values():
        drawn = {name: [case for _, case in question.draw(SEED)] for name, question in lab.checks.items()}
        start = time.perf_counter()
        namespace: dict[str, Any] = {"torch": torch}
        for name, question in lab.checks.items():
            exec(compile(plain_python(sources[name]), "<answer>", "exec"), namespace)
            for case in drawn[name] if sources[name] else ():
                call_once(namespace[question.answer], case.args)
        spent.append(1000 * (time.perf_counter() - start))
    return statistics.mean(spent)


def call_once(answer: Any, args: Sequence[Any]) -> None:
    try:
        answer(*args)
    except Exception:
        return  # a wrong answer may raise; it took its time all the same


def time_commands(course: Course, slug: str, workers: int) -> tuple[Spent, Spent]:
    """`autograder judge` and `autograder record`, starting included."""
    line = [sys.executable, "-m", "autograder"]
    rest = [slug, "--course", str(course.root)]
    return timed([*line, "judge", *rest, "--jobs", str(workers)]), timed([*line, "record", *rest])


# --- plain nbgrader -----------------------------------------------------------------------------------


def time_plain(root: Path, slug: str, functions: Sequence[Function], made: dict[str, dict[str, str]]) -> Spent:
    """One `nbgrader autograde` on the same answers, starting included."""
    source = root / "source" / slug / "lab.ipynb"
    source.parent.mkdir(parents=True)
    source.write_text(nbformat.writes(plain_source(functions)), encoding="utf-8")
    config = PLAIN_CONFIG.format(root=str(root), kernel=str(root / "kernel"))
    (root / "nbgrader_config.py").write_text(config, encoding="utf-8")
    run([sys.executable, "-m", "nbgrader", "generate_assignment", slug], cwd=root)
    release = nbformat.read(root / "release" / slug / "lab.ipynb", as_version=4)
    hand_in(root, slug, release, made)
    return timed([sys.executable, "-m", "nbgrader", "autograde", slug], cwd=root)


def timed(line: Sequence[str], cwd: Path | None = None) -> Spent:
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    run(line, cwd)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Spent(time.monotonic() - start, cpu)


def run(line: Sequence[str], cwd: Path | None = None) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    made = subprocess.run(line, capture_output=True, text=True, check=False, cwd=cwd, env={**os.environ, "PATH": path})
    if made.returncode:
        raise CycleError(f"{' '.join(line[1:5])} ended with {made.returncode}:\n{made.stderr.strip()[-1500:]}")


# --- grades -------------------------------------------------------------------------------------------


def compare(
    result: Result, slug: str, functions: Sequence[Function], course: Course, root: Path, students: Sequence[str]
) -> None:
    """Every cell grade of `students` in both gradebooks."""
    plain_url = f"sqlite:///{root / 'gradebook.db'}"
    with course.api.gradebook as ours, Gradebook(plain_url) as theirs:
        for student in students:
            for f in functions:
                place = (f"check-{f.name}", "lab", slug, student)
                a, b = ours.find_grade(*place).auto_score, theirs.find_grade(*place).auto_score
                result.cells += 1
                if a != b or a is None:
                    result.unequal.append(f"{slug} {student} {f.name}: judge {a}, nbgrader {b}")


# --- a class ------------------------------------------------------------------------------------------


def time_class(folder: Path, arguments: argparse.Namespace) -> int:
    """`autograder grade` on N students of one lab, from a folder of notebooks to the CSV file."""
    lab = find_lab(arguments.lab)
    course = make_course(folder / "course")
    cycle.release(course, lab)
    kinds = [s for s in Classroom(lab, load_release(lab.folder)).students() if not s.refused]
    (folder / "inbox").mkdir()
    for number in range(arguments.students):
        (folder / "inbox" / f"s{number:03d}.ipynb").write_bytes(kinds[number % len(kinds)].bytes())
    line = [sys.executable, "-m", "autograder", "grade", lab.slug, "--from", str(folder / "inbox")]
    line += ["--course", str(course.root), "--csv", str(folder / "grades.csv"), "--jobs", str(arguments.workers)]
    seconds = timed(line).wall_s
    graded = len(cycle.scores(course, lab))
    print(
        f"{lab.slug}: {graded} of {arguments.students} students graded in {seconds:.0f} s, from notebooks to CSV, tier "
        f"{machine_tier()}, {arguments.workers} workers ({1000 * seconds / arguments.students:.0f} ms each)"
    )
    return 0 if graded == arguments.students else 1


if __name__ == "__main__":
    raise SystemExit(main())
