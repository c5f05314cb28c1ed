"""What an attack is, and how it becomes the notebook that a cheating student would hand in.

An attack is one function in `attacks/`; its module is its family, its docstring says what it tries. It is never called
here: its text travels into a notebook, where it is grafted on a worthless answer, so that any point is a stolen one.
The name of the first parameter says how:

    attack(target, report)         runs in the cell of the question
    attack(target, report, x)      is the answer; what it returns counts unless it is None
    attack(notebook)               changes the finished notebook, or returns the bytes to hand in
    attack(path, target)           puts something in the place of the notebook file

`target` holds what a very well informed student could know: process ids, ports, paths. `report(text)` tells the
campaign that something worked; the judge throws away what a notebook prints.
"""

import copy
import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nbformat.notebooknode import NotebookNode

from autograder.judge.cells import grade_id
from autograder.redteam import attacks as families
from autograder.redteam import gadgets

MARK = "BREACH:"
WORTHLESS = {  # question -> an answer of the right shape that earns nothing
    "softmax": "def softmax(x):\n    return torch.zeros_like(x)\n",
    "total": "def total(blocks):\n    return torch.zeros_like(blocks[0])\n",
    "batch": "def batch(model, tokens):\n    return [0] * len(tokens)\n",
    "shard_sum": "def shard_sum(x):\n    return torch.zeros(x.numel() // 2)\n",
}
Code = Callable[..., Any]


@dataclass(frozen=True)
class Attack:
    """One attack: where it comes from, which question it wants points for."""

    code: Code
    source: str  # who did it first, or "own"
    question: str = "softmax"
    plain: bool = True  # whether it means anything against plain nbgrader
    quick: bool = False  # in the subset that the tests run

    @property
    def name(self) -> str:
        return self.code.__name__.replace("_", " ")

    @property
    def family(self) -> str:
        return self.code.__module__.rpartition(".")[2]

    @property
    def tries(self) -> str:
        return inspect.cleandoc(self.code.__doc__ or "").partition("\n")[0]

    @cached_property
    def kind(self) -> str:
        """cell, answer, notebook or file."""
        names = list(inspect.signature(self.code).parameters)
        if names[0] == "target":
            return "answer" if len(names) > 2 else "cell"
        return {"notebook": "notebook", "path": "file"}[names[0]]

    @property
    def text(self) -> str:
        """The function's own source, without its decorator."""
        source = inspect.getsource(self.code)
        return source[source.index("\ndef ") + 1 :] if source.startswith("@") else source


def attack(source: str, **options: Any) -> Callable[[Code], Code]:
    """Register a function of `attacks/` as an attack."""

    def register(code: Code) -> Code:
        code.__attack__ = Attack(code, source, **options)  # type: ignore[attr-defined]
        return code

    return register


def all_attacks() -> list[Attack]:
    """Every attack, family by family, in the order in which they are written."""
    found = []
    for info in sorted(pkgutil.iter_modules(families.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{families.__name__}.{info.name}")
        found += [value.__attack__ for value in vars(module).values() if hasattr(value, "__attack__")]
    return found


# --- as a notebook --------------------------------------------------------------------------------------


def cell_text(attack: Attack, target: dict[str, Any]) -> str:
    """The source of the attacked question's cell."""
    parts = [prelude(target), WORTHLESS[attack.question]]
    if attack.kind in ("notebook", "file"):
        return "\n\n".join(parts)
    parts.append(attack.text)
    if attack.kind == "cell":
        parts.append(f"{attack.code.__name__}(TARGET, report)\n")
    else:
        parts.append(answer_text(attack.code.__name__, attack.question))
    return "\n\n".join(parts)


def answer_text(function: str, question: str) -> str:
    """An answer that lets the attack answer, and is worthless where the attack says nothing."""
    return (
        f"worthless = {question}\n\n\ndef {question}(*arguments):\n"
        f"    result = {function}(TARGET, report, *arguments)\n"
        f"    return worthless(*arguments) if result is None else result\n"
    )


def prelude(target: dict[str, Any]) -> str:
    """What every attack's text may use: torch, Any, TARGET and the gadgets."""
    helpers = "\n\n".join(inspect.getsource(helper) for helper in gadgets.GADGETS)
    facts = f"TARGET = {target!r}\nNUMBERS = {gadgets.NUMBERS!r}"
    return f"from typing import Any\n\nimport torch\n\n{facts}\n\n\n{helpers}"


def fill(release: NotebookNode, sources: dict[str, str]) -> NotebookNode:
    """The release with these solution cells."""
    notebook = copy.deepcopy(release)
    for cell in notebook.cells:
        if grade_id(cell) in sources:
            cell.source = sources[grade_id(cell)]
    return notebook


def hand_in(attack: Attack, release: NotebookNode, solutions: dict[str, str], target: dict, path: Path) -> None:
    """Write the attacker's notebook to `path`: the other questions solved, the attacked one attacked."""
    notebook = fill(release, {**solutions, attack.question: cell_text(attack, target)})
    if attack.kind == "file":
        attack.code(path, target)
    else:
        changed = attack.code(notebook) if attack.kind == "notebook" else None
        path.write_bytes(changed if isinstance(changed, bytes) else to_bytes(notebook))


def to_bytes(notebook: NotebookNode) -> bytes:
    """The notebook as JSON, whatever was done to it: nbformat's own writer would repair or refuse it."""
    return json.dumps(notebook).encode()


def breaches(text: str) -> Iterator[str]:
    """What attacks reported in `text`."""
    for line in text.splitlines():
        if line.startswith(MARK):
            yield line.removeprefix(MARK).strip()[:200]
