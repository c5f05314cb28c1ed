"""What a student's cell cannot do in T1 and T2, as root and as an ordinary user, and what is left behind: nothing."""

import functools
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autograder.judge import tiers
from autograder.judge import zygote as booting
from autograder.judge.session import Cell, Notebook, Session
from autograder.judge.tiers import SANDBOX, at_least, machine_tier, probe, why_not
from autograder.judge.zygote import SandboxError, Zygote
from autograder.redteam import ordinary

DATA = Path(__file__).parent / "data"
MIB = 1 << 20


@functools.cache
def lack(tier: str) -> str:
    return why_not(tier) if sys.platform == "linux" else "needs Linux"


@pytest.fixture(params=["T1", "T2"], scope="module")
def tier(request):
    if lack(request.param):
        pytest.skip(f"this machine does not give {request.param}: {lack(request.param)}")
    return request.param


@pytest.fixture(scope="module")
def warm(tier):
    with Zygote(tier=tier) as zygote:
        yield zygote


def session(zygote, source, **options):
    return Session(zygote, Notebook([Cell("c", source)]), **options)


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def gone(pids, seconds=5.0):
    """Whether all have ended within `seconds`."""
    end = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(alive, pids))


def left_behind(pid):
    """Folders and control groups named after a zygote."""
    return [*Path("/tmp").glob(f"session-{pid}-*"), *Path("/sys/fs/cgroup").glob(f"**/session-{pid}-*")]


# --- attacks --------------------------------------------------------------------------------------------


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the system calls are written by their numbers on x86-64")
@pytest.mark.parametrize("user", ["this user", "an ordinary user"])
def test_nothing_of_the_grader_the_machine_or_a_neighbour_can_be_reached(tier, user, tmp_path):
    """Sixty attempts of one cell at files, processes, sockets, privileges and accounts; what must work does."""
    if user == "an ordinary user" and ordinary.why_not():
        pytest.skip(ordinary.why_not())
    folder = tmp_path / "grader"
    folder.mkdir()
    secret = folder / "secret"
    secret.write_text("the seed is 7")
    line = [sys.executable, str(DATA / "confined.py"), tier, str(secret)]
    if user == "an ordinary user":
        for path in (folder, secret):
            shutil.chown(path, ordinary.USER)
        for above in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
            above.chmod(above.stat().st_mode | 0o011)
        (tmp_path / "hold").mkdir()
        line = ordinary.command(line, tmp_path / "hold")
    made = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr[-2000:]
    found = json.loads(made.stdout)
    assert {name: said for name, said in found["attacks"].items() if said[0] != "refused"} == {}
    reasons = {said[1].partition(":")[0] for said in found["attacks"].values()}
    assert reasons <= {"PermissionError", "FileNotFoundError", "OSError", "ValueError"}, reasons  # no slip of ours
    assert {name: said for name, said in found["rights"].items() if said[0] != "did"} == {}
    assert found["alive"] and secret.read_text() == "the seed is 7" and [*folder.iterdir()] == [secret]


FILL = """
import os


def fill(mib, files):
    for number in range(files):
        with open(f"f{number}", "wb") as file:
            for _ in range(mib):
                file.write(bytes(1 << 20))
    return "filled"


def fill_unlinked(mib, files):
    kept = []
    for number in range(files):
        kept.append(open("f", "wb"))
        os.unlink("f")
        for _ in range(mib):
            kept[-1].write(bytes(1 << 20))
            kept[-1].flush()
    import time
    time.sleep(5)
    return "filled"
"""


@pytest.mark.parametrize("way", ["fill", "fill_unlinked"])
def test_the_disk_cannot_be_filled(warm, way):
    """A session may write as much as its folder holds; beyond that the call fails or the session ends."""
    with session(warm, FILL) as running:
        assert running.call("fill", [4, 2]).value == "filled"
        before = shutil.disk_usage("/tmp").free
        outcome = running.call(way, [16, 60], seconds=20)
        assert not outcome.ok and outcome.problem.kind in ("error", "crash")
    assert before - shutil.disk_usage("/tmp").free < 512 * MIB
    assert not list(Path("/tmp").glob(f"session-{warm.process.pid}-*/*"))


