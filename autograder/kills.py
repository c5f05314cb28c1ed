"""Grade a class while its processes are killed: `autograder rehearse --kills 20`.

A class of fifty is graded once in peace and once under fire: SIGKILL reaches the judging command, a zygote, the
command while it records and while it writes feedback, each at a random moment, and each time the command is simply
run again. In the end every grade must be there, once, and equal to the peaceful run's; and between the kills the
gradebook may hold nobody's grade by half.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autograder.cli import open_course
from autograder.judge.cycle import default_jobs
from autograder.judge.intake import load_release
from autograder.labs import Lab
from autograder.rehearsal import Rehearsal, command, contents, environment, grade_arguments, gradebook, make_course
from autograder.synthetic import Classroom, Student

# Of the synthetic class, those that take no deadline to judge.
KINDS = (
    *("perfect", "empty", "half", "mistakes-first", "mistakes-last", "cheat-oracle", "cheat-outputs", "syntax-error"),
    *("crash", "deleted", "duplicated", "renamed", "edited-check", "markup"),
)
PHASES = ("judge", "zygote", "record", "feedback")
SHARE = {"judge": 3, "zygote": 2, "record": 3, "feedback": 1}  # of the kills
JITTER = 0.3  # seconds after the chosen count of finished students, so that a kill falls anywhere in the next one
ZYGOTE = "sandbox/zygote.py"
PATIENCE = 600.0

Process = tuple[int, int]  # its number and when it began


@dataclass
class Siege:
    """One class under fire."""

    run: Rehearsal
    dice: random.Random
    peace: dict[str, dict[str, float]] = field(default_factory=dict)  # the undisturbed run's gradebook
    log: list[str] = field(default_factory=list)

    @property
    def verdicts(self) -> Path:
        return self.run.course.root / ".judge" / "verdicts" / self.run.lab.slug

    def finished(self, phase: str) -> int:
        """How many students are through with a phase."""
        folder = {"judge": "verdicts", "zygote": "verdicts", "record": "recorded", "feedback": "pages"}[phase]
        return len(list((self.verdicts.parents[1] / folder / self.run.lab.slug).glob("[!.]*.json")))


def rehearse_kills(folder: Path, labs: Sequence[Lab], arguments: argparse.Namespace) -> int:
    """The whole siege; prints what was killed when. Exit status 1 if a grade is lost, doubled or different."""
    start = time.monotonic()
    seed = arguments.seed if arguments.seed is not None else random.randrange(1 << 32)
    lab = labs[0] if arguments.lab else min(labs, key=lambda lab: (len(lab.imports), len(lab.checks)))
    course, (lab,) = make_course(folder, [lab], open_course(arguments).root)
    os.environ["COURSE_LABS"] = str(lab.folder.parent)
    siege = Siege(Rehearsal(course, lab, arguments.jobs or default_jobs()), random.Random(seed))
    print(f"{lab.slug}: {arguments.students} students, {arguments.kills} kills, --seed {seed}", flush=True)
    command(siege.run, "release", lab.slug).check_returncode()
    hand_in(siege.run, arguments.students)
    grade_in_peace(siege)
    for phase in plan(arguments.kills):
        while not strike(siege, phase):
            pass  # the command had ended before the moment came
        print(siege.log[-1], flush=True)
    grade_once_more(siege)
    for fault in siege.run.faults:
        print(f"FAULT {fault} (replay: --seed {seed})", file=sys.stderr)
    verdict = f"{len(siege.run.faults)} faults" if siege.run.faults else "every grade is there once, as in peace"
    print(f"{arguments.kills} kills in {time.monotonic() - start:.0f} s: {verdict}")
    return 1 if siege.run.faults else 0


def plan(kills: int) -> list[str]:
    """What to kill, in the order in which a class goes through the phases; every phase gets its share."""
    whole = sum(SHARE.values())
    counts = {phase: max(1, round(kills * SHARE[phase] / whole)) for phase in PHASES}
    counts["judge"] = max(1, kills - sum(counts[phase] for phase in PHASES[1:]))
    before = [phase for phase in PHASES[:2] for _ in range(counts[phase])]
    before = [before[i::2][j] for i in range(2) for j in range(len(before[i::2]))]  # zygotes among the judges
    return [*before, *(phase for phase in PHASES[2:] for _ in range(counts[phase]))]


def hand_in(run: Rehearsal, count: int) -> None:
    """`count` students, of every kind that needs no deadline."""
    made = {student.name: student for student in Classroom(run.lab, load_release(run.lab.folder)).students()}
    run.inbox.mkdir(parents=True)
    for number in range(count):
        kind = made[KINDS[number % len(KINDS)]]
        student = Student(f"s{number:03d}-{kind.name}", kind.says, kind.notebook, kind.content, kind.worth)
        run.students.append(student)
        (run.inbox / f"{student.name}.ipynb").write_bytes(student.bytes())


def grade_in_peace(siege: Siege) -> None:
    """The run to compare with; then everything but the key and the hidden seed is as before it."""
    run, root = siege.run, siege.run.course.root
    before = root / "gradebook-before.db"
    shutil.copy(root / "gradebook.db", before)
    made = command(run, *grade_arguments(run))
    run.expect(made.returncode == 0, f"undisturbed: {made.stderr.strip()[-500:]}")
    siege.peace = gradebook(run)
    run.expect(len(siege.peace) == len(run.students), f"undisturbed: {len(siege.peace)} of {len(run.students)} graded")
    undo(siege, "judge")


def undo(siege: Siege, phase: str) -> None:
    """Everything from `phase` on is still to do; the key and the hidden seed stay."""
    root = siege.run.course.root
    made: dict[str, tuple[str, ...]] = {
        "judge": ("submitted", ".judge/verdicts"),
        "record": ("autograded", ".judge/recorded"),
    }
    made |= {"zygote": (), "feedback": ("feedback", ".judge/pages")}
    for name in (name for later in PHASES[PHASES.index(phase) :] for name in made[later]):
        shutil.rmtree(root / name, ignore_errors=True)
    if phase != "feedback":
        shutil.copy(root / "gradebook-before.db", root / "gradebook.db")


def strike(siege: Siege, phase: str) -> bool:
    """Run `autograder grade`, kill at a random moment of `phase`, look at what is left. False: it ended before."""
    run, total = siege.run, len(siege.run.students)
    if siege.finished(phase) >= total:
        undo(siege, "judge" if phase == "zygote" else phase)
    kept, done = contents(siege.verdicts), siege.finished(phase)
    goal = done + siege.dice.randint(0, max(0, (total - done) // 4))
    delay = siege.dice.uniform(0, JITTER)
    process = start(run)
    family = wait_for(process, lambda: siege.finished(phase) >= goal and in_phase(siege, phase, process.pid))
    time.sleep(delay)
    if process.poll() is not None:
        run.expect(process.returncode == 0, f"{phase}: a run ended by itself: {words(run).read_text()[-600:]}")
        return False
    if phase == "zygote":
        family |= kill_a_zygote(siege, process)
    process.kill()
    process.wait()
    at = f"{phase:9} killed at {siege.finished(phase)} of {total}"
    siege.log.append(f"{at} (aimed at {goal}, {1000 * delay:.0f} ms later)")
    left = left_behind(family)
    run.expect(not left, f"{at}: processes left behind: {left}")
    after = contents(siege.verdicts)
    lost = [name for name in kept if after.get(name) != kept[name]]
    run.expect(not lost, f"{at}: finished verdicts lost or changed: {lost[:3]}")
    look_at_gradebook(siege, at, whole=False)
    return True


def kill_a_zygote(siege: Siege, process: subprocess.Popen[bytes]) -> set[Process]:
    """The command must go on without it, with another; returns the processes seen meanwhile."""
    before = siege.finished("zygote")
    for pid in siege.dice.sample(found := zygotes(process.pid), min(1, len(found))):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    seen = wait_for(process, lambda: siege.finished("zygote") >= min(before + 3, len(siege.run.students)))
    said = words(siege.run).read_text(encoding="utf-8", errors="replace")[-600:]
    siege.run.expect(process.poll() in (None, 0), f"the command did not survive the death of a zygote: {said}")
    return seen


def start(run: Rehearsal) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "autograder", *grade_arguments(run), "--course", str(run.course.root)]
    with words(run).open("wb") as said:
        return subprocess.Popen(line, env=environment(run), stdout=said, stderr=said)


def words(run: Rehearsal) -> Path:
    """What the command said last, for the report of a fault."""
    return run.course.root.parent / "said.txt"


def in_phase(siege: Siege, phase: str, pid: int) -> bool:
    """Whether the command is doing what is to be disturbed."""
    if phase in ("judge", "zygote"):
        return bool(zygotes(pid))
    everybody = len(siege.run.students)
    return siege.finished("judge" if phase == "record" else "record") >= everybody


def wait_for(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> set[Process]:
    """Until `ready` or the command's end; returns every process seen below it."""
    family: set[Process] = set()
    deadline = time.monotonic() + PATIENCE
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        family |= {(pid, birth(pid)) for pid in descendants(process.pid)}
        time.sleep(0.02)
    return family | {(pid, birth(pid)) for pid in descendants(process.pid)}


