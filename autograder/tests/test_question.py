"""Questions and cases: what an author declares, and what is drawn from a seed."""

import math

import pytest
import torch

from autograder import Case, Forbids, ReadOnce, Tolerance, mistake, question
from autograder.question import DRAWS, generator


@question("double", oracle="reference:double", answer="twice")
class Double:
    """`twice` doubles.

    A second paragraph.
    """

    mechanism = (Forbids("mul", "add"), ReadOnce(0), ReadOnce(2))
    library = "lambda x: x + x"
    equivalent = {"double:abc:swapped": "addition commutes"}  # noqa: RUF012

    def cases(self, rng):
        yield Case("short", torch.randn(3, generator=rng))
        yield Case("long", torch.randn(9, generator=rng), weight=2)

    def grow(self, rng, n):
        return Case("grown", torch.randn(n, generator=rng))

    def drive(self, answer, case):
        return {"twice": answer(*case.args), "pi": math.pi}


DOUBLE = Double.__question__


def numbers(seed, **options):
    return [case.args[0].tolist() for _, case in DOUBLE.draw(seed, **options)]


def test_a_seed_always_draws_the_same_cases():
    """A rerun of a grade meets the same numbers."""
    assert numbers(7) == numbers(7)


def test_each_draw_and_each_seed_has_its_own_numbers():
    """A result kept from one draw is wrong in the next, which is what makes a replay worthless."""
    assert len(numbers(7)) == 2 * DRAWS
    assert numbers(7)[0] != numbers(7)[2]
    assert numbers(7) != numbers(8)
    assert [number for number, _ in DOUBLE.draw(7)] == [0, 0, 1, 1]


def test_questions_do_not_share_random_numbers():
    """The generator depends on every part it is given."""
    draws = [torch.rand(4, generator=generator(*parts)).tolist() for parts in [(1, "a", 0), (1, "b", 0), (1, "a", 1)]]
    assert draws[0] != draws[1] != draws[2] != draws[0]
    assert torch.rand(4, generator=generator(1, "a", 0)).tolist() == draws[0]


def test_a_question_grows_by_size_and_seed():
    """The case for measuring memory has the size asked for and is drawn like any other."""
    assert DOUBLE.grow(1, 64).args[0].shape == (64,)
    assert torch.equal(DOUBLE.grow(1, 64).args[0], DOUBLE.grow(1, 64).args[0])
    assert not torch.equal(DOUBLE.grow(1, 64).args[0], DOUBLE.grow(2, 64).args[0])


def test_a_declaration_says_everything_about_its_question():
    """Names, text, what is forbidden and read once, and what only `prove` reads."""
    assert (DOUBLE.name, DOUBLE.answer, DOUBLE.oracle) == ("double", "twice", "reference:double")
    assert DOUBLE.text == "`twice` doubles.\n\nA second paragraph."
    assert DOUBLE.forbidden == ("mul", "add")
    assert DOUBLE.read_once == (0, 2)
    assert DOUBLE.library == "lambda x: x + x"
    assert DOUBLE.equivalent == {"double:abc:swapped": "addition commutes"}
    assert not DOUBLE.by_property


def test_what_is_not_declared_has_a_plain_default():
    """The answer is called as it is, under the one tolerance policy, with nothing forbidden."""

    @question("plain", oracle="reference:plain")
    class Plain:
        def cases(self, rng):
            yield Case("one", 2, factor=3)

    plain = Plain.__question__
    assert plain.answer == "plain"
    assert (plain.text, plain.mechanism, plain.forbidden, plain.read_once) == ("", (), (), ())
    assert (plain.library, plain.equivalent, plain.drive_source) == (None, {}, None)
    assert plain.tolerance == Tolerance()
    (case,) = (case for _, case in plain.draw(0, draws=1))
    assert plain.drive(lambda x, factor: x * factor, case) == 6


