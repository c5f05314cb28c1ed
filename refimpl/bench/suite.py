"""Find the cases, run them on one thread, and keep what they say beside machine, versions and date."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from refimpl.bench.measure import processor, provenance

CASES = Path(__file__).parent / "cases"


def names() -> list[str]:
    """All cases: the files that are here."""
    return sorted(path.stem for path in CASES.glob("[a-z]*.py"))


def case(name: str) -> ModuleType:
    if name not in names():
        raise ValueError(f"refimpl.bench: there is no case {name!r}; here are {', '.join(names())}")
    return importlib.import_module(f"refimpl.bench.cases.{name}")


def run(wanted: Sequence[str] = (), runs: int = 5) -> dict:
    """{"provenance", "threads", "runs", "cases": name -> rows} on the CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = {name: case(name).run(runs) for name in wanted or names()}
    finally:
        torch.set_num_threads(threads)
    return {"provenance": provenance(processor()), "threads": 1, "runs": runs, "cases": rows}


def problems(result: dict) -> list[str]:
    """Every missed bound of every case, in words."""
    return [f"{name}: {text}" for name, rows in result["cases"].items() for text in case(name).problems(rows)]
