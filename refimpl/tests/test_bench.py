"""The benchmark measures what it says, and the tiled form keeps its bounds."""

import importlib
import json
import os
import subprocess
import sys

import pytest
import torch

from refimpl.bench import __main__ as cli
from refimpl.bench import gpu, measure, suite
from refimpl.bench.cases import attention

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory from /proc, which Linux has")
TINY = {"batch": 1, "heads": 2, "seq": 64, "dim": 16}


@linux
@pytest.mark.slow
def test_tiled_attention_keeps_its_bounds_at_8192_tokens():
    """One thread, float32, causal and full: at most 2x SDPA's time and at most 1/15 of naive's extra memory.

    In a process of its own: here shapes are checked at every call and coverage may count lines, which costs time.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith(("COV_", "COVERAGE"))}
    done = subprocess.run(
        [sys.executable, "-m", "refimpl.bench", "attention", "--check"], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows if row[1:2] == ["tiled"]] == ["True", "False"]


def test_a_missed_bound_is_named():
    """One row too slow, one too large: two sentences."""
    rows = [
        {"implementation": "tiled", "causal": True, "time_over_sdpa": 2.5, "memory_under_naive": 100.0},
        {"implementation": "tiled", "causal": False, "time_over_sdpa": 1.5, "memory_under_naive": 9.0},
        {"implementation": "naive", "causal": False, "time_over_sdpa": 9.0, "memory_under_naive": 1.0},
    ]
    assert attention.problems(rows) == [
        "tiled, causal: 2.5 times SDPA's time, at most 2.0 allowed",
        "tiled, full: 9.0 times less memory than naive, 15.0 asked",
    ]


@linux
def test_peak_growth_sees_memory_that_is_freed_again():
    """64 MiB come and go inside the call: the peak counts them, what is resident afterwards does not."""

    def spike():
        torch.ones(2**24).sum()  # 64 MiB of float32

    assert 60 <= measure.peak_growth(spike) / 2**20 <= 80
    assert measure.peak_growth(lambda: None) < 2**20


def test_rounds_are_interleaved_and_an_outlier_does_not_move_the_ratio():
    """Five counted rounds after one warm-up, in turns; the ratio is the median over rounds."""
    calls, now = [], [0.0]

    def work(name, costs):
        def call():
            calls.append(name)
            now[0] += costs.pop(0)

        return call

    functions = {"a": work("a", [9.0, 1.0, 1.0, 7.0, 1.0, 1.0]), "b": work("b", [9.0] + [2.0] * 5)}
    seconds = measure.interleaved(functions, runs=5, clock=lambda: now[0])
    assert seconds == {"a": [1.0, 1.0, 7.0, 1.0, 1.0], "b": [2.0] * 5}
    assert calls == ["a", "b"] * 6
    assert measure.median_ratio(seconds["a"], seconds["b"]) == 0.5


def test_a_failure_in_the_fresh_process_is_shown():
    """The traceback of the other process is part of the message."""
    with pytest.raises(RuntimeError, match=r"KeyError: 'nothing'"):
        measure.in_fresh_process(
            "refimpl.bench.cases.attention", "extra_bytes", name="nothing", causal=True, shape=TINY
        )


@linux
def test_the_command_prints_a_table_and_json(monkeypatch, capsys, tmp_path):
    """At a tiny size: every contender has a row, threads are put back, --save writes machine, versions and date."""
    monkeypatch.setattr(attention, "SHAPE", TINY)
    here = importlib.import_module  # a fresh process per number takes seconds; the slow test has them
    monkeypatch.setattr(attention, "in_fresh_process", lambda module, f, **kw: getattr(here(module), f)(**kw))
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    threads = torch.get_num_threads()
    code = cli.main(["attention", "--runs", "1", "--json", "--save", "--check"])
    printed = capsys.readouterr().out
    assert torch.get_num_threads() == threads
    assert code == 1  # tiles do not pay at 64 tokens
    assert "time_over_sdpa" in printed and "tiled" in printed
    (file,) = tmp_path.iterdir()
    saved = json.loads(file.read_text())
    assert saved["provenance"].keys() >= {"device", "date", "torch", "triton", "python"}
    assert len(saved["cases"]["attention"]) == 6


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_without_a_gpu_nothing_claims_a_gpu_number(capsys):
    """--device gpu refuses; it does not fall back to another device."""
    assert cli.main(["--device", "gpu"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_the_gpu_benchmark_names_its_peers(device):
    """The same code at a tiny size: ours and both SDPA backends by name, and why one could not run."""
    cases = ["quantization", "parallel_ring"]  # small away from a GPU; without a part for it
    result = gpu.run(device, [TINY], softmax_cols=(64,), repeats=1, cases=cases)["cases"]
    assert set(result) == {"flash", "softmax", "quantization"}
    assert len(result["flash"]) == 4 * 3
    assert {r["implementation"] for r in result["flash"]} == {"refimpl-triton", "sdpa-flash", "sdpa-cudnn"}
    for row in result["flash"]:
        assert ("seconds" in row) != ("unavailable" in row)
    assert all("tflops" in r for r in result["flash"] if r["implementation"] == "refimpl-triton")
    assert [r["implementation"] for r in result["softmax"]] == ["refimpl-triton", "torch"]


def test_every_gpu_shape_has_16k_tokens_and_width_2048():
    """The convention of the FlashAttention papers, so that TFLOP/s can be compared with theirs."""
    for s in gpu.shapes():
        assert (s["batch"] * s["seq"], s["heads"] * s["dim"]) == (16384, 2048)


def test_committed_results_say_where_they_come_from():
    """Machine, versions and date in every file."""
    for file in measure.RESULTS.glob("*.json"):
        assert json.loads(file.read_text())["provenance"].keys() >= {"device", "date", "torch", "triton", "python"}


def test_every_case_has_a_title_rows_and_bounds():
    """What the suite finds by itself can be run by it; a name that is not there is answered with those that are."""
    for name in suite.names():
        found = suite.case(name)
        assert found.TITLE and callable(found.run) and callable(found.problems)
    with pytest.raises(ValueError, match="no case 'nothing'; here are attention"):
        suite.case("nothing")


def test_an_unknown_case_is_answered_with_the_known_ones(capsys):
    """Exit code 2, one line."""
    assert cli.main(["nothing"]) == 2
    assert "here are attention" in capsys.readouterr().err
