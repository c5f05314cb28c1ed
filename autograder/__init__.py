"""Check answers in the notebook, grade them in a judge that the answers can not reach.

Students use `open_lab`. Authors of a lab's `checks.py` and `mistakes.py` use the rest of what is named here.
"""

from autograder.mechanism import Counterfactual, Forbids, MemorySlope, PoisonOutside, ReadOnce
from autograder.question import Case, mistake, question
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
    "Tolerance",
    "mistake",
    "open_lab",
    "question",
]
