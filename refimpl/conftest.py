"""What every test of `refimpl` needs before the first import: Triton's mode, and shapes checked at run time."""

import importlib.util

import pytest

import refimpl._triton

# Kernel modules stay out: triton.jit reads a function's source, and the checker's wrapper would hide it.
CHECKED = [
    "refimpl.attention",
    "refimpl.shapes",
    "refimpl.transformer",
    "refimpl.cost_model",
    "refimpl.memory_model",
    "refimpl.roofline",
    "refimpl.scaling_law",
    "refimpl.language_modelling",
    "refimpl.models",
    "refimpl.online_softmax.eager",
    "refimpl.flash_attention.eager",
]

if importlib.util.find_spec("jaxtyping") and importlib.util.find_spec("beartype"):
    import jaxtyping

    # A machine with a GPU may have neither; there the annotations are comments.
    jaxtyping.install_import_hook(CHECKED, "beartype.beartype")


def pytest_configure(config):
    # The interpreter computes masked-out lanes too, with numpy, and numpy warns about their inf and NaN.
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning:triton.runtime.interpreter")


@pytest.fixture
def device():
    """Where Triton kernels run here; skips where there is no Triton at all."""
    if not refimpl._triton.HAS_TRITON:
        pytest.skip("needs Triton, whose wheels are for Linux only")
    return "cpu" if refimpl._triton.INTERPRET else "cuda"
