"""What the documents promise is what the tree holds."""

import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from course import readme
from course.__main__ import VERBS
from course.tests.tree import ROOT, files, plant

MAP = re.compile(r"## The map\n(.*?)\n## ", re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
MAKE = re.compile(r"\bmake ([a-z][a-z0-9]*)\b")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
COURSE_KEYS = {
    "course_id", "title", "exchange", "term", "deadlines", "late", "weights", "grading", "slurm", "cluster",
    "kubernetes", "machines",
}  # fmt: skip


def map_problems(root: Path) -> Iterator[str]:
    """Every name at the top of the tree is in README's map, and nothing else is."""
    section = MAP.search((root / "README.md").read_text(encoding="utf-8"))
    if not section:
        yield 'README.md: there is no section "## The map". Restore it.'
        return
    cells = (line.split("|")[1] for line in section[1].splitlines() if line.startswith("| `"))
    named = {name.rstrip("/") for cell in cells for name in CODE.findall(cell)}
    there = {path.parts[0] for path in files(root)} - {"README.md"}
    for name in sorted(there - named):
        yield f"README.md: the map lacks `{name}`. Add a row, or move the file below one of the seven names."
    for name in sorted(named - there):
        yield f"README.md: the map names `{name}`, which is not there. Remove the row."


def table_problems(root: Path) -> Iterator[str]:
    """The generated tables are what the tree makes of them."""
    if readme.rendered(root) != (root / "README.md").read_text(encoding="utf-8"):
        yield "README.md: a generated table is stale. Run: python -m course readme"


def make_problems(root: Path) -> Iterator[str]:
    """Each `make TARGET` that a document, a workflow or a message names is a target; each target is documented."""
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    documented = {name for name, _ in readme.targets(root)}
    phony = set(re.search(r"^\.PHONY:(.*)$", makefile, re.MULTILINE)[1].split())
    for name in sorted(phony ^ documented):
        yield f"Makefile: {name} needs a place in .PHONY and a line `{name}: …  ## what it does`. Add what is missing."
    said = "".join((root / page).read_text(encoding="utf-8") for page in ("README.md", "CONTRIBUTING.md"))
    for name in sorted(documented - set(MAKE.findall(said))):
        yield f"Makefile: no document names `make {name}`. Run: python -m course readme"
    for path in files(root):
        if path.suffix in (".md", ".yml") or path.parts[0] == ".ci" or path.as_posix() == "course/doctor.py":
            for name in commands(root / path):
                if name not in documented:
                    yield f"{path}: names `make {name}`, which the Makefile does not have. Correct the name."


def commands(path: Path) -> list[str]:
    """Targets named as commands: in code of a Markdown page, at the start of a run line, after `stage`, in a fix."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text = "\n".join(CODE.findall(text) + re.findall(r"```\n(.*?)```", text, re.DOTALL))
    else:
        text = "\n".join(re.findall(r"(?:run:|stage|[\"';])\s*(make [a-z0-9]+)", text))
    return MAKE.findall(text)


def workflow_problems(root: Path) -> Iterator[str]:
    """A workflow's own commands are make targets, so that everybody can run what CI runs."""
    for path in files(root, ".yml"):
        if path.parts[0] == ".github":
            jobs = yaml.safe_load((root / path).read_text(encoding="utf-8"))["jobs"]
            for run in (step["run"] for job in jobs.values() for step in job["steps"] if "run" in step):
                if not re.fullmatch(r"make [a-z0-9]+", run.strip()):
                    yield f"{path}: runs {run.strip()!r}. Move it into a Makefile target and call that."


def link_problems(root: Path) -> Iterator[str]:
    """A link to a file of ours leads somewhere."""
    for path in files(root, ".md"):
        for target in LINK.findall((root / path).read_text(encoding="utf-8")):
            if not (root / path.parent / target).exists():
                yield f"{path}: links to {target}, which is not there. Correct the link."


def changelog_problems(root: Path) -> Iterator[str]:
    """Each line of the changelog says whom it is for."""
    for number, line in enumerate((root / "CHANGELOG.md").read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("- ") and not line.startswith(("- student: ", "- staff: ")):
            yield f"CHANGELOG.md:{number}: for whom? Begin with `- student: ` or `- staff: `."


def settings_problems(root: Path) -> Iterator[str]:
    """course.toml names labs that exist, and no key that nobody reads."""
    settings = tomllib.loads((root / "course" / "course.toml").read_text(encoding="utf-8"))
    labs = {path.parent.name for path in (root / "labs").glob("[0-9]*/lab.toml")}
    for section in ("deadlines", "weights"):
        for lab in sorted(settings.get(section, {}).keys() - labs):
            yield f"course/course.toml: [{section}] names {lab}, and there is no such lab. Correct or remove it."
    for key in sorted(settings.keys() - COURSE_KEYS):
        yield f'course/course.toml: unknown key "{key}". Keys here: {", ".join(sorted(COURSE_KEYS))}.'


RULES = [
    map_problems,
    table_problems,
    make_problems,
    workflow_problems,
    link_problems,
    changelog_problems,
    settings_problems,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_this_repository_keeps_its_promises(rule):
    """No document of ours is out of step."""
    assert not list(rule(ROOT)), "\n".join(rule(ROOT))


def small_tree(root: Path) -> Path:
    """A tree in which every document is right."""
    return plant(
        root,
        README_dot_md="# x\n<!-- generated: commands -->\n\n| command | what it does |\n| --- | --- |\n"
        "| `make test` | all tests |\n\n<!-- end -->\n## The map\n| path | what |\n| --- | --- |\n| `course/` | c |\n"
        "| `labs/` | l |\n| `Makefile`, `CONTRIBUTING.md`, `CHANGELOG.md`, `.github/` | f |\n## Terms\n",
        CONTRIBUTING_dot_md="Run `make test`. See [the map](README.md#the-map).\n",
        CHANGELOG_dot_md="- student: a lab\n",
        Makefile=".PHONY: test\ntest: stamp  ## all tests\n\tpytest\n",
        course__course_dot_toml='title = "x"\n[weights]\n"03_a" = 1\n',
        labs__03_a__lab_dot_toml="",
        _dot_github__workflows__tests_dot_yml="jobs: {t: {steps: [{uses: x}, {run: make test}]}}\n",
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_tree_that_keeps_its_promises_is_not_reported(rule, tmp_path):
    """A rule that cries wolf would be switched off."""
    assert not list(rule(small_tree(tmp_path)))


PLANTED = {
    "a new name at the top": (map_problems, "tools/x.py", "", ""),
    "a row for nothing": (map_problems, "README.md", "| `labs/`", "| `gone/`, `labs/`"),
    "no map": (map_problems, "README.md", "## The map", "## A map"),
    "a stale table": (table_problems, "Makefile", "## all tests", "## every test"),
    "an undocumented target": (make_problems, "Makefile", ".PHONY: test", ".PHONY: test prove"),
    "a page names a target that is gone": (
        make_problems,
        "CONTRIBUTING.md",
        "`make test`",
        "`make test` or `make tset`",
    ),
    "a workflow runs a target that is gone": (make_problems, ".github/workflows/tests.yml", "make test", "make tset"),
    "a workflow has commands of its own": (workflow_problems, ".github/workflows/tests.yml", "make test", "pip list"),
    "a dead link": (link_problems, "CONTRIBUTING.md", "README.md#the-map", "READMY.md"),
    "a change for nobody": (changelog_problems, "CHANGELOG.md", "student: ", ""),
    "a deadline for no lab": (settings_problems, "course/course.toml", "03_a", "03_b"),
    "a misspelt key": (settings_problems, "course/course.toml", "title", "titel"),
}


@pytest.mark.parametrize(("rule", "path", "old", "new"), PLANTED.values(), ids=PLANTED)
def test_a_planted_violation_is_seen(rule, path, old, new, tmp_path):
    """The rule names the file and says the way out."""
    target = small_tree(tmp_path) / path
    target.parent.mkdir(exist_ok=True)
    text = target.read_text(encoding="utf-8") if target.exists() else ""
    assert old in text
    target.write_text(text.replace(old, new), encoding="utf-8")
    problems = list(rule(tmp_path))
    assert problems and all(": " in problem and problem.endswith((".", "readme")) for problem in problems)


def test_contributing_begins_with_how_to_add_a_lab():
    """That is what most contributors come for."""
    headings = re.findall(r"^## (.+)$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "To add a lab"


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_of_the_course_has_a_main(verb):
    """`python -m course VERB` finds what the list promises."""
    assert callable(importlib.import_module(VERBS[verb][0]).main)


def test_readme_says_both_licenses_and_links_the_second():
    """Somebody who reuses a page must not have to search."""
    page, terms = (ROOT / "README.md").read_text(encoding="utf-8"), (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "MIT" in page and "https://creativecommons.org/licenses/by/4.0" in page
    assert "Permission is hereby granted, free of charge" in terms and "Creative Commons Attribution 4.0" in terms


def test_writing_the_tables_twice_changes_nothing(tmp_path, monkeypatch, capsys):
    """`course readme` repairs a stale table, and `--check` then agrees."""
    root = small_tree(tmp_path)
    (root / "Makefile").write_text(".PHONY: test\ntest:  ## every test\n", encoding="utf-8")
    monkeypatch.setattr(readme, "ROOT", root)
    assert readme.main(["--check"]) == 1 and "STALE" in capsys.readouterr().err
    assert readme.main([]) == 0 and readme.main(["--check"]) == 0
    assert "every test" in (root / "README.md").read_text(encoding="utf-8")


def test_a_unit_without_its_lecture_still_has_a_row(tmp_path):
    """Labs can come first; the table shows what there is."""
    plant(tmp_path, labs__05_b__lab_dot_toml='title = "B"\nminutes = 60\n[questions.q]\npoints = 4\n')
    plant(tmp_path, lectures__03_a_dot_py="# %% [markdown]\n# # 03 · A title\n# **Time** 45 min, 20 s of CPU\n")
    rows = readme.units(tmp_path).splitlines()[2:]
    assert rows == [
        "| 03 A title | [lecture](lectures/03_a.ipynb), 45 min |  |  |  |",
        "| 05 B |  | [lab](labs/05_b/lab.ipynb), 60 min | 1 | 4 |",
    ]
