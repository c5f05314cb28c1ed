"""Copies are found under other names and in another order; people who never met are not accused."""

import itertools
import json
import re
import time
from pathlib import Path

import pytest

from autograder import similarity
from autograder.fingerprint import fingerprint
from autograder.judge.cells import Release, grade_id
from autograder.judge.intake import load_release
from autograder.judge.session import Cell
from autograder.labs import all_labs
from autograder.programs import answer_in, definitions, program_of
from autograder.redteam.mutants import source_mutants
from autograder.similarity import WORKED, Comparison, Found, Scale, compare, known, table
from autograder.similarity_page import page
from autograder.synthetic import Classroom, Student

LABS = Path(__file__).resolve().parents[2] / "labs"
SLUG = "03_online_softmax"


@pytest.fixture(scope="module")
def lab():
    return next(each for each in all_labs(LABS) if each.slug == SLUG)


@pytest.fixture(scope="module")
def room(lab):
    return Classroom(lab, load_release(lab.folder))


@pytest.fixture(scope="module")
def everything():
    """(lab, what is known of each of its questions) for every lab"""
    return [(each, known(each, load_release(each.folder))) for each in all_labs(LABS)]


@pytest.fixture(scope="module")
def facts(everything):
    """question of this lab -> what is known of it"""
    return next({fact.question.name: fact for fact in found} for each, found in everything if each.slug == SLUG)


MERGE = '''
def merge(a, b):
    """The state after both."""
    m = torch.maximum(a[0], b[0])
    unit = torch.where(m == -torch.inf, 0.0, m)
    ka, kb = (a[0] - unit).exp(), (b[0] - unit).exp()
    return m, ka * a[1] + kb * b[1], ka[..., None] * a[2] + kb[..., None] * b[2]
'''
DISGUISES = {
    "other names and no comments": MERGE.replace("unit", "scale_of_both")
    .replace("ka", "first_factor")
    .replace("kb", "second_factor"),
    "functions of torch in place of methods": MERGE.replace("(a[0] - unit).exp()", "torch.exp(a[0] - unit)").replace(
        "(b[0] - unit).exp()", "torch.exp(b[0] - unit)"
    ),
    "torch under another name": "import torch as th\n" + MERGE.replace("torch.", "th."),
    "sums the other way round": MERGE.replace("ka * a[1] + kb * b[1]", "b[1] * kb + a[1] * ka"),
    "annotations and a docstring of its own": MERGE.replace("(a, b)", "(a: tuple, b: tuple) -> tuple").replace(
        "The state after both.", "I wrote this."
    ),
    "dead lines between": MERGE.replace("    unit", "    unused = list(range(3))\n    unit"),
    "a helper of its own": MERGE.replace("    m = torch.maximum(a[0], b[0])\n", "    m = larger(a[0], b[0])\n")
    + "\n\ndef larger(x, y):\n    return torch.maximum(x, y)\n",
    "other order of statements": MERGE.replace(
        "    ka, kb = (a[0] - unit).exp(), (b[0] - unit).exp()\n",
        "    kb = (b[0] - unit).exp()\n    ka = (a[0] - unit).exp()\n",
    ),
}


@pytest.mark.parametrize("source", DISGUISES.values(), ids=DISGUISES)
def test_a_disguised_copy_of_the_worked_solution_is_found(source, facts):
    """What a copier changes first does not count."""
    fact = facts["merge"]
    score = fact.scale.similarity(fingerprint(source).without(fact.given), fact.published[WORKED])
    assert score >= fact.scale.threshold


LOOPS = {
    "for": "for i in range(len(xs)):\n        total = total + (xs[i] - shift).exp().sum(dim=-1)",
    "while": "i = 0\n    while i < len(xs):\n        total += (xs[i] - shift).exp().sum(-1)\n        i += 1",
    "enumerate": "for k, item in enumerate(xs):\n        total = (xs[k] - shift).exp().sum(dim=-1) + total",
}


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(LOOPS, 2)))
def test_another_kind_of_loop_leaves_most_of_a_program_alike(a, b):
    """What is computed inside is what counts."""
    frame = (
        "def f(xs, q):\n    shift = torch.where(q > 0, q, 0.0)\n    total = torch.zeros_like(q).sum(dim=-1)\n    {}\n"
        "    return total / q.shape[-1] ** 0.5 + shift.amax(dim=-1).log()\n"
    )
    one, other = (fingerprint(frame.format(LOOPS[kind])).marks for kind in (a, b))
    assert len(one & other) / min(len(one), len(other)) > 0.7


def independent_pairs(everything):
    """(question, threshold measured without this pair, score): every pair of answers that nobody copied."""
    for each, found in everything:
        for fact in found:
            oracle = fact.published.get(fact.question.oracle or "")
            if oracle is None or not fact.scale.tells:
                continue
            mistakes = [program_of(m.answer) for m in each.mistakes(fact.question.name)]
            prints = [fingerprint("\n\n".join(source)).without(fact.given) for source in mistakes]
            prints = [*(p for p in prints if p.lines), fact.published[WORKED]]
            scores = [fact.scale.similarity(oracle, p) for p in prints]
            for index, score in enumerate(scores):
                rest = scores[:index] + scores[index + 1 :]
                if rest:
                    yield fact.question.name, (max(rest) + fact.scale.copied) / 2, score


