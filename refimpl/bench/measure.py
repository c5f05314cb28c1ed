"""The clocks: interleaved medians, peak memory of a fresh process, and what must be written beside every number."""

import datetime
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from refimpl._triton import HAS_TRITON, triton

RESULTS = Path(__file__).parent / "results"


def interleaved(
    functions: dict[str, Callable[[], object]], runs: int = 5, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of each call, name -> one number per round, so that a slow minute of the machine hits all alike.

    The default clock counts CPU time of this process, which a busy neighbour stretches less than the wall clock.
    """
    seconds = {name: [] for name in functions}
    for round_ in range(runs + 1):  # the first round warms caches and is not counted
        for name, call in functions.items():
            start = clock()
            call()
            if round_:
                seconds[name].append(clock() - start)
    return seconds


def median_ratio(seconds: list[float], base: list[float]) -> float:
    """The median over rounds of seconds / base: each round is compared with its own neighbour in time."""
    return statistics.median(a / b for a, b in zip(seconds, base, strict=True))


def peak_growth(call: Callable[[], object]) -> int:
    """Bytes by which this process's resident memory grew at its peak while `call` ran (result included). Linux."""
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to what is resident now
    before = _status("VmRSS")
    result = call()
    growth = _status("VmHWM") - before
    del result
    return growth


def _status(key: str) -> int:
    return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def in_fresh_process(module: str, function: str, **arguments):
    """module.function(**arguments) in a new Python: memory that others left behind would hide growth."""
    program = f"import json, sys; from {module} import {function} as f; print(json.dumps(f(**json.loads(sys.argv[1]))))"
    command = [sys.executable, "-c", program, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{module}.{function}({arguments}) failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def provenance(device: str) -> dict:
    """The machine, the versions and the day: without them a number cannot be compared."""
    return {
        "device": device,
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__ if HAS_TRITON else None,
        "numpy": np.__version__,
    }


def processor() -> str:
    """The CPU's model name."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def save(result: dict) -> Path:
    """Write results/<device>.json and return its path."""
    name = re.sub(r"[^a-z0-9]+", "-", result["provenance"]["device"].lower()).strip("-")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path
