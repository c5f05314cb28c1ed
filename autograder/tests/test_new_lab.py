"""A new lab is one new folder: it is made, checked, proved, released and graded without touching another."""

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autograder import new_lab
from autograder.labs import LabError, load_lab
from autograder.new_lab import main

REPOSITORY = Path(__file__).parents[2]
TEMPLATE = REPOSITORY / "labs" / "_template"


@pytest.fixture
def labs(tmp_path, monkeypatch):
    """An empty folder of labs with the template in it, and the working folder above it."""
    shutil.copytree(TEMPLATE, tmp_path / "labs" / "_template", ignore=shutil.ignore_patterns("kernel-*", "__pycache__"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COURSE_LABS", raising=False)
    monkeypatch.setattr(new_lab, "build", lambda folder: 0)
    return tmp_path / "labs"


def test_a_new_lab_is_whole_under_its_own_name(labs, capsys):
    """Slug, number and title are filled in everywhere, and it loads like any other."""
    assert main(["07_kv_cache", "--title", "The KV cache"]) == 0
    lab = load_lab(labs / "07_kv_cache")
    assert (lab.slug, lab.title) == ("07_kv_cache", "The KV cache")
    assert list(lab.checks) == ["center"]
    assert len(lab.mistakes("center")) >= 5
    text = (labs / "07_kv_cache" / "lab.py").read_text()
    assert "# # Lab 07 · The KV cache\n" in text
    assert 'open_lab("07_kv_cache")' in text
    assert (labs / "07_kv_cache" / "staff.md").read_text().startswith("# Staff notes: The KV cache\n")
    everything = "".join(path.read_text() for path in (labs / "07_kv_cache").iterdir())
    assert "_template" not in everything
    assert "A new lab" not in everything
    told = capsys.readouterr().out
    assert "labs/07_kv_cache is a whole lab now" in told
    assert "python -m autograder prove 07_kv_cache --quick" in told


def test_a_title_is_made_from_the_slug():
    """Where none is given."""
    assert new_lab.filled('title = "A new lab"', "07_kv_cache", "07", "Kv cache") == 'title = "Kv cache"'


def test_without_a_title_the_words_of_the_slug_will_do(labs):
    """With a capital."""
    assert load_lab(new_lab.new_lab("08_low_rank")).title == "Low rank"


def test_what_exists_is_never_overwritten(labs, capsys):
    """Not even an empty folder; the second run says so and changes nothing."""
    main(["07_kv_cache"])
    (labs / "07_kv_cache" / "lab.py").write_text("my work")
    assert main(["07_kv_cache"]) == 2
    assert "labs/07_kv_cache exists; choose another slug" in capsys.readouterr().err
    assert (labs / "07_kv_cache" / "lab.py").read_text() == "my work"


@pytest.mark.parametrize(
    "slug", ["kv_cache", "7_kv", "07", "07_", "07_KV", "07-kv", "07_kv cache", "../07_kv", "007_kv"]
)
def test_a_name_that_is_no_lab_s_is_refused(labs, capsys, slug):
    """Two digits and words; nothing is made."""
    assert main([slug]) == 2
    assert "is no lab's name: two digits, then lower-case words, as in 03_online_softmax" in capsys.readouterr().err
    assert [path.name for path in labs.iterdir()] == ["_template"]


@pytest.mark.parametrize("title", ['The "cache"', "two\nlines", "back\\slash"])
def test_a_title_must_fit_into_lab_toml(labs, capsys, title):
    """It stands there between quotes."""
    assert main(["07_kv_cache", "--title", title]) == 2
    assert "a title is one line without quotes or backslashes" in capsys.readouterr().err


def test_a_course_of_one_s_own_takes_the_template_of_the_package(labs, monkeypatch):
    """The new lab comes to the nearest folder of labs, or to a new one here; never into the package."""
    shutil.rmtree(labs / "_template")
    assert new_lab.new_lab("09_mine") == labs / "09_mine"
    monkeypatch.setattr(new_lab, "lab_roots", lambda: [labs / "nowhere", TEMPLATE.parent])
    assert new_lab.target_root() == TEMPLATE.parent
    monkeypatch.setattr(new_lab, "lab_roots", lambda: [labs / "nowhere"])
    assert new_lab.target_root() == Path.cwd() / "labs"
    with pytest.raises(LabError, match="no labs/_template was found here or beside the installed package"):
        new_lab.template_folder()


def test_the_notebook_is_built_by_the_course_s_own_command(monkeypatch, tmp_path):
    """As a process, since the grader imports nothing of the course; its status is ours."""
    asked = []

    def run(command, check):
        asked.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, "run", run)
    assert new_lab.build(tmp_path) == 3
    assert asked == [[sys.executable, "-m", "course", "notebooks", str(tmp_path)]]
    assert new_lab.shown(tmp_path) == str(tmp_path)


# --- a throw-away lab, from the template to the gradebook -----------------------------------------------


class Tree:
    """A copy of the repository's packages and labs, and commands run in it."""

    def __init__(self, folder):
        self.folder = folder
        leave = shutil.ignore_patterns("tests", "__pycache__", "kernel-*", "source", "release", "submitted", "*.db")
        for name in ("autograder", "course", "labs", "refimpl"):
            shutil.copytree(REPOSITORY / name, folder / name, ignore=leave)
        shutil.copy(REPOSITORY / "pyproject.toml", folder)

    def run(self, *command, status=0):
        """Run `python …` in the copy; its output."""
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"}
        environment.pop("COURSE_LABS", None)
        options = {"cwd": self.folder, "env": environment, "capture_output": True, "text": True, "timeout": 300}
        done = subprocess.run([sys.executable, *command], **options)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def files(self):
        return {
            str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.folder.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }


def answered(notebook, source):
    """The notebook with its one code question answered."""
    notebook = json.loads(json.dumps(notebook))
    (cell,) = [c for c in notebook["cells"] if c["id"] == "center"]
    cell["source"] = source
    return json.dumps(notebook)


ANSWERS = {
    "right": "def center(x):\n    return x - x.mean(dim=-1, keepdim=True)\n",
    "wrong": "def center(x):\n    return x - x.mean()\n",
}


@pytest.mark.e2e
@pytest.mark.slow
def test_a_third_lab_goes_through_check_prove_release_and_grade_by_one_folder(tmp_path):
    """The acceptance of a pluggable course, on a copy of the tree."""
    tree = Tree(tmp_path / "tree")
    before = tree.files()
    tree.run("-m", "autograder", "new-lab", "99_throw_away", "--title", "Throw away")
    after = tree.files()
    assert {name: after.get(name) for name in before} == before
    assert {Path(name).parent for name in after.keys() - before.keys()} == {Path("labs/99_throw_away")}

    tree.run("-m", "course", "notebooks", "--check", "labs/99_throw_away")
    assert "0 holes, 0 things missing" in tree.run("-m", "autograder", "prove", "99", "--jobs", "1")
    assert "0 holes" in tree.run("-m", "autograder", "prove", "99", "--mutate", "--jobs", "1")

    for name, source in ANSWERS.items():
        script = f"from autograder import open_lab\n{source}\nopen_lab('99').check('center')\n"
        (tmp_path / f"{name}.py").write_text(script)
    assert "center: passed" in tree.run(str(tmp_path / "right.py"))
    assert "What happened: You subtracted one mean" in tree.run(str(tmp_path / "wrong.py"), status=1)

    config = tree.folder / "course" / "course.toml"
    config.write_text(re.sub(r'minimum_tier = "T\d"', 'minimum_tier = "T0"', config.read_text()))
    tree.run("-m", "autograder", "release", "99")
    notebook = json.loads((tree.folder / "labs" / "99_throw_away" / "lab.ipynb").read_text())
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "ada.ipynb").write_text(answered(notebook, ANSWERS["right"]))
    (inbox / "ben.ipynb").write_text(answered(notebook, ANSWERS["wrong"]))
    (inbox / "cem.ipynb").write_text(json.dumps(notebook))
    grades = tmp_path / "grades.csv"
    tree.run("-m", "autograder", "grade", "99", "--from", str(inbox), "--csv", str(grades), "--jobs", "1")
    with grades.open() as file:
        rows = {(row["assignment"], row["student_id"]): float(row["score"]) for row in csv.DictReader(file)}
    lab, total = "99_throw_away", "Course total (percent)"  # half of its 8 points wait for a reader
    of_the_lab = {(lab, "ada"): 4.0, (lab, "ben"): 0.0, (lab, "cem"): 0.0}
    assert rows == of_the_lab | {(total, "ada"): 50.0, (total, "ben"): 0.0, (total, "cem"): 0.0}
