"""The vocabulary is used, and it is checked."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import refimpl
from refimpl.attention import naive_attention
from refimpl.shapes import AXES

ROOT = Path(refimpl.__file__).parent
# Axes that are named in one place only, beside the function that needs them.
LOCAL = {"heads_dim", "kv_heads_dim", "source", "out", "n", "dim_v", "rows", "queries", "keys"}


@pytest.mark.skipif(not importlib.util.find_spec("jaxtyping"), reason="needs jaxtyping")
def test_a_wrong_shape_is_refused_where_it_enters():
    """Shapes in signatures are checked while tests run: k and v of different length do not get in."""
    from jaxtyping import TypeCheckError

    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(TypeCheckError, match="k_len"):
        naive_attention(q, torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 6, 4))


@pytest.mark.parametrize("module", ["attention.py", "online_softmax/eager.py", "flash_attention/eager.py"])
def test_every_axis_in_a_signature_is_in_the_glossary(module):
    """A reader who meets an axis name can look it up."""
    source = (ROOT / module).read_text()
    names = {name for shape in re.findall(r'(?:Float|Int|Bool)\[Tensor, "([^"]*)"', source) for name in shape.split()}
    plain = {name.strip("*#{}") for name in names} - {"..."}  # * any number, # broadcast, {} computed
    assert plain, f"{module} names no axis"
    assert plain <= AXES.keys() | LOCAL


def test_refimpl_works_with_torch_alone():
    """A machine without jaxtyping, beartype and Triton can import and run everything but the kernels."""
    program = """
import sys
for name in ("jaxtyping", "beartype", "triton"):
    sys.modules[name] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "triton" else find(name, *a)
import torch
from refimpl import attention, online_softmax, flash_attention
from refimpl.flash_attention import kernel, simulator
q = torch.randn(1, 2, 5, 16)
assert (attention.attention(q, q, q, impl="tiled") - attention.attention(q, q, q, impl="naive")).abs().max() < 1e-5
try:
    attention.attention(q, q, q, impl="triton")
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    assert "Triton is not installed" in done.stdout
