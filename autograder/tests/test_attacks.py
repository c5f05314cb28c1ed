"""The attacks are what the campaign takes them for: notebooks that are worthless apart from the attack."""

import ast
import inspect

import pytest

from autograder.judge.cells import Cell
from autograder.judge.judge import judge_cells
from autograder.redteam.attack import (
    WORTHLESS,
    all_attacks,
    breaches,
    cell_text,
    prelude,
    to_bytes,
)
from autograder.redteam.ground import SLUG, build
from autograder.redteam.outside import descendants

ATTACKS = all_attacks()
SETUP = "import torch\nimport torch.distributed as dist\n"
KINDS = {"cell", "answer", "notebook", "file"}


@pytest.fixture(scope="session")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ground") / "here"
    folder.mkdir()
    build(folder, "CANARY-" + "0" * 32)
    return folder


def test_there_are_many_attacks_of_every_kind():
    """At least forty, in ten families, grafted in each of the four ways."""
    assert len(ATTACKS) >= 40
    assert len({attack.family for attack in ATTACKS}) >= 10
    assert {attack.kind for attack in ATTACKS} == KINDS


def test_no_two_attacks_share_a_name():
    """A name is a row of the table and a key of the record."""
    names = [attack.name for attack in ATTACKS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_says_what_it_tries_and_where_it_comes_from(attack):
    """One sentence, a source, and a question of the target lab."""
    assert attack.tries.endswith(".") and len(attack.tries.split()) >= 4
    assert attack.source and attack.question in WORTHLESS


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attacks_text_is_a_cell_of_its_own(attack):
    """Compiles, needs no decorator of ours, and defines the attacked answer."""
    text = cell_text(attack, {"mark": "redteam-0"})
    tree = ast.parse(text)
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert attack.question in defined
    assert "@attack" not in text


def test_a_worthless_answer_earns_nothing(ground, zygote):
    """The graft stock: without an attack the attacked question is worth 0 points, and the other one all of its."""
    from autograder.labs import load_lab

    lab = load_lab(ground / "labs" / SLUG)
    for question in lab.checks:
        sources = {name: lab.solution(name) for name in lab.checks} | {question: "import torch\n" + WORTHLESS[question]}
        reports = judge_cells(lab, [Cell(name, f"{SETUP}{text}") for name, text in sources.items()], 1, zygote)
        assert {name: report.earned for name, report in reports.items()} == {
            name: 0.0 if name == question else lab.questions[name].points for name in lab.checks
        }


def test_a_report_of_an_attack_is_found_among_other_output():
    """The campaign hears what an attack prints, line by line."""
    assert list(breaches("hello\nBREACH: a socket\nBREACH:no")) == ["a socket", "no"]


def test_the_prelude_carries_the_gadgets():
    """What an attack may use is defined in its own notebook, system calls included."""
    namespace: dict = {}
    exec(compile(prelude({"mark": "x"}), "<prelude>", "exec"), namespace)
    assert namespace["TARGET"] == {"mark": "x"}
    assert namespace["syscall"]("kcmp", -1, -1, 9, 0, 0)[0] == -1
    assert namespace["worked"](lambda: 1) and not namespace["worked"](lambda: 1 / 0)


def test_a_notebook_is_written_whatever_was_done_to_it():
    """Numbers that JSON does not have, and text that is no Unicode, reach the grader as they are."""
    assert b"NaN" in to_bytes({"points": float("nan")})
    assert b"\\ud800" in to_bytes({"source": "\ud800"})


def test_no_attack_runs_where_it_is_written():
    """Importing the families starts nothing: they are text."""
    before = set(descendants())
    assert all(inspect.isfunction(attack.code) for attack in all_attacks())
    assert set(descendants()) <= before