def test_a_deep_tree_of_folders_is_removed(warm):
    """Deeper than a recursive clean-up could go, with a folder that cannot be entered."""
    source = """import os
for _ in range(1500):
    os.mkdir("d")
    os.chdir("d")
os.mkdir("closed", 0)
"""
    with session(warm, source) as running:
        assert running.notebook.problems == {}
    assert not list(Path("/tmp").glob(f"session-{warm.process.pid}-*/*"))


MEMORY = """
import mmap, torch


def private():
    return torch.ones(1 << 28).sum().item()


def shared():
    area = mmap.mmap(-1, 6 << 30)
    for place in range(0, 6 << 30, 4096):
        area[place] = 1
    return "taken"


def small():
    return 42
"""


@pytest.mark.parametrize("way", ["private", "shared"])
def test_memory_beyond_the_limit_is_refused(warm, way):
    """As a MemoryError of the answer, or as the end of its process; the next call finds the session well."""
    with session(warm, MEMORY, memory_bytes=1 << 30) as running:
        outcome = running.call(way, [], seconds=30)
        assert not outcome.ok and outcome.problem.kind in ("error", "crash")
        assert running.call("small", []).value == 42


# --- the end --------------------------------------------------------------------------------------------

LEAVE = """
import os, threading, time


def thread():
    threading.Thread(target=lambda: [time.sleep(0.01) for _ in iter(int, 1)], daemon=False).start()
    return os.getpid()


def daemon():
    if os.fork() == 0:
        os.setsid()
        for _ in range(20):
            if os.fork() == 0:
                time.sleep(100)
        time.sleep(100)
    return 1
"""


def test_a_thread_left_running_ends_with_the_session(warm):
    """So does the process it is in."""
    with session(warm, LEAVE) as running:
        running.call("thread", [])
        pid = running.pid
        assert alive(pid)
    assert not alive(pid)


def below(pid):
    """Process ids of all descendants."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found += [child, *below(child)]
    return found


def with_processes(zygote):
    """A session as a lab gets it that compiles kernels."""
    spawn = zygote.spawn
    zygote.spawn = lambda *args, **kwargs: spawn(*args, **kwargs, processes=True)
    try:
        return session(zygote, LEAVE)
    finally:
        zygote.spawn = spawn


def test_processes_are_there_for_a_lab_that_asks_and_end_with_the_session(warm):
    """A daemon with children of its own, in a session group of its own."""
    with with_processes(warm) as running:
        running.call("daemon", [])
        end = time.monotonic() + 10
        while len(family := [running.pid, *below(running.pid)]) < 22 and time.monotonic() < end:
            time.sleep(0.02)
        assert len(family) == 22  # the runner, the daemon, and its twenty
    assert gone(family)


@pytest.mark.parametrize("victim", ["zygote", "judge"])
def test_a_killed_zygote_or_judge_leaves_nobody(tier, victim, tmp_path):
    """kill -9 at either place ends the runner; what lies on the disk goes when the next zygote starts."""
    script = f"""import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import time
from autograder.judge.session import *
from autograder.judge.zygote import Zygote
zygote = Zygote(tier={tier!r})
session = Session(zygote, Notebook([Cell("c", "open('mine', 'w').write('x')")]))
print(zygote.process.pid, session.pid, flush=True)
time.sleep(100)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as judge:
        zygote, runner = map(int, judge.stdout.readline().split())
        family = [zygote, runner, *below(zygote)]
        os.kill(judge.pid if victim == "judge" else zygote, signal.SIGKILL)
        assert gone(family)
        judge.kill()
    assert probe.__wrapped__(tier).get("session") == 0
    assert not left_behind(zygote)


def test_a_closed_zygote_leaves_nothing(tier):
    """No process, no folder, no control group."""
    with Zygote(tier=tier) as zygote:
        running = session(zygote, "x = 1")
        family = [zygote.process.pid, *below(zygote.process.pid)]
        assert running.pid in family
    running.sock.close()
    assert gone(family) and not left_behind(zygote.process.pid)


def test_two_sessions_share_no_account(warm):
    """With privilege, each has a user id of its own that owns nothing else."""
    if os.geteuid() != 0 or not probe(warm.tier)["limits"]["own_account"]:
        pytest.skip("accounts of their own need root")
    source = "import os\n\n\ndef who():\n    return [os.getuid(), os.getgid(), os.getgroups()]"
    with session(warm, source) as one, session(warm, source) as two:
        first, second = (running.call("who", []).value for running in (one, two))
    assert first[0] != second[0] and first[0] > 1 << 30 and first[1] == first[0] and first[2] == []


