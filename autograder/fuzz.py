"""Throw hostile inputs at what reads a student's bytes: `autograder fuzz`.

Two readers stand between a class and the judge: the decoder of frames (sandbox/wire.py), which a student's process
writes to, and the intake of notebooks (judge/intake.py). For every input each must either accept it or refuse it with
its own exception, within a bound of time and of memory. What it accepts must hold together: a value can be sent again
and arrives equal; a repaired notebook has every graded cell once, and repairing it again changes nothing.
"""

import argparse
import ast
import contextlib
import json
import platform
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from autograder.judge import intake, repair
from autograder.judge.vault import write_atomically
from autograder.labs import all_labs
from autograder.redteam.readers import Finding, Target, targets
from autograder.sandbox import wire

SECONDS = 2.0  # of the processor, for one input: honest ones need milliseconds
SPARE_BYTES = 64 << 20  # what an input may cost beyond FACTOR times its own size: allocators keep what they get
FACTOR = 40  # a parsed notebook is that many times its text
BATCH = 200  # inputs between two looks at the peak of memory
SHARE_OF_FRAMES = 0.8  # a notebook takes many times longer to read

DESCRIPTION = """Throw hostile frames and notebooks at the wire's decoder and at the intake.
Exit status: 0 every input was accepted or refused as it should be, 1 a crash, a hang, or too much memory."""


class TooSlow(BaseException):
    """One input used up its time."""


# --- one run ------------------------------------------------------------------------------------------


def attack(target: Target, inputs: int, rng: random.Random) -> None:
    """Feed `inputs` changed seeds, and write down what breaks a promise."""
    done = 0
    while done < inputs:
        batch = [target.hostile(rng, rng.choice(target.seeds)) for _ in range(min(BATCH, inputs - done))]
        if not watched(target, batch):
            for data in batch:  # again one by one, to find which it was
                watched(target, [data], count=False)
        done += len(batch)


def watched(target: Target, batch: Sequence[bytes], count: bool = True) -> bool:
    """Feed a batch; False if its peak of memory was more than its largest input explains."""
    before = reset_peak()
    for data in batch:
        outcome = feed(target, data)
        if count:
            target.outcomes[outcome] += 1
    grown = peak() - before
    target.most_bytes = max(target.most_bytes, grown)
    fits = grown <= SPARE_BYTES + FACTOR * max(map(len, batch))
    if not fits and not count:
        target.findings.append(Finding(target.name, f"took {grown >> 20} MiB", batch[0].hex()))
    return fits


def feed(target: Target, data: bytes) -> str:
    """One input, within its time; any exception that is not the reader's own is a finding."""
    start = time.process_time()
    try:
        with time_limit(SECONDS):
            return target.check(data)
    except TooSlow:
        problem = f"no answer within {SECONDS:g} s of the processor"
    except BaseException as error:  # Rust panics are no Exceptions
        if isinstance(error, KeyboardInterrupt):
            raise
        problem = f"{type(error).__name__}: {error}"[:300]
    finally:
        target.slowest = max(target.slowest, time.process_time() - start)
    target.findings.append(Finding(target.name, problem, data.hex()))
    return "broke"


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TooSlow in this block after so much processor time: a busy machine is no hang."""

    def stop(*_: Any) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def reset_peak() -> int:
    """Forget the peak of this process's memory where the kernel allows it; returns the peak from here on."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    with contextlib.suppress(OSError, IndexError, ValueError):
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# --- the command --------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    from autograder.cli import interpret_without_gpu

    arguments = parser().parse_args(argv)
    interpret_without_gpu()
    torch.set_num_threads(1)
    start = time.monotonic()
    readers = targets(all_labs(arguments.labs))
    with coverage_of(wire.__file__, intake.__file__, repair.__file__) as covered:
        for reader, inputs in shares(readers, arguments.inputs):
            attack(reader, inputs, random.Random(f"{arguments.seed} {reader.name}"))
    record = result(readers, arguments.seed, time.monotonic() - start, covered)
    print(table(record))
    if arguments.json:
        write_atomically(arguments.json, json.dumps(record, indent=1) + "\n", mode=0o644)
    return 1 if record["findings"] else 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="autograder fuzz", description=DESCRIPTION)
    made.add_argument("--inputs", type=int, default=5000, help="how many in all [default: 5000]")
    made.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32), help="to repeat a run")
    made.add_argument("--labs", type=Path, default=None, help="folder of labs [default: found beside the course]")
    made.add_argument("--json", type=Path, default=None, help="also write the result here")
    return made


