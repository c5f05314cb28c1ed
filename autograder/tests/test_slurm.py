"""Judging on a cluster: what travels, what comes back, and what a lost node costs."""

import ast
import itertools
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest

from autograder.judge import cycle, slurm
from autograder.judge.intake import load_release
from autograder.judge.slurm import Chunk, Request, Run, Slurm, Task, outcome_path
from autograder.judge.vault import Vault
from autograder.judge.verdict import CycleError, bank_version, judge_version
from autograder.judge.workers import Job
from autograder.nbgrader import settings
from autograder.rehearse import Rehearsal, gradebook, hidden_seed, make_course
from autograder.synthetic import Classroom, expected

ROOT = Path(__file__).resolve().parents[2]
LOCAL_CLUSTER = ROOT / "course" / "deploy" / "slurm" / "local_cluster.sh"
SEED = 2468013579


@pytest.fixture
def jobs(tiny, tmp_path):
    """Five students' jobs, as `cycle.judge` makes them; each notebook holds a word that no other file has."""
    vault = Vault(tmp_path / ".judge")
    bank = bank_version(tiny)
    (vault.folder / "seeds").mkdir(mode=0o700)
    (vault.folder / "seeds" / f"{tiny.slug}-{bank}").write_text(str(SEED))
    notebook = tmp_path / "lab.ipynb"
    notebook.write_text("xyzzy-a-student's-own-word")
    names = ("ann", "bob", "cy", "dee", "eve")
    return [Job(tiny.folder, notebook, name, SEED, vault.draw(SEED), vault.folder) for name in names]


@pytest.fixture
def chunk(tiny, jobs, tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "TRITON_INTERPRET"):  # which a task sets for itself
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("SLURM_JOB_GPUS", raising=False)
    (tmp_path / "outcomes").mkdir()
    without_seed = tuple(replace(job, seed=0) for job in jobs)
    return Chunk(without_seed, tmp_path / "outcomes", bank_version(tiny), judge_version(), "T0", 1)


@pytest.fixture
def judged(monkeypatch):
    """The jobs that reached the judge, which says "" for all but bob."""
    reached = []

    def run_jobs(waiting, at_once):
        reached.extend(waiting)
        yield from ((job.student, "a sandbox broke" if job.student == "bob" else "") for job in waiting)

    monkeypatch.setattr(slurm, "run_jobs", run_jobs)
    return reached


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """SLURM's commands, pretended: squeue prints the file `queue`, the others write down how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "squeue": f'test ! -e {folder}/deaf || {{ echo "no controller" >&2; exit 1; }}; cat {folder}/queue',
        "scancel": f'echo "$@" >> {folder}/cancelled; : > {folder}/queue',
        "sbatch": f'cp "$1" {folder}/script; echo "Submitted batch job 7"',
        "srun": "exit 1",
    }
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    (folder / "queue").touch()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr(slurm, "ASK_AGAIN", 0.01)
    return folder


@pytest.fixture
def course(tmp_path):
    """A course folder of its own, with the settings of this one."""
    root = tmp_path / "course"
    root.mkdir()
    for name in ("nbgrader_config.py", "course.toml"):
        shutil.copy(ROOT / "course" / name, root / name)
    return root


def write_settings(course: Path, lines: str) -> None:
    """Put `lines` in the place of course.toml's [slurm]."""
    text = (course / "course.toml").read_text(encoding="utf-8")
    others = re.sub(r"(?ms)^\[slurm\]\n.*?(?=^\[|\Z)", "", text)
    (course / "course.toml").write_text(f"{others}\n[slurm]\n{lines}\n", encoding="utf-8")


def outcomes(folder: Path) -> dict[str, str]:
    return {path.stem: json.loads(path.read_text())["says"] for path in folder.glob("*.json")}


# --- on a node ------------------------------------------------------------------------------------------


def test_a_task_writes_down_each_outcome(chunk, judged):
    """One file per submission: nothing, or what went wrong."""
    chunk()
    assert outcomes(chunk.outcomes) == {"ann": "", "bob": "a sandbox broke", "cy": "", "dee": "", "eve": ""}


def test_a_node_takes_the_seed_from_the_vault(chunk, judged):
    """The jobs arrive without one."""
    chunk()
    assert {job.seed for job in chunk.jobs} == {0} and {job.seed for job in judged} == {SEED}