def test_a_question_may_set_its_own_tolerance():
    """A reason travels with it."""

    @question("loose", oracle="reference:loose")
    class Loose:
        tolerance = Tolerance(rtol=1e-2, reason="a sampler")

        def cases(self, rng):
            yield Case("one")

    assert Loose.__question__.tolerance.rtol == 1e-2


def test_drive_turns_an_answer_into_plain_data_in_both_places():
    """Here it is called; for the sandbox its text is enough, with torch, math and np in scope."""
    (_, case), *_ = DOUBLE.draw(3)
    here = DOUBLE.drive(lambda x: 2 * x, case)
    scope = {"math": math, "torch": torch}
    exec(DOUBLE.drive_source, scope)
    there = scope["drive"](None, lambda x: 2 * x, case)
    assert torch.equal(here["twice"], there["twice"])
    assert here["pi"] == there["pi"] == math.pi


def test_the_source_of_drive_is_read_once(tmp_path):
    """Staff may edit checks.py while a class is judged: what was loaded is what travels."""
    from autograder.labs import load_file

    path = tmp_path / "checks.py"
    text = (
        "from autograder import question\n\n@question('q', oracle='r:q')\nclass Q:\n"
        "    def cases(self, rng):\n        yield None\n\n    def drive(self, answer, case):\n        return answer()\n"
    )
    path.write_text(text)
    loaded = load_file(path, "checks_that_change").Q.__question__
    before = loaded.drive_source
    path.write_text("# one more line\n" * 4 + text)
    assert loaded.drive_source == before
    assert before.startswith("def drive(self, answer, case):")


@pytest.mark.parametrize(
    ("oracle", "methods", "missing"),
    [("reference:f", {}, "cases"), (None, {"cases": lambda self, rng: ()}, "judge"), (None, {}, "cases")],
    ids=["no cases", "no oracle and no judge", "nothing"],
)
def test_an_incomplete_declaration_says_which_method_is_missing(oracle, methods, missing):
    """At import, so that the author reads it, not a student."""
    with pytest.raises(TypeError, match=f"question 'f' .Incomplete. has no method `{missing}`"):
        question("f", oracle=oracle)(type("Incomplete", (), methods))


def test_a_question_without_an_oracle_is_judged_by_property():
    """Its `judge` takes the place of the comparison."""

    @question("open", oracle=None)
    class Open:
        def cases(self, rng):
            yield Case("one")

        def judge(self, got, case):
            yield "never right"

    assert Open.__question__.by_property
    assert Open.__question__.oracle is None


def test_replacing_arguments_keeps_the_rest_of_a_case():
    """Positional arguments change all at once, keyword ones by name."""
    case = Case("a name", 1, 2, weight=3, causal=True, scale=None)
    changed = case.replace(5, scale=0.5)
    assert (changed.name, changed.args, changed.kwargs, changed.weight) == (
        "a name", (5,), {"causal": True, "scale": 0.5}, 3,
    )  # fmt: skip
    assert case.replace(causal=False).args == (1, 2)
    assert case.kwargs == {"causal": True, "scale": None}


def test_mapping_a_case_sees_all_of_its_arguments():
    """The change is applied to (args, kwargs) and the name and weight stay."""
    case = Case("a name", 1, weight=2, k=3).map(lambda both: ((both[0][0] + 1,), {"k": both[1]["k"] * 2}))
    assert (case.name, case.args, case.kwargs, case.weight) == ("a name", (2,), {"k": 6}, 2)
    assert repr(case) == "Case('a name', 1 arguments)"


def test_one_wrong_function_may_answer_two_questions():
    """Each declaration is a mistake of its own, with its own words."""

    @mistake("first", says="  You swapped them.\n  See hint 1.")
    @mistake("second", says="You kept a square.", fails="MemorySlope")
    def swapped(a, b):
        return b, a

    assert [(m.question, m.name, m.says, m.fails) for m in swapped.__mistakes__] == [
        ("second", "swapped", "You kept a square.", "MemorySlope"),
        ("first", "swapped", "You swapped them.\nSee hint 1.", ""),
    ]
    assert swapped(1, 2) == (2, 1)