def shares(readers: Sequence[Target], inputs: int) -> Iterator[tuple[Target, int]]:
    """How many inputs each reader gets; of the notebooks most are small."""
    frames = int(inputs * SHARE_OF_FRAMES)
    small = [reader for reader in readers if reader.name.endswith("small")]
    whole = [reader for reader in readers if reader.name.endswith("whole")]
    rest = inputs - frames
    for reader in readers:
        if reader.name == "wire":
            yield reader, frames
        elif reader in small:
            yield reader, rest * 9 // 10 // len(small)
        else:
            yield reader, max(1, rest // 10 // len(whole))


@contextlib.contextmanager
def coverage_of(*files: str | None) -> Iterator[dict[str, float]]:
    """File -> share of its lines that ran in this block; empty where coverage is missing or already at work."""
    covered: dict[str, float] = {}
    try:
        import coverage
    except ImportError:
        yield covered
        return
    if coverage.Coverage.current() is not None or sys.gettrace() is not None:
        yield covered
        return
    measured = coverage.Coverage(data_file=None, include=[file for file in files if file], config_file=False)
    with measured.collect():
        yield covered
    for file in filter(None, files):
        _, lines, _, missed, _ = measured.analysis2(file)
        inside = set(lines) & lines_of_functions(Path(file))  # the rest ran when the module was imported
        covered[Path(file).name] = round(1 - len(inside & set(missed)) / len(inside), 3)


def lines_of_functions(file: Path) -> set[int]:
    """The numbers of all lines inside a function's body."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            found.update(range(node.body[0].lineno, (node.end_lineno or node.lineno) + 1))
    return found


def result(readers: Sequence[Target], seed: int, seconds: float, covered: dict[str, float]) -> dict[str, Any]:
    """The whole run as data: what, with which versions, how many, how long."""
    packages = ("torch", "safetensors", "nbformat")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "seed": seed,
        "inputs": sum(sum(reader.outcomes.values()) for reader in readers),
        "seconds": round(seconds, 1),
        "lines_covered_while_fuzzing": covered,
        "targets": [
            {"name": r.name, "seeds": len(r.seeds), **dict(sorted(r.outcomes.items())),
             "slowest_cpu_s": round(r.slowest, 3), "most_memory_mib": r.most_bytes >> 20}
            for r in readers
        ],
        "findings": [asdict(finding) for reader in readers for finding in reader.findings],
    }  # fmt: skip


def table(record: dict[str, Any]) -> str:
    """One line per reader, one per finding."""
    lines = [f"{'reader':36} {'accepted':>9} {'refused':>9} {'broke':>6} {'slowest':>9} {'memory':>9}"]
    for each in record["targets"]:
        counts = [each.get(name, 0) for name in ("accepted", "refused", "broke")]
        lines.append(
            f"{each['name']:36} {counts[0]:9} {counts[1]:9} {counts[2]:6} {each['slowest_cpu_s']:7.3f} s"
            f" {each['most_memory_mib']:5} MiB"
        )
    shown = Counter((f["target"], f["problem"]) for f in record["findings"])
    lines += [f"FINDING  {target}: {problem} ({times} inputs)" for (target, problem), times in shown.most_common()]
    covered = ", ".join(f"{file} {share:.0%}" for file, share in record["lines_covered_while_fuzzing"].items())
    end = f"; lines of functions run: {covered}" if covered else ""
    count = len(record["findings"])
    lines.append(
        f"{record['inputs']} inputs in {record['seconds']:.0f} s, {count} findings, seed {record['seed']}{end}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
