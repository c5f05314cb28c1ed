"""Run an experiment, keep its result as JSON, and know when the result no longer belongs to the source.

An experiment is a file `row_NN.py` in this folder with
    TITLE                        one line
    run() -> dict                the work, seconds or minutes; returns what JSON can hold
    claims(result) -> [Claim]    what was published against what the result says; fast, recomputed whenever asked
A new file is found by itself. Its record, `results/row_NN.json`, holds the result beside command, hash of the file,
date, versions, machine and seconds; a record whose hash differs from the file is stale, and a test fails on it. The
hash is of that one file: where an experiment rests on other modules, its test repeats a cheap part of it.
"""

import hashlib
import importlib
import json
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import torch

from refimpl.bench.measure import processor, provenance

__all__ = ["Claim", "is_stale", "load", "module", "record", "rows", "source_hash"]

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"


@dataclass(frozen=True)
class Claim:
    """One published number or sentence beside ours."""

    says: str  # the claim, in a few words
    source: str  # S0 … S3 and the place, or the paper
    published: float | int | str
    measured: float | int | str
    shows: bool
    note: str = ""  # under which conditions; why not, where it does not show


def rows() -> list[str]:
    """Names of all experiments, "01", "02", …: the files that are here."""
    return sorted(path.stem.removeprefix("row_") for path in FOLDER.glob("row_*.py"))


def module(row: str) -> ModuleType:
    """The experiment of a row; "1" is "01"."""
    row = str(row).zfill(2)
    if row not in rows():
        raise ValueError(f"experiments: there is no row {row!r}; here are {', '.join(rows())}")
    return importlib.import_module(f"refimpl.experiments.row_{row}")


def source_hash(row: str) -> str:
    """SHA-256 of the experiment's file, line ends normalised, so that a checkout on Windows is not stale."""
    text = (FOLDER / f"row_{row}.py").read_text(encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def load(row: str) -> dict | None:
    """The record of a row, or None where it was never run."""
    path = RESULTS / f"row_{str(row).zfill(2)}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def is_stale(row: str) -> bool:
    """True where there is no record, or the experiment's file has changed since."""
    kept = load(row)
    return kept is None or kept["source_sha256"] != source_hash(row)


def record(row: str) -> dict:
    """Run a row on one thread, so that others can repeat it, and write its record."""
    experiment, hash_of_what_runs = module(row), source_hash(row)  # now: the file may be edited while it runs
    threads, start, worked = torch.get_num_threads(), time.perf_counter(), time.process_time()
    torch.set_num_threads(1)
    try:
        result = json.loads(json.dumps(experiment.run()))  # as a reader of the file will have it
    finally:
        torch.set_num_threads(threads)
    spent = {
        "threads": 1,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - worked, 1),  # of this process; what a busy machine does not stretch
    }
    made = {
        "row": row,
        "title": experiment.TITLE,
        "command": f"python -m refimpl.experiments {row} --force",
        "source": f"refimpl/experiments/row_{row}.py",
        "source_sha256": hash_of_what_runs,
        "provenance": provenance(processor()) | spent,
        "claims": [asdict(claim) for claim in experiment.claims(result)],
        "result": result,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"row_{row}.json").write_text(_json(made), encoding="utf-8")
    return made


def _json(value: dict) -> str:
    """Indented, with innermost lists and dicts on one line: a record is read by people and compared by git."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return (
        re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda m: re.sub(r"\n\s*", " ", m[0]) if '"says"' not in m[0] else m[0], text)
        + "\n"
    )
