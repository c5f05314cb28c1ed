"""launch: results come back as data, failures as the caller's own lines, and no process stays behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from refimpl.parallel import LaunchError, LaunchTimeout, RankError, _failure, _runner
from refimpl.parallel import launch as parallel_launch

launch_module = sys.modules[parallel_launch.__module__]
launch = parallel_launch


def add_up(x, times=1):
    """Every rank's share: (rank + 1) x, summed over the ranks."""
    x = times * (dist.get_rank() + 1) * x
    dist.all_reduce(x)
    print("rank", dist.get_rank(), "of", dist.get_world_size())
    return {"sum": x[1:], "who": (dist.get_rank(), os.environ["LOCAL_RANK"], None, 0.5, {1, 2})}


def fail_on_one():
    """Rank 1 raises while rank 0 waits for it."""
    if dist.get_rank() == 1:
        try:
            {}["key"]
        except KeyError as error:
            raise ValueError("three is no square") from error
    dist.barrier()


def wait_for_each_other():
    """Rank 0 sums, rank 1 receives: neither will ever be served."""
    if dist.get_rank() == 0:
        dist.all_reduce(torch.ones(2))
    else:
        dist.recv(torch.ones(2), 0)


def crash_on_one():
    """Rank 1 dies as a bug in C++ dies."""
    if dist.get_rank() == 1:
        import ctypes

        ctypes.string_at(0)
    dist.all_reduce(torch.ones(2))


def leave_on_one():
    if dist.get_rank() == 1:
        print("out of here", file=sys.stderr, flush=True)
        os._exit(3)
    dist.all_reduce(torch.ones(2))


def return_a_function():
    return {"answer": [1, print]}


def line_of(text: str) -> str:
    """'line N' of the line of this file that holds the text first."""
    source = Path(__file__).read_text().splitlines()
    return f"line {next(i for i, line in enumerate(source, 1) if text in line)}"


# --- a good call -----------------------------------------------------------------------------------------------------


def test_each_rank_returns_its_data_and_nothing_remains(folder, alive, capsys):
    """Tensors and containers come back as they were; output is marked by rank; files and processes are gone."""
    first, second = launch(add_up, 2, torch.arange(3.0), times=2)
    assert first["sum"].tolist() == second["sum"].tolist() == [6, 12]
    assert first["who"] == (0, "0", None, 0.5, {1, 2}) and second["who"][:2] == (1, "1")
    assert sorted(capsys.readouterr().out.splitlines()) == ["rank 0 | rank 0 of 2", "rank 1 | rank 1 of 2"]
    assert not list(folder.iterdir()) and not alive(folder)


def test_a_function_that_no_module_holds_is_sent_by_value(folder):
    """A closure with its variables, as a notebook's cell defines it; one rank is a launch, too."""
    scale = 3

    def three_times(x):
        return scale * x + dist.get_world_size()

    assert launch(three_times, 1, 2) == [7]


# --- failures --------------------------------------------------------------------------------------------------------


def test_the_first_failing_rank_is_named_with_its_own_lines(folder, alive):
    """Message, file, line and source; the error that it came from; the logs are kept."""
    with pytest.raises(RankError, match="rank 1 failed first") as caught:
        launch(fail_on_one, 2)
    text = str(caught.value)
    assert "ValueError: three is no square" in text and line_of('raise ValueError("three') in text
    assert 'raise ValueError("three is no square") from error' in text and "after KeyError: 'key'" in text
    assert "_runner.py" not in text
    assert caught.value.rank == 1 and caught.value.logs.parent == folder
    assert "three is no square" in (caught.value.logs / "rank1.err").read_text()
    assert not alive(folder)


def test_ranks_that_wait_for_each_other_end_with_their_stacks(folder, alive):
    """Each rank's call and the caller's own line, soon after the timeout, and nobody waits any more."""
    begun = time.monotonic()
    with pytest.raises(LaunchTimeout, match="no result after 1 s") as caught:
        launch(wait_for_each_other, 2, timeout=1)
    text = str(caught.value)
    assert "rank 0 is inside all_reduce" in text and line_of("dist.all_reduce(torch.ones(2))") in text
    assert "rank 1 is inside recv" in text and "dist.recv(torch.ones(2), 0)" in text
    assert time.monotonic() - begun < launch_module.START_SECONDS
    assert not alive(folder)