def test_a_task_that_was_queued_again_judges_only_what_is_left(chunk, judged):
    """Two were done before its node died; their outcomes stay as they were."""
    for student in ("ann", "dee"):
        outcome_path(chunk.outcomes, student).write_text('{"says": "from the first node"}')
    chunk()
    assert [job.student for job in judged] == ["bob", "cy", "eve"]
    assert outcomes(chunk.outcomes)["dee"] == "from the first node"


def test_near_its_time_limit_a_task_asks_to_go_on_with_the_same_chunk(chunk):
    """submitit calls `checkpoint` and puts what it returns into the queue."""
    assert chunk.checkpoint().function == chunk


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"minimum": "T2"}, "the course asks for T2"),
        ({"bank": "0" * 16}, "has other checks or another grader"),
        ({"judge": "0" * 16}, "has other checks or another grader"),
    ],
)
def test_a_node_that_would_judge_otherwise_does_not_judge(chunk, judged, change, says, monkeypatch):
    """A weaker sandbox or an older grader on one node of many: every submission of the chunk is named, none judged."""
    monkeypatch.setattr(slurm, "machine_tier", lambda: "T1")
    replace(chunk, **change)()
    assert not judged and len(outcomes(chunk.outcomes)) == 5
    assert all(says in text for text in outcomes(chunk.outcomes).values())


def test_a_node_that_sees_another_vault_does_not_judge(chunk, judged, tmp_path):
    """A folder of the same name that is not shared would hold another key and another seed."""
    (tmp_path / ".judge" / "key").write_text("00" * 32)
    chunk()
    assert not judged and "must be shared" in outcomes(chunk.outcomes)["ann"]


def test_a_task_uses_no_gpu_that_slurm_did_not_give_it(chunk, judged, monkeypatch):
    """SLURM gives a GPU to one task at a time; a task that asked for none must not find one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    chunk()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("SLURM_JOB_GPUS", "1")
    chunk()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


# --- what travels ---------------------------------------------------------------------------------------


def test_chunks_are_dealt_without_seeds_and_nobody_is_forgotten(tiny, jobs, course, commands, tmp_path):
    """What takes long comes first in the list, so neighbours of the list go to different tasks."""
    engine = Slurm(course, tasks=2)
    hands = engine.cut(tiny, jobs, 2, tmp_path)
    assert [[job.student for job in hand.jobs] for hand in hands] == [["ann", "cy", "eve"], ["bob", "dee"]]
    assert {job.seed for hand in hands for job in hand.jobs} == {0}
    many = [replace(jobs[0], student=f"s{number}") for number in range(200)]
    sizes = [len(hand.jobs) for hand in engine.cut(tiny, many, 2, tmp_path)]
    assert sum(sizes) == 200 and max(sizes) <= slurm.CHUNK


def test_nothing_of_a_students_and_no_secret_is_pickled(tiny, jobs, course, commands, tmp_path):
    """In all the bytes that go to the nodes there is no word of a notebook, no seed and no key."""
    run = Run(tmp_path / "run", "autograder-test")
    hands = Slurm(course, tasks=2).cut(tiny, jobs, 2, run.outcomes)
    run.submit(hands, Request(), kernels=False)
    sent = b"".join(path.read_bytes() for path in run.folder.rglob("*") if path.is_file())
    key = (tmp_path / ".judge" / "key").read_bytes()
    assert len(list(run.folder.rglob("*.pkl"))) == 2
    assert not any(secret in sent for secret in (b"xyzzy", str(SEED).encode(), SEED.to_bytes(4, "little"), key))
    arrived = pickle.loads(pickle.dumps(hands[0]))
    assert arrived == hands[0]


def test_nothing_that_a_task_wrote_is_unpickled():
    """submitit would fetch results with `result()`; the only thing that we read back is JSON."""
    called = {
        node.func.attr
        for node in ast.walk(ast.parse(Path(slurm.__file__).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert not called & {"result", "results", "wait", "exception", "load"} and "loads" in called


def test_the_array_asks_for_what_course_toml_says(tiny, jobs, course, commands, tmp_path):
    """Time for the longest chunk, cores, memory, so many tasks at once, and to be queued again after a lost node."""
    write_settings(course, 'memory_gb = 6\npartition = "teach"\naccount = "c1"\nsbatch = {qos = "low"}')
    engine = Slurm(course, tasks=3, cores=2)
    run = Run(tmp_path / "run", "autograder-test")
    run.submit(engine.cut(tiny, jobs, 2, run.outcomes), engine.request, kernels=False)
    script = (commands / "script").read_text()
    wanted = ("--array=0-2%3", "--cpus-per-task=2", "--mem=6GB", "--partition=teach", "--account=c1", "--qos=low")
    assert all(f"#SBATCH {option}\n" in script for option in (*wanted, "--requeue", f"--job-name={run.name}"))
    assert "gpu" not in script and "#SBATCH --time=12\n" in script  # two submissions at once: one round of 7 minutes


def test_only_a_lab_with_kernels_asks_for_a_gpu():
    """The others would keep a GPU from somebody."""
    request = Request(gpus=1, cores=1, minutes=60)
    assert request.parameters("x", 16, kernels=True)["gres"] == "gpu:1"
    assert "gres" not in request.parameters("x", 16, kernels=False)
    assert request.parameters("x", 16, kernels=True)["time"] == 60


def test_the_courses_own_settings_are_understood():
    """Every key of [slurm] in course.toml, and every field but the free one is there to be changed."""
    table = settings(ROOT / "course")["slurm"]
    assert Request.of(ROOT / "course").tasks == table["tasks"]
    assert {option.name for option in fields(Request)} - set(table) == {"sbatch"}


def test_an_unknown_setting_is_named(course):
    """A misspelt limit would silently be none."""
    write_settings(course, "memmory_gb = 6")
    with pytest.raises(CycleError, match=r"no \['memmory_gb'\]"):
        Request.of(course)


def test_without_slurm_it_says_so_and_what_to_do(course, monkeypatch, tmp_path):
    """On a laptop."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CycleError, match="leave --engine out"):
        Slurm(course)


