"""The process that recomputes claims: records in as JSON on stdin, values out as JSON on the last line of stdout.

`course.audit` starts it once per run. It alone meets the other packages, and by name only: every record says in `use`
which modules its expressions need. One failing record is an error in its own result and nobody else's.
"""

import importlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def recompute(record: Mapping[str, Any], modules: Mapping[str, Any]) -> dict[str, Any]:
    """`compute` and every expression of `shows`, in which `x` is what `compute` gave and a cell's columns are names."""
    names = {"math": math, **modules, **record["given"]}
    try:
        value = plain(evaluate(record["compute"], names))
        shows = {name: plain(evaluate(each, {**names, "x": value})) for name, each in record["shows"].items()}
    except Exception as error:  # whatever a claim's code does wrong, the others still count
        return {"error": f"{type(error).__name__}: {error}"}
    return {"value": value, "shows": shows}


def evaluate(expression: str, names: Mapping[str, Any]) -> Any:
    """One expression, which may run over several lines."""
    return eval(f"({expression})", dict(names))


def plain(value: Any) -> Any:
    """Tensors and tuples as JSON has them."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(each) for each in value]
    return value


def load(name: str) -> Any:
    """A module by name, or a sentence in place of it: its claims then fail with that sentence."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        return Missing(f"{name}: {error}")


class Missing:
    """Stands for a module that could not be imported."""

    def __init__(self, why: str) -> None:
        self.why = why

    def __getattr__(self, name: str) -> Any:
        raise ImportError(self.why)


def main() -> int:
    """Recompute what stdin asks for."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # counts, not timings: one thread is enough and disturbs nobody
    records = json.load(sys.stdin)
    loaded = {name: load(name) for name in sorted({name for record in records for name in record["use"]})}
    results = {}
    for record in records:
        modules = {name.rpartition(".")[2]: loaded[name] for name in record["use"]}
        results[record["id"]] = recompute(record, modules)
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