def test_a_crash_is_the_cause_and_its_victims_are_not(folder, alive):
    """Rank 0 only loses its connection; the message is about the rank that crashed, and where."""
    with pytest.raises(RankError, match=r"SIGSEGV|Segmentation fault") as caught:
        launch(crash_on_one, 2)
    assert caught.value.rank == 1 and "ctypes.string_at(0)" in str(caught.value)
    assert not alive(folder)


def test_a_rank_that_leaves_without_a_result_is_named(folder):
    """With its exit code and what it said last."""
    with pytest.raises(RankError, match="rank 1 left with exit code 3") as caught:
        launch(leave_on_one, 2)
    assert "out of here" in str(caught.value)


def test_a_result_that_is_no_data_is_refused_where_it_stands(folder):
    """The path to the value and its type."""
    with pytest.raises(RankError, match=r"TypeError: fn returned result\['answer'\]\[1\] of type builtin"):
        launch(return_a_function, 1)


def test_ranks_that_never_start_are_a_timeout(folder, alive, monkeypatch):
    """Another limit than that of fn, and no stack is made up for ranks that have none."""
    monkeypatch.setattr(launch_module, "START_SECONDS", 0.05)
    with pytest.raises(LaunchTimeout, match=r"not every rank started after 0\.05 s") as caught:
        launch(add_up, 2, torch.ones(3))
    assert str(caught.value).count("has not started fn") == 2
    assert not alive(folder)


CALLER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started deaf to it
from refimpl.parallel import launch
def linger():
    import subprocess, sys, time
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)", sys.argv[-1]])
    print("lingering", flush=True)
    time.sleep(100)
launch(linger, 2)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_its_caller(sent, folder, alive):
    """Interrupted, killed, ended: within seconds no agent, no rank and no process that a rank started is left."""
    environment = os.environ | {"TMPDIR": str(folder)}
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    lines = [caller.stdout.readline() for _ in range(2)]
    assert sorted(lines) == ["rank 0 | lingering\n", "rank 1 | lingering\n"]
    assert len(alive(folder, seconds=0)) == 1 + 2 + 2
    caller.send_signal(sent)
    _, said = caller.communicate(timeout=20)
    assert ("KeyboardInterrupt" in said) == (sent == signal.SIGINT)
    assert not alive(folder, seconds=5)


# --- the pieces ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: launch(print, 0), "at least 1"),
        (lambda: launch(print, 2, timeout=0), "above 0 seconds"),
        (lambda: launch(print, 2, nnodes=2), "'slurm' or 'kubernetes'"),
        (lambda: launch(print, 2, engine="pigeons"), "choose 'local', "),
    ],
)
def test_a_call_that_cannot_work_is_refused_before_anything_starts(call, message):
    """In words, with the way out."""
    with pytest.raises(ValueError, match=message):
        call()


def test_a_result_in_place_of_a_function_is_refused():
    """launch(f(x), 2) is an easy slip; the message shows the right form."""
    with pytest.raises(TypeError, match=r"launch\(f, 2, x\)"):
        launch_module._check("f(x)", 2, 60, "local", 1)


def test_an_argument_that_cannot_travel_is_named(folder):
    """A generator has no copy in another process; nothing stays in the folder."""
    with pytest.raises(TypeError, match="cannot be sent"):
        launch(print, 2, (i for i in range(3)))
    assert not list(folder.iterdir())


def test_plain_data_is_copied_and_anything_else_has_a_path():
    """A view brings only its own elements; NumPy's scalars are numbers; a subclass of a tensor is refused."""
    data = {
        "a": [torch.ones(4)[:1], np.float32(2.5)],
        (1, 2): torch.nn.Parameter(torch.ones(1)),
        "b": frozenset([True]),
    }
    kept = _runner.plain(data)
    assert kept["a"][0].untyped_storage().nbytes() == 4 and kept["a"][1] == 2.5 and type(kept["a"][1]) is float
    assert not kept[1, 2].requires_grad and kept["b"] == {True}
    with pytest.raises(TypeError, match=r"result\['a'\]\[0\] of type ndarray"):
        _runner.plain({"a": [np.ones(3)]})