def test_a_request_that_slurm_refuses_is_told_with_its_words(tiny, jobs, course, commands, tmp_path):
    """And leaves no folder."""
    (commands / "sbatch").write_text("#!/bin/sh\necho 'invalid account' >&2\nexit 1\n")
    run = Run(tmp_path / "run", "autograder-test")
    with pytest.raises(CycleError, match=r"(?s)invalid account.*course.toml"):
        run.submit(Slurm(course).cut(tiny, jobs, 2, run.outcomes), Request(), kernels=False)
    assert not run.folder.exists()


# --- following a run ------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path / "run", "autograder-test")
    made.outcomes.mkdir(parents=True)
    return made


def finish(run: Run, *students: str, says: str = "") -> None:
    for student in students:
        outcome_path(run.outcomes, student).write_text(json.dumps({"says": says}))


def test_outcomes_are_told_once_and_a_finished_run_leaves_no_folder(run, commands):
    """Also one that came in after the array had left the queue."""
    finish(run, "ann")
    finish(run, "bob", says="broke")
    assert list(run.follow(["ann", "bob"])) == [("ann", ""), ("bob", "broke")]
    assert not run.folder.exists()


def test_who_has_no_outcome_at_the_end_is_named_with_the_logs(run, commands):
    """A task that died for good: the others have their verdicts, a second run judges these."""
    finish(run, "ann")
    told = dict(run.follow(["ann", "bob"]))
    assert told["ann"] == "" and str(run.folder / "tasks") in told["bob"] and "run the command again" in told["bob"]


def test_it_waits_while_a_task_is_queued_and_not_for_one_that_is_held(run, commands):
    """After too many failed starts SLURM holds a task for ever."""
    (commands / "queue").write_text("7_0|PENDING|Resources\n7_1|RUNNING|None\n")
    following = run.follow(["ann", "bob"])
    finish(run, "ann")
    assert next(following) == ("ann", "")
    (commands / "queue").write_text("7_1|PENDING|launch failed requeued held\n")
    assert "without a verdict" in next(following)[1]
    assert (commands / "cancelled").read_text().split() == [f"--name={run.name}"]


def test_a_run_that_is_broken_off_ends_its_tasks(run, commands):
    """Ctrl-C: nothing goes on behind the instructor's back."""
    (commands / "queue").write_text("7_0|RUNNING|None\n")
    finish(run, "ann")
    following = run.follow(["ann", "bob"])
    next(following)
    following.close()
    assert f"--name={run.name}" in (commands / "cancelled").read_text()


