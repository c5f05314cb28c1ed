"""What every test of `refimpl` needs before the first import: Triton's mode, and shapes checked at run time."""

import importlib.util
from pathlib import Path

import pytest

import refimpl._triton

# Kernel modules stay out: triton.jit reads a function's source, and the checker's wrapper would hide it. So do the
# commands (aot, bench, experiments) and Triton's own shim, which have no tensors to annotate.
HERE = Path(__file__).parent
UNCHECKED = {"tests", "bench", "experiments", "aot", "_triton", "conftest"}


def checked() -> list[str]:
    """Every module whose annotations are checked at run time: a new one is found by itself."""
    parts = [path.relative_to(HERE).with_suffix("").parts for path in HERE.rglob("*.py")]
    kept = [names for names in parts if names[0] not in UNCHECKED and "tests" not in names]
    return sorted(".".join(("refimpl", *n)) for n in kept if "kernel" not in n[-1] and n[-1] != "__init__")


if importlib.util.find_spec("jaxtyping") and importlib.util.find_spec("beartype"):
    import jaxtyping

    # A machine with a GPU may have neither; there the annotations are comments.
    jaxtyping.install_import_hook(checked(), "beartype.beartype")


def pytest_configure(config):
    # The interpreter computes masked-out lanes too, with numpy, and numpy warns about their inf and NaN.
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning:triton.runtime.interpreter")


@pytest.fixture
def device():
    """Where Triton kernels run here; skips where there is no Triton at all."""
    if not refimpl._triton.HAS_TRITON:
        pytest.skip("needs Triton, whose wheels are for Linux only")
    return "cpu" if refimpl._triton.INTERPRET else "cuda"
