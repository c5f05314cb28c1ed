"""How well a student's code is shut in on this machine: T0, T1 or T2, found out by starting a session in each."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

from autograder.sandbox import wire

SANDBOX = Path(wire.__file__).resolve().parent
TIERS = ("T0", "T1", "T2")
NOT_FOR_GRADES = "T0: not for grades"
PROBE_SECONDS = 60.0
PROBES = 3  # one that somebody killed says nothing about the machine, and is made again
BY_A_SIGNAL = 128  # what a process in a namespace of its own adds to the signal, as a shell does
LOWER = "AUTOGRADER_TIER"  # environment variable: grade in this tier instead, if it is a weaker one


def machine_tier() -> str:
    """The strongest tier that this machine gives, or the weaker one that $AUTOGRADER_TIER names."""
    wanted = os.environ.get(LOWER, TIERS[-1])
    if wanted not in TIERS:
        raise ValueError(f"{LOWER}={wanted}: the tiers are {', '.join(TIERS)}")
    candidates = [tier for tier in reversed(TIERS) if at_least(wanted, tier)]
    return next((tier for tier in candidates if tier == TIERS[0] or not why_not(tier)), TIERS[0])


def at_least(tier: str, minimum: str) -> bool:
    """Whether a verdict made in `tier` satisfies a course that asks for `minimum`."""
    return TIERS.index(tier) >= TIERS.index(minimum)


def why_not(tier: str) -> str:
    """The step at which a session in `tier` fails here; empty when none does."""
    return str(probe(tier).get("error", ""))


@functools.cache
def probe(tier: str) -> dict:
    """What an empty session in `tier` met with: {"pid", "limits"} or {"error"}. Tried once per process."""
    command = [sys.executable, "-I", str(SANDBOX / "zygote.py"), "--probe", tier]
    for _ in range(PROBES):
        try:
            made = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=PROBE_SECONDS)
            return json.loads(made.stdout)
        except subprocess.TimeoutExpired:
            return {"error": f"no answer within {PROBE_SECONDS:.0f} s"}
        except ValueError:
            if 0 <= made.returncode < BY_A_SIGNAL:
                break
    return {"error": (made.stderr.strip().splitlines() or [f"exit status {made.returncode}"])[-1]}


def environment() -> dict[str, str]:
    """All that a zygote inherits of the judge's environment."""
    kept = ("LD_LIBRARY_PATH", "TMPDIR", "CUDA_VISIBLE_DEVICES")
    chosen = {name: os.environ[name] for name in kept if name in os.environ}
    # Asking the driver whether there is a GPU must not start CUDA, which would not survive the fork.
    return {
        **chosen,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "LANG": "C.UTF-8",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }
