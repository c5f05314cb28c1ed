"""The Makefile, run for real in an empty folder with programs that only write down how they were called."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from course.tests.tree import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs GNU make")

# Stands in for every Python: notes its arguments and one setting, makes an environment that holds itself.
FAKE = """#!/bin/sh
echo "${0##*/} $*" >> "$LOG"
echo "PIP_FIND_LINKS=$PIP_FIND_LINKS PATH=$PATH" >> "$LOG.env"
case "$*" in
  "-c "*) exit %(probe)s ;;
  "-m venv "*) mkdir -p "$3/bin" && for name in python ruff mypy; do cp "$0" "$3/bin/$name"; done ;;
  "-m course notebooks") exit ${NOTEBOOKS_EXIT:-0} ;;
  --version) echo "Python 3.12.1" ;;
esac
"""


class House:
    """A folder with our Makefile, and a PATH that holds nothing but what a test puts there."""

    def __init__(self, root: Path):
        self.root, self.bin, self.log = root / "course home", root / "bin", root / "log"
        (self.root / "course").mkdir(parents=True)
        self.bin.mkdir()
        shutil.copy(ROOT / "Makefile", self.root)
        for name in ("constraints.txt", "pyproject.toml", "course/models.txt"):
            (self.root / name).write_text("")
        for tool in ["sh", "cat", "cp", "echo", "env", "find", "mkdir", "rm", "sed", "awk", "test", "touch"]:
            if path := shutil.which(tool):
                (self.bin / tool).symlink_to(path)

    def python(self, name: str, *, works: bool = True) -> None:
        path = self.bin / name
        path.write_text(FAKE % {"probe": 0 if works else 1})
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def make(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        settings = {"PATH": str(self.bin), "LOG": str(self.log), **env}
        make = shutil.which("make") or "make"
        return subprocess.run([make, *words], cwd=self.root, env=settings, capture_output=True, text=True, check=False)

    def calls(self) -> list[str]:
        """What was called since the last look, probes for a Python left out."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line for line in lines if " -c import" not in line and not line.endswith("--version")]


@pytest.fixture
def house(tmp_path):
    house = House(tmp_path)
    house.python("python3.12")
    return house


def test_the_first_lab_installs_and_the_second_only_starts(house):
    """Stamps make a second start a matter of seconds."""
    assert house.make("lab").returncode == 0
    first = house.calls()
    assert [call for call in first if "pip install" in call] == [
        "python -m pip install --disable-pip-version-check -c constraints.txt -e .[labs]"
    ]
    assert first.index("python course/doctor.py --before-install") < first.index("python -m course models")
    assert house.make("lab").returncode == 0
    assert house.calls() == ["python -m course notebooks", "python -m course lab"]


def test_changed_pins_are_installed_at_the_next_start(house):
    """After an update of the course nobody has to know that packages moved."""
    house.make("lab")
    house.calls()
    stamp = house.root / ".venv" / ".labs"
    os.utime(house.root / "constraints.txt", (stamp.stat().st_mtime + 5,) * 2)
    house.make("lab")
    assert any("-e .[labs]" in call for call in house.calls())


def test_a_notebook_that_cannot_be_built_does_not_keep_the_course_shut(house):
    """The committed notebooks are there all the same."""
    run = house.make("lab", NOTEBOOKS_EXIT="1")
    assert run.returncode == 0 and house.calls()[-1] == "python -m course lab"
    assert "ignored" in run.stderr


def test_the_first_python_that_runs_and_fits_is_taken(house):
    """A python3.12 that exists but does not fit, a pyenv shim for example, is passed by."""
    house.python("python3.12", works=False)
    house.python("python3")
    house.make(".venv/bin/python")
    assert house.calls() == ["python3 -m venv .venv"]


def test_without_a_python_the_message_names_the_versions_and_the_way_out(house):
    """No traceback, no half-made environment."""
    house.python("python3.12", works=False)
    run = house.make("lab")
    assert run.returncode != 0 and not (house.root / ".venv").exists()
    assert "No Python 3.11 or 3.12 found" in run.stdout and "make lab PYTHON=" in run.stdout


def test_a_python_named_by_hand_is_checked_too(house):
    """PYTHON=python3.9 is refused before pip fails in its own words."""
    house.python("python3.9", works=False)
    run = house.make("lab", "PYTHON=python3.9")
    assert run.returncode != 0 and "PYTHON=python3.9 is not Python 3.11 or 3.12" in run.stdout


@pytest.mark.parametrize("way", ["environment", "command line"])
def test_pip_settings_reach_pip_and_the_environment_comes_first_on_path(way, house):
    """The way to PyTorch's CPU build, and to any mirror; and no program of another environment gets in between."""
    if way == "environment":
        house.make("lab", PIP_FIND_LINKS="my wheels")
    else:
        house.make("lab", "PIP_FIND_LINKS=my wheels")
    line = Path(f"{house.log}.env").read_text().splitlines()[-1]
    assert line.startswith(f"PIP_FIND_LINKS=my wheels PATH={house.root}/.venv/bin:")


def test_the_developers_tools_include_the_students(house):
    """`make test` on a fresh clone, then `make lab`: nothing is installed twice."""
    assert house.make("test").returncode == 0
    assert sum("pip install" in call for call in house.calls()) == 2
    house.make("lab")
    assert house.calls() == ["python -m course notebooks", "python -m course lab"]


def test_gpu_needs_no_environment_and_no_plugin(house):
    """A GPU machine has its own torch; pyproject's pytest options may name what it lacks."""
    house.python("python3")
    assert house.make("gpu").returncode == 0
    tests, bench = house.calls()
    assert "-c /dev/null" in tests and tests.endswith("-m gpu refimpl")
    assert bench == "python3 -m refimpl.bench --device gpu"
    assert not (house.root / ".venv").exists()


def test_clean_keeps_the_environment_and_the_students_work(house):
    """`make clean` is typed lightly."""
    house.make("lab")
    mine = house.root / "my-course" / "labs" / "03_a" / "lab.ipynb"
    mine.parent.mkdir(parents=True)
    mine.write_text("hours of work")
    (house.root / "build").mkdir()
    house.make("clean")
    assert mine.read_text() == "hours of work" and (house.root / ".venv").exists()
    assert not (house.root / "build").exists()


def test_help_lists_every_target(house):
    """`make` alone shows what there is."""
    said = house.make().stdout
    assert "make lab" in said and "open the course in JupyterLab" in said and said.count("make ") >= 14
