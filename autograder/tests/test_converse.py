"""Conversations: objects stay where the answer runs, only plain data crosses, and a handle can not be misused."""

import pytest
import torch

from autograder import Case, Counterfactual
from autograder.judge.aid import Aid
from autograder.judge.remote import Conversation, RemoteFailed
from autograder.judge.session import Cell, Notebook, Session
from autograder.sandbox import wire
from autograder.sandbox.objects import MAX_OBJECTS, Objects, TooManyObjects, load_state
from autograder.student import AnswerInPlace
from autograder.tests.kinds import HEAD, declared, defined, everywhere, first_case, judged

HONEST = """
class answer:
    def __init__(self, window):
        self.window, self.kept = window, []

    def push(self, x):
        self.kept = [*self.kept, x][-self.window :]
        return len(self.kept)

    def total(self):
        return sum(self.kept)
"""


class Stream:
    """The last two of four numbers."""

    def cases(self, rng):
        yield Case("four", torch.randn(4, 3, generator=rng))

    def converse(self, student, case):
        window = student(2)
        return {"kept": [window.push(x) for x in case.args[0]], "total": window.total()}

    mechanism = (
        Counterfactual(
            "Evicted",
            lambda case: case.replace(case.args[0] + torch.tensor([9.0, 9, 0, 0])[:, None]),
            lambda before, after, case: [] if torch.allclose(before["total"], after["total"]) else ["it is read"],
        ),
    )


def test_an_honest_object_passes_in_place_and_in_the_judge(zygote):
    """The same conversation, the same comparison."""
    oracle = defined(HONEST)["answer"]
    assert all(report.passed for report in everywhere(zygote, declared(Stream), HONEST, oracle))


CHEATS = {
    "keeps everything": HONEST.replace("[-self.window :]", ""),
    "says it dropped": HONEST.replace("[-self.window :]", "").replace("len(self.kept)", "min(2, len(self.kept))"),
    "zeros": HONEST.replace("sum(self.kept)", "0 * sum(self.kept)"),
    "same answer to everybody": HONEST.replace("sum(self.kept)", "once(sum(self.kept))")
    + "\nkept = []\ndef once(x):\n    kept.append(x)\n    return kept[0]\n",
}


@pytest.mark.parametrize("source", CHEATS.values(), ids=CHEATS)
def test_a_dishonest_object_earns_nothing(zygote, source):
    """Neither here nor there."""
    reports = everywhere(zygote, declared(Stream), source, defined(HONEST)["answer"])
    assert [report.earned for report in reports] == [0, 0]


@pytest.mark.parametrize("here", [True, False], ids=["in place", "judge"])
def test_handles_do_what_an_object_does(zygote, here):
    """Calls, attributes, state, objects as arguments, generators; an object keeps its identity."""
    source = """
class answer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 1, bias=False)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x)

    def same_as(self, other):
        return other is self

    def count(self):
        yield from (1, 2)

    def me(self):
        return [self, {"again": self}]
"""

    class Module:
        def cases(self, rng):
            yield Case("one")

        def converse(self, student, case):
            module, other = student(), student()
            module.load_state({"linear.weight": torch.tensor([[2.0, 3.0]])})
            out = module(torch.ones(2))
            again = module.me()
            counted = list(module.count())
            other.drop()
            facts = [module.same_as(again[0]), module.same_as(again[1]["again"]), module.get("calls")]
            return out, module.get("linear").get("weight"), facts, counted

    asked = declared(Module)
    if here:
        outcome = AnswerInPlace(defined(source)).call(asked, first_case(asked))
    else:
        with judged(zygote, source) as runner:
            outcome = runner.call(asked, first_case(asked))
    out, weight, facts, counted = outcome.value
    assert out.item() == 5 and not out.requires_grad and weight.tolist() == [[2, 3]]
    assert facts == [True, True, 1] and counted == [1, 2]


def test_what_the_answer_did_to_its_arguments_stays_there(zygote):
    """The judge's keys are still the judge's in the next step."""

    class Mutates:
        def cases(self, rng):
            yield Case("ones", torch.ones(2))

        def converse(self, student, case):
            first = student(case.args[0])
            return [first, student(case.args[0])]

    source = "def answer(x):\n    return x.mul_(2)"
    asked = declared(Mutates)
    with judged(zygote, source) as runner:
        values = [AnswerInPlace(defined(source)).call(asked, first_case(asked)).value]
        values.append(runner.call(asked, first_case(asked)).value)
    assert [[x.tolist() for x in value] for value in values] == [[[2, 2], [2, 2]]] * 2


class Talks:
    """Calls one method of an object."""

    def cases(self, rng):
        yield Case("one", torch.ones(1))

    def converse(self, student, case):
        return student().go(case.args[0]) + 1


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("raise ValueError('mine')", "ValueError"),
        ("return 'a word'", "WrongForm"),
        ("return object()", "WrongForm"),
        ("return x.softmax(0)", ""),
    ],
)
def test_trouble_is_told_the_same_way_here_and_there(zygote, body, error):
    """An exception is the answer's, and what the author's code can not use is of the wrong form."""
    source = f"class answer:\n    def go(self, x):\n        {body}"
    asked = declared(Talks)
    here = AnswerInPlace(defined(source)).call(asked, first_case(asked))
    with judged(zygote, source) as runner:
        there = runner.call(asked, first_case(asked))
    assert here.error == there.error == error
    if error == "ValueError":
        assert (there.message, there.line) == ("mine", body)


