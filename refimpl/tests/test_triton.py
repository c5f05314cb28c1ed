"""Where Triton runs is decided once, and what cannot run is said in words."""

import os
import subprocess
import sys

import pytest
import torch

from refimpl import _triton
from refimpl._triton import Config, pick_config
from refimpl.flash_attention.kernel import CONFIGS, HEAD_DIMS

needs_triton = pytest.mark.skipif(not _triton.HAS_TRITON, reason="needs Triton, whose wheels are for Linux only")


def python(program, **env):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | env)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@needs_triton
def test_a_machine_without_a_gpu_interprets():
    """Importing refimpl._triton is enough; an explicit TRITON_INTERPRET=0 is obeyed."""
    program = "import refimpl._triton as t; print(t.INTERPRET)"
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    assert done.stdout.split() == [str(not torch.cuda.is_available())]
    assert python(program, TRITON_INTERPRET="0") == ["False"]


@needs_triton
def test_a_triton_imported_too_early_is_noticed():
    """Setting the variable after `import triton` has no effect; INTERPRET says what Triton decided, and a call why."""
    program = """
import os
os.environ.pop("TRITON_INTERPRET", None)
import triton, torch
from refimpl import _triton
print(_triton.INTERPRET)
try:
    _triton.check_device(torch.zeros(1), where="here")
except RuntimeError as error:
    print("TRITON_INTERPRET=1" in str(error))
"""
    assert python(program) == ["False", "True"]


def test_tensors_on_two_devices_are_refused():
    """meta stands in for a second device."""
    if not _triton.HAS_TRITON:
        pytest.skip("needs Triton, whose wheels are for Linux only")
    with pytest.raises(ValueError, match=r"one device, given \['cpu', 'meta'\]"):
        _triton.check_device(torch.zeros(1), torch.zeros(1, device="meta"), where="here")


def test_a_missing_triton_is_named(monkeypatch):
    """The message says what to use instead."""
    monkeypatch.setattr(_triton, "HAS_TRITON", False)
    with pytest.raises(RuntimeError, match=r"Triton is not installed .* use impl='tiled'"):
        _triton.check_device(torch.zeros(1), where="here")


@pytest.mark.parametrize("arch,want", [(80, 80), (86, 80), (89, 80), (90, 90), (100, 90)])
def test_an_unlisted_gpu_gets_the_next_lower_configuration(arch, want):
    """sm_86 takes sm_80's tiles: the next higher ones may not fit its shared memory."""
    for table in CONFIGS.values():
        assert pick_config(table, 64, torch.float16, arch) == table[want][64]


def test_every_head_dimension_has_a_configuration():
    """Each kernel, each architecture, float32 included."""
    for table in CONFIGS.values():
        assert {arch: set(row) for arch, row in table.items()} == {arch: set(HEAD_DIMS) for arch in (0, 80, 90)}
        assert pick_config(table, 128, torch.float32, 90) == table[0][128]


@pytest.mark.skipif(not _triton.INTERPRET, reason="about Triton's interpreter, which is off here")
def test_the_interpreter_gets_large_tiles():
    """Its time goes by the number of tiles."""
    assert pick_config(CONFIGS["forward"], 64, torch.float32) == Config(64, 64)


@pytest.mark.skipif(not _triton.INTERPRET, reason="about Triton's interpreter, which is off here")
def test_runtime_values_bound_loops_with_the_shim(tmp_path):
    """The patch for triton <= 3.6 with numpy >= 2.4 does no harm where it is not needed."""
    file = tmp_path / "count.py"  # @triton.jit reads a kernel's source from its file
    file.write_text("""
import torch
from refimpl import _triton
from refimpl._triton import tl, triton

_triton._let_runtime_values_bound_loops()

@triton.jit
def count(out_ptr, n_ptr):
    total = 0
    for i in range(0, tl.load(n_ptr)):
        total += i
    tl.store(out_ptr, total)

out = torch.zeros(1, dtype=torch.int32)
count[(1,)](out, torch.tensor([5], dtype=torch.int32))
print(out.item())
""")
    assert python(f"import runpy; runpy.run_path({str(file)!r})") == ["10"]
