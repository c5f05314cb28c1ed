"""Many submissions at once: nobody waits for a neighbour that hangs, and a worker that dies costs nobody a grade."""

import errno
import getpass
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import ClassVar

import nbformat
import pytest

from autograder.judge import judge, slots, workers
from autograder.judge.judge import judge_cells
from autograder.judge.session import Cell, Notebook, Session
from autograder.judge.slots import gpu_slot, try_lock
from autograder.judge.vault import Vault
from autograder.judge.verdict import CycleError, load
from autograder.judge.workers import Job, Slot, Worker, run_jobs
from autograder.judge.zygote import SandboxError
from autograder.kills import birth, descendants, left_behind


def test_a_submission_has_a_deadline_in_all(tiny, tiny_cells, zygote, monkeypatch):
    """Cells that each keep within their own deadline do not add up to an hour; what is left is said to be not run."""
    monkeypatch.setattr(judge, "TOTAL_SECONDS", 1.0)
    slow = [Cell(f"slow {i}", "import time\ntime.sleep(0.3)") for i in range(40)]
    start = time.monotonic()
    reports = judge_cells(tiny, [*slow, *tiny_cells], seed=1, zygote=zygote)
    assert time.monotonic() - start < 6  # 12 s of cells for each of several sessions, were there no limit
    assert [report.earned for report in reports.values()] == [0, 0]
    assert "had used up the time" in reports["spread"].cases[0].message


def test_the_deadline_in_all_cuts_a_call_short(zygote):
    """A call that would still have a minute of its own ends with the submission's."""
    notebook = Notebook([Cell("f", "import time\ndef f():\n    time.sleep(60)")], deadline=time.monotonic() + 1.0)
    with Session(zygote, notebook) as session:
        start = time.monotonic()
        assert session.call("f", (), seconds=60).problem.kind == "overtime"
        assert session.call("f", (), seconds=60).problem.kind == "overtime"
        assert time.monotonic() - start < 5


# --- the pool -------------------------------------------------------------------------------------------


@pytest.fixture
def jobs(tiny, tmp_path, tiny_release):
    """Four submissions of nobody in particular."""
    made = []
    for name in ("ann", "ben", "cyd", "dan"):
        path = tmp_path / name / "lab.ipynb"
        path.parent.mkdir()
        path.write_text(nbformat.writes(tiny_release.notebook))
        made.append(Job(tiny.folder, path, name, 1, "draw", tmp_path / ".judge"))
    return made


class DyingPool:
    """In place of a worker process: dies over the students of `kills` as often as it says, judges the others."""

    made: ClassVar[list["DyingPool"]] = []
    kills: ClassVar[dict[str, int]] = {}

    def __init__(self, *args, **kwargs):
        self.broken = False
        self.made.append(self)

    def submit(self, function, *args):
        future = Future()
        student = args[0].student if args else ""
        if self.broken or self.kills.get(student, 0) > 0:
            self.kills[student] = self.kills.get(student, 0) - 1
            self.broken = True
            future.set_exception(BrokenProcessPool())
        else:
            future.set_result("" if args else 0)
        return future

    def shutdown(self, **options):
        pass


@pytest.fixture
def dying(monkeypatch):
    monkeypatch.setattr(workers, "ProcessPoolExecutor", DyingPool)
    monkeypatch.setattr(DyingPool, "made", [])
    monkeypatch.setattr(DyingPool, "kills", {})
    return DyingPool


def test_a_worker_that_dies_costs_a_retry_and_nobody_a_verdict(jobs, dying):
    """Not its own submission, not the others': a new process takes over."""
    dying.kills.update(ann=1)
    assert dict(run_jobs(jobs, 2)) == dict.fromkeys(("ann", "ben", "cyd", "dan"), "")
    assert len(dying.made) == 3


def test_a_submission_that_kills_every_worker_is_named_and_the_others_are_judged(jobs, dying):
    """Twice is enough to know."""
    dying.kills.update(ben=9)
    says = dict(run_jobs(jobs, 2))
    assert "ended 2 times" in says.pop("ben") and set(says.values()) == {""}


def test_a_judge_that_hangs_is_stopped_and_its_student_named(jobs, dying, monkeypatch):
    """The submission's own deadline is not at work here, so the process has to go."""
    waits = []
    monkeypatch.setattr(Slot, "ask", lambda self, job: waits.append(job) or (_ for _ in ()).throw(TimeoutError()))
    assert all("was stopped" in says for says in dict(run_jobs(jobs, 2)).values()) and len(waits) == 4


def test_a_killed_worker_process_is_replaced(jobs, tmp_path):
    """A real one, by SIGKILL, in the middle of its work."""
    slot = Slot()
    try:
        assert slot.judge(jobs[0]) == ""
        first = slot.pid
        os.kill(first, signal.SIGKILL)
        assert slot.judge(jobs[1]) == "" and slot.pid != first
        family = {(pid, birth(pid)) for pid in (slot.pid, *descendants(slot.pid))}
    finally:
        slot.close()
    assert len(family) > 1 and not left_behind(family)  # the zygote went with its worker
    assert load("00_tiny", "ben", Vault(tmp_path / ".judge")).student == "ben"
    assert "stopped" in slot.judge(jobs[2])