# --- choosing a tier ------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The sandbox's folder alone, in a place of its own, and used from there."""
    folder = tmp_path / "alone"
    shutil.copytree(SANDBOX, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for above in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        above.chmod(above.stat().st_mode | 0o011)
    for module in (tiers, booting):
        monkeypatch.setattr(module, "SANDBOX", folder)
    probe.cache_clear()
    yield folder
    probe.cache_clear()


def test_the_sandbox_runs_from_a_copy_of_its_folder_alone(copy, tier):
    """Neither the grader nor the reference is there to be imported, nor any other file of theirs to be read."""
    source = f"""import importlib.util, os


def found():
    specs = []
    for name in ("autograder.judge", "refimpl", "course"):
        try:
            specs.append(importlib.util.find_spec(name))
        except ImportError:
            specs.append(None)
    there = os.path.exists({str(SANDBOX.parent / "question.py")!r})
    return [specs, there, {str(copy)!r} in os.sys.modules["sandbox"].__path__]
"""
    with Zygote(tier=tier) as zygote, session(zygote, source) as running:
        specs, there, from_copy = running.call("found", []).value
    assert specs == [None] * 3 and from_copy and (not there or tier == "T1")  # T1 hides contents, not existence


@pytest.mark.parametrize("step", ["landlock.py", "seccomp.py"])
def test_a_tier_that_lacks_a_step_is_refused_and_never_weakened(copy, step, monkeypatch):
    """The probe sees it, the machine's tier falls to T0 openly, and a session asked for in the tier is an error."""
    broken = {"landlock.py": "def restrict(self)", "seccomp.py": "def load(self)"}[step]
    text = (copy / step).read_text()
    assert f"{broken} -> None:\n" in text
    refused = f"{broken} -> None:\n        raise OSError('no {step}')\n"
    (copy / step).write_text(text.replace(f"{broken} -> None:\n", refused))
    monkeypatch.delenv(tiers.LOWER, raising=False)
    assert machine_tier() == "T0" and f"no {step}" in why_not("T1") and f"no {step}" in why_not("T2")
    with Zygote(tier="T1") as zygote, pytest.raises(SandboxError, match=f"no session in tier T1: .*no {step}"):
        session(zygote, "x = 1")


def test_the_environment_lowers_the_tier_and_never_raises_it(monkeypatch):
    """For tests and comparisons."""
    monkeypatch.setattr(tiers, "why_not", lambda tier: "no namespaces" if tier == "T2" else "")
    for wanted, given in (("T0", "T0"), ("T1", "T1"), ("T2", "T1")):
        monkeypatch.setenv(tiers.LOWER, wanted)
        assert machine_tier() == given and at_least(wanted, given)
    monkeypatch.setenv(tiers.LOWER, "T3")
    with pytest.raises(ValueError, match="T3: the tiers are T0, T1, T2"):
        machine_tier()


@pytest.mark.parametrize(
    ("ends", "tries", "says"),
    [
        ([(-9, ""), (137, ""), (0, '{"session": 0}')], 3, {"session": 0}),
        ([(-9, "")] * 3, 3, {"error": "exit status -9"}),
        ([(1, "")], 1, {"error": "exit status 1"}),
    ],
)
def test_a_probe_that_was_killed_is_made_again(monkeypatch, ends, tries, says):
    """It says nothing about the machine; one that ended by itself does."""
    made = iter([subprocess.CompletedProcess([], status, said, "") for status, said in ends])
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: next(made))
    assert probe.__wrapped__("T2") == says and len(list(made)) == len(ends) - tries


def test_nodes_that_share_a_machine_do_not_clear_each_other_away(tier):
    """Containers whose process ids begin anew, with the same control groups and /tmp: each keeps its sessions."""
    if os.getuid() or subprocess.run(["unshare", "--pid", "--mount", "--fork", "true"], check=False).returncode:
        pytest.skip("needs root that may make process namespaces")
    once = f"{sys.executable} -I {SANDBOX / 'zygote.py'} --probe {tier}"
    node = ["unshare", "--pid", "--mount", "--fork", "sh", "-c", f"mount -t proc proc /proc; {once}; {once}; {once}"]
    nodes = [subprocess.Popen(node, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    made = [json.loads(line) for node in nodes for line in node.communicate(timeout=120)[0].splitlines()]
    assert len(made) == 18 and [probe["error"] for probe in made if "error" in probe] == []
