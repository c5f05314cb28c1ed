"""Check answers in the notebook, grade them in a judge that the answers can not reach.

Students use `open_lab`. Authors of a lab's `checks.py` and `mistakes.py` use the rest of what is named here.
"""

from autograder.counts import ServedCalls, Traffic
from autograder.mechanism import Counterfactual, Forbids, MemorySlope, PoisonOutside, ReadOnce, StateBytes
from autograder.question import Case, mistake, question
from autograder.served import Served
from autograder.speed import Speed
from autograder.student import CheckFailed, NotCheckedHere, open_lab
from autograder.tolerance import Tolerance

__all__ = [
    "Case",
    "CheckFailed",
    "Counterfactual",
    "Forbids",
    "MemorySlope",
    "NotCheckedHere",
    "PoisonOutside",
    "ReadOnce",
    "Served",
    "ServedCalls",
    "Speed",
    "StateBytes",
    "Tolerance",
    "Traffic",
    "mistake",
    "open_lab",
    "question",
]
