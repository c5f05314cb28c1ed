"""The gradebook on a PostgreSQL server: the same cycle, the same grades, two writers at once."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from autograder.judge import cycle
from autograder.judge.course import Course
from autograder.judge.intake import load_release
from autograder.rehearse import Rehearsal, gradebook, hidden_seed, make_course
from autograder.staff import exports
from autograder.synthetic import Classroom, expected

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]


def binaries() -> Path | None:
    """Where PostgreSQL's server programs are; Debian keeps them off the PATH."""
    places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    places += [Path(found).parent] if (found := shutil.which("initdb")) else []
    return next((p for p in places if all((p / tool).exists() for tool in ("initdb", "pg_ctl", "createdb"))), None)


class Server:
    """A PostgreSQL of our own in a temporary folder, reached through a socket in it."""

    def __init__(self, bin_: Path, folder: Path) -> None:
        self.bin, self.folder = bin_, folder
        # The server refuses to run as root.
        self.account = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
        if self.account:
            shutil.chown(folder, "nobody", "nogroup")
        self._run("initdb", "-A", "trust", "-U", "grader", "--no-sync")

    def _run(self, tool: str, *words: str) -> None:
        line = [self.bin / tool, "-D", str(self.folder / "data"), *words]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        subprocess.run(line, check=True, cwd=self.folder, timeout=120, **quiet, **self.account)

    def start(self) -> None:
        options = f"-c listen_addresses='' -c fsync=off -k {self.folder}"
        self._run("pg_ctl", "-w", "-o", options, "-l", str(self.folder / "log"), "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-m", "fast", "-w", "stop")

    def new_database(self, name: str) -> str:
        """Make it; returns its address, as an instructor writes it."""
        subprocess.run([self.bin / "createdb", "-h", self.folder, "-U", "grader", name], check=True)
        return f"postgresql://grader:hush-hush@/{name}?host={self.folder}"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    found = binaries()
    if found is None:
        pytest.skip("no PostgreSQL server here (on Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="gradebook-"))  # short, for the socket, and open to the server's account
    try:
        made = Server(found, folder)
        made.start()
        yield made
        made.stop()
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def judged(server, tiny, tmp_path_factory) -> Rehearsal:
    """A class of six, released, collected and judged; its gradebook is the server's, named in course.toml."""
    folder = tmp_path_factory.mktemp("class")
    course, (lab,) = make_course(folder, [tiny], ROOT / "course")
    settings = course.root / "course.toml"
    url = server.new_database("course")
    settings.write_text(settings.read_text().replace("[grading]", f'[grading]\ngradebook = "{url}"', 1))
    run = Rehearsal(course, lab, 1, students=Classroom(lab, load_release(lab.folder)).students(whole=False))
    run.inbox.mkdir(parents=True)
    for student in run.students:
        (run.inbox / f"{student.name}.ipynb").write_bytes(student.bytes())
    cycle.release(course, lab)
    cycle.collect(course, lab, run.inbox)
    assert len(cycle.judge(course, lab).done) == len(run.graded) == 5
    return run


def wanted(run: Rehearsal) -> dict[str, dict[str, float]]:
    seed = hidden_seed(run)
    return {student.name: expected(run.lab, student, seed) for student in run.graded}


def recorder(run: Rehearsal, course: Path) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "autograder", "record", run.lab.slug, "--course", str(course)]
    environment = {**os.environ, "COURSE_LABS": str(run.lab.folder.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_class_is_recorded_told_and_exported_and_no_sqlite_file_appears(judged):
    """release → record → feedback → export, and a second run has nothing to do."""
    run = judged
    assert len(cycle.record(run.course, run.lab).done) == 5
    assert gradebook(run) == wanted(run)
    assert len(cycle.write_feedback(run.course, run.lab).done) >= 5
    exports.export(run.course, run.course.root / "grades.csv")
    table = (run.course.root / "grades.csv").read_text().splitlines()
    assert len(table) == 1 + 5 + 5 and any("perfect" in line for line in table)
    again = cycle.record(run.course, run.lab)
    assert len(again.kept) == 5 and not again.done and not again.problems
    assert cycle.scores(run.course, run.lab)["perfect"]["score"] == sum(wanted(run)["perfect"].values())
    assert not list(run.course.root.glob("*.db"))


def test_two_machines_that_record_at_once_corrupt_nothing(judged, server, tmp_path, monkeypatch):
    """Two copies of the course folder share no lock file: the server alone keeps them apart, and a rerun ends it."""
    run = judged
    monkeypatch.setenv("COURSE_GRADEBOOK", server.new_database("two"))
    ours = Rehearsal(Course(run.course.root), run.lab, 1, students=run.students)
    cycle.release(ours.course, run.lab)
    shutil.rmtree(run.course.root / ".judge" / "recorded", ignore_errors=True)
    shutil.copytree(run.course.root, tmp_path / "course")
    both = [recorder(run, run.course.root), recorder(run, tmp_path / "course")]
    says = [process.communicate(timeout=300)[1] for process in both]
    assert any(process.returncode == 0 for process in both), says
    for process, said in zip(both, says, strict=True):  # the one that came second, if it did, wrote nothing
        assert process.returncode == 0 or (process.returncode == 2 and "at the same time; run the same" in said), said
    again = recorder(run, tmp_path / "course")
    assert again.communicate(timeout=300) and again.returncode == 0
    assert gradebook(ours) == wanted(run)
    with ours.course.api.gradebook as book:
        assert len(book.assignment_submissions(run.lab.slug)) == 5 and len(book.students) == 5


def test_a_server_that_is_down_is_named_without_its_password_and_loses_nothing(judged, server):
    """The message says which gradebook and what to do; with the server back, the same command works."""
    run = judged
    server.stop()
    try:
        down = recorder(run, run.course.root)
        _, says = down.communicate(timeout=120)
    finally:
        server.start()
    assert down.returncode == 2 and "run the same command again" in says, says
    assert "hush-hush" not in says and "Traceback" not in says
    back = recorder(run, run.course.root)
    assert back.communicate(timeout=120) and back.returncode == 0
    assert gradebook(Rehearsal(Course(run.course.root), run.lab, 1)) == wanted(run)
