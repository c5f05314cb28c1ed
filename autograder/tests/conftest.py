"""What the grader's tests share: a tiny lab, and one warm zygote for all of them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton

from autograder.judge.cells import Cell, plain_python
from autograder.judge.intake import load_release
from autograder.judge.zygote import Zygote
from autograder.labs import load_lab

TINY = Path(__file__).parent / "data" / "labs" / "00_tiny"
# A command, as in the cycle: the grader imports nothing of the course.
BUILD = (
    "import sys; from pathlib import Path; from course.notebooks import open_source, student_text;"
    "folder = Path(sys.argv[1]); (folder / 'lab.ipynb').write_text(student_text(open_source(folder)))"
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The tiny lab, with its notebook built: `spread` (4 points), `stream_sum` (6 points), and the written `why`."""
    folder = tmp_path_factory.mktemp("labs") / "00_tiny"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], check=True, cwd=TINY.parents[4])
    return load_lab(folder)


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
