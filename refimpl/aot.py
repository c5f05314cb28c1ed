"""Compile every Triton kernel for real GPUs on a machine that has none, and read what the compiler decided.

    python -m refimpl.aot            a table: registers, spills, shared memory, tensor-core instructions
    python -m refimpl.aot --check    exit 1 where a kernel spills, outgrows shared memory or misses the tensor cores
    python -m refimpl.aot --json     the same rows as JSON
    python -m refimpl.aot --all      also head dimensions 16 and 32, and float32

Triton's wheel carries ptxas and the disassemblers, so neither a driver nor a toolkit is needed. It says nothing about
time, races or alignment. Triton's interpreter and its compiler exclude each other within one process; from a notebook
or a test call `report()`, which starts another one.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ARCHS = (80, 90)
DIMS = (64, 128)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes that one program may own
REGISTERS = 65536  # 32-bit registers of one multiprocessor, shared by the threads of a program
TENSOR_CORE = {80: "HMMA", 90: "HGMMA"}  # the half-precision matrix instruction of each generation


class Job(NamedTuple):
    """One kernel in one shipped configuration."""

    name: str
    kernel: object
    constants: dict
    arch: int
    num_warps: int
    num_stages: int
    dtype: str = "bf16"

    @property
    def tensor_cores(self) -> bool:
        """Should it use them? float32 products are asked for in full precision, which tensor cores do not have."""
        return "DIM" in self.constants and self.dtype == "bf16"


class Row(NamedTuple):
    """What the compiler made of one job."""

    kernel: str
    arch: int
    dtype: str
    tile: str
    num_warps: int
    num_stages: int
    registers: int  # per thread
    spills: int  # local-memory loads and stores: registers that did not fit
    shared_bytes: int
    tensor_core: int  # HMMA or HGMMA instructions
    async_copies: int  # cp.async or TMA loads: tiles fetched while others are computed


def jobs(*, everything: bool = False) -> list[Job]:
    """The kernels in their shipped configurations: head dimensions 64 and 128 in bfloat16, or `everything`."""
    from refimpl.flash_attention import kernel as flash
    from refimpl.online_softmax import kernel as softmax

    kernels = {"forward": flash.forward_kernel, "dq": flash.dq_kernel, "dkv": flash.dkv_kernel}
    dims, dtypes = (flash.HEAD_DIMS, ("bf16", "fp32")) if everything else (DIMS, ("bf16",))
    found = []
    for arch in ARCHS:
        found.append(Job("softmax", softmax.softmax_kernel, {"BLOCK_COLS": 4096}, arch, 4, 3))
        for name, dim, dtype in itertools.product(kernels, dims, dtypes):
            c = flash.CONFIGS[name][0 if dtype == "fp32" else arch][dim]
            constants = {"CAUSAL": True, "GROUP": 4, "DIM": dim, "BLOCK_Q": c.block_q, "BLOCK_K": c.block_k}
            found.append(Job(name, kernels[name], constants, arch, c.num_warps, c.num_stages, dtype))
    return found


def argument_type(name: str, dtype: str) -> tuple[str, int]:
    """(Triton type, guaranteed divisor) of a kernel argument, as its launch from PyTorch would specialize it."""
    if name.endswith("_ptr"):
        return ("*fp32" if name in ("lse_ptr", "delta_ptr") else f"*{dtype}"), 16
    if name == "scale":
        return "fp32", 1
    # Row strides are multiples of dim, lengths are anything. Without the divisor no copy would be asynchronous.
    return "i32", 16 if name.endswith(("_batch", "_head", "_seq", "_stride")) else 1


def compile_job(job: Job) -> Row:
    """Compile to machine code and count; raises what Triton or ptxas raise where it does not compile."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, attributes, constants = {}, {}, {}
    for i, name in enumerate(job.kernel.arg_names):
        if name in job.constants:
            signature[name], constants[(i,)] = "constexpr", job.constants[name]
            continue
        signature[name], divisor = argument_type(name, job.dtype)
        if divisor > 1:
            attributes[(i,)] = [["tt.divisibility", divisor]]
    source = ASTSource(fn=job.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": job.num_warps, "num_stages": job.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", job.arch, 32), options=options)
    return _read(job, compiled)


