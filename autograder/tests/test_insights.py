"""What a class did is counted, and nobody in it can be recognised unless staff ask for names."""

import json
import re

import pytest

from autograder import insights
from autograder.insights import SMALLEST_GROUP, as_data, correlation, gather, item, shape, text
from autograder.insights_page import alt_text, page, png
from autograder.judge.history import remember, tries
from autograder.judge.judge import judge_notebook
from autograder.judge.vault import Vault
from autograder.judge.verdict import CycleError, Verdict, save
from autograder.synthetic import Classroom


def question(name="q", earned=4.0, status="passed", mistake="", failed=(), message="off by 0.123 at [3, 4]", words=""):
    cases = [{"name": "plain", "passed": "plain" not in failed, "weight": 1, "message": "", "milliseconds": 1.0}]
    cases += [{"name": each, "passed": False, "weight": 1, "message": message, "milliseconds": 1.0} for each in failed
              if each != "plain"]  # fmt: skip
    return {"question": name, "points": 4, "earned": earned, "status": status, "note": "", "mistake": mistake,
            "diagnosis": words or f"You did {mistake}." * bool(mistake), "cases": cases, "mechanisms": []}  # fmt: skip


def verdict(student, lab="00_tiny", submission="a", bank="b", **questions):
    questions = questions or {"spread": question("spread"), "stream_sum": question("stream_sum")}
    return Verdict(lab, student, submission, bank, "j", "d", "T0", "2027-01-01T00:00:00+00:00", questions)


@pytest.fixture
def vault(tmp_path):
    return Vault(tmp_path / ".judge")


def fill(vault, *verdicts):
    for each in verdicts:
        save(each, vault)


def wrong(mistake="", failed=("big",), **more):
    return {"earned": 1.0, "status": "partly right", "mistake": mistake, "failed": failed, **more}


def a_class(vault):
    """Four pass, three make one mistake, one another; three fail alike without a diagnosis, one alone."""
    fill(vault, *(verdict(f"pass{i}") for i in range(4)))
    for i in range(3):
        said = f"This explains {i + 2} of your 4 wrong results. You divided."
        fill(vault, verdict(f"div{i}", spread=question("spread", **wrong("divided", words=said)),
                            stream_sum=question("stream_sum", 0.0, "not attempted yet")))  # fmt: skip
    fill(vault, verdict("solo", spread=question("spread", **wrong("forgot")), stream_sum=question("stream_sum")))
    for i in range(3):
        odd = question("spread", **wrong(message=f"largest error 0.{i}7 at [{i}, 2]"))
        fill(vault, verdict(f"odd{i}", spread=odd, stream_sum=question("stream_sum")))
    alone = question("spread", **wrong(message="KeyError: my own words, at `x = secret[0]`"))
    fill(vault, verdict("lone", spread=alone, stream_sum=question("stream_sum")))


def test_mistakes_are_counted_however_they_are_worded(tiny, vault):
    """ "Explains 2 of your 4 wrong results" and "3 of your 4" are one mistake."""
    a_class(vault)
    found = gather(tiny, vault)
    assert [(g.question, g.what, len(g.students)) for g in found.mistakes] == [
        ("spread", "divided", 3), ("spread", "forgot", 1),
    ]  # fmt: skip


def test_undiagnosed_failures_with_one_shape_are_one_cluster(tiny, vault):
    """Other numbers and other places, the same fault."""
    a_class(vault)
    clusters = gather(tiny, vault).undiagnosed
    assert [(g.what, len(g.students)) for g in clusters] == [("big", 3), ("big", 1)]
    assert clusters[0].says == "largest error # at …"


def test_nobody_can_be_recognised_without_names(tiny, vault):
    """No name, no group of one or two, no word of a student's own; with --names all of it but the words."""
    a_class(vault)
    found = gather(tiny, vault)
    for shown in (text(found), json.dumps(as_data(found)), page(found), alt_text(found)):
        assert not re.search(r"solo|lone|div\d|odd\d|pass\d|forgot|my own words|secret", shown)
    assert "1 more in groups of fewer than 3" in text(found)
    named = text(found, names=True)
    assert "forgot  [solo]" in named and "div0, div1, div2" in named
    assert "my own words" not in named


def test_small_counts_are_not_told(tiny, vault):
    """One person who did not try would be a name in a small class."""
    fill(vault, *(verdict(f"s{i}") for i in range(5)))
    fill(vault, verdict("s5", spread=question("spread", 0.0, "not attempted yet"), stream_sum=question("stream_sum")))
    found = gather(tiny, vault)
    assert as_data(found)["items"][0]["untried"] == f"<{SMALLEST_GROUP}"
    assert as_data(found, names=True)["items"][0]["untried"] == 1
    assert as_data(found)["items"][1]["untried"] == "0"


def test_difficulty_and_discrimination_are_those_of_test_theory():
    """Mean share of the points; correlation with the rest; a question that everybody passes tells nobody apart."""
    points = [(4.0, 4.0, 4.0), (4.0, 3.0, 4.0), (2.0, 1.0, 4.0), (0.0, 0.0, 4.0)]
    verdicts = [verdict(f"s{i}", **{n: question(n, p) for n, p in zip("abc", each, strict=True)}) for i, each in
                enumerate(points)]  # fmt: skip
    a, c = item("a", verdicts), item("c", verdicts)
    assert a.difficulty == pytest.approx(10 / 16) and c.difficulty == 1
    assert a.discrimination == pytest.approx(0.9534625892, abs=1e-9)  # of (4, 4, 2, 0) and (8, 7, 5, 4)
    assert c.discrimination is None
    assert correlation([1, 2], [1, 2]) is None


