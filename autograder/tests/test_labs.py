"""Labs are folders, found by path; what is not in order is said with the way out."""

import shutil
from pathlib import Path

import pytest

from autograder.labs import LabError, all_labs, close_names, find_lab, load_file, load_lab

TINY = Path(__file__).parent / "data" / "labs" / "00_tiny"


@pytest.fixture
def tiny(tmp_path):
    """A copy of the tiny lab that a test may spoil."""
    folder = tmp_path / "labs" / "00_tiny"
    shutil.copytree(TINY, folder)
    return folder


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def error(work):
    with pytest.raises(LabError) as caught:
        work()
    return str(caught.value)


def test_a_lab_is_read_from_its_folder():
    """lab.toml, the questions of checks.py, the mistakes, and the cells of lab.py."""
    lab = load_lab(TINY)
    assert (lab.slug, lab.title, lab.minutes, lab.seconds, lab.imports, lab.data) == ("00_tiny", "Tiny", 10, 5, (), ())
    assert list(lab.questions) == ["spread", "stream_sum", "why"]
    assert (lab.questions["spread"].points, lab.questions["why"].written) == (4, True)
    assert list(lab.checks) == ["spread", "stream_sum"]
    assert [known.name for known in lab.mistakes("stream_sum")] == ["last_block", "counted_first", "quadratic"]
    assert "x.max(dim=-1)" in lab.solution("spread")
    assert "Two elements of a row decide." in lab.hints("spread")


def test_an_oracle_is_resolved_by_name():
    """From the lab's own reference.py, or any module; none where a property decides."""
    lab = load_lab(TINY)
    assert lab.oracle(lab.checks["spread"]).__doc__ == "Largest minus smallest element of the last axis."


@pytest.mark.parametrize(
    ("oracle", "says"),
    [
        ("reference:spraed", "the oracle of 'spread', reference:spraed, does not exist. Did you mean \"spread\"?"),
        ("math:no_such_function", "the oracle of 'spread', math:no_such_function, does not exist."),
        ("no_such_module:f", "the oracle of 'spread' can not be imported: No module named 'no_such_module'"),
    ],
)
def test_a_missing_oracle_is_named(tiny, oracle, says):
    """With the nearest name that exists."""
    edit(tiny / "checks.py", "reference:spread", oracle)
    lab = load_lab(tiny)
    assert says in error(lambda: lab.oracle(lab.checks["spread"]))


def test_an_oracle_in_a_module_and_no_oracle_at_all(tiny):
    """`package.module:function` is imported; None stays None."""
    edit(tiny / "checks.py", "reference:spread", "math:sqrt")
    lab = load_lab(tiny)
    assert lab.oracle(lab.checks["spread"])(9.0) == 3.0
    edit(tiny / "checks.py", 'oracle="math:sqrt"', "oracle=None")
    edit(tiny / "checks.py", "    def cases", "    def judge(self, got, case):\n        yield\n\n    def cases")
    lab = load_lab(tiny)
    assert lab.oracle(lab.checks["spread"]) is None


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("seconds = 5", "secnds = 5", 'the top level has no key "secnds"'),
        ("seconds = 5", "secnds = 5", 'Did you mean "seconds"?'),
        ("minutes = 10\n", "", "the top level lacks minutes"),
        ("difficulty = 1", "", "[questions.spread] lacks difficulty"),
        ("difficulty = 1", "difficulty = 4", "[questions.spread] difficulty is 4, must be 1, 2 or 3 (dots)"),
        ("written = true", "writen = true", '[questions.why] has no key "writen"'),
        ("[questions.spread]", '[questions."3d"]', "question '3d' must be a Python name"),
        ('title = "Tiny"', "title = Tiny", "lab.toml: "),
    ],
)
def test_a_slip_in_lab_toml_is_told_with_its_place(tiny, old, new, says):
    """Unknown key, missing key, wrong value, no TOML at all."""
    edit(tiny / "lab.toml", old, new)
    said = error(lambda: load_lab(tiny))
    assert says in said
    assert str(tiny / "lab.toml") in said


def test_a_folder_without_lab_toml_is_no_lab(tmp_path):
    """And the way to make one is said."""
    assert "make a lab with `python -m autograder new-lab SLUG`" in error(lambda: load_lab(tmp_path))