def test_a_controller_that_does_not_answer_is_asked_again_and_then_given_up(commands, monkeypatch):
    """An answer that does not come is not an empty queue."""
    (commands / "deaf").touch()
    monkeypatch.setattr(slurm, "DEAF_SECONDS", 0.2)
    with pytest.raises(CycleError, match="has not answered"):
        slurm.ask_queue("x")
    (commands / "deaf").unlink()
    (commands / "queue").write_text("7_0|PENDING|JobHeldAdmin\n")
    assert slurm.ask_queue("x") == [Task("7_0", "PENDING", "JobHeldAdmin")] and slurm.ask_queue("x")[0].held


def test_the_engine_submits_follows_and_allows_one_run_per_lab(tiny, jobs, course, commands, monkeypatch):
    """A run that was killed is swept away by the next; a run that goes on refuses a second."""
    left = jobs[0].vault / "slurm" / tiny.slug / "dead0001"
    left.mkdir(parents=True)

    def submit(run, chunks, request, kernels):
        run.outcomes.mkdir(parents=True)
        finish(run, *(job.student for chunk in chunks for job in chunk.jobs))

    monkeypatch.setattr(Run, "submit", submit)
    engine = Slurm(course)
    assert list(engine([], 1)) == []
    following = engine(jobs, 1)
    assert next(following) == ("ann", "") and not left.exists()
    with pytest.raises(CycleError, match="another run judges"):
        next(engine(jobs, 1))
    assert sorted(student for student, _ in following) == ["bob", "cy", "dee", "eve"]


# --- a real cluster of four nodes -----------------------------------------------------------------------


def cluster(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LOCAL_CLUSTER, *words], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def four_nodes(tmp_path_factory):
    """A real SLURM: a controller and four nodes in namespaces of this machine, one pretended GPU each."""
    lacking = cluster("check")
    if lacking.returncode:
        pytest.skip(lacking.stderr.strip())
    folder = tmp_path_factory.mktemp("slurm") / "cluster"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLUSTER_DIR", str(folder))
        patch.setenv("CLUSTER_GPUS", "1")
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        started = cluster("start", "4")
        assert started.returncode == 0, started.stderr
        yield folder
        assert cluster("stop").returncode == 0
    assert not folder.exists()


@pytest.fixture(scope="module")
def classroom(tiny, tmp_path_factory):
    """A course folder, the tiny lab released in it, and the whole synthetic class in an inbox."""
    folder = tmp_path_factory.mktemp("class")
    made, (lab,) = make_course(folder, [tiny], ROOT / "course")
    write_settings(made.root, "memory_gb = 2\ncores = 1")
    run = Rehearsal(made, lab, 1, students=Classroom(lab, load_release(lab.folder)).students())
    run.inbox.mkdir(parents=True)
    for student in run.students:
        (run.inbox / f"{student.name}.ipynb").write_bytes(student.bytes())
    cycle.release(made, lab)
    return run


