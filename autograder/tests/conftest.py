"""What the grader's tests share: a tiny lab, and one warm zygote for all of them."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton

from autograder.judge.cells import Cell, plain_python
from autograder.judge.intake import load_release
from autograder.judge.session import Zygote
from autograder.labs import load_lab

LABS = Path(__file__).parent / "data" / "labs"


@pytest.fixture(scope="session")
def tiny():
    """The tiny lab: `spread` (4 points), `stream_sum` (6 points), and the written `why`."""
    return load_lab(LABS / "00_tiny")


@pytest.fixture(scope="session")
def tiny_release(tiny):
    return load_release(tiny.folder)


@pytest.fixture(scope="session")
def tiny_cells(tiny):
    """The cells of a perfect submission."""
    wanted = [c for c in tiny.cells if c.metadata.get("question") or "setup" in c.metadata.get("tags", [])]
    return [Cell(c.metadata.get("question") or f"cell {i}", plain_python(c.source)) for i, c in enumerate(wanted)]


@pytest.fixture(scope="session")
def zygote():
    with Zygote() as warm:
        yield warm