def look_at_gradebook(siege: Siege, when: str, *, whole: bool) -> None:
    """Each student at most once (or, at the end, exactly once), and with the peaceful grade in every cell."""
    run, book = siege.run, gradebook(siege.run)
    with run.course.api.gradebook as opened:
        rows = [submission.student.id for submission in opened.assignment_submissions(run.lab.slug)]
    run.expect(len(rows) == len(set(rows)), f"{when}: a student stands twice in the gradebook")
    wrong = sorted(name for name, points in book.items() if points != siege.peace.get(name))
    run.expect(not wrong, f"{when}: grades differ from the undisturbed run's: {wrong[:3]}")
    if whole:
        run.expect(set(book) == set(siege.peace), f"{when}: {len(siege.peace) - len(book)} grades are missing")


def grade_once_more(siege: Siege) -> None:
    """The last run, in peace."""
    run = siege.run
    made = command(run, *grade_arguments(run))
    run.expect(made.returncode == 0, f"the last run: {made.stderr.strip()[-500:]}")
    look_at_gradebook(siege, "the last run", whole=True)
    for student in run.students:
        page = run.course.root / "feedback" / student.name / run.lab.slug / "lab.html"
        whole = page.is_file() and page.read_text(encoding="utf-8").rstrip().endswith("</html>")
        run.expect(whole, f"the last run: the feedback page of {student.name} is not whole")


# --- processes, from /proc ------------------------------------------------------------------------------


def descendants(pid: int) -> list[int]:
    """Every process below `pid`."""
    found = []
    for child in children(pid):
        found += [child, *descendants(child)]
    return found


def children(pid: int) -> list[int]:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:
        return []


def zygotes(pid: int) -> list[int]:
    """Zygotes below `pid`, without what they forked (which has their command line)."""
    below = [(parent, child) for parent in [pid, *descendants(pid)] for child in children(parent)]
    return [child for parent, child in below if is_zygote(child) and not is_zygote(parent)]


def is_zygote(pid: int) -> bool:
    return ZYGOTE in command_line(pid)


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def left_behind(family: set[Process], seconds: float = 60.0) -> list[str]:
    """Those that have not ended after `seconds`, by their command line; a zombie has ended."""
    deadline = time.monotonic() + seconds
    while True:
        left = [pid for pid, born in family if born and birth(pid) == born]
        if not left or time.monotonic() > deadline:
            return [f"{pid} {command_line(pid)[:300]}" for pid in left]
        time.sleep(0.05)


def birth(pid: int) -> int:
    """When the process began, in the kernel's ticks: numbers of processes come again. 0 for one that has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if status[0] in "ZX" else int(status[19])
