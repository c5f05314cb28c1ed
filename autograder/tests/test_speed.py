"""Speed is a bonus: measured beside the oracle in a process of the same kind, checked, and never a loss."""

import importlib

import pytest
import torch

from autograder import Case, Speed
from autograder.checks import examine
from autograder.judge.race import ORACLE, needed, oracle_notebook
from autograder.judge.session import Session
from autograder.judge.zygote import SandboxError
from autograder.score import CaseResult, Report
from autograder.speed import MechanismResult
from autograder.student import AnswerInPlace
from autograder.tests.kinds import SEED, declared, defined, judged


class Sums:
    """Row sums, timed on rows of `size`."""

    mechanism = (Speed(at_least=2.0, size=64, rounds=3),)

    def cases(self, rng):
        yield Case("rows", torch.randn(3, 5, generator=rng))

    def grow(self, rng, n):
        return Case("grown", torch.randn(n, n, generator=rng))


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """A function of a package that the sandbox does not have, with a module beside it."""
    folder = tmp_path_factory.mktemp("path") / "toyref"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "sums.py").write_text("from .helper import last\n\n\ndef rows(x):\n    return x.sum(last())\n")
    (folder / "helper.py").write_text("import torch\n\n\ndef last():\n    return -1\n")
    (folder / "other.py").write_text("1 / 0\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder.parent))
        yield importlib.import_module("toyref.sums").rows


HONEST = "def answer(x):\n    return x.sum(-1)"
SLOW = "import time\ndef answer(x):\n    time.sleep(0.02)\n    return x.sum(-1)"
WRONG_WHEN_LARGE = "def answer(x):\n    return x.sum(-1) if len(x) < 10 else x[:, 0]"


@pytest.mark.parametrize("source", [HONEST, SLOW, WRONG_WHEN_LARGE], ids=["honest", "slow", "skips the work"])
def test_nobody_loses_points_by_speed(zygote, oracle, source):
    """Slow or wrong where it is timed, the worst is no bonus; without a GPU it is advice."""
    asked = declared(Sums)
    reports = [examine(asked, AnswerInPlace(defined(source)), oracle=oracle, seed=SEED)]
    with judged(zygote, source) as runner:
        reports.append(examine(asked, runner, oracle=oracle, seed=SEED))
    for report in reports:
        (speed,) = report.mechanisms
        assert report.earned == 1 and speed.passed
        assert ("a timed result is wrong" in speed.message) is (source is WRONG_WHEN_LARGE)
    if source is SLOW and not torch.cuda.is_available():
        assert "only advice" in speed.message and float(speed.message.split()[0]) < 1


def test_a_bonus_fills_up_what_is_lacking_and_no_more():
    """Half of the cases and a bonus of a tenth; all of them and a bonus; nothing and a bonus."""
    fast = (MechanismResult("Speed", True, "", gains=0.1),)
    cases = [CaseResult("a", True), CaseResult("b", False)]
    assert Report("q", 10, tuple(cases), fast).earned == 6
    assert Report("q", 10, (cases[0],), fast).earned == 10
    failed = MechanismResult("Forbids", False, "", costs=1.0)
    assert Report("q", 10, (cases[0],), (*fast, failed)).earned == 0


def test_a_bonus_needs_a_gpu_and_the_ratio(monkeypatch):
    """On a CPU the same ratio gains nothing."""
    for gpu, ratio, gains in ((True, 2.5, 0.1), (True, 1.5, 0.0), (False, 2.5, 0.0)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        assert Speed(2.0, 64).result(ratio).gains == gains


def test_the_oracle_loads_in_a_sandbox_of_its_own(zygote, oracle):
    """With the modules of its package that it imports, and no other; the student's process never holds them."""
    assert needed(oracle.__module__) == {"toyref", "toyref.sums", "toyref.helper"}
    with Session(zygote, oracle_notebook(oracle)) as session:
        assert not session.notebook.problems
        assert session.call(ORACLE, [torch.ones(2, 3)]).value.tolist() == [3, 3]
    source = "def answer(x):\n    import sys\n    return [name for name in sys.modules if 'toyref' in name]"
    with judged(zygote, source) as runner:
        (raced,) = runner.race(declared(Sums), oracle, [Case("one", torch.ones(2, 2))])
    assert raced[0].value == [] and raced[1] > 0


def test_an_oracle_that_does_not_load_is_the_graders_fault(zygote, oracle, monkeypatch):
    """Nobody's bonus depends on it in silence."""
    monkeypatch.setattr(oracle, "__name__", "gone")
    with judged(zygote, HONEST) as runner, pytest.raises(SandboxError, match="does not load in a sandbox"):
        runner.race(declared(Sums), oracle, [])