def test_the_hardest_case_is_the_one_that_fewest_pass():
    """Of those who tried the question."""
    verdicts = [verdict(str(i), q=question(**wrong(failed=("big",) if i else ("big", "plain")))) for i in range(4)]
    found = item("q", verdicts)
    assert (found.hardest, found.hardest_passed) == ("big", 0)


SHAPES = {
    "numbers and places": ("o: off by 1.2e-3 at [1, 2]", "o: off by 77 at [0, 0]"),
    "shapes": ("shape (2, 3) where (2, 4) is due", "shape (9, 3, 1) where (2, 4) is due"),
    "errors by type": ("ValueError: mine, at `a`", "ValueError: yours"),
    "quoted code": ("uses `torch.exp`", "uses `np.exp`"),
}


@pytest.mark.parametrize(("a", "b"), SHAPES.values(), ids=SHAPES)
def test_messages_of_one_kind_have_one_shape(a, b):
    """What differs between two students with the same fault is taken away."""
    assert shape(a) == shape(b)
    assert shape("o: too large") != shape("m: too large")


def test_a_new_submission_is_a_try_and_judging_it_again_is_none(vault):
    """A new version of the checks is one too, since the points may differ."""
    for submission, bank in (("a", "1"), ("a", "1"), ("b", "1"), ("b", "2"), ("a", "2")):
        save(verdict("ann", submission=submission, bank=bank), vault)
    assert [(t["submission"], t["bank"]) for t in tries("00_tiny", "ann", vault)] == [
        ("a", "1"), ("b", "1"), ("b", "2"), ("a", "2"),
    ]  # fmt: skip
    assert (vault.folder / "history" / "00_tiny" / "ann.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_line_that_a_killed_run_left_behind_hides_no_other(vault):
    """Half a line is passed over, and the next try does not continue it."""
    save(verdict("ann"), vault)
    path = vault.folder / "history" / "00_tiny" / "ann.jsonl"
    path.write_text(path.read_text() + '{"submission": "b", "ea')
    remember(verdict("ann", submission="c"), vault)
    assert [t["submission"] for t in tries("00_tiny", "ann", vault)] == ["a", "c"]


def test_tries_and_what_they_gained_are_told(tiny, vault):
    """Three students came back with 3 points more of 10."""
    for name in ("a", "b", "c"):
        low = {"spread": question("spread", 1.0, "partly right"), "stream_sum": question("stream_sum")}
        fill(vault, verdict(name, **low), verdict(name, submission="z"))
    fill(vault, verdict("d"))
    found = gather(tiny, vault)
    assert found.attempts == {"a": 2, "b": 2, "c": 2, "d": 1}
    assert found.gained == pytest.approx(0.3)
    assert "median 2, most 2; from the first to the last try +30% of the points" in text(found)


def test_a_synthetic_class_is_reported_as_it_was_made(tiny, tiny_release, vault, zygote):
    """Through the real judge: who solved, who left the stub, and who made which known mistake."""
    room = Classroom(tiny, tiny_release)
    made = [room.perfect(), room.empty(), room.half(), room.first_mistakes(), room.last_mistakes()]
    for i, student in enumerate([*made, room.first_mistakes(), room.first_mistakes()]):
        path = vault.folder / f"{i}.ipynb"
        path.write_bytes(student.bytes())
        save(judge_notebook(tiny, path, 5, student=f"s{i}", zygote=zygote, release=tiny_release), vault)
    found = gather(tiny, vault)
    first = {name: tiny.mistakes(name)[0].name for name in tiny.checks}
    counted = {(g.question, g.what): len(g.students) for g in found.mistakes}
    assert all(counted[name, mistake] == 3 for name, mistake in first.items())
    last_name = list(tiny.checks)[-1]
    items = {each.question: each for each in found.items}
    assert items[last_name].untried == 2 and items[last_name].passed == 1
    assert not found.undiagnosed


def test_the_page_holds_a_figure_with_words_and_no_markup_of_others(tiny, vault):
    """Alt text names the hardest question; a name of a case is escaped."""
    a_class(vault)
    found = gather(tiny, vault)
    shown = page(found, names=True)
    assert re.search(
        r'<img alt="Bars for 2 questions and 12 students\.[^"]*spread[^"]*" src="data:image/png;base64,', shown
    )
    assert png(found).startswith(b"\x89PNG")
    fill(vault, *(verdict(f"x{i}", spread=question("spread", **wrong("<script>"))) for i in range(3)))
    assert "<script>" not in page(gather(tiny, vault))


def test_the_command_reports_and_says_what_it_could_not_read(tiny, vault, tmp_path, monkeypatch, capsys):
    """Exit status 0, 1 with a verdict that was changed, 2 where nothing is there or too few stay unnamed."""
    monkeypatch.setenv("COURSE_LABS", str(tiny.folder.parent))
    (tmp_path / "nbgrader_config.py").write_text("c = get_config()\n")
    arguments = ["00_tiny", "--course", str(tmp_path)]
    with pytest.raises(CycleError, match="no verdict"):
        insights.main(arguments)
    fill(vault, verdict("ann"))
    with pytest.raises(CycleError, match="too few"):
        insights.main(arguments)
    assert insights.main([*arguments, "--names"]) == 0
    fill(vault, verdict("bob"), verdict("cid"))
    assert insights.main([*arguments, "--json", str(tmp_path / "i.json")]) == 0
    assert json.loads((tmp_path / "i.json").read_text())["students"] == 3
    assert (vault.folder / "reports" / "00_tiny-insights.html").is_file()
    changed = vault.verdict_path("00_tiny", "cid")
    changed.write_text(changed.read_text().replace('"earned": 4.0', '"earned": 9.0'))
    fill(vault, verdict("dan"))
    assert insights.main(arguments) == 1
    said = capsys.readouterr()
    assert "not counted" in said.err and "cid" not in said.err
