"""What a question is: cases drawn from a seed, an oracle known by name, mechanisms to check, known mistakes.

A lab's `checks.py` declares questions, its `mistakes.py` declares wrong answers with their diagnosis. Both import
only this package (and torch, numpy): the oracle is a name, resolved by whoever is trusted to hold it.
"""

import contextlib
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from autograder.converse import LocalStudent, Rules
from autograder.ranks import Ranks
from autograder.sandbox.vjp import with_gradients
from autograder.served import Seen, opened
from autograder.tolerance import Tolerance
from autograder.tree import fresh

if TYPE_CHECKING:
    from autograder.mechanism import Mechanism

DRAWS = 2  # each case is drawn this often with other numbers, so a replayed result never earns


class Case:
    """One input of a question: `Case("odd sizes", q, k, causal=True, weight=2)`.

    `seed` is where the cotangents of a question with gradients come from; drawn cases have one each.
    """

    seed = 0
    key: tuple[Any, ...] | None = None  # of a drawn case as it was drawn: where its true results are kept

    def __init__(self, name: str, *args: Any, weight: float = 1, **kwargs: Any) -> None:
        self.name, self.args, self.kwargs, self.weight = name, args, kwargs, weight

    def replace(self, *args: Any, **kwargs: Any) -> "Case":
        """The same case with other arguments: positional ones all at once, keyword ones by name."""
        return Case(self.name, *(args or self.args), weight=self.weight, **{**self.kwargs, **kwargs}).seeded(self.seed)

    def map(self, change: Callable[[Any], Any]) -> "Case":
        """The same case with `change` applied to its whole (args, kwargs)."""
        args, kwargs = change((self.args, self.kwargs))
        return Case(self.name, *args, weight=self.weight, **kwargs).seeded(self.seed)

    def seeded(self, seed: int) -> "Case":
        """This case, with a seed for its cotangents."""
        self.seed = seed
        return self

    def __repr__(self) -> str:
        return f"Case({self.name!r}, {len(self.args)} arguments)"


class WithGradients(NamedTuple):
    """What a run of a question with `gradients` gives: the result, and one gradient per wanted tensor."""

    value: Any
    gradients: tuple[torch.Tensor | None, ...]


@dataclass(frozen=True)
class Mistake:
    """A plausible wrong answer. `says` is what a student who made it reads."""

    question: str
    name: str
    says: str
    answer: Callable[..., Any]
    fails: str = ""  # for right numbers by the wrong route: text that the failing mechanism's report contains


