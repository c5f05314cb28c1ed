"""Compile every Triton kernel for real GPUs on a machine that has none, and read what the compiler decided.

    python -m refimpl.aot            a table: registers, spills, shared memory, tensor-core instructions
    python -m refimpl.aot --check    exit 1 where a kernel spills, outgrows shared memory or misses the tensor cores
    python -m refimpl.aot --json     the same rows as JSON
    python -m refimpl.aot --all      every shipped configuration: small head dimensions and float32, too
    python -m refimpl.aot kv_cache   the kernels of one module

Triton's wheel carries ptxas and the disassemblers, so neither a driver nor a toolkit is needed. It says nothing about
time, races or alignment. Triton's interpreter and its compiler exclude each other within one process; from a notebook
or a test call `report()`, which starts another one.
"""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from refimpl._compile_job import CompileJob

HERE = Path(__file__).parent
ARCHS = (80, 90)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes that one program may own
REGISTERS = 65536  # 32-bit registers of one multiprocessor, shared by the threads of a program
# The matrix instruction of each generation, by what it multiplies.
TENSOR_CORE = {"half": {80: "HMMA", 90: "HGMMA"}, "int8": {80: "IMMA", 90: "IGMMA"}}


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
    tensor_core: int  # HMMA or HGMMA instructions; IMMA or IGMMA for int8
    async_copies: int  # cp.async or TMA loads: tiles fetched while others are computed


def modules() -> list[str]:
    """The packages that have kernels: each folder with a `kernel.py`."""
    return sorted(path.parent.name for path in HERE.glob("*/kernel.py"))


def jobs(parts: Sequence[str] = (), *, everything: bool = False) -> list[CompileJob]:
    """The kernels of `parts` (default: all modules), in their usual configurations or in `everything` shipped."""
    unknown = [part for part in parts if part not in modules()]
    if unknown:
        raise ValueError(f"refimpl.aot: no kernels in {', '.join(unknown)}; there are some in {', '.join(modules())}")
    found = []
    for part in parts or modules():
        kernels = importlib.import_module(f"refimpl.{part}.kernel")
        found += [job for arch in ARCHS for job in kernels.compile_jobs(arch, everything)]
    return found


def argument_type(name: str, job: CompileJob) -> tuple[str, int]:
    """(Triton type, guaranteed divisor) of a kernel argument, as its launch from PyTorch would specialize it."""
    if name.endswith("_ptr"):
        return job.types.get(name, f"*{job.dtype}"), 16
    if name in job.types:
        return job.types[name], 1
    if name == "scale":
        return "fp32", 1
    # Row strides are multiples of dim, lengths are anything. Without the divisor no copy would be asynchronous.
    return "i32", 16 if name.endswith(("_batch", "_head", "_seq", "_stride")) else 1


def compile_job(job: CompileJob) -> Row:
    """Compile to machine code and count; raises what Triton or ptxas raise where it does not compile."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, attributes, constants = {}, {}, {}
    for i, name in enumerate(job.kernel.arg_names):
        if name in job.constants:
            signature[name], constants[(i,)] = "constexpr", job.constants[name]
            continue
        signature[name], divisor = argument_type(name, job)
        if divisor > 1:
            attributes[(i,)] = [["tt.divisibility", divisor]]
    source = ASTSource(fn=job.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": job.num_warps, "num_stages": job.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", job.arch, 32), options=options)
    return _read(job, compiled)


def _read(job: CompileJob, compiled) -> Row:
    sizes, code = _disassemble(compiled.asm["cubin"])
    instruction = TENSOR_CORE[job.tensor_core or "half"][job.arch]
    return Row(
        kernel=job.name,
        arch=job.arch,
        dtype=job.dtype,
        tile="x".join(str(size) for name, size in job.constants.items() if name.startswith("BLOCK_")),
        num_warps=job.num_warps,
        num_stages=job.num_stages,
        registers=int(re.search(r"REG:(\d+)", sizes)[1]),
        spills=len(re.findall(r"\b(?:STL|LDL)\b", code)),
        shared_bytes=compiled.metadata.shared,
        tensor_core=len(re.findall(rf"\b{instruction}\b", code)),
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


def problems(row: Row, tensor_core: str) -> list[str]:
    """What `--check` refuses, in words; `tensor_core` as in `CompileJob`."""
    where = f"sm_{row.arch} {row.kernel} {row.tile}, {row.num_warps} warps, {row.num_stages} stages"
    found = []
    if row.spills:
        found.append(f"{where}: {row.spills} spill instructions; use smaller tiles or more warps")
    if row.shared_bytes > SHARED_LIMIT[row.arch]:
        found.append(f"{where}: {row.shared_bytes} bytes shared, limit {SHARED_LIMIT[row.arch]}; use fewer stages")
    if row.registers * row.num_warps * 32 > REGISTERS:
        found.append(f"{where}: {row.registers} registers x {row.num_warps * 32} threads > {REGISTERS}; fewer warps")
    if tensor_core and not row.tensor_core:
        instruction = TENSOR_CORE[tensor_core][row.arch]
        found.append(f"{where}: no {instruction} instruction; the products miss the tensor cores")
    return found


def report(*parts: str) -> list[dict]:
    """The table as a list of dicts, compiled in a process of its own; works from notebooks and tests."""
    env = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "refimpl.aot", "--json", *parts]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(f"python -m refimpl.aot --json failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def table(rows: list[Row]) -> str:
    """The rows as text."""
    columns = f"{'warps':>6}{'stages':>7}{'regs':>6}{'spills':>7}{'KiB':>5}{'mma':>5}{'async':>6}"
    wide = max(14, *(len(row.kernel) + 2 for row in rows))
    head = f"{'arch':6}{'kernel':{wide}}{'dtype':6}{'tile':>12}{columns}"
    lines = [
        f"sm_{r.arch:<3}{r.kernel:{wide}}{r.dtype:6}{r.tile:>12}{r.num_warps:6}{r.num_stages:7}{r.registers:6}{r.spills:7}"
        f"{r.shared_bytes // 1024:5}{r.tensor_core:5}{r.async_copies:6}"
        for r in rows
    ]
    return "\n".join([head, *lines])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m refimpl.aot", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="MODULE", help="only these modules' kernels [default: all]")
    parser.add_argument("--check", action="store_true", help="exit 1 where a shipped configuration is not acceptable")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--all", action="store_true", help="every shipped configuration, float32 too")
    options = parser.parse_args(argv)
    # Must be decided before Triton is imported; a value inherited from a notebook would win otherwise.
    os.environ["TRITON_INTERPRET"] = "0"
    from refimpl._triton import HAS_TRITON

    if not HAS_TRITON:
        print("refimpl.aot: Triton is not installed (its wheels are for Linux only)", file=sys.stderr)
        return 2
    todo = jobs(options.parts, everything=options.all)
    rows = [compile_job(job) for job in todo]
    print(json.dumps([r._asdict() for r in rows], indent=1) if options.json else table(rows))
    found = [p for row, job in zip(rows, todo, strict=True) for p in problems(row, job.tensor_core)]
    if options.check:
        print("\n".join(found) or f"{len(rows)} kernels compile, none spills", file=sys.stderr)
    return 1 if options.check and found else 0


if __name__ == "__main__":
    sys.exit(main())
