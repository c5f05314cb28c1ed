"""The same attacks against nbgrader as it comes: the comparison column, measured.

An ordinary course: visible and hidden tests in the notebook, run by nbgrader's own Execute beside the student's code.
Nothing there confines an attack, so each runs as an ordinary user in a cage of its own (see `ordinary`): no network, a
read-only file system, and an end to every process with the cage. The record is kept in results/.
"""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
from nbformat.notebooknode import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook
from traitlets.config import Config

from autograder.judge.course import open_api
from autograder.redteam import ordinary, outside
from autograder.redteam.attack import Attack, all_attacks, fill, to_bytes
from autograder.redteam.ground import SLUG

LIMIT_SECONDS = 150
BOUND_SECONDS = 60.0
CELL_SECONDS = 8  # Execute.timeout
CONTROL = "no attack"
GRADED = {"softmax": 10, "total": 10}
SETUP = "import numpy as np\nimport torch"
SOLUTIONS = {
    "softmax": "def softmax(x):\n    e = (x - x.amax(-1, True)).exp()\n    return e / e.sum(-1, True)\n",
    "total": "def total(blocks):\n    return torch.stack(list(blocks)).sum(0)\n",
}
CHECKS = {
    "softmax": """np.testing.assert_allclose(softmax(torch.zeros(1, 2)).numpy(), [[0.5, 0.5]])
### BEGIN HIDDEN TESTS
hidden = torch.linspace(-3, 5, 28).reshape(4, 7)
np.testing.assert_allclose(softmax(hidden).numpy(), torch.softmax(hidden, -1).numpy(), rtol=1e-4)
assert torch.equal(softmax(hidden[:, :1]), torch.ones(4, 1))
### END HIDDEN TESTS""",
    "total": """assert torch.equal(total([torch.ones(2), torch.ones(2)]), torch.full((2,), 2.0))
### BEGIN HIDDEN TESTS
assert torch.equal(total([torch.arange(3.0)] * 4), torch.tensor([0.0, 4.0, 8.0]))
### END HIDDEN TESTS""",
}


def run(attacks: Sequence[Attack], record: Path) -> int:
    """Attack plain nbgrader with each of `attacks`; writes `record` and prints it."""
    problem = ordinary.why_no_cage()
    if problem:
        print(f"autograder redteam --plain: {problem}", file=sys.stderr)
        return 2
    seen = recorded(record)
    with tempfile.TemporaryDirectory(prefix="plain-") as folder:
        pristine = Path(folder) / "pristine"
        prepare(pristine)
        for name in (CONTROL, *(attack.name for attack in attacks)):
            seen[name] = judge_outcome(attempt(pristine, name))
            print(f"{name:42} {seen[name]['outcome']}", flush=True)
            write(seen, record)
    words = [entry["outcome"].partition(":")[0] for name, entry in seen.items() if name != CONTROL]
    counted = ", ".join(f"{words.count(word)} {word}" for word in ("succeeds", "partial", "held"))
    print(f"{len(words)} attacks against nbgrader {version('nbgrader')}: {counted}. {record}")
    return 0


def recorded(record: Path) -> dict[str, dict[str, Any]]:
    """What is already in the record: attacks that are not chosen keep their rows."""
    if not record.is_file():
        return {}
    kept = json.loads(record.read_text(encoding="utf-8"))["attacks"]
    known = {CONTROL, *(attack.name for attack in all_attacks())}
    return {name: seen for name, seen in kept.items() if name in known}


def write(seen: dict[str, dict[str, Any]], record: Path) -> None:
    """The record: what was attacked, when, and what came of it."""
    about = {
        "command": "autograder redteam --plain",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: version(name) for name in ("nbgrader", "nbclient", "ipykernel", "jupyter_client", "torch")},
        "python": sys.version.split()[0],
        "cell_seconds": CELL_SECONDS,
    }
    text = json.dumps({**about, "attacks": seen}, indent=1)
    for place, name in ((outside.REPOSITORY, "REPOSITORY"), (sys.base_prefix, "PYTHON"), (sys.prefix, "PYTHON")):
        text = text.replace(str(place), name)
    text = re.sub(r"[^\s\"]*plain-\w+/here", "", text)
    record.parent.mkdir(exist_ok=True)
    record.write_text(text + "\n", encoding="utf-8")


