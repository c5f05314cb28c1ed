"""The handbook and the front page: every command, file, setting and link in them exists."""

import functools
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from course import frontpage, readme
from course.__main__ import VERBS
from course.tests.test_docs import CODE
from course.tests.tree import ROOT, plant

PAGES = [ROOT / "README.md", *sorted((ROOT / "course" / "staff").glob("*.md"))]
FENCE = re.compile(r"```\w*\n(.*?)```", re.DOTALL)
ANCHOR = re.compile(r"\]\(([^)#\s]*)#([^)\s]+)\)")
SETTING = re.compile(r"\[([a-z]+)\]")
NBGRADER_MAKES = (
    "course/submitted/",
    "course/autograded/",
    "course/feedback/",
    "course/gradebook.db",
    "course/.judge/",
    "course/extensions.csv",
    "course/requests.csv",
)


def commands(page: Path) -> Iterator[list[str]]:
    """Every command of a page, as words: lines of code blocks, and inline code that begins with one of ours."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in FENCE.findall(text) for line in block.splitlines()]
    lines += CODE.findall(FENCE.sub("", text))
    for line in lines:
        for part in line.split("&&"):
            words = shlex.split(part, comments=True) if part.count("'") % 2 == 0 else []
            if len(words) > 1 and words[0] in ("autograder", "course"):
                yield words
            if words[:2] == ["python", "-m"] and words[2] in ("autograder", "course"):
                yield words[2:]


HELP = """
import contextlib, io, json, sys
from autograder.cli import main
said = {}
for verb in sys.argv[1:]:
    with contextlib.redirect_stdout(text := io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main([verb, "--help"])
        except SystemExit as end:
            said[verb] = "" if end.code else text.getvalue()
print(json.dumps(said))
"""


@functools.cache
def autograder_help() -> dict[str, str]:
    """What each verb that a page names says of itself, from one process; "" where there is no such verb."""
    verbs = sorted({verb for page in PAGES for tool, verb, *_ in commands(page) if tool == "autograder"})
    made = subprocess.run([sys.executable, "-c", HELP, *verbs], capture_output=True, text=True, cwd=ROOT, check=True)
    return json.loads(made.stdout)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_every_command_of_ours_exists_with_its_options(page):
    """A verb that is gone, or an option that was renamed, would be found by an instructor in a bad moment."""
    for words in commands(page):
        tool, verb, *rest = words
        if verb.isupper():  # `autograder VERB --help`
            continue
        if tool == "course":
            assert verb in VERBS, words
            source = (ROOT / VERBS[verb][0].replace(".", "/")).with_suffix(".py")
            text = source.read_text() if source.exists() else ""
            assert all(option in text for option in rest if option.startswith("--")), words
            continue
        text = autograder_help().get(verb, "")
        assert text, f"`{' '.join(words)}`: autograder has no verb {verb!r}"
        assert all(option in text for option in rest if option.startswith("--")), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_every_file_it_names_is_there_or_made_by_grading(page):
    """Paths in code, from the root of the repository."""
    for name in CODE.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"(course|labs|lectures|refimpl|autograder)/[\w./<>-]*$", name) and "<" not in name:
            assert (ROOT / name).exists() or name.startswith(NBGRADER_MAKES), f"{page.name}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_every_anchor_is_a_heading(page):
    """A link into a page leads to its section."""
    for target, anchor in ANCHOR.findall(page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        text = (page.parent / target if target else page).read_text(encoding="utf-8")
        headings = [
            re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.M)
        ]
        assert anchor in headings, f"{page.name}: #{anchor}"


def test_the_settings_that_the_handbook_explains_are_those_of_course_toml():
    """Each section a term decides is in the table."""
    settings = tomllib.loads((ROOT / "course" / "course.toml").read_text(encoding="utf-8"))
    page = (ROOT / "course" / "staff" / "term.md").read_text(encoding="utf-8")
    named = set(SETTING.findall(" ".join(CODE.findall(page))))
    assert named <= settings.keys() and {"term", "deadlines", "late", "weights", "grading"} <= named


def test_the_handbook_explains_each_tier_and_the_course_minimum():
    """A page that left one out, or named another minimum than course.toml, would be worse than none."""
    source = (ROOT / "autograder" / "judge" / "tiers.py").read_text(encoding="utf-8")
    tiers = re.findall(r'"(T\d)"', re.search(r"^TIERS = \((.*)\)$", source, re.MULTILINE)[1])
    page = (ROOT / "course" / "staff" / "tiers.md").read_text(encoding="utf-8")
    assert tiers and re.findall(r"^\| (T\d) \|", page, re.MULTILINE) == tiers
    minimum = tomllib.loads((ROOT / "course" / "course.toml").read_text(encoding="utf-8"))["grading"]["minimum_tier"]
    assert f"asks for {minimum}" in " ".join(page.split())


@pytest.mark.parametrize("name", ["key", "seeds/03_online_softmax-x", "verdicts/03_online_softmax/ann.json"])
def test_what_the_judge_keeps_secret_can_not_be_committed(name):
    """The signing key and the hidden seeds lie below course/, which is in git."""
    vault = re.search(r'Vault\(self\.root / "([^"]+)"\)', (ROOT / "autograder" / "judge" / "course.py").read_text())[1]
    asked = subprocess.run(["git", "-C", str(ROOT), "check-ignore", "-q", f"course/{vault}/{name}"], check=False)
    assert asked.returncode == 0


def test_the_extensions_that_the_handbook_shows_name_labs_with_a_deadline():
    """The example is a file that `autograder` reads; its columns and labs are the real ones."""
    page = (ROOT / "course" / "staff" / "grading.md").read_text(encoding="utf-8")
    shown = next(block for block in FENCE.findall(page) if block.startswith("student,lab,until,why\n"))
    deadlines = tomllib.loads((ROOT / "course" / "course.toml").read_text(encoding="utf-8"))["deadlines"]
    reader = (ROOT / "autograder" / "staff" / "late.py").read_text(encoding="utf-8")
    assert 'COLUMNS = ("student", "lab", "until", "why")' in reader
    assert {line.split(",")[1] for line in shown.splitlines()[1:]} <= {*deadlines, "all"}


def test_each_lab_has_the_notes_that_the_handbook_points_to():
    """With the marks of its written question."""
    for toml in (ROOT / "labs").glob("[0-9]*/lab.toml"):
        notes = toml.with_name("staff.md").read_text(encoding="utf-8").lower()
        written = [name for name, q in tomllib.loads(toml.read_text())["questions"].items() if q.get("written")]
        assert not written or all(word in notes for word in ("claim", "mechanism", "evidence", "limit")), toml
    assert importlib.util.find_spec("nbgrader.server_extensions.formgrader") is not None


# --- the front page --------------------------------------------------------------------------------------------------


def test_the_front_page_begins_with_what_this_is_in_three_sentences():
    """A stranger reads that much."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    opening = re.match(r"# [^\n]+\n\n(.+?)\n\n", text, re.DOTALL)[1]
    assert len(re.findall(r"[.!?](?:\s|$)", opening)) == 3


def test_every_picture_is_there_and_has_words_and_a_command():
    """Alt text with a number; the figure is made by code that is named beside it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", text)
    assert len(pictures) == 1
    for alt, path in pictures:
        assert (ROOT / path).is_file() and re.search(r"\d", alt) and len(alt.split()) <= 60
    assert "python -m course.frontpage" in text


def test_the_picture_shows_what_the_audit_recomputes(tmp_path, monkeypatch, capsys):
    """Its words in README are made from today's numbers; it is drawn from them too."""
    monkeypatch.setattr(frontpage, "PICTURE", tmp_path / "picture.png")
    assert frontpage.main() == 0
    said = capsys.readouterr().out.strip()
    assert f"![{said}](course/frontpage.png)" in (ROOT / "README.md").read_text(encoding="utf-8")
    drawn, committed = ((path.read_bytes()) for path in (tmp_path / "picture.png", ROOT / "course" / "frontpage.png"))
    assert drawn[16:24] == committed[16:24]  # width and height


CHECKS = """
from autograder import Case, question

@question("q", oracle="reference:q")
class Q:
    def cases(self, rng):
        yield Case("one", 1)
"""
MISTAKES = """
from autograder import mistake

for name in ("first", "second"):  # a loop, as lab 04 has one: counting lines would find a single mistake
    globals()[name] = lambda x: x
    globals()[name].__name__ = name
    mistake("q", says=name)(globals()[name])
"""


def test_the_coverage_table_counts_what_the_tree_holds(tmp_path):
    """A unit is read, done and audited as far as it is there."""
    record = {"id": "S1.1", "row": 5, "quote": "1", "claim": "c", "compute": "1", "expect": "reproduced", "why": "w"}
    plant(
        tmp_path,
        lectures__03_a_dot_py="# # 03 · A",
        labs__03_a__lab_dot_toml='title = "A"\nminutes = 1\n[questions.q]\npoints = 2\nminutes = 1\ndifficulty = 1\n',
        labs__03_a__checks_dot_py=CHECKS,
        labs__03_a__mistakes_dot_py=MISTAKES,
        course__claims__03_a_dot_toml="[[claim]]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in record.items()),
    )
    assert readme.coverage(tmp_path).splitlines()[2] == "| 03 | 5 | 1 | 2 | 2 | 1 reproduced |"


def test_measured_figures_come_from_committed_results(tmp_path):
    """With the machine and the command; a result of another form gives no row."""
    row = {"implementation": "tiled", "causal": True, "memory_under_naive": 130.9, "time_over_sdpa": 1.52}
    result = {"provenance": {"device": "a CPU", "date": "2027-01-01"}, "shape": {"seq": 8192}, "threads": 1}
    plant(tmp_path, refimpl__bench__results__a_dot_json=json.dumps({**result, "rows": [row, {**row, "causal": False}]}))
    (line,) = readme.measured(tmp_path).splitlines()[2:]
    assert "8,192 tokens | 1/131 of naive" in line and "1.52 times" in line
    assert "a CPU, 1 thread(s), 2027-01-01 | `make bench`" in line