def test_people_who_never_met_are_hardly_ever_listed(everything):
    """Each pair is held against a threshold measured without it: mistakes and solutions beside the reference."""
    pairs = list(independent_pairs(everything))
    accused = [(name, score) for name, threshold, score in pairs if score >= threshold]
    assert len(pairs) > 100
    assert len(accused) <= len(pairs) // 50, accused


def test_a_mutant_of_the_solution_is_a_copy_and_no_copy_of_the_reference(lab, facts):
    """One changed operator hides nothing, and does not make two origins one."""
    fact = facts["merge"]
    oracle = fact.published[fact.question.oracle]
    for _, _, source in source_mutants(lab.solution("merge")):
        mutant = fingerprint(source).without(fact.given)
        assert fact.scale.similarity(mutant, fact.published[WORKED]) >= fact.scale.threshold
        assert fact.scale.similarity(mutant, oracle) < fact.scale.threshold


def test_what_everybody_must_write_is_too_short_to_tell(everything):
    """Where the reference and the solution are one line, nobody is accused of it."""
    scales = [fact.scale for _, found in everything for fact in found]
    silent = {scale.question for scale in scales if not scale.tells}
    assert {"unpermute", "predict_seconds"} <= silent
    assert len(silent) < len(scales) / 2
    assert not Scale("q", independent=0.9, copied=0.8, pairs=3).tells
    assert not Scale("q").tells  # nothing measured, nothing said


def test_a_fragment_is_no_copy():
    """Two lines that stand in every answer are contained in each of them."""
    whole = fingerprint(MERGE)
    part = fingerprint("def merge(a, b):\n    m = torch.maximum(a[0], b[0])\n    return m\n")
    assert part.marks <= whole.marks
    assert Scale("merge", smallest=len(whole.lines)).similarity(part, whole) < 0.3


def handed_in(folder, room, sources):
    """student -> notebook with these answers."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, answers in sources.items():
        paths[name] = folder / f"{name}.ipynb"
        paths[name].write_bytes(Student(name, "", room.fill(answers)).bytes())
    return paths


OWN = """
def merge(left, right):
    high = left[0].clone()
    higher = right[0] > high
    high[higher] = right[0][higher]
    safe = high.nan_to_num(neginf=0.0)
    weights = [torch.exp2((side[0] - safe) * 1.4426950408889634) for side in (left, right)]
    l = sum(w * side[1] for w, side in zip(weights, (left, right)))
    o = torch.stack([w.unsqueeze(-1) * side[2] for w, side in zip(weights, (left, right))]).sum(0)
    return high, l, o
"""


def test_classmates_who_share_an_answer_are_a_pair_and_the_rest_are_not(tmp_path, lab, room):
    """One of them renamed everything; a third thought for himself; a fourth left the stub."""
    renamed = OWN.replace("high", "top").replace("safe", "s").replace("weights", "ws").replace("left", "x")
    sources = {"ann": {"merge": OWN}, "bob": {"merge": renamed}, "cid": {"merge": DISGUISES["dead lines between"]}}
    result = compare(lab, handed_in(tmp_path, room, {**sources, "dan": {}}))
    assert {(f.left, f.right) for f in result.found} == {("ann", "bob"), ("cid", WORKED)}
    assert result.students == 4 and not result.unread


def test_two_copies_of_one_published_answer_are_no_pair_of_their_own(tmp_path, lab, room):
    """Both are listed beside it; who had it from whom nobody can tell."""
    result = compare(lab, handed_in(tmp_path, room, {"ann": {"merge": MERGE}, "bob": {"merge": MERGE}}))
    assert {(f.left, f.right) for f in result.found} == {("ann", WORKED), ("bob", WORKED)}
    assert result.explained == 1


def test_the_reference_pasted_in_is_named_by_its_module(tmp_path, lab, room):
    """Found through the question's own words; nothing is imported by the grader's text."""
    question = lab.checks["merge"]
    source = "\n\n".join(program_of(lab.oracle(question)))
    result = compare(lab, handed_in(tmp_path, room, {"ann": {"merge": source}}))
    assert [(f.left, f.right) for f in result.found] == [("ann", question.oracle)]
    assert result.found[0].score == 1


def test_a_helper_in_another_cell_belongs_to_the_answer():
    """And another question's answer does not."""
    cells = [
        Cell("setup", "import torch\nEPS = 1e-6"),
        Cell("mine", "@torch.no_grad()\ndef helper(x):\n    return x + EPS\n\ndef unrelated():\n    pass"),
        Cell("q", "def q(x):\n    return helper(x) + earlier(x)"),
        Cell("earlier", "def earlier(x):\n    return x"),
    ]
    text = answer_in(cells, "q", "q", {"q", "earlier"})
    assert "EPS = 1e-6" in text and "@torch.no_grad()" in text
    assert "def unrelated" not in text and "def earlier" not in text
    assert answer_in([Cell("q", "def other(): pass")], "q", "q") == "def other(): pass"
    assert {"f", "g"} <= definitions([Cell("c", "if True:\n    def f(): pass\n    g = 1")]).keys()


