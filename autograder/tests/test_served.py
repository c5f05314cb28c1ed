"""Served functions: the judge answers and counts, and nothing a runner sends makes it do more than that."""

import pytest
import torch

from autograder import Case, Served, ServedCalls
from autograder.checks import examine
from autograder.judge.aid import MAX_QUESTION, Aid
from autograder.sandbox import wire
from autograder.served import MAX_ELEMENTS, Seen, elements
from autograder.student import AnswerInPlace
from autograder.tests.kinds import SEED, declared, defined, everywhere, first_case, judged


class Doubling:
    """Doubles a list of numbers by asking for several at a time."""

    mechanism = (ServedCalls("double", at_most=lambda case, oracle: oracle, at_least=lambda case, oracle: 1),)

    def cases(self, rng):
        numbers = [int(n) for n in torch.randint(1, 99, (6,), generator=rng)]
        yield Case("six", Served("double", lambda many: [2 * n for n in many]), numbers)


def oracle(double, numbers):
    return [*double(numbers[:3]), *double(numbers[3:])]


HONEST = "def answer(double, numbers):\n    return double(numbers)"
ONE_BY_ONE = "def answer(double, numbers):\n    return [double([n])[0] for n in numbers]"
NEVER = "def answer(double, numbers):\n    return [2 * n for n in numbers]"


def test_few_calls_pass_in_place_and_in_the_judge(zygote):
    """One call where the oracle needs two."""
    assert all(report.passed for report in everywhere(zygote, declared(Doubling), HONEST, oracle))


@pytest.mark.parametrize(("source", "says"), [(ONE_BY_ONE, "6 calls of `double`, allowed 2"), (NEVER, "at least 1")])
def test_right_numbers_by_the_wrong_calls_earn_nothing(zygote, source, says):
    """A target asked for every token, and one that is never asked."""
    for report in everywhere(zygote, declared(Doubling), source, oracle):
        assert report.earned == 0 and report.cases[0].passed and says in report.mechanisms[0].message


def test_positions_are_counted_over_all_calls(zygote):
    """A call that carries everything is no free call."""

    class Positions(Doubling):
        mechanism = (ServedCalls("double", at_most=lambda case, oracle: 6, of="positions"),)

    again = "def answer(double, numbers):\n    double(numbers)\n    return double(numbers)"
    for report in everywhere(zygote, declared(Positions), again, oracle):
        assert "12 positions given to `double`, allowed 6" in report.mechanisms[0].message
    assert elements(([1, 2.0], torch.ones(2, 2), "word", {"a": True})) == 7


def test_counts_start_anew_with_every_case(zygote):
    """Two draws, two counts; a function with state begins again, too."""

    def counter():
        calls = []
        return lambda: calls.append(1) or len(calls)

    class Fresh:
        def cases(self, rng):
            yield Case("three", Served("next", new=counter))

    asked = declared(Fresh)
    source = "def answer(following):\n    return [following() for _ in range(3)]"
    with judged(zygote, source) as runner:
        outcomes = [runner.call(asked, first_case(asked)) for _ in range(2)]
    outcomes.append(AnswerInPlace(defined(source)).call(asked, first_case(asked)))
    assert [o.value for o in outcomes] == [[1, 2, 3]] * 3
    assert [o.seen.served["next"].calls for o in outcomes] == [3] * 3


def test_tensors_are_copies_both_ways(zygote):
    """An answer can not write into the judge's numbers, nor keep what it gave."""
    table = torch.ones(3)

    class Table:
        def cases(self, rng):
            yield Case("rows", Served("look", lambda index: table))

    asked = declared(Table)
    source = "def answer(look):\n    look(0).zero_()\n    return look(0)"
    with judged(zygote, source) as runner:
        assert runner.call(asked, first_case(asked)).value.tolist() == [1, 1, 1]
    assert AnswerInPlace(defined(source)).call(asked, first_case(asked)).value.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "call", ["double(None)", "double()", "double(object())", f"double([1] * {MAX_ELEMENTS + 1})", "double([[1]], 2)"]
)
def test_arguments_that_do_not_fit_are_the_answers_mistake(zygote, call):
    """It is told so, here and there, and the judge goes on."""
    asked = declared(Doubling)
    source = f"def answer(double, numbers):\n    return {call}"
    assert AnswerInPlace(defined(source)).call(asked, first_case(asked)).error == "ServedError"
    with judged(zygote, source) as runner:
        outcome = runner.call(asked, first_case(asked))
        assert outcome.error == "ServedError" and outcome.line == f"return {call}"


