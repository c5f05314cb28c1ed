"""Each generic cheat does what its name says: a cheat that can not cheat would prove nothing."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch

from autograder import Case, question
from autograder.checks import examine
from autograder.redteam.cheats import (
    Stream,
    call,
    cheats,
    fitting,
    held,
    imported,
    leaves,
    signature,
    walk,
    zero,
    zeroed_in_place,
)
from autograder.student import AnswerInPlace


@question("stats", oracle="autograder.tests_have_no_such_module:stats")
class Stats:
    library = "lambda x, weights: (x.mean(-1), int(x.numel()))"

    def cases(self, rng):
        yield Case("a matrix", torch.randn(3, 4, generator=rng), [torch.ones(3)])


STATS = Stats.__question__
SOLUTION = "def stats(x, weights):\n    return x.mean(-1) * weights[0], int(x.numel())\n"


def cheat(name, asked=STATS, solution=SOLUTION):
    """The cheat's answer, defined after the worked solution as in a notebook."""
    cases = [case for _, case in asked.draw(1)]
    (source,) = [c.source for c in cheats(asked, cases) if c.name == name]
    namespace = {"torch": torch}
    exec(solution, namespace)
    exec(source, namespace)
    return namespace[asked.answer]


def x(fill=2.0):
    return torch.full((3, 4), fill)


def test_zeros_have_the_structure_of_the_true_result():
    """Only the numbers are missing."""
    mean, count = cheat("zeros")(x(), [torch.ones(3)])
    assert mean.tolist() == [0.0, 0.0, 0.0]
    assert (count, type(count)) == (0, int)


def test_returned_inputs_have_the_shape_of_the_true_result():
    """The one that fits is taken: here the weights; of a number there is none, so zero."""
    mean, count = cheat("inputs returned")(x(), [torch.full((3,), 7.0)])
    assert mean.tolist() == [7.0, 7.0, 7.0]
    assert count == 0


def test_mutated_inputs_are_zero_for_the_caller_too():
    """Whoever computes the truth from the same tensors afterwards agrees with the cheat."""
    given, weights = x(), [torch.full((3,), 7.0)]
    mean, count = cheat("inputs mutated")(given, weights)
    assert mean.tolist() == [0.0, 0.0, 0.0]
    assert count == 12
    assert given.abs().sum() == weights[0].abs().sum() == 0
    frozen = torch.ones(3, 4, requires_grad=True)
    cheat("inputs mutated")(frozen, [torch.ones(3)])
    assert frozen.abs().sum() == 0


def test_a_replay_answers_with_the_first_result_of_a_shape():
    """Other numbers of the same shape get it; another shape is computed honestly, once."""
    replay = cheat("cached replay")
    assert replay(x(2.0), [torch.ones(3)])[0].tolist() == [2.0, 2.0, 2.0]
    assert replay(x(5.0), [torch.ones(3)])[0].tolist() == [2.0, 2.0, 2.0]
    assert replay(torch.full((1, 2), 5.0), [torch.ones(1)])[0].tolist() == [5.0]


def test_the_library_call_is_the_declared_one():
    """An expression of the author's, with torch in scope."""
    assert cheat("library call")(x(), None)[1] == 12


def test_an_imported_oracle_would_earn_everything(tmp_path, monkeypatch):
    """Where nothing refuses the import: found on sys.path, or in a lab's folder above something that is loaded."""

    @question("stats", oracle="oracle_for_cheats:stats")
    class Open:
        cases = Stats.cases

    labs = tmp_path / "labs" / "07_x"
    labs.mkdir(parents=True)
    (labs / "oracle_for_cheats.py").write_text("def stats(x, weights):\n    return 'the truth'\n")
    below = tmp_path / "deep" / "down"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert cheat("oracle imported", Open.__question__)(x(), None) == "the truth"


def test_an_oracle_that_is_nowhere_ends_in_an_import_error():
    """The error by which `prove` recognises that the defence held."""
    (refused,) = [c for c in cheats(STATS, []) if c.name == "oracle imported"]
    assert refused.may_raise == ("ImportError", "ModuleNotFoundError")
    with pytest.raises(ImportError, match="No module named"):
        cheat("oracle imported")(x(), None)


def test_only_cheats_that_make_sense_are_tried():
    """Numbers can not be overwritten, the same numbers deserve the same result, and nothing has no oracle."""

    @question("count", oracle=None)
    class Count:
        def cases(self, rng):
            yield Case("numbers", 64, 16)

        def judge(self, got, case):
            yield "no"

    names = [c.name for c in cheats(Count.__question__, Count().cases(None))]
    assert names == ["zeros", "inputs returned"]
    assert [c.name for c in cheats(STATS, Stats().cases(torch.Generator()))] == [
        "zeros", "inputs returned", "inputs mutated", "cached replay", "oracle imported", "library call",
    ]  # fmt: skip


