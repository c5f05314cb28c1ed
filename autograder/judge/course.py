"""A course folder and what a step over its students tells: what every step of the cycle stands on."""

import os
import sys
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nbgrader.apps.api import NbGraderAPI
from sqlalchemy.exc import SAWarning
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

from autograder.judge.vault import Vault
from autograder.judge.verdict import CycleError
from autograder.labs import Lab
from autograder.nbgrader import install
from autograder.overlay import use_overlay


@dataclass
class Progress:
    """What a step did: students by outcome, and one line per problem."""

    done: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)  # nothing had changed
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return f"{len(self.done)} done, {len(self.kept)} unchanged, {len(self.problems)} with problems"


@dataclass
class Course:
    """A course folder: nbgrader's root, with nbgrader_config.py, course.toml and the judge's private .judge."""

    root: Path

    def __post_init__(self) -> None:
        self.root = self.root.resolve()
        if not (self.root / "nbgrader_config.py").is_file():
            raise CycleError(f"{self.root} is no course folder: it has no nbgrader_config.py. Name one with --course.")
        use_overlay(self.root)
        # nbgrader calls `alembic` by name when it makes a gradebook; it lies beside this Python.
        tools = str(Path(sys.executable).parent)
        if tools not in os.environ.get("PATH", "").split(os.pathsep):
            os.environ["PATH"] = os.pathsep.join([tools, os.environ.get("PATH", "")])

    @cached_property
    def vault(self) -> Vault:
        return Vault(self.root / ".judge")

    @cached_property
    def config(self) -> Config:
        config = Config(PyFileConfigLoader("nbgrader_config.py", path=str(self.root)).load_config())
        config.CourseDirectory.root = str(self.root)
        config.NbGraderAPI.log_level = "WARN"
        return install(config)

    @cached_property
    def api(self) -> NbGraderAPI:
        return open_api(self.config)

    def submitted(self, lab: Lab) -> dict[str, Path]:
        """Student -> submitted notebook."""
        found = sorted((self.root / "submitted").glob(f"*/{lab.slug}/lab.ipynb"))
        return {path.parents[1].name: path for path in found}


def open_api(config: Config) -> NbGraderAPI:
    """nbgrader as a library. Its queries flush while they build objects, and SQLAlchemy warns on every submission."""
    warnings.filterwarnings("ignore", message="Object of type .* not in session", category=SAWarning)
    return NbGraderAPI(config=config)


def succeed(result: dict[str, Any], what: str) -> None:
    """nbgrader's API answers with a dictionary; a failure becomes an exception with its last lines."""
    if not result["success"]:
        detail = (result.get("log") or result.get("error") or "").strip()
        raise CycleError(f"{what} failed:\n{detail[-2000:]}")


def last_line(result: dict[str, Any]) -> str:
    lines = (result.get("error") or result.get("log") or "nbgrader failed").strip().splitlines()
    return lines[-1]