def write(folder: Path, name: str, content) -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def error(message: str) -> list[dict]:
    return [{"type": "RuntimeError", "message": message, "frames": [["cell", 1, "f"]], "direct": False}]


def test_the_earliest_error_is_the_cause(tmp_path):
    """By the time at which it was written, not by rank."""
    for rank, seconds in ((0, 20), (1, 10), (2, 30)):
        write(tmp_path, f"rank{rank}.error.json", error(f"from {rank}"))
        os.utime(tmp_path / f"rank{rank}.error.json", (seconds, seconds))
    failure = _failure.first_failure(tmp_path, 3)
    assert failure.rank == 1 and "3 of 3 ranks failed" in str(failure) and "from 1" in str(failure)


def test_a_rank_killed_by_the_system_is_told_from_one_that_raised(tmp_path):
    """-9 is most often a lack of memory; the others' errors follow from it."""
    write(tmp_path, "rank0.error.json", error("Connection closed by peer"))
    write(tmp_path, "agent0.json", {"0": 1, "1": -9})
    failure = _failure.first_failure(tmp_path, 2)
    assert failure.rank == 1 and "killed by SIGKILL" in str(failure) and "memory is short" in str(failure)


@pytest.mark.parametrize(("codes", "cause"), [({"0": -15, "1": -11}, 1), ({"0": 7, "1": -15}, 0), ({"1": -15}, 1)])
def test_whom_torchrun_ended_is_no_cause_unless_there_is_no_other(codes, cause, tmp_path):
    """SIGTERM to the rest follows the first failure."""
    write(tmp_path, "agent0.json", codes)
    assert _failure.first_failure(tmp_path, 2).rank == cause
    write(tmp_path, "rank0.error.json", error("first"))
    assert _failure.first_failure(tmp_path, 2).rank == (1 if codes["1"] == -11 else 0)


def test_without_any_trace_torchrun_speaks(tmp_path):
    """No result, no error: the agent's log says why, and no rank is blamed."""
    write(tmp_path, "agent0.log", "no such option")
    failure = _failure.first_failure(tmp_path, 2)
    assert failure.rank is None and "did not start" in str(failure) and "no such option" in str(failure)


def test_all_results_mean_no_failure(tmp_path):
    """Also where torchrun warned about something."""
    write(tmp_path, "agent0.log", "warning")
    write(tmp_path, "rank0.result.pt", "")
    assert _failure.first_failure(tmp_path, 1) is None


def test_where_they_are_covers_every_state(tmp_path):
    """Returned, not started, silent, in a library, in the caller's own code."""
    inside = '  File "/x/site-packages/torch/d.py", line 7 in all_reduce\n'
    for rank, frames in (
        (1, ""),
        (2, ""),
        (3, '  File "cell", line 9 in g\n'),
        (4, inside + '  File "cell", line 3 in f\n'),
    ):
        write(tmp_path, f"rank{rank}.ready", "")
        write(tmp_path, f"rank{rank}.stack", f"Stack (most recent call first):\n{frames}" if frames else "")
    write(tmp_path, "rank1.result.pt", "")
    assert _failure.where_they_are(tmp_path, 5).splitlines() == [
        "rank 0 has not started fn: torch is not imported, or not every rank has joined",
        "rank 1 has returned from fn",
        "rank 2 does not answer",
        "rank 3 is here",
        "  cell, line 9, in g",
        "rank 4 is inside all_reduce (d.py, line 7)",
        "  cell, line 3, in f",
    ]


def test_errors_tell_their_kind():
    """One except clause catches all; RuntimeError does, too."""
    assert issubclass(RankError, LaunchError) and issubclass(LaunchTimeout, LaunchError)
    assert issubclass(LaunchError, RuntimeError)