@pytest.mark.parametrize(("body", "error"), [("import os; os._exit(0)", "Crash"), ("while True: pass", "Timeout")])
def test_a_conversation_that_crashes_or_hangs_ends_at_its_deadline(zygote, body, error):
    """And the next one meets a new process."""
    source = f"class answer:\n    def go(self, x):\n        if x < 0:\n            {body}\n        return x"
    asked = declared(Talks)
    with judged(zygote, source, seconds=1.0) as runner:
        case = first_case(asked)
        assert runner.call(asked, case.replace(torch.tensor([-1.0]))).error == error
        assert runner.call(asked, case).value.item() == 2


FORGED = {
    "a negative number": '{"H": -1, "kind": "x"}',
    "a word": '{"H": "x", "kind": "x"}',
    "no kind": '{"H": 1}',
    "a list": '{"H": [1], "kind": "x"}',
    "a served function": '{"S": 0}',
}


@pytest.mark.parametrize("form", FORGED.values(), ids=FORGED)
def test_a_forged_handle_is_no_reply(zygote, form):
    """The answer talks to the socket itself; the judge takes no handle that is none."""
    source = f"""
def answer():
    import gc, json, os, struct
    request = next(o for o in gc.get_objects() if type(o) is dict and o.get("op") == "call")
    head = json.dumps({{"id": request["id"], "ok": True, "value": {form}}}).encode()
    for fd in range(3, 64):
        try:
            os.write(fd, struct.pack("<II", len(head), 0) + head)
        except OSError:
            pass
"""
    with Session(zygote, Notebook([Cell("c", HEAD + source)])) as session:
        talk = Conversation(session, declared(Talks), "a case", 5.0)
        with pytest.raises(RemoteFailed) as failed:
            talk()
        talk.close()
    assert failed.value.problem.kind == "garbled"


def test_a_forged_number_reaches_no_object(zygote):
    """A handle the runner made up is only a number; used, it is an error of the answer."""
    with Session(zygote, Notebook([Cell("c", "def answer():\n    return 1")])) as session:
        talk = Conversation(session, declared(Talks), "a case", 5.0)
        made_up = talk.incoming({"H": 99, "kind": "x"})
        with pytest.raises(RemoteFailed) as failed:
            made_up.go()
    assert failed.value.problem.type == "LookupError"


def test_a_handle_is_good_for_its_own_conversation(zygote):
    """Whoever mixes two up is told."""
    with Session(zygote, Notebook([Cell("c", "class answer:\n    pass")])) as session:
        one, other = (Conversation(session, declared(Talks), "a case", 5.0) for _ in range(2))
        with pytest.raises(TypeError, match="conversation that it comes from"):
            other(one())


def test_outside_a_conversation_a_handle_is_nonsense():
    """A plain call has no use for objects."""
    with pytest.raises(wire.WireError):
        Aid().incoming({"H": 1, "kind": "x"})


def test_objects_are_bounded_in_number(zygote):
    """The runner stops keeping them; the conversation ends with an error and not with a full memory."""
    kept = Objects()
    for _ in range(MAX_OBJECTS):
        kept.keep(object())
    with pytest.raises(TooManyObjects):
        kept.keep(object())
    source = f"class answer:\n    def go(self, x):\n        return [object() for _ in range({MAX_OBJECTS + 1})]"
    asked = declared(Talks)
    with judged(zygote, source) as runner:
        assert runner.call(asked, first_case(asked)).error == "TooManyObjects"


def test_after_a_conversation_nothing_is_kept(zygote):
    """Forty conversations of ten objects each need no more room than one."""

    class Many:
        def cases(self, rng):
            yield Case("ten")

        def converse(self, student, case):
            return len([student() for _ in range(10)])

    asked = declared(Many)
    with judged(zygote, "class answer:\n    pass") as runner:
        assert {runner.call(asked, first_case(asked)).value for _ in range(40)} == {10}


def test_state_goes_to_attributes_where_there_is_no_load_state_dict():
    """A cache is no module; a name it does not have is said."""

    class Cache:
        k = None

    cache = Cache()
    load_state(cache, {"k": torch.ones(1)})
    assert cache.k.item() == 1
    with pytest.raises(AttributeError, match="no attribute 'v'"):
        load_state(cache, {"v": torch.ones(1)})


def test_a_question_is_of_one_kind():
    """A conversation has no drive, and ranks have no gradients."""

    class Both:
        gradients, ranks = (0,), 2

        def cases(self, rng):
            yield Case("one")

    with pytest.raises(TypeError, match="gradients and ranks, but a question is of one kind"):
        declared(Both)
