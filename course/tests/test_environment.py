"""One set of packages, said in three files, and no address anywhere."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from course.tests.tree import ROOT, files, plant

NAMED = {"jupyterlab", "torch", "numpy", "matplotlib", "nbgrader", "triton", "ipywidgets"}
PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][0-9A-Za-z.]*")
# Written with brackets, so that this file does not name what it forbids.
FORBIDDEN = {
    "a machine's path": re.compile(r"(?<![A-Za-z.\w])/(?:wor[k]|roo[t]|hom[e]/[a-z]+|User[s]/[a-z]+|tm[p]/[a-z]+)/"),
    "a package registry's host": re.compile(
        r"(?:py[p]i|pythonhoste[d]|npmj[s]|anacond[a]|crate[s])\.(?:org|com|io)|(?:deb|security)\.debia[n]\.org|"
        r"download\.pytorc[h]\.org"
    ),
    "a pin of a local build": re.compile(r"==[\d.]+\+cp[u]\b"),
}


def pyproject(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def wanted(root: Path) -> dict[str, Requirement]:
    """What a student's machine needs: the dependencies and the extra `labs`."""
    project = pyproject(root)
    lines = [*project["dependencies"], *project["optional-dependencies"]["labs"]]
    return {canonicalize_name(line.name): line for line in map(Requirement, lines)}


