"""Every kernel compiles for real GPUs, without one; and the checker would notice if one did not."""

import json
import os
import subprocess
import sys

import pytest

from refimpl import aot
from refimpl._triton import HAS_TRITON, CompileJob

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs Triton, whose wheels are for Linux only")

GOOD = aot.Row("dkv D64", 90, "bf16", "64x128", 8, 2, 240, 0, 65536, 32, 24)


@needs_triton
@pytest.mark.slow
@pytest.mark.e2e  # `make aot` runs the same on two versions of Triton
def test_every_shipped_configuration_compiles_and_none_spills():
    """All head dimensions, bfloat16 and float32, sm_80 and sm_90: no spills, within shared memory, on tensor cores."""
    # As a notebook would have it: the interpreter is on around us, and the check turns it off for itself.
    env = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "refimpl.aot", "--check", "--all"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(aot.jobs(everything=True))} kernels compile, none spills" in done.stderr


@needs_triton
@pytest.mark.slow
def test_report_gives_the_same_rows_to_a_notebook():
    """From a process that interprets: softmax and three attention kernels at two dimensions, on two architectures."""
    rows = aot.report("online_softmax", "flash_attention")
    assert len(rows) == 14
    assert {r["arch"] for r in rows} == {80, 90}
    assert all(r["tensor_core"] > 0 for r in rows if not r["kernel"].startswith("softmax"))


@needs_triton
def test_a_tile_that_is_too_large_is_caught():
    """dkv at 128x128 with 4 warps does not fit the registers: --check would say so."""
    program = """
import os
os.environ["TRITON_INTERPRET"] = "0"
from refimpl import aot
from refimpl.flash_attention.kernel import dkv_kernel
constants = {"CAUSAL": True, "GROUP": 4, "DIM": 64, "BLOCK_Q": 64, "BLOCK_K": 64}
types = {"lse_ptr": "*fp32", "delta_ptr": "*fp32"}
job = aot.CompileJob("dkv", dkv_kernel, constants, 80, 4, 2, types=types)
print(aot.problems(aot.compile_job(job), job.tensor_core))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "spill instructions" in done.stdout


@pytest.mark.parametrize(
    "change,complaint",
    [
        ({"spills": 3}, "3 spill instructions"),
        ({"shared_bytes": 300_000}, "limit 232448"),
        ({"registers": 255, "num_warps": 16}, "> 65536"),
        ({"tensor_core": 0}, "no HGMMA instruction"),
    ],
)
def test_each_defect_is_named_with_a_way_out(change, complaint):
    """A row that is fine gives nothing; each defect gives one sentence."""
    assert aot.problems(GOOD, "half") == []
    (sentence,) = aot.problems(GOOD._replace(**change), "half")
    assert complaint in sentence and "sm_90 dkv D64 64x128" in sentence


def test_softmax_and_float32_need_no_tensor_cores():
    """Only half-precision products are held to them."""
    assert aot.problems(GOOD._replace(tensor_core=0), "") == []
    wanted = {(job.name.split()[0] == "softmax", job.dtype): job.tensor_core for job in aot.jobs(everything=True)}
    assert wanted[True, "bf16"] == wanted[False, "fp32"] == "" and wanted[False, "bf16"] == "half"


def test_the_table_has_one_line_per_row():
    """Head, then rows."""
    head, line = aot.table([GOOD]).split("\n")
    assert head.split()[-1] == "async" and line.split()[0] == "sm_90"


def test_arguments_are_typed_as_a_launch_would_specialize_them():
    """Pointers aligned, statistics in float32, strides divisible, lengths not: else no copy would be asynchronous."""
    job = CompileJob("dq", None, {}, 90, types={"lse_ptr": "*fp32", "threshold": "fp32"})
    assert aot.argument_type("q_ptr", job) == ("*bf16", 16)
    assert aot.argument_type("lse_ptr", job) == ("*fp32", 16)
    assert aot.argument_type("threshold", job) == ("fp32", 1)
    assert aot.argument_type("k_head", job) == ("i32", 16)
    assert aot.argument_type("q_len", job) == ("i32", 1)
    assert aot.argument_type("scale", job) == ("fp32", 1)


@needs_triton
@pytest.mark.parametrize("spills,code", [(0, 0), (5, 1)])
def test_check_fails_exactly_where_a_row_has_a_defect(monkeypatch, capsys, spills, code):
    """The exit code is what CI sees; without --check the table alone is no failure."""
    monkeypatch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", "0"))  # main sets it: put it back after
    monkeypatch.setattr(
        aot, "jobs", lambda parts, everything: [CompileJob("dkv", None, {}, 90, 8, 2, tensor_core="half")]
    )
    monkeypatch.setattr(aot, "compile_job", lambda job: GOOD._replace(spills=spills))
    assert aot.main(["--check"]) == code
    assert aot.main([]) == 0
    assert aot.main(["--json"]) == 0
    printed = capsys.readouterr()
    assert ("1 kernels compile, none spills" in printed.err) == (code == 0)
    assert json.loads(printed.out[printed.out.rindex("[") :])[0]["spills"] == spills


def test_without_triton_there_is_nothing_to_compile(monkeypatch, capsys):
    """Exit code 2 and one line, no traceback."""
    monkeypatch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", "0"))
    monkeypatch.setattr("refimpl._triton.HAS_TRITON", False)
    assert aot.main(["--check"]) == 2
    assert "Triton is not installed" in capsys.readouterr().err


@needs_triton
def test_jobs_are_what_is_shipped():
    """Attention and softmax: 14 by default, 50 with every dimension and precision. Other modules are refused."""
    parts = ("online_softmax", "flash_attention")
    assert len(aot.jobs(parts)) == 14 and len(aot.jobs(parts, everything=True)) == 50
    assert set(parts) <= set(aot.modules())
    with pytest.raises(ValueError, match="no kernels in roofline; there are some in flash_attention"):
        aot.jobs(["roofline"])
