"""What a question rules out is not there in the judge: no road leads to it, and nothing else is missing."""

import pytest
import torch

from autograder import Case, Forbids
from autograder.judge.calls import Shared
from autograder.judge.session import Cell, Notebook, Session
from autograder.tests.kinds import HEAD, declared, first_case, judged

X = torch.linspace(-2, 2, 12).reshape(3, 4)
AWAY = ("softmax", "logsumexp", "scaled_dot_product")
UNWATCHED = "import sys\nsys.modules['sandbox.watch'].refuse = lambda *args: None\n"


class WithoutSoftmax:
    mechanism = (Forbids("softmax", "aten.exp2."),)

    def cases(self, rng):
        yield Case("rows", X)


class WithSoftmax:
    def cases(self, rng):
        yield Case("rows", X)


def called(zygote, *sources, absent=AWAY):
    """What `answer(X)` gives where PyTorch lacks `absent`, and the notebook's problems."""
    cells = [Cell(f"c{number}", source) for number, source in enumerate(sources)]
    notebook = Notebook(cells).without(absent)
    with Session(zygote, notebook) as session:
        return session.call("answer", [X]), notebook.problems


@pytest.mark.parametrize(
    "road",
    [
        "torch.softmax(x, -1)",
        "x.log_softmax(-1).exp()",
        "torch.nn.Softmax(-1)(x)",
        "torch.ops.aten._softmax(x, -1, False)",
        "torch._C._VariableFunctions.softmax(x, -1)",
        "torch.softmax(x.to_mkldnn(), -1).to_dense()",
        "torch.sparse.softmax(x.to_sparse(), -1).to_dense()",
        "torch.vmap(lambda row: row.softmax(-1))(x)",
        "torch.jit.trace(lambda x: x.softmax(-1), x)(x)",
        "x.double().logsumexp(-1)",
        "F.scaled_dot_product_attention(x[None], x[None], x[None])",
        "F.cross_entropy(x, torch.tensor([0, 1, 2]))",
        "torch.nn.MultiheadAttention(4, 1).eval()(x, x, x)[0]",
    ],
)
def test_no_road_leads_there_though_nobody_watches(zygote, road):
    """By the public names, from below them, in other layouts, inside other modules."""
    outcome, problems = called(zygote, f"{HEAD}import torch.nn.functional as F\ndef answer(x):\n    return {road}")
    assert not problems and outcome.problem.type == "ForbiddenCall"
    assert any(name in outcome.problem.message for name in AWAY)


def test_what_needs_none_of_it_notices_nothing(zygote):
    """Numbers and gradients of other operations are as ever; and so is softmax where no question rules it out."""
    own = "def answer(x):\n    e = (x - x.amax(-1, True)).exp()\n    return e / e.sum(-1, True)"
    outcome, problems = called(zygote, HEAD + own)
    assert not problems and torch.allclose(outcome.value, X.softmax(-1), atol=1e-6)
    outcome, _ = called(zygote, HEAD + "def answer(x):\n    return x.softmax(-1)", absent=())
    assert torch.equal(outcome.value, X.softmax(-1))


def test_a_cell_that_compares_with_the_library_still_defines_what_it_defines(zygote):
    """A student's own test beside the answer stops at its line, and what follows in the cell is run."""
    compares = (
        "from __future__ import annotations\n"
        f"{HEAD}want = torch.softmax(torch.ones(2, 2), -1)\n"
        "print(want.sum())\n"
        "def helper(x: Unknown):\n    return x + 1\n"
    )
    outcome, problems = called(zygote, compares, "def answer(x):\n    return helper(x)")
    assert torch.equal(outcome.value, X + 1)
    assert (
        problems["c0"].type == "ForbiddenCall"
        and problems["c0"].line == compares[: compares.index("want")].count("\n") + 1
    )
    outcome, problems = called(zygote, "1 / 0\ndef answer(x):\n    return x")
    assert problems["c0"].type == "ZeroDivisionError" and outcome.problem.type == "AnswerMissing"


def test_whoever_switches_the_watcher_off_or_steps_around_it_finds_nothing(zygote):
    """Neither a changed module nor a thread brings softmax back."""
    asked = declared(WithoutSoftmax)
    assert asked.forbidden == ("softmax", "aten.exp2.") and asked.absent == ("softmax",)
    with judged(zygote, UNWATCHED + "def answer(x):\n    return x.softmax(-1)") as runner:
        outcome = runner.call(asked, first_case(asked))
    assert outcome.error == "ForbiddenCall" and outcome.message == "calls `softmax`, which this question rules out"
    thread = (
        "import threading\ndef answer(x):\n    found = []\n"
        "    thread = threading.Thread(target=lambda: found.append(x.softmax(-1)))\n"
        "    thread.start()\n    thread.join()\n    return found"
    )
    with judged(zygote, thread) as runner:
        assert runner.call(asked, first_case(asked)).value == []


def test_questions_that_rule_out_other_things_meet_other_processes(zygote):
    """One process for each set of names, over the same cells; a cell that hangs costs its deadline once."""
    cells = [Cell("c", HEAD + "def answer(x):\n    return x.softmax(-1)"), Cell("hangs", "while True:\n    pass")]
    strict, free = declared(WithoutSoftmax), declared(WithSoftmax)
    with Shared(zygote, Notebook(cells), 0.5) as shared:
        assert shared.get(free) is shared.get(free) and shared.get(free) is not shared.get(strict)
        assert torch.equal(shared.get(free).call("answer", [X]).value, X.softmax(-1))
        assert shared.clean(strict) and not shared.clean(free)
        assert shared.get(strict).call("answer", [X]).problem.type == "ForbiddenCall"
        assert set(shared.notebook_for(strict).guilty) == {"hangs"} and not shared.notebook_for(strict).problems