@dataclass(frozen=True)
class Question:
    """One graded question, as its class in `checks.py` declares it."""

    name: str
    answer: str  # the name the student defines
    oracle: str | None  # "package.module:function", or "reference:function" in the lab's own folder
    spec: Any = field(repr=False)  # an instance of the declaring class

    @cached_property
    def truths(self) -> dict[Any, Any]:
        """The oracle's results on drawn cases, kept: a class of hundreds meets the same ones."""
        return {}

    @property
    def text(self) -> str:
        return inspect.cleandoc(self.spec.__doc__ or "")

    @property
    def mechanism(self) -> Sequence["Mechanism"]:
        return getattr(self.spec, "mechanism", ())

    @property
    def tolerance(self) -> Tolerance:
        return getattr(self.spec, "tolerance", None) or Tolerance()

    @property
    def forbidden(self) -> tuple[str, ...]:
        """Parts of operation names that the answer may not call."""
        return tuple(name for m in self.mechanism for name in getattr(m, "names", ()))

    @property
    def absent(self) -> tuple[str, ...]:
        """Those of them that the judge takes out of PyTorch; what has a dot (`aten.exp.`) PyTorch may need itself."""
        return tuple(sorted({name for name in self.forbidden if "." not in name}))

    @property
    def read_once(self) -> tuple[int, ...]:
        """Positions of arguments that are handed over as one-shot iterators."""
        return tuple(m.index for m in self.mechanism if hasattr(m, "index"))

    @property
    def returns(self) -> tuple[str, ...]:
        """Names of the parts of the answer's result, for messages: ("m", "l")."""
        return tuple(getattr(self.spec, "returns", ()))

    @property
    def library(self) -> str | None:
        return getattr(self.spec, "library", None)

    @property
    def equivalent(self) -> dict[str, str]:
        return getattr(self.spec, "equivalent", {})

    @property
    def converses(self) -> bool:
        """Whether answers are examined by `converse(student, case)`, call by call."""
        return hasattr(self.spec, "converse")

    @property
    def gradients(self) -> tuple[int, ...]:
        """Positions of the arguments whose gradients are compared, too."""
        return tuple(getattr(self.spec, "gradients", ()))

    @property
    def ranks(self) -> int:
        """How many ranks `drive` runs on at once; 0 for an ordinary question."""
        return getattr(self.spec, "ranks", 0)

    @property
    def fresh(self) -> bool:
        """Whether every case gets a process of its own."""
        return getattr(self.spec, "fresh", False)

    @property
    def by_property(self) -> bool:
        """Whether results are judged by `judge(got, case)` in place of an oracle."""
        return hasattr(self.spec, "judge")

    def draw(self, seed: int, draws: int = DRAWS) -> Iterator[tuple[int, Case]]:
        """(draw number, case) for every case, `draws` times over with other numbers."""
        for number in range(draws):
            for index, case in enumerate(self.spec.cases(generator(seed, self.name, number))):
                case.seeded(number_from(seed, self.name, number, index)).key = (seed, number, index)
                yield number, case

    def grow(self, seed: int, size: int) -> Case:
        """The case at `size`, for measuring how memory grows."""
        return self.spec.grow(generator(seed, self.name, size), size)

    def drive(self, answer: Callable[..., Any], case: Case) -> Any:
        """Turn an answer of this process into plain data, whatever the kind of question; by default, call it."""
        return self.run(answer, case)[0]

    def run(self, answer: Callable[..., Any], case: Case, rules: Rules = contextlib.nullcontext) -> tuple[Any, Seen]:
        """The same, with what was seen on the way. `rules` is entered around every call of the answer."""
        seen = Seen()
        case = opened(case, seen)
        if self.converses:
            return self.spec.converse(LocalStudent(answer, rules), case), seen
        if self.ranks:
            ranks = Ranks(self.ranks, lambda rank: self._ruled(answer, case.map(fresh), rules))
            seen.ranks = ranks.hub.tallies
            return ranks.run(), seen
        return self._ruled(answer, case, rules), seen

    def _ruled(self, answer: Callable[..., Any], case: Case, rules: Rules) -> Any:
        with rules():
            if not self.gradients:
                return self._drive(answer, case)
            run = lambda args: self._drive(answer, case.replace(*args))  # noqa: E731
            return WithGradients(*with_gradients(run, case.args, self.gradients, case.seed))

    def _drive(self, answer: Callable[..., Any], case: Case) -> Any:
        if hasattr(self.spec, "drive"):
            return self.spec.drive(answer, case)
        return answer(*case.args, **case.kwargs)

    @cached_property
    def drive_source(self) -> str | None:
        """The text of `drive` as a function of (answer, case), for a process that may not hold this file."""
        drive = getattr(type(self.spec), "drive", None)
        return textwrap.dedent(inspect.getsource(drive)) if drive else None


def question(name: str, *, oracle: str | None = None, answer: str | None = None) -> Callable[[type], type]:
    """Declare the class below as the question `name`; see CONTRIBUTING for what the class holds."""

    def declare(spec: type) -> type:
        for needed in ("cases",) if oracle else ("cases", "judge"):
            if not hasattr(spec, needed):
                raise TypeError(f"question {name!r} ({spec.__name__}) has no method `{needed}`")
        kinds = [kind for kind in ("converse", "gradients", "ranks") if getattr(spec, kind, None)]
        if len(kinds) > 1 or (hasattr(spec, "converse") and hasattr(spec, "drive")):
            both = " and ".join([*kinds, *(["drive"] if hasattr(spec, "drive") else [])])
            raise TypeError(f"question {name!r} ({spec.__name__}) has {both}, but a question is of one kind")
        spec.__question__ = Question(name, answer or name, oracle, spec())  # type: ignore[attr-defined]
        return spec

    return declare


def mistake(question: str, *, says: str, fails: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare the function below as a wrong answer to `question`, and what to tell who wrote it."""

    def declare(answer: Callable[..., Any]) -> Callable[..., Any]:
        # A list, since one wrong function may answer two questions; a class's own, not that of its base.
        known = Mistake(question, answer.__name__, inspect.cleandoc(says), answer, fails)
        answer.__mistakes__ = [*vars(answer).get("__mistakes__", ()), known]  # type: ignore[attr-defined]
        return answer

    return declare


def generator(seed: int, *parts: object) -> torch.Generator:
    """A torch generator that depends on all of the parts, so that questions and draws do not share numbers."""
    return torch.Generator().manual_seed(number_from(seed, *parts))


def number_from(seed: int, *parts: object) -> int:
    """A seed that depends on all of the parts."""
    digest = hashlib.sha256("/".join(map(str, (seed, *parts))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
