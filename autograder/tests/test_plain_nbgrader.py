"""The comparison column says what an instructor would say, and a row that was not attacked again is kept."""

import json
import os

import pytest

from autograder.redteam import plain_nbgrader as plain
from autograder.redteam.attack import all_attacks

QUIET = {
    "earned": {"softmax": 0.0, "total": 10.0}, "neighbour": plain.GRADED, "survivors": [], "sent": [], "changed": [],
    "reported": [], "megabytes": 0, "seconds": 3.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "outcome"),
    [
        ({}, "held"),
        ({"earned": None}, "partial: left ungraded"),
        ({"stopped": "no word"}, "partial: stopped the grader (no word)"),
        ({"earned": {"softmax": 10.0, "total": 10.0}}, "succeeds: 0 -> 10 points"),
        ({"neighbour": None}, "succeeds: another student's grade"),
        ({"survivors": ["sleep", "sleep"]}, "succeeds: 2 processes survive"),
        ({"sent": ["secret"]}, "succeeds: data sent out"),
        ({"changed": ["came: /outside/x"]}, "succeeds: changed 1 files outside"),
        ({"reported": ["read a canary", "and more"]}, "succeeds: read a canary"),
        ({"megabytes": 51}, "succeeds: 51 MB of output kept"),
        ({"seconds": 61.0}, "succeeds: took 61 s"),
    ],
    ids=lambda value: next(iter(value), "nothing") if isinstance(value, dict) else "",
)
def test_each_thing_that_an_attack_gets_is_named(seen, outcome):
    """Points, another's grade, processes, bytes, time; no grade at all is part of a success."""
    found = plain.judge_outcome({**QUIET, **seen})
    assert found["outcome"] == outcome


def test_rows_of_attacks_that_are_not_run_again_are_kept(tmp_path, monkeypatch, capsys):
    """Those of attacks that no longer exist are not; no path of the machine gets into the record."""
    first, second = [attack for attack in all_attacks() if attack.plain][:2]
    record = tmp_path / "results" / "plain.json"
    here = f"{plain.outside.REPOSITORY}/x"
    assert plain.recorded(record) == {}
    plain.write({first.name: {"outcome": "held"}, "gone long ago": {"outcome": "held"}}, record)
    monkeypatch.setattr(plain.ordinary, "why_no_cage", lambda: "")
    monkeypatch.setattr(plain, "prepare", lambda folder: None)
    monkeypatch.setattr(plain, "attempt", lambda pristine, name: {**QUIET, "changed": [here]})
    assert plain.run([second], record) == 0
    kept = json.loads(record.read_text())["attacks"]
    assert set(kept) == {first.name, second.name, plain.CONTROL}
    assert kept[second.name]["changed"] == ["REPOSITORY/x"]
    assert "2 attacks against nbgrader" in capsys.readouterr().out


def test_a_machine_without_a_cage_attacks_nothing(monkeypatch, tmp_path, capsys):
    """Exit status 2 and the reason."""
    monkeypatch.setattr(plain.ordinary, "why_no_cage", lambda: "needs root")
    assert plain.run([], tmp_path / "plain.json") == 2
    assert "needs root" in capsys.readouterr().err and not (tmp_path / "plain.json").exists()


@pytest.mark.slow
def test_the_course_that_is_attacked_grades_an_honest_neighbour(tmp_path, monkeypatch):
    """Visible and hidden tests, released without the hidden ones, in nbgrader's own kernel: twenty points."""
    monkeypatch.setenv("PATH", os.environ["PATH"])
    plain.prepare(tmp_path)
    released = "\n".join(cell.source for cell in plain.release(tmp_path / "course").cells)
    assert "hidden" not in released and "assert_allclose(softmax" in released
    with plain.open_api(plain.configuration(tmp_path)).gradebook as book:
        assert book.find_submission(plain.SLUG, "neighbour").score == sum(plain.GRADED.values())


@pytest.mark.skipif(bool(plain.ordinary.why_not()), reason=f"an ordinary user: {plain.ordinary.why_not()}")
@pytest.mark.parametrize(("ends", "expected"), [(0, {"seconds": 1.0}), (1, {"stopped": "last word"})])
def test_what_the_cage_wrote_is_what_was_seen(tmp_path, monkeypatch, ends, expected):
    """Without a result, the last line that it said; the copy of the course is gone afterwards."""
    (tmp_path / "pristine" / "course").mkdir(parents=True)
    (tmp_path / "pristine" / "course" / "secret.txt").write_text("CANARY")

    def run(line, environment, seconds):
        assert environment["GRADER_TOKEN"] == "CANARY"
        if ends == 0:
            (tmp_path / "here" / "result.json").write_text('{"seconds": 1.0}')
        return ends, "first word\nlast word\n"

    monkeypatch.setattr(plain.ordinary, "run", run)
    assert plain.attempt(tmp_path / "pristine", "any") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["pristine"]