def conda_problems(root: Path) -> Iterator[str]:
    """environment.yml installs this repository, and lists the seven named packages as pyproject.toml does."""
    lines = yaml.safe_load((root / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    (pip,) = [line["pip"] for line in lines if isinstance(line, dict)]
    listed = {
        canonicalize_name(need.name): need for need in map(Requirement, (x for x in pip if not x.startswith("-")))
    }
    for name in sorted(NAMED ^ listed.keys()):
        yield f"environment.yml: lists {sorted(listed)}. It must list the seven named packages: mind {name}."
    for name in sorted(NAMED & listed.keys()):
        if str(listed[name]) != str(wanted(root).get(name)):
            yield f"environment.yml: {listed[name]}, but pyproject.toml says {wanted(root).get(name)}. Copy that."
    for option in ("-c constraints.txt", "-e .[labs]"):
        if option not in pip:
            yield f"environment.yml: pip lacks the line {option!r}. Add it."
    python = f"python{pyproject(root)['requires-python']}"
    if python not in lines:
        yield f"environment.yml: conda's own packages lack {python!r}, which pyproject.toml requires. Add it."


def pin_problems(root: Path) -> Iterator[str]:
    """constraints.txt pins every package that pyproject.toml asks for, inside the range it asks for."""
    pins = {}
    for number, line in enumerate((root / "constraints.txt").read_text(encoding="utf-8").splitlines(), 1):
        if not PIN.fullmatch(line):
            yield f"constraints.txt:{number}: {line!r}. Write name==version and nothing else."
        else:
            name, _, version = line.partition("==")
            pins[canonicalize_name(name)] = version
    extras = pyproject(root)["optional-dependencies"]
    asked = [*pyproject(root)["dependencies"], *extras["labs"], *extras.get("dev", [])]
    for need in map(Requirement, asked):
        name = canonicalize_name(need.name)
        if name == canonicalize_name(pyproject(root)["name"]):
            continue
        if name not in pins:
            yield f"constraints.txt: no pin for {need.name}. Add the version that the tests ran with."
        elif not need.specifier.contains(pins[name]):
            yield f"constraints.txt: {name}=={pins[name]} is outside pyproject.toml's {need}. Change one of them."


def address_problems(root: Path) -> Iterator[str]:
    """A tracked file names no machine, no package registry and no local build."""
    for path in files(root):
        try:
            text = (root / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # an image or weights
        for what, pattern in FORBIDDEN.items():
            for found in pattern.finditer(text):
                line = text.count("\n", 0, found.start()) + 1
                yield f"{path}:{line}: holds {what} ({found[0]}). Describe it in words, or take it from a variable."


RULES = [conda_problems, pin_problems, address_problems]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_this_repository_keeps_the_rule(rule):
    """No file of ours breaks it."""
    assert not list(rule(ROOT)), "\n".join(rule(ROOT))


def small_tree(root: Path) -> Path:
    """The three files, copied; the rules hold for them."""
    for name in ("pyproject.toml", "constraints.txt", "environment.yml"):
        (root / name).write_bytes((ROOT / name).read_bytes())
    return root


PLANTED = {
    "a range that moved": (conda_problems, "environment.yml", "torch>=2.11", "torch>=2.12"),
    "a package that went": (conda_problems, "environment.yml", "      - ipywidgets>=8.1\n", ""),
    "a package too many": (
        conda_problems,
        "environment.yml",
        "- ipywidgets>=8.1\n",
        "- ipywidgets>=8.1\n      - rich\n",
    ),
    "a lost marker": (conda_problems, "environment.yml", "; sys_platform == 'linux'", ""),
    "no pins": (conda_problems, "environment.yml", "- -c constraints.txt\n", "- six\n"),
    "another Python": (conda_problems, "environment.yml", "python>=3.11,<3.13", "python>=3.10"),
    "an address among the pins": (pin_problems, "constraints.txt", "six==", "--find-links=x\nsix=="),
    "a local build": (pin_problems, "constraints.txt", "torch==2.13.0", "torch==2.13.0+cu" + "130"),
    "a pin outside the range": (pin_problems, "constraints.txt", "torch==2.13.0", "torch==2.14.0"),
    "a package without a pin": (pin_problems, "constraints.txt", "ruff==", "rough=="),
}


@pytest.mark.parametrize(("rule", "path", "old", "new"), PLANTED.values(), ids=PLANTED)
def test_a_planted_violation_is_seen(rule, path, old, new, tmp_path):
    """The rule names the file and says the way out."""
    target = small_tree(tmp_path) / path
    text = target.read_text(encoding="utf-8")
    assert old in text and not list(rule(tmp_path))
    target.write_text(text.replace(old, new), encoding="utf-8")
    assert all(problem.startswith(path) and problem.endswith(".") for problem in rule(tmp_path))
    assert list(rule(tmp_path))


@pytest.mark.parametrize(
    "line",
    [
        "cd /wor" + "k/main",
        'open("/roo' + 't/x/y")',
        "/hom" + "e/ann/course",
        "https://py" + "pi.org/simple",
        "https://download.pytorc" + "h.org/whl/cpu",
        "torch==2.13.0+cp" + "u",
    ],
)
def test_an_address_is_seen(line, tmp_path):
    """Whichever kind of file it stands in."""
    (problem,) = address_problems(plant(tmp_path, notes_dot_md=f"text\n{line}\n"))
    assert problem.startswith("notes.md:2: ")


@pytest.mark.parametrize(
    "line",
    ["https://pytorch.org/get-started/locally/", "build/wor" + "k/x", "/path/to/python3.12", "the tm" + "p folder"],
)
def test_an_ordinary_line_is_not_taken_for_an_address(line, tmp_path):
    """Documentation may link and show placeholders."""
    assert not list(address_problems(plant(tmp_path, notes_dot_md=line)))


def test_the_models_are_pinned_by_hash():
    """Weights come from small packages; a hash says which bytes were meant."""
    lines = (ROOT / "course" / "models.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins and all(re.fullmatch(r"[a-z0-9-]+==[\d.]+ --hash=sha256:[0-9a-f]{64}", pin) for pin in pins)


@pytest.mark.parametrize(
    "path",
    [
        ".venv/x",
        "my-course/labs/03_a/lab.ipynb",
        "course/submitted/ann/03_a/lab.ipynb",
        "course/gradebook.db",
        "uv.lock",
    ],
)
def test_what_must_never_be_committed_is_ignored(path):
    """Students' work, grades and addresses stay out by default."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    assert subprocess.run(["git", "-C", str(ROOT), "check-ignore", "-q", path], check=False).returncode == 0
