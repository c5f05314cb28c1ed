"""The same readers under a coverage-guided fuzzer (atheris, which is not a dependency of the course).

    python -m venv --system-site-packages /somewhere && /somewhere/bin/pip install atheris==3.0.0
    /somewhere/bin/python -m autograder.redteam.guided wire --inputs 50000 --json FILE

atheris keeps each input that reaches a new branch of the readers and goes on from it; `autograder.redteam.noise` says
how an input is changed, so that most of them are still frames and notebooks.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
import types
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

SMALL = "small"


def main() -> None:
    """Count the readers' branches and let libFuzzer take over; it ends the process."""
    options = parser().parse_args()
    os.environ.setdefault("TRITON_INTERPRET", "1")
    import atheris

    from autograder.judge import intake, repair
    from autograder.sandbox import wire

    for function in functions_of(wire) + functions_of(intake) + functions_of(repair):
        atheris.instrument_func(function)
    from autograder.fuzz import feed, reset_peak
    from autograder.labs import all_labs
    from autograder.redteam.readers import targets

    wanted = "wire" if options.reader == "wire" else SMALL
    target = next(each for each in targets(all_labs(None)) if each.name.endswith(wanted))
    start, before = time.monotonic(), reset_peak()

    def one(data: bytes) -> None:
        target.outcomes[feed(target, data)] += 1
        done = sum(target.outcomes.values())
        if done % 1000 == 0 or done == options.inputs:
            write(options, target, time.monotonic() - start, before)
        if done >= options.inputs:
            os._exit(1 if target.findings else 0)

    def mutate(data: bytes, size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        try:
            return target.hostile(rng, data)[:size]
        except Exception:  # what is no frame or notebook any more is begun anew
            return target.hostile(rng, rng.choice(target.seeds))[:size]

    corpus = Path(tempfile.mkdtemp(prefix="corpus-"))
    for number, seed in enumerate(target.seeds):
        (corpus / f"{number:04}").write_bytes(seed)
    arguments = [sys.argv[0], str(corpus), f"-seed={options.seed}", "-max_len=100000", "-rss_limit_mb=4096"]
    atheris.Setup(arguments, one, custom_mutator=mutate)
    atheris.Fuzz()


def functions_of(module: types.ModuleType) -> list[types.FunctionType]:
    """The module's own functions, methods included."""
    own = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
    inside = [member for value in own if isinstance(value, type) for member in vars(value).values()]
    return [value for value in [*own, *inside] if isinstance(value, types.FunctionType)]


def write(options: argparse.Namespace, target: Any, seconds: float, before: int) -> None:
    from autograder.fuzz import peak

    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "fuzzer": f"atheris {version('atheris')}, guided by the branches of the readers",
        "seed": options.seed,
        "reader": target.name,
        "inputs": sum(target.outcomes.values()),
        "outcomes": dict(target.outcomes),
        "seconds": round(seconds, 1),
        "slowest_cpu_s": round(target.slowest, 3),
        "memory_grown_mib": (peak() - before) >> 20,
        "findings": [vars(finding) for finding in target.findings],
    }
    options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m autograder.redteam.guided", description=__doc__.splitlines()[0])
    made.add_argument("reader", choices=("wire", "intake"))
    made.add_argument("--inputs", type=int, default=50_000)
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--json", type=Path, required=True)
    return made


if __name__ == "__main__":
    main()