def test_workers_end_by_themselves(jobs, monkeypatch):
    """Not by a signal: they close their zygotes first, so nothing is left and the command's CPU time is whole."""
    seen = set()

    class Watched(ProcessPoolExecutor):
        def submit(self, *args):
            future = super().submit(*args)
            seen.update(self._processes.values())
            return future

    monkeypatch.setattr(workers, "ProcessPoolExecutor", Watched)
    assert set(dict(run_jobs(jobs, 2)).values()) == {""}
    assert [process.exitcode for process in seen] == [0, 0]


def test_a_zygote_that_is_killed_costs_a_new_one_and_no_verdict(jobs, monkeypatch):
    """By whatever: the kernel when memory runs out, or a hand."""
    with Worker() as worker:
        assert worker.judge(jobs[0]) == ""
        (zygote,) = worker.zygotes.values()
        zygote.process.kill()
        zygote.process.wait()
        assert worker.judge(jobs[1]) == ""
        monkeypatch.setattr(worker, "write_verdict", lambda job: (_ for _ in ()).throw(SandboxError("no more")))
        assert worker.judge(jobs[2]) == "SandboxError: no more"


def test_a_full_disk_stops_everybody_with_the_way_out(jobs, monkeypatch):
    """Once is tried again: it may have been the submission's own files, which are gone by then."""
    tries = []

    def full(job):
        tries.append(job)
        raise OSError(errno.ENOSPC, "No space left on device")

    with Worker() as worker:
        monkeypatch.setattr(worker, "write_verdict", full)
        with pytest.raises(CycleError, match=r"is full\. Free some space and run the same command again"):
            worker.judge(jobs[0])
    assert len(tries) == 2


# --- GPUs, made up --------------------------------------------------------------------------------------


def test_a_gpu_is_one_submissions_at_a_time(tmp_path):
    """Two devices serve two; the third waits until one is given back, and nobody waits where there is none."""
    with gpu_slot((), tmp_path) as none, gpu_slot(("0", "1"), tmp_path) as first:
        with gpu_slot(("0", "1"), tmp_path) as second:
            assert (none, first, second) == (None, "0", "1")
            assert try_lock(tmp_path / "gpu-0.lock") is None
        with gpu_slot(("0", "1"), tmp_path) as third:
            assert third == "1"


def test_a_waiting_submission_gets_the_gpu_that_comes_free(tmp_path):
    """In another process's place: held for 0.3 s, then released."""
    lock = try_lock(tmp_path / "gpu-0.lock")
    threading.Timer(0.3, lock.close).start()
    start = time.monotonic()
    with gpu_slot(("0",), tmp_path) as device:
        assert device == "0" and time.monotonic() - start > 0.25


def test_a_dead_holder_holds_no_gpu(tmp_path):
    """The kernel gives the lock back."""
    source = (
        f"import os, sys; from pathlib import Path; from autograder.judge.slots import try_lock;"
        f"lock = try_lock(Path({str(tmp_path / 'gpu-0.lock')!r})); print(lock is not None, flush=True);"
        "sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", source], **pipes) as holder:
        assert holder.stdout.readline() == "True\n"
        assert try_lock(tmp_path / "gpu-0.lock") is None
        holder.kill()
        holder.wait()
    with gpu_slot(("0",), tmp_path) as device:
        assert device == "0"


def test_only_labs_with_kernels_wait_for_a_gpu(tiny, monkeypatch):
    """And the devices are those that CUDA_VISIBLE_DEVICES leaves, by the names it uses."""
    monkeypatch.setattr(slots.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    kernels = replace(tiny, imports=("triton",))
    assert slots.gpus_of(tiny) == () and slots.gpus_of(kernels) == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f, 3")
    assert slots.gpus_of(kernels) == ("GPU-8f", "3")


def test_each_gpu_has_a_zygote_of_its_own(jobs, tiny, monkeypatch):
    """What is forked from it sees that device alone."""
    seen = []
    monkeypatch.setattr(workers, "Zygote", lambda imports: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]) or object())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    worker = Worker()
    first, second = worker.zygote(tiny, "0"), worker.zygote(tiny, "1")
    assert seen == ["0", "1"] and first is not second and worker.zygote(tiny, "0") is first


def test_the_lock_folder_is_the_accounts_own(tmp_path, monkeypatch):
    """Someone else's folder of that name would let them hold every GPU, or follow a link."""
    monkeypatch.setattr(slots.tempfile, "gettempdir", lambda: str(tmp_path))
    assert slots.lock_folder().stat().st_mode & 0o777 == 0o700
    slots.lock_folder().rmdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"autograder-{getpass.getuser()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="TMPDIR"):
        slots.lock_folder()
