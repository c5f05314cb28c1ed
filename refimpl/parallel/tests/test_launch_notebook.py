"""launch from cells of a real Jupyter kernel: what a student sees when it works, fails, hangs or is interrupted."""

import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
SLOWEST_OVER_TORCHRUN = 3.0  # seconds

DEFINE = """\
import os, time, torch, torch.distributed as dist
from refimpl.parallel import launch

scale = 2

class Pair:
    def __init__(self, a):
        self.a = a

def good(x):
    dist.all_reduce(x)
    print("rank", dist.get_rank(), "is here")
    return Pair(scale * x).a

def bad():
    x = torch.ones(3)
    if dist.get_rank() == 1:
        x = x.view(2, 2)
    dist.all_reduce(x)

def hang():
    if dist.get_rank() == 0:
        dist.all_reduce(torch.ones(2))
    else:
        dist.recv(torch.ones(2), 0)

def crash():
    if dist.get_rank() == 1:
        import ctypes
        ctypes.string_at(0)
    dist.all_reduce(torch.ones(2))

def linger():
    print("lingering", flush=True)
    time.sleep(100)

print("kernel", os.getpid())
"""
GOOD = """
begun = time.monotonic()
print([x.tolist() for x in launch(good, 2, torch.ones(2))])
print("seconds", time.monotonic() - begun)
"""
SCRIPT = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
dist.all_reduce(torch.ones(2))
dist.destroy_process_group()
"""


class Kernel:
    """A kernel that runs cells: text of the output, and the error's name and message where there is one."""

    def __init__(self, client):
        self.client, self.count = client, 0

    def run(self, source: str) -> tuple[str, str]:
        import nbformat

        cell = nbformat.v4.new_code_cell(source)
        self.client.nb.cells.append(cell)
        self.client.execute_cell(cell, len(self.client.nb.cells) - 1)
        errors = [f"{each.ename}: {each.evalue}" for each in cell.outputs if each.output_type == "error"]
        return "".join(each.text for each in cell.outputs if each.output_type == "stream"), "\n".join(errors)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where launches of the kernel put their folders."""
    return tmp_path_factory.mktemp("launches")


@pytest.fixture(scope="module")
def kernel(folder):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.delenv("COVERAGE_PROCESS_START", raising=False)  # the seconds below are those of a student
        client = nbclient.NotebookClient(nbformat.v4.new_notebook(), timeout=120, allow_errors=True)
        with client.setup_kernel():
            yield Kernel(client)


@pytest.fixture(scope="module")
def pid(kernel):
    """The kernel's process, with the functions defined."""
    said, errors = kernel.run(DEFINE)
    assert not errors
    return int(re.search(r"kernel (\d+)", said)[1])


def line(text: str) -> int:
    """Of a cell's text."""
    return next(i for i, each in enumerate(DEFINE.splitlines(), 1) if text in each)


def test_three_good_calls_in_a_row(kernel, pid, folder, alive):
    """A function, a class and a variable of the notebook; output marked by rank; nothing remains."""
    for _ in range(3):
        said, errors = kernel.run(GOOD)
        assert not errors and "[[4.0, 4.0], [4.0, 4.0]]" in said
        assert "rank 0 | rank 0 is here" in said and "rank 1 | rank 1 is here" in said
    assert not alive(folder) and not list(folder.iterdir())


def test_an_exception_names_the_cell_and_its_line(kernel, pid, folder, alive):
    """Not a banner of torchrun: the first failing rank, the message, the student's line."""
    _, error = kernel.run("launch(bad, 2)")
    assert error.startswith("RankError: rank 1 failed first")
    assert "RuntimeError: shape '[2, 2]' is invalid for input of size 3" in error
    assert re.search(rf"Cell In\[\d+\], line {line('x.view(2, 2)')}, in bad\n +x = x\.view\(2, 2\)", error)
    assert not alive(folder)


def test_a_deadlock_shows_where_each_rank_waits(kernel, pid, folder, alive):
    """Within the timeout and a few seconds for the start."""
    begun = time.monotonic()
    _, error = kernel.run("launch(hang, 2, timeout=3)")
    assert error.startswith("LaunchTimeout: no result after 3 s") and time.monotonic() - begun < 30
    assert re.search(r"rank 0 is inside all_reduce .*\n.*Cell In.*, in hang\n +dist\.all_reduce", error)
    assert re.search(r"rank 1 is inside recv .*\n.*Cell In.*, in hang\n +dist\.recv", error)
    assert not alive(folder)


def test_a_crash_names_the_rank_that_crashed(kernel, pid, folder, alive):
    """Not the one that lost its connection."""
    _, error = kernel.run("launch(crash, 2)")
    assert re.match(r"RankError: rank 1 (was killed by SIGSEGV|crashed: Segmentation fault)", error)
    assert "ctypes.string_at(0)" in error
    assert not alive(folder)


def test_an_interrupt_ends_the_ranks_and_not_the_kernel(kernel, pid, folder, alive):
    """The stop button: KeyboardInterrupt in the cell, no process left, and the next call works."""

    def interrupt():
        while not any("lingering" in path.read_text() for path in folder.glob("launch-*/rank1.out")):
            time.sleep(0.05)
        os.kill(pid, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    _, error = kernel.run("launch(linger, 2)")
    thread.join()
    assert error.startswith("KeyboardInterrupt")
    assert not alive(folder)
    said, errors = kernel.run(GOOD)
    assert not errors and "[[4.0, 4.0], [4.0, 4.0]]" in said


def test_a_good_call_costs_little_over_torchrun(kernel, pid, folder):
    """Medians of three, in turns: at most 3 s over torchrun with a script that does the same."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ours, theirs = [], []
    for _ in range(3):
        begun = time.monotonic()
        subprocess.run(command, check=True, capture_output=True, env=environment, cwd=Path.cwd())
        theirs.append(time.monotonic() - begun)
        ours.append(float(re.search(r"seconds ([\d.]+)", kernel.run(GOOD)[0])[1]))
    print(f"launch {statistics.median(ours):.2f} s, torchrun {statistics.median(theirs):.2f} s")
    assert statistics.median(ours) - statistics.median(theirs) <= SLOWEST_OVER_TORCHRUN