def test_checks_and_lab_toml_name_the_same_questions(tiny):
    """Both differences are listed; written questions need no check."""
    edit(tiny / "checks.py", '@question("spread"', '@question("spraed"')
    said = error(lambda: load_lab(tiny).checks)
    assert "only in lab.toml ['spread'], only in checks.py ['spraed']" in said


def test_a_mistake_of_no_question_is_refused(tiny):
    """A renamed question must not lose its mistakes in silence."""
    edit(tiny / "mistakes.py", '@mistake("spread"', '@mistake("spraed"')
    assert "mistakes.py: no question ['spraed'] in checks.py" in error(lambda: load_lab(tiny).all_mistakes)


def test_a_missing_cell_is_named(tiny):
    """The option and the question to add."""
    assert 'lab.py has no cell with hints="why"' in error(lambda: load_lab(tiny).hints("why"))


def test_a_missing_file_is_named(tiny):
    """A lab without checks.py, for example."""
    (tiny / "checks.py").unlink()
    assert error(lambda: load_lab(tiny).checks) == f"{tiny / 'checks.py'} does not exist"
    assert "does not exist" in error(lambda: load_file(tiny / "notes.txt", "notes"))


def test_a_lab_is_found_from_any_folder_below_its_own(tiny, monkeypatch):
    """By slug or by number, with or without the leading zero."""
    below = tiny / "deep" / "down"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    monkeypatch.delenv("COURSE_LABS", raising=False)
    assert find_lab("00_tiny").folder == tiny
    assert find_lab("00").folder == find_lab("0").folder == tiny
    assert [lab.slug for lab in all_labs()] == ["00_tiny"]


def test_course_labs_comes_first(tiny, tmp_path, monkeypatch):
    """An instructor's overlay wins over the folder one works in."""
    overlay = tmp_path / "overlay"
    shutil.copytree(tiny, overlay / "00_tiny")
    monkeypatch.chdir(tiny)
    monkeypatch.setenv("COURSE_LABS", str(overlay))
    assert find_lab("00_tiny").folder == overlay / "00_tiny"
    assert all_labs(tiny.parent)[0].folder == tiny


def test_labs_beside_the_package_are_found_from_anywhere(tmp_path, monkeypatch):
    """A folder with only a notebook in it works."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COURSE_LABS", raising=False)
    assert find_lab("03").slug == "03_online_softmax"


def test_an_unknown_lab_is_refused_with_those_that_exist(tiny, monkeypatch):
    """And the nearest name."""
    monkeypatch.setenv("COURSE_LABS", str(tiny.parent))
    said = error(lambda: find_lab("00_tniy"))
    assert "there is no lab '00_tniy'. Labs here: " in said
    assert said.endswith('Did you mean "00_tiny"?')


def test_without_any_lab_the_way_out_is_a_variable(tmp_path, monkeypatch):
    """On a machine where the package came without labs."""
    monkeypatch.setattr("autograder.labs.lab_roots", lambda: [tmp_path])
    assert error(lambda: find_lab("03")) == "there is no lab '03'. No labs were found; set $COURSE_LABS."
    assert all_labs() == []


def test_a_near_name_is_offered_and_a_far_one_is_not():
    """With a leading space, to follow a sentence."""
    assert close_names("mrge", ["merge", "split"]) == ' Did you mean "merge"?'
    assert close_names("zzz", ["merge"]) == ""


RUBRICS = {
    '["claim: no points"]': "write its points first",
    '["1 "]': "write its points first",
    '["1 claim: a"]': "must add up to 2",
}


@pytest.mark.parametrize("rubric", RUBRICS)
def test_a_rubric_adds_up_to_the_points_of_its_question(tiny, rubric):
    """A person who marks must not find a point that nothing earns."""
    toml = tiny / "lab.toml"
    toml.write_text(f"{toml.read_text()}rubric = {rubric}\n")
    assert RUBRICS[rubric] in error(lambda: load_lab(tiny))
    toml.write_text(toml.read_text().replace(rubric, '["1.5 claim: a", "0.5 limit: b"]'))
    assert load_lab(tiny).questions["why"].rubric == ((1.5, "claim: a"), (0.5, "limit: b"))
