"""A verdict counts only if it is signed by us, about this submission, on these checks, in a strong enough tier."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from autograder.checks import examine
from autograder.judge import vault as vault_module
from autograder.judge import verdict as verdict_module
from autograder.judge.vault import Vault, write_atomically
from autograder.judge.verdict import BadVerdict, Basis, Verdict, bank_version, check, judge_version, load, rebuild, save
from autograder.labs import load_lab
from autograder.student import AnswerInPlace


@pytest.fixture
def vault(tmp_path):
    return Vault(tmp_path / ".judge")


@pytest.fixture
def verdict():
    question = {"points": 4.0, "earned": 2.5, "status": "partly right"}
    return Verdict(
        "00_tiny", "ann", "sub", "bank", "judge", "draw", "T0", "2026-01-01T00:00:00+00:00", {"spread": question}
    )


# --- the vault ------------------------------------------------------------------------------------------


def test_only_the_graders_account_can_read_the_vault(vault):
    """0700 for the folder, 0600 for what is in it."""
    vault.seed("lab", "v1")
    assert vault.key
    files = [path for path in vault.folder.rglob("*") if path.is_file()]
    assert vault.folder.stat().st_mode & 0o777 == 0o700
    assert files and all(path.stat().st_mode & 0o777 == 0o600 for path in files)


def test_a_seed_is_drawn_once_per_lab_and_bank_version(vault):
    """Reruns grade by the same cases; other checks, or a wish, bring other ones."""
    seed = vault.seed("lab", "v1")
    assert Vault(vault.folder).seed("lab", "v1") == seed
    assert len({seed, vault.seed("lab", "v2"), vault.seed("other", "v1")}) == 3
    new = vault.seed("lab", "v1", new=True)
    assert new != seed and vault.seed("lab", "v1") == new


def test_two_writers_agree_on_one_key(vault, monkeypatch):
    """The second finds the first one's file and takes it."""
    first = vault.key
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert vault.key == first


def test_the_name_of_a_draw_does_not_tell_the_seed(vault, tmp_path):
    """It depends on the key: trying all seeds needs the key first."""
    assert vault.draw(5) == vault.draw(5) != vault.draw(6)
    assert Vault(tmp_path / "other").draw(5) != vault.draw(5)


def test_a_killed_write_leaves_the_old_file(tmp_path, monkeypatch):
    """Readers see the old content or the new, never half."""
    path = tmp_path / "a"
    write_atomically(path, "old")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_one_value_has_one_spelling():
    """Key order and white space do not change a signature; NaN cannot be signed."""
    assert vault_module.canonical({"b": 1, "a": [2]}) == b'{"a":[2],"b":1}'
    with pytest.raises(ValueError, match="Out of range"):
        vault_module.canonical(float("nan"))


# --- verdicts -------------------------------------------------------------------------------------------


def test_a_verdict_comes_back_as_it_was_saved(vault, verdict):
    """Field by field."""
    save(verdict, vault)
    assert load("00_tiny", "ann", vault) == verdict
    assert verdict.earned == 2.5


@pytest.mark.parametrize(
    "change", [{"questions": {"spread": {"points": 4, "earned": 4, "status": "passed"}}}, {"tier": "T2"}, {"extra": 1}]
)
def test_a_changed_verdict_is_refused(vault, verdict, change):
    """Any byte that matters is signed."""
    path = save(verdict, vault)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BadVerdict, match="signature"):
        load("00_tiny", "ann", vault)


def test_another_students_verdict_is_refused(vault, verdict):
    """A valid signature on somebody else's work."""
    good = save(replace(verdict, student="ben"), vault)
    write_atomically(vault.verdict_path("00_tiny", "ann"), good.read_text())
    with pytest.raises(BadVerdict, match="something else"):
        load("00_tiny", "ann", vault)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"signature": 3}', '{"signature": "é"}'])
def test_a_file_that_is_no_verdict_is_refused(vault, text):
    """And the message says what to run."""
    write_atomically(vault.verdict_path("00_tiny", "ann"), text)
    with pytest.raises(BadVerdict, match="autograder judge"):
        load("00_tiny", "ann", vault)


