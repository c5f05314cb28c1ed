"""Where Triton runs here, decided once: on a GPU, in its interpreter on a CPU, or not at all.

Triton reads TRITON_INTERPRET when it is first imported, so import this module before `triton`. Modules with kernels
import `triton` and `tl` from here. Everything else in `refimpl` works where Triton cannot be installed.
"""

import importlib.util
import os
import sys

import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None

# An explicit TRITON_INTERPRET is obeyed; once triton is imported, setting it would have no effect.
if HAS_TRITON and "triton" not in sys.modules and not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

if HAS_TRITON:
    import triton
    import triton.language as tl
    from triton.runtime.jit import JITFunction
else:
    triton = tl = None


def _interpreting() -> bool:
    """What Triton actually decided: under the interpreter its own helpers are no JITFunctions."""
    return HAS_TRITON and not isinstance(tl.zeros, JITFunction)


INTERPRET = _interpreting()


def _let_runtime_values_bound_loops():
    """Triton <= 3.6 with numpy >= 2.4: `range(0, n)` fails in the interpreter, whose n is a 1-element array."""
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


if INTERPRET and tuple(map(int, triton.__version__.split(".")[:2])) <= (3, 6):
    _let_runtime_values_bound_loops()


def check_device(*tensors, where: str) -> None:
    """Refuse tensors that the kernels cannot read in this process, and say what to do about it."""
    if not HAS_TRITON:
        raise RuntimeError(f"{where}: Triton is not installed (its wheels are for Linux only); use impl='tiled'")
    devices = {t.device for t in tensors}
    if len(devices) > 1:
        raise ValueError(
            f"{where}: tensors must be on one device, given {sorted(map(str, devices))}; move them with .to()"
        )
    if not INTERPRET and next(iter(devices)).type != "cuda":
        raise RuntimeError(
            f"{where}: tensors are on {next(iter(devices))}, but Triton compiles for a GPU in this process. "
            "Move them with .cuda(), or set TRITON_INTERPRET=1 before Python starts"
        )