# --- the course -----------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """A course with a released assignment and one graded neighbour, and a secret in its folder."""
    for name in ("home", "temp", "outside", "hold", f"course/source/{SLUG}", f"course/submitted/neighbour/{SLUG}"):
        (folder / name).mkdir(parents=True)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    course = folder / "course"
    for place in (course, folder / "home"):
        (place / "secret.txt").write_text(f"CANARY-{secrets.token_hex(16)}\n", encoding="utf-8")
    nbformat.write(source_notebook(), course / "source" / SLUG / "lab.ipynb")
    api = open_api(configuration(folder))
    succeed(api.generate_assignment(SLUG, force=True))
    solved = fill(release(course), SOLUTIONS)
    (course / "submitted" / "neighbour" / SLUG / "lab.ipynb").write_bytes(to_bytes(solved))
    succeed(api.autograde(SLUG, "neighbour", force=True))


def source_notebook() -> NotebookNode:
    """What an instructor writes: solutions to be stripped, and tests of which a part is hidden."""
    cells = [new_code_cell(SETUP, id="setup")]
    for name, points in GRADED.items():
        flags = {"schema_version": 3, "locked": False, "task": False}
        answer = {**flags, "grade": False, "solution": True, "grade_id": name}
        test = {
            **flags,
            "grade": True,
            "solution": False,
            "locked": True,
            "grade_id": f"check-{name}",
            "points": points,
        }
        marked = f"### BEGIN SOLUTION\n{SOLUTIONS[name]}### END SOLUTION"
        cells.append(new_code_cell(marked, id=name, metadata={"nbgrader": answer}))
        cells.append(new_code_cell(CHECKS[name], id=f"check-{name}", metadata={"nbgrader": test}))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


def configuration(folder: Path) -> Config:
    config = Config()
    config.CourseDirectory.root = str(folder / "course")
    config.NbGraderAPI.log_level = "ERROR"
    config.Execute.timeout = CELL_SECONDS
    config.KernelManager.transport = "ipc"  # there is no network in the cage
    config.KernelManager.ip = str(folder / "temp" / "kernel")
    return config


def release(course: Path) -> NotebookNode:
    return nbformat.read(course / "release" / SLUG / "lab.ipynb", as_version=4)


def succeed(result: dict[str, Any]) -> None:
    if not result["success"]:
        raise RuntimeError(f"plain nbgrader can not be set up:\n{result.get('log') or result.get('error')}")


# --- one attack -----------------------------------------------------------------------------------------


def attempt(pristine: Path, name: str) -> dict[str, Any]:
    """Run one attack in a cage, on a copy of the course; what was seen, or that it did not end."""
    folder = pristine.parent / "here"  # always the same path: it stands in configurations
    shutil.copytree(pristine, folder, symlinks=True)
    pristine.parent.chmod(0o755)
    ordinary.give(folder)
    line = [sys.executable, "-m", "autograder.redteam.plain_inside", str(folder), name]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder / "home"), "TMPDIR": str(folder / "temp"),
                   "PYTHONPATH": str(outside.REPOSITORY), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
                   "GRADER_TOKEN": (folder / "course" / "secret.txt").read_text().strip()}  # fmt: skip
    caged = ordinary.command(line, folder / "hold", caged=True)
    try:
        _, said = ordinary.run(caged, environment, LIMIT_SECONDS)
        result = folder / "result.json"
        if result.is_file():
            return json.loads(result.read_text().replace(str(folder), ""))
        return {"stopped": (said.strip().splitlines() or ["no word"])[-1][:200]}
    except subprocess.TimeoutExpired:
        return {"stopped": f"did not end within {LIMIT_SECONDS} s"}
    finally:
        outside.remove(folder)


def judge_outcome(seen: dict[str, Any]) -> dict[str, Any]:
    """What an instructor would say of it: succeeds, partial (nobody or not everybody is graded), or held."""
    if "stopped" in seen:
        return {**seen, "outcome": f"partial: stopped the grader ({seen['stopped']})"}
    faults = list(successes(seen))
    if faults:
        return {**seen, "outcome": f"succeeds: {'; '.join(faults)}"}
    if seen["earned"] is None:
        return {**seen, "outcome": "partial: left ungraded"}
    return {**seen, "outcome": "held"}


def successes(seen: dict[str, Any]) -> Iterator[str]:
    """What the attack got, each in a few words."""
    if seen["earned"] and seen["earned"]["softmax"] > 0:
        yield f"0 -> {seen['earned']['softmax']:g} points"
    if seen["neighbour"] != GRADED:
        yield "another student's grade"
    if seen["survivors"]:
        yield f"{len(seen['survivors'])} processes survive"
    if seen["sent"]:
        yield "data sent out"
    if seen["changed"]:
        yield f"changed {len(seen['changed'])} files outside"
    yield from seen["reported"][:1]
    if seen["megabytes"] > 50:
        yield f"{seen['megabytes']} MB of output kept"
    if seen["seconds"] > BOUND_SECONDS:
        yield f"took {seen['seconds']:.0f} s"