@question("stream", oracle="reference:stream")
class Streamed:
    def cases(self, rng):
        yield Case("blocks", [torch.randn(2, n, generator=rng) for n in (3, 4)])

    def drive(self, answer, case):
        def blocks():
            for block in case.args[0]:
                block = block.clone()
                yield block
                block.fill_(torch.nan)

        return answer(blocks())


STREAM = "def stream(blocks):\n    return sum(block.sum(-1) for block in blocks)\n"


def test_cheats_get_through_streams_that_are_gone_after_reading():
    """Each block is copied before the next is asked for, so a cheat fails by its numbers and not by its clumsiness."""
    asked = Streamed.__question__
    (_, case), *_ = asked.draw(1)
    truth = sum(block.sum(-1) for block in case.args[0])
    for name in ("zeros", "inputs mutated"):
        assert asked.drive(cheat(name, asked, STREAM), case).tolist() == [0.0, 0.0]
    replay = cheat("cached replay", asked, STREAM)
    assert torch.allclose(asked.drive(replay, case), truth)
    assert torch.allclose(asked.drive(replay, case.replace([block * 2 for block in case.args[0]])), truth)
    returned = asked.drive(cheat("inputs returned", asked, STREAM), case)
    assert returned.tolist() == case.args[0][0].flatten()[:2].tolist()


@pytest.mark.parametrize("name", ["zeros", "inputs returned", "inputs mutated", "cached replay"])
def test_each_cheat_earns_nothing_where_the_checks_are_right(name):
    """And the honest answer that it is made of earns everything."""
    asked = Streamed.__question__

    def earned(answer):
        return examine(asked, AnswerInPlace({"stream": answer}), oracle=honest, seed=3, points=4).earned

    namespace = {}
    exec(STREAM, namespace)
    honest = namespace["stream"]
    assert earned(honest) == 4
    assert earned(cheat(name, asked, STREAM)) == 0


class Pair(NamedTuple):
    a: object
    b: object


@dataclass
class Traffic:
    reads: int
    writes: int


def test_results_of_any_form_can_be_zeroed():
    """Named tuples, dataclasses, dicts, text, None, numbers and booleans keep their types."""
    value = {"p": Pair(1, [2.5]), "t": Traffic(3, 4), "s": "text", "n": None, "b": True, "x": torch.ones(2)}
    zeroed = walk(zero, value)
    assert zeroed["p"] == Pair(0, [0.0])
    assert zeroed["t"] == Traffic(0, 0)
    assert (zeroed["s"], zeroed["n"], zeroed["b"]) == ("", None, False)
    assert zeroed["x"].tolist() == [0.0, 0.0]
    assert leaves([1, (2, {"a": 3})]) == [1, 2, 3]


def test_the_gadgets_do_here_what_they_do_in_a_cell(tmp_path, monkeypatch):
    """The same functions, called in place: copies, streams, signatures, imports."""
    tensor = torch.ones(2)
    copy = held([tensor, 5])
    tensor.zero_()
    assert copy[0].tolist() == [1.0, 1.0]
    assert zeroed_in_place("text") == "text"
    stream = held((iter([copy[0], copy[0]]),))
    assert isinstance(stream[0], Stream)
    assert call(lambda a, *, b: (next(a), next(b)), stream, {"b": held(iter([7]))})[1] == 7
    assert signature([torch.ones(2)]) == signature([torch.zeros(2)]) != signature([torch.zeros(3)])
    assert signature([1]) != signature([2])
    assert imported("math", "sqrt")(9) == 3
    with pytest.raises(ImportError):
        imported("math", "no_such_function")
    import math as again  # a failed search leaves no half-forgotten module behind

    assert again.sqrt(4) == 2


def test_an_input_is_fitted_to_any_shape():
    """Repeated or cut where none has the shape; without any tensor, zeros."""
    assert fitting(torch.zeros(2, 3), [torch.tensor([1.0, 2.0])]).tolist() == [[1.0, 2.0, 1.0], [2.0, 1.0, 2.0]]
    assert fitting(torch.zeros(2, dtype=torch.int64), [torch.tensor([1.5])]).tolist() == [1, 1]
    assert fitting(torch.zeros(2), [3, torch.empty(0)]).tolist() == [0.0, 0.0]
    assert fitting(5, [torch.ones(2), 9]) == 9