def autograder(run: Rehearsal, *words: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "autograder", *words, "--course", str(run.course.root)]
    environment = {**os.environ, "COURSE_LABS": str(run.lab.folder.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_outcome_of(run: Rehearsal, node: str, process: subprocess.Popen[str]) -> None:
    """Until `node` has judged somebody, and has somebody left to judge."""
    home = run.course.vault.folder / "slurm" / run.lab.slug
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if any(json.loads(path.read_text())["node"] == node for path in home.glob("*/outcomes/[!.]*.json")):
            return
        time.sleep(0.1)
    pytest.fail(f"no outcome of {node}: {process.poll()}")


@pytest.mark.e2e
def test_a_class_on_four_nodes_one_of_which_dies_is_graded_once_and_as_on_one_machine(four_nodes, classroom):
    """The plug of a node is pulled when it has judged a part of its chunk: a requeue, and every grade as expected."""
    run = classroom
    csv = run.course.root.parent / "grades.csv"
    process = autograder(run, "grade", run.lab.slug, "--from", str(run.inbox), "--csv", str(csv), "--engine", "slurm")
    wait_for_outcome_of(run, "n3", process)
    assert cluster("off", "n3").returncode == 0
    said, problems = process.communicate(timeout=500)
    history = subprocess.run(["scontrol", "show", "jobs"], capture_output=True, text=True, check=True).stdout
    assert cluster("on", "n3").returncode == 0

    assert process.returncode == 1 and "no-notebook" in problems and f"judge: {len(run.graded)} done" in said, problems
    assert "Restarts=1" in history and history.count("ArrayTaskId=") == 4
    book, seed = gradebook(run), hidden_seed(run)
    assert book == {student.name: expected(run.lab, student, seed) for student in run.graded}

    on_nodes = verdicts(run)
    shutil.rmtree(run.course.vault.folder / "verdicts")
    autograder(run, "judge", run.lab.slug, "--jobs", "2").communicate(timeout=500)
    assert verdicts(run) == on_nodes and len(on_nodes) == len(run.graded)


def verdicts(run: Rehearsal) -> dict[str, object]:
    """Student -> what the verdict gives for each question, and what it rests on."""
    folder = run.course.vault.folder / "verdicts" / run.lab.slug
    read = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("[!.]*.json"))}
    return {
        name: [{q: report["earned"] for q, report in body["questions"].items()}]
        + [body[key] for key in ("submission_sha256", "bank_version", "draw", "tier")]
        for name, body in read.items()
    }


@pytest.mark.e2e
def test_two_tasks_never_have_the_same_gpu_at_a_time(four_nodes, tmp_path):
    """Eight tasks that ask as we do for a lab with kernels, four nodes with one GPU and more than one core each."""
    asked = Request(gpus=1, cores=1, memory_gb=1).parameters("gpu", 1, kernels=True)
    script = 'A=$(date +%s%N); sleep 0.5; echo "$(hostname)-$CUDA_VISIBLE_DEVICES $A $(date +%s%N)"'
    options = ["--array=0-7", f"--gres={asked['gres']}", "--cpus-per-task=1", f"--output={tmp_path}/%a", "--wait"]
    subprocess.run(["sbatch", *options, f"--wrap={script}"], check=True, capture_output=True, timeout=120)
    spans: dict[str, list[tuple[int, int]]] = {}
    for path in tmp_path.glob("[0-7]"):
        gpu, start, end = path.read_text().split()
        spans.setdefault(gpu, []).append((int(start), int(end)))
    assert sum(map(len, spans.values())) == 8 and all(gpu.endswith("-0") for gpu in spans)
    for found in map(sorted, spans.values()):
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(found))


@pytest.mark.e2e
def test_the_local_cluster_leaves_nothing(tmp_path, monkeypatch):
    """Namespaces, bridges, processes, files: before a start and after a stop they are the same; a job was running."""
    if (lacking := cluster("check")).returncode:
        pytest.skip(lacking.stderr.strip())
    folder = tmp_path / "two"
    monkeypatch.setenv("CLUSTER_DIR", str(folder))
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    before = traces()
    assert cluster("start", "2").returncode == 0
    assert cluster("start", "2").stdout.startswith("up already") and cluster("start", "3").returncode == 1
    subprocess.run(["sbatch", "--output=/dev/null", "--wrap=setsid sleep 7654 & sleep 7654"], check=True)
    deadline = time.monotonic() + 20
    while "7654" not in processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "7654" in processes() and traces() != before and cluster("status").returncode == 0
    assert cluster("stop").returncode == 0 and cluster("stop").returncode == 0
    assert traces() == before and "7654" not in processes() and not folder.exists()


def traces() -> list[str]:
    """Network interfaces and named namespaces of this machine, without those of a cluster that others may run."""
    links = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout
    spaces = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    return sorted(line.split()[0] for line in (links + spaces).splitlines())


def processes() -> str:
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def test_the_local_cluster_names_what_a_machine_lacks(tmp_path, monkeypatch):
    """Without SLURM's programs on the PATH: which, and the command that installs them."""
    for tool in ("bash", "id", "uname", "mkdir", "cksum", "cut", "dirname", "basename", "env", "sh"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CLUSTER_DIR", str(tmp_path / "cluster"))
    refused = cluster("start")
    assert refused.returncode == 1 and not (tmp_path / "cluster").exists()
    assert "needs root" in refused.stderr if os.getuid() else "apt-get install" in refused.stderr
