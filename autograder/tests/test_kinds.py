"""A lab with one question of every kind stands its exam: in place, in the judge, and over mutants of its oracles."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autograder.judge.tiers import LOWER, TIERS, at_least, machine_tier
from autograder.prove import main

KINDS = Path(__file__).parent / "data" / "kinds" / "01_kinds"
BUILD = (
    "import sys; from pathlib import Path; from course.notebooks import open_source, student_text;"
    "folder = Path(sys.argv[1]); (folder / 'lab.ipynb').write_text(student_text(open_source(folder)))"
)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A copy of the lab with its notebook built."""
    folder = tmp_path_factory.mktemp("kinds") / "labs" / "01_kinds"
    shutil.copytree(KINDS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], check=True, cwd=KINDS.parents[4])
    return folder


@pytest.fixture(autouse=True)
def found(kinds, monkeypatch):
    monkeypatch.setenv("COURSE_LABS", str(kinds.parent))


def prove(capsys, *options):
    """(exit status, what was printed) of one exam in this process."""
    status = main(["01_kinds", "--jobs", "1", "--seed", "5", *options])
    return status, capsys.readouterr().out


def test_in_place_only_what_needs_another_process_survives(capsys):
    """Memory is measured in the judge; everything else, counts included, is told apart in a notebook, too."""
    _, table = prove(capsys, "--quick")
    holes = {line.partition("“")[2].partition("”")[0] for line in table.splitlines() if line.startswith("HOLE")}
    assert holes == {"OnlyHidden"}, table


@pytest.mark.slow
@pytest.mark.parametrize("tier", TIERS)
def test_in_the_judge_nothing_survives(capsys, monkeypatch, tier):
    """The worked solutions earn all points; the release, every mistake and every cheat what they must, in each tier."""
    if not at_least(machine_tier(), tier):
        pytest.skip(f"this machine has no tier {tier}: see `autograder doctor`")
    monkeypatch.setenv(LOWER, tier)
    status, table = prove(capsys)
    assert status == 0, table


@pytest.mark.slow
def test_the_oracles_can_be_mutated(capsys):
    """Through conversations, served calls and threads of ranks; the survivors are only changes without effect."""
    _, table = prove(capsys, "--mutate", *(f"--question={name}" for name in ("RecentKeys", "shard_sum", "gate")))
    assert "HOLE" not in table, table