HOSTILE = """
import gc, json, os, struct, threading


def send(head, blob=b"", size=None):
    text = json.dumps(head).encode()
    frame = struct.pack("<II", len(text), len(blob) if size is None else size) + text + blob
    for fd in range(3, 64):
        try:
            os.write(fd, frame)
        except OSError:
            pass


def request():
    return next(o for o in gc.get_objects() if type(o) is dict and o.get("op") == "call" and "kwargs" in o)


def answer(double, numbers):
    mine = request()["id"]
    {body}
"""
ATTACKS = {
    "a reply before the request": ("send({'id': 'x', 'ok': True, 'value': 1})", "Crash"),
    "a question of another request": ("send({'id': 'x', 'ask': 'call', 'function': 0, 'value': {'t': []}})", "Crash"),
    "a function that is not served": ("send({'id': mine, 'ask': 'call', 'function': 1, 'value': {'t': []}})", "Crash"),
    "a negative function": ("send({'id': mine, 'ask': 'call', 'function': -1, 'value': {'t': []}})", "Crash"),
    "a function by name": ("send({'id': mine, 'ask': 'call', 'function': 'os', 'value': {'t': []}})", "Crash"),
    "arguments that are none": ("send({'id': mine, 'ask': 'call', 'function': 0, 'value': 3})", "Crash"),
    "a question of no kind": ("send({'id': mine, 'ask': 'shell', 'value': None})", "Crash"),
    "a collective without ranks": ("send({'id': mine, 'ask': 'post', 'value': None})", "Crash"),
    "a huge question": ("send({'id': mine, 'ask': 'call', 'function': 0, 'value': None}, size=(1 << 32) - 1)", "Crash"),
    "questions for ever": ("while True: double([1])", "Timeout"),
    "questions, no answer read": (
        "while True: send({'id': mine, 'ask': 'call', 'function': 0, 'value': {'t': [{'l': [1]}]}})", "Timeout",
    ),
    "a question and silence": ("send({'id': mine, 'ask': 'call'}); import time; time.sleep(60)", "Crash"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "error"), ATTACKS.values(), ids=ATTACKS)
def test_hostile_frames_cost_the_answer_and_nobody_else(zygote, body, error):
    """Bounded time, no exception in the judge, and the next call meets a new process."""
    asked = declared(Doubling)
    source = HOSTILE.format(body=f"if len(numbers) == 6:\n        {body}\n    return double(numbers)")
    with judged(zygote, source, seconds=1.0) as runner:
        case = first_case(asked)
        assert runner.call(asked, case).error == error
        assert runner.call(asked, case.replace(case.args[0], [4])).value == [8]


def test_threads_of_an_answer_take_turns(zygote):
    """Calls from four threads at once each get their own answer, and each is counted."""
    source = """
from concurrent.futures import ThreadPoolExecutor


def answer(double, numbers):
    with ThreadPoolExecutor(4) as threads:
        return [x for (x,) in threads.map(lambda n: double([n]), numbers * 5)]
"""
    asked = declared(Doubling)
    case = first_case(asked)
    with judged(zygote, source) as runner:
        outcome = runner.call(asked, case)
    assert outcome.value == [2 * n for n in case.args[1] * 5] and outcome.seen.served["double"].calls == 30


def test_a_reply_in_the_middle_of_a_callback_gains_nothing(zygote):
    """An early reply is the answer's result; what follows it is a frame of no request."""
    source = HOSTILE.format(body="send({'id': mine, 'ok': True, 'value': 7})\n    return double(numbers)")
    asked = declared(Doubling)
    with judged(zygote, source, seconds=1.0) as runner:
        report = examine(asked, runner, oracle=oracle, seed=SEED)
    assert report.earned == 0


def test_a_served_function_in_another_question_is_unknown(zygote):
    """Kept from one case and called in the next, it asks with an id that is no longer valid, and is not answered."""
    source = "kept = []\ndef answer(double, numbers):\n    kept.append(double)\n    return kept[0](numbers)"
    asked = declared(Doubling)
    with judged(zygote, source, seconds=1.0) as runner:
        assert runner.call(asked, first_case(asked)).error == ""
        assert runner.call(asked, first_case(asked)).error == "Crash"


def test_a_question_is_bounded_before_it_is_decoded():
    """Tensors of 64 MiB are enough for anybody."""
    with pytest.raises(wire.WireError, match="more than"):
        Aid().answer({"ask": "call"}, bytes(MAX_QUESTION + 1), 0.0)


def test_served_wants_a_function_or_a_way_to_make_one():
    """Not both, not neither."""
    for wrong in ({}, {"fn": len, "new": list}):
        with pytest.raises(TypeError, match="either a function or"):
            Served("f", **wrong)
    assert "target" in repr(Served("target", len).open(Seen()))


def test_counts_want_a_bound():
    """A check that can not fail is none."""
    with pytest.raises(TypeError, match="at_most or at_least"):
        ServedCalls("f")