def test_a_missing_verdict_is_said(vault):
    """By student and command."""
    with pytest.raises(BadVerdict, match="no verdict for ann: run `autograder judge 00_tiny`"):
        load("00_tiny", "ann", vault)


@pytest.mark.parametrize(
    ("given", "says"),
    [({"submission_sha256": "new"}, "newer"), ({"bank_version": "other"}, "checks"), ({"minimum_tier": "T1"}, "T1")],
)
def test_a_verdict_on_something_else_does_not_count(verdict, given, says):
    """A newer submission, other checks, a weaker tier than the course asks for."""
    fits = {"submission_sha256": "sub", "bank_version": "bank"}
    check(verdict, **fits)
    with pytest.raises(BadVerdict, match=says):
        check(verdict, **{**fits, **given})


def test_a_verdict_fits_only_its_own_basis(verdict):
    """Submission, checks, judge and draw."""
    assert verdict.fits(Basis("sub", "bank", "judge", "draw"))
    for changed in (
        Basis("x", "bank", "judge", "draw"),
        Basis("sub", "bank", "x", "draw"),
        Basis("sub", "bank", "judge", "x"),
    ):
        assert not verdict.fits(changed)


def test_a_report_can_be_shown_again_from_a_verdict(tiny):
    """Without a hidden number: what is left is what a student may read."""
    question = tiny.checks["spread"]
    wrong = AnswerInPlace({"spread": lambda x: x.std(-1, correction=0)})
    report = examine(question, wrong, oracle=tiny.oracle(question), seed=1, mistakes=tiny.mistakes("spread"), points=4)
    again = rebuild(json.loads(json.dumps(report.public())))
    assert (again.status, again.earned, again.diagnosis) == (report.status, report.earned, report.diagnosis)
    assert all(case.differences == () for case in again.cases)
    untouched = rebuild(replace(report, cases=(), attempted=False).public())
    assert untouched.status == "not attempted yet"


# --- versions -------------------------------------------------------------------------------------------


@pytest.fixture
def copy_of_tiny(tiny, tmp_path):
    import shutil

    shutil.copytree(tiny.folder, tmp_path / "00_tiny")
    return tmp_path / "00_tiny"


@pytest.mark.parametrize("name", ["checks.py", "mistakes.py", "lab.toml", "reference.py"])
def test_the_bank_version_changes_with_everything_that_grades(copy_of_tiny, name):
    """One character in any of them, and old verdicts no longer count."""
    before = bank_version(load_lab(copy_of_tiny))
    assert bank_version(load_lab(copy_of_tiny)) == before
    with (copy_of_tiny / name).open("a") as file:
        file.write("# changed\n")
    assert bank_version(load_lab(copy_of_tiny)) != before


def test_the_bank_version_does_not_change_with_prose(copy_of_tiny):
    """A typo mended in the notebook regrades nobody."""
    before = bank_version(load_lab(copy_of_tiny))
    with (copy_of_tiny / "lab.py").open("a") as file:
        file.write("# %% [markdown]\n# more\n")
    assert bank_version(load_lab(copy_of_tiny)) == before


def test_the_bank_version_follows_the_imports_of_an_oracle(tmp_path, monkeypatch):
    """A bug mended two modules away changes what is right."""
    package = tmp_path / "oracles_for_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text(
        "import math\nimport oracles_for_test.b\nfrom oracles_for_test import nothing\nfrom . import c\n"
    )
    (package / "b.py").write_text(
        "def f():\n    import oracles_for_test.a\n    from oracles_for_test.missing import y\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(verdict_module, "REFERENCE", "oracles_for_test")
    found = set()
    verdict_module._follow(package / "a.py", found)
    assert {path.name for path in found} == {"__init__.py", "a.py", "b.py"}
    assert verdict_module._file_of("sys") is None


def test_the_judge_version_covers_judge_and_sandbox():
    """Computed once per process from the files."""
    assert judge_version() == judge_version() and len(judge_version()) == 16