def _read(job: Job, compiled) -> Row:
    sizes, code = _disassemble(compiled.asm["cubin"])
    c = job.constants
    return Row(
        kernel=f"{job.name} D{c['DIM']}" if "DIM" in c else f"{job.name} {c['BLOCK_COLS']}",
        arch=job.arch,
        dtype=job.dtype,
        tile=f"{c['BLOCK_Q']}x{c['BLOCK_K']}" if "BLOCK_Q" in c else "row",
        num_warps=job.num_warps,
        num_stages=job.num_stages,
        registers=int(re.search(r"REG:(\d+)", sizes)[1]),
        spills=len(re.findall(r"\b(?:STL|LDL)\b", code)),
        shared_bytes=compiled.metadata.shared,
        tensor_core=len(re.findall(rf"\b{TENSOR_CORE[job.arch]}\b", code)),
        async_copies=len(re.findall(r"\b(?:LDGSTS|UTMALDG)\b", code)),
    )


def _disassemble(cubin: bytes) -> tuple[str, str]:
    """(resource usage, assembly) by the tools in Triton's own wheel."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        commands = ([tools / "cuobjdump", "-res-usage", file], [tools / "nvdisasm", "-c", file])
        sizes, code = (subprocess.run(c, capture_output=True, text=True, check=True).stdout for c in commands)
    return sizes, code


def problems(row: Row, tensor_cores: bool) -> list[str]:
    """What `--check` refuses, in words."""
    where = f"sm_{row.arch} {row.kernel} {row.tile}, {row.num_warps} warps, {row.num_stages} stages"
    found = []
    if row.spills:
        found.append(f"{where}: {row.spills} spill instructions; use smaller tiles or more warps")
    if row.shared_bytes > SHARED_LIMIT[row.arch]:
        found.append(f"{where}: {row.shared_bytes} bytes shared, limit {SHARED_LIMIT[row.arch]}; use fewer stages")
    if row.registers * row.num_warps * 32 > REGISTERS:
        found.append(f"{where}: {row.registers} registers x {row.num_warps * 32} threads > {REGISTERS}; fewer warps")
    if tensor_cores and not row.tensor_core:
        found.append(f"{where}: no {TENSOR_CORE[row.arch]} instruction; the products miss the tensor cores")
    return found


def report() -> list[dict]:
    """The table as a list of dicts, compiled in a process of its own; works from notebooks and tests."""
    env = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-m", "refimpl.aot", "--json"], capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(f"python -m refimpl.aot --json failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def table(rows: list[Row]) -> str:
    """The rows as text."""
    columns = f"{'warps':>6}{'stages':>7}{'regs':>6}{'spills':>7}{'KiB':>5}{'mma':>5}{'async':>6}"
    head = f"{'arch':6}{'kernel':14}{'dtype':6}{'tile':>8}{columns}"
    lines = [
        f"sm_{r.arch:<3}{r.kernel:14}{r.dtype:6}{r.tile:>8}{r.num_warps:6}{r.num_stages:7}{r.registers:6}{r.spills:7}"
        f"{r.shared_bytes // 1024:5}{r.tensor_core:5}{r.async_copies:6}"
        for r in rows
    ]
    return "\n".join([head, *lines])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m refimpl.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where a shipped configuration is not acceptable")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--all", action="store_true", help="every head dimension, and float32 too")
    options = parser.parse_args(argv)
    # Must be decided before Triton is imported; a value inherited from a notebook would win otherwise.
    os.environ["TRITON_INTERPRET"] = "0"
    from refimpl._triton import HAS_TRITON

    if not HAS_TRITON:
        print("refimpl.aot: Triton is not installed (its wheels are for Linux only)", file=sys.stderr)
        return 2
    todo = jobs(everything=options.all)
    rows = [compile_job(job) for job in todo]
    print(json.dumps([r._asdict() for r in rows], indent=1) if options.json else table(rows))
    found = [p for row, job in zip(rows, todo, strict=True) for p in problems(row, job.tensor_cores)]
    if options.check:
        print("\n".join(found) or f"{len(rows)} kernels compile, none spills", file=sys.stderr)
    return 1 if options.check and found else 0


if __name__ == "__main__":
    sys.exit(main())
