"""Where Triton runs here, decided once: on a GPU, in its interpreter on a CPU, or not at all.

`refimpl/__init__` has set TRITON_INTERPRET where it is needed. Modules with kernels import `triton` and `tl` from here.
Everything else in `refimpl` works where Triton cannot be installed.
"""

import importlib.util
from types import SimpleNamespace
from typing import NamedTuple

import torch

from refimpl._compile_job import CompileJob

__all__ = [
    "HAS_TRITON",
    "INTERPRET",
    "CompileJob",
    "Config",
    "check_device",
    "pick_config",
    "tl",
    "triton",
]

HAS_TRITON = importlib.util.find_spec("triton") is not None

if HAS_TRITON:
    import triton
    import triton.language as tl
    from triton.runtime.jit import JITFunction
else:
    # Enough for kernel modules to import, so that a call can say what is missing.
    triton, tl = SimpleNamespace(jit=lambda kernel: kernel), SimpleNamespace(constexpr=float)


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


class Config(NamedTuple):
    """How one kernel is cut and launched."""

    block_q: int  # query rows per tile
    block_k: int  # keys per tile
    num_warps: int = 4
    num_stages: int = 2  # tiles of K and V in flight; each needs shared memory


def pick_config(table: dict, dim: int, dtype: torch.dtype, arch: int | None = None) -> Config:
    """The configuration of a kernel for this head dimension, precision and GPU.

    table: {arch: {dim: Config}}. `arch` is 80, 90, …; an architecture that is not listed gets the next lower one.
    float32 has its own row, arch 0: without tensor cores tiles are small. So has the interpreter: its time goes by the
    number of tiles, hardly by their size.
    A table, and no autotuning: the same launch every time, and checked by `refimpl.aot`.
    """
    if arch is None and INTERPRET:
        return Config(64, 64)
    if dtype == torch.float32:
        return table[0][dim]
    arch = arch or 10 * torch.cuda.get_device_capability()[0] + torch.cuda.get_device_capability()[1]
    return table[max(a for a in table if a <= arch)][dim]


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
