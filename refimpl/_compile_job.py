"""What a module with kernels says to `refimpl.aot`. Imports no Triton: whether that interprets is decided later."""

from typing import NamedTuple


class CompileJob(NamedTuple):
    """One kernel in one shipped configuration; modules with kernels yield them from `compile_jobs(arch, everything)`.

    Argument types follow from names: `…_ptr` points to `dtype` or what `types` says; `…_stride`, `…_batch`, `…_head`
    and `…_seq` are int32 divisible by 16; `scale` is a float; everything else is any int32.
    """

    name: str  # as the table of `refimpl.aot` shows it
    kernel: object
    constants: dict  # the tl.constexpr arguments; those named BLOCK_… are the tile
    arch: int
    num_warps: int = 4
    num_stages: int = 2
    dtype: str = "bf16"
    tensor_core: str = ""  # the matrix unit that its products must reach: "half", "int8", or none
    types: dict = {}  # argument -> Triton type, where the name does not tell: {"codes_ptr": "*i8"}  # noqa: RUF012
