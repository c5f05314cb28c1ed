"""Short ways for the tests of each kind of question: an answer in this process, and one in the judge."""

from contextlib import contextmanager

from autograder.checks import examine
from autograder.judge.calls import SandboxRunner
from autograder.judge.session import Cell, Notebook
from autograder.question import question
from autograder.student import AnswerInPlace

SEED = 7
HEAD = "import torch\nimport torch.distributed as dist\n\n"


def declared(spec, answer="answer", oracle="reference:oracle"):
    """The question that a class declares."""
    return question(spec.__name__, answer=answer, oracle=oracle)(spec).__question__


def defined(source):
    """The names that a cell defines."""
    namespace = {"__name__": "__main__"}
    exec(HEAD + source, namespace)
    return namespace


@contextmanager
def judged(zygote, source, seconds=5.0):
    """A runner of the judge, over a notebook of one cell."""
    with SandboxRunner(zygote, Notebook([Cell("c", HEAD + source)]), seconds) as runner:
        yield runner


def everywhere(zygote, asked, source, oracle):
    """The report on `source` in place, and the one in the judge."""
    here = examine(asked, AnswerInPlace(defined(source)), oracle=oracle, seed=SEED)
    with judged(zygote, source) as runner:
        return here, examine(asked, runner, oracle=oracle, seed=SEED)


def first_case(asked):
    """One drawn case."""
    return next(iter(asked.draw(SEED)))[1]