HOSTILE = {
    "no Python": "def f(:",
    "open brackets": "(" * 5000,
    "deep nesting": "x = " + "-" * 50_000 + "1",
    "a long chain": "x = a" + " + a" * 20_000,
    "much text": "x = 1\n" * 50_000,
    "a lone surrogate": "x = '\ud800' + f(1)",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_a_text_that_cannot_be_read_gives_nothing(source):
    """No crash, no hang, and the report names who handed it in."""
    start = time.monotonic()
    assert not fingerprint(source).lines and not fingerprint(source).readable
    assert time.monotonic() - start < 2


def test_who_cannot_be_compared_is_named(tmp_path, lab, room):
    """An unreadable answer does not hide: it is on the list for staff."""
    short = {"merge": "def merge(a, b):\n    while True:\n        pass\n"}
    sources = {"ann": {"merge": HOSTILE["a long chain"]}, "bob": {"merge": MERGE}, "dan": short}
    paths = handed_in(tmp_path, room, sources)
    paths["cid"] = tmp_path / "missing.ipynb"
    result = compare(lab, paths)
    assert "merge" in result.unread["ann"] and "missing" in result.unread["cid"]
    assert "dan" not in result.unread  # little to compare, but read
    assert {f.left for f in result.found} == {"bob"}
    assert "not compared: ann" in table(result)


def test_the_page_shows_both_texts_escaped():
    """A student's text and name are never markup, and what is shared is marked."""
    source = (
        'def f(x):\n    y = x.exp().sum()  # </pre><script>alert(1)</script>\n    z = "<img src=x>"\n    return y\n'
    )
    program = fingerprint(source)
    result = Comparison("lab<b>", [Scale("q", 0.1, 0.9, 1, 3)], 2)
    result.found = [Found("q", 0.95, "<i>ann", "bob")]
    result.programs = {("q", "<i>ann"): program, ("q", "bob"): program}
    shown = page(result)
    assert not re.search(r"<(script|img|i>|b>)", shown)
    assert shown.count("<mark>    y = x.exp()") == 2 and "&lt;script&gt;" in shown


def test_the_command_writes_table_page_and_data(tmp_path, lab, room, capsys, monkeypatch):
    """Exit status 1 where there is something to look at, 0 where there is not, 2 without submissions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_LABS", str(LABS))
    handed_in(tmp_path / "in", room, {"ann": {"merge": MERGE}, "bob": {}})
    arguments = ["03", "--from", str(tmp_path / "in"), "--json", str(tmp_path / "out.json")]
    assert similarity.main([*arguments, "--html", str(tmp_path / "out.html")]) == 1
    said = capsys.readouterr().out
    assert f"ann ~ {WORKED}: merge 1.00" in said and "of 2 submissions" in said
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["pairs"][0]["left"] == "ann" and len(data["scales"]) == len(lab.checks)
    assert (tmp_path / "out.html").stat().st_mode & 0o777 == 0o600
    (tmp_path / "in" / "ann.ipynb").unlink()
    assert similarity.main(arguments) == 0
    assert "nothing to look at among 1 submissions" in capsys.readouterr().out
    with pytest.raises(similarity.CycleError, match="no submissions"):
        similarity.main(["03", "--from", str(tmp_path / "nowhere")])


@pytest.mark.slow
def test_two_hundred_notebooks_take_less_than_a_minute(tmp_path, lab, room):
    """Every pair of a large class, in every question."""
    variants = [{name: lab.solution(name) for name in lab.checks}, {"merge": OWN}]
    paths = handed_in(tmp_path, room, {f"s{i:03}": variants[i % 2] for i in range(200)})
    start = time.monotonic()
    result = compare(lab, paths)
    assert time.monotonic() - start < 60
    assert result.students == 200
    assert len([f for f in result.found if f.right != WORKED]) == 100 * 99 // 2  # those with the same text of their own


def test_a_lab_of_another_course_is_compared_too(tmp_path, tiny, tiny_release):
    """The command knows no topic; here with an oracle in the lab's own folder."""
    room = Classroom(tiny, Release(tiny_release.notebook))
    sources = {name: tiny.solution(name) for name in tiny.checks}
    result = compare(tiny, handed_in(tmp_path, room, {"ann": sources, "bob": {}}))
    assert {f.left for f in result.found} <= {"ann"}
    assert {grade_id(cell) for cell in room.release.notebook.cells} >= tiny.checks.keys()
