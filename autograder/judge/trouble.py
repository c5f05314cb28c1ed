"""Trouble that is no student's: a full disk, a gradebook that is locked. Said once, with the way out."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from autograder.judge.verdict import CycleError

FULL = (errno.ENOSPC, errno.EDQUOT)
AGAIN = "run the same command again: what was finished is kept, and nothing is half written"


def refuse_if_full(problem: BaseException, folder: Path) -> None:
    """CycleError if `problem` is a full disk (or quota); anything else is left to the caller."""
    if isinstance(problem, OSError) and problem.errno in FULL:
        raise full(folder) from None


@contextlib.contextmanager
def space_in(folder: Path) -> Iterator[None]:
    """A full disk inside becomes a CycleError."""
    try:
        yield
    except OSError as problem:
        refuse_if_full(problem, folder)
        raise


def full(folder: Path) -> CycleError:
    return CycleError(f"the disk that holds {folder} is full. Free some space and {AGAIN}.")


def says_full(text: str) -> bool:
    """Whether a log that only nbgrader saw speaks of a full disk."""
    return any(os.strerror(number) in text for number in FULL)


def database_trouble(problem: BaseException, url: str) -> CycleError:
    """What an error of the database itself means to whoever grades. `url` is shown, so it carries no password."""
    text = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
    if "database or disk is full" in text:
        return CycleError(f"the disk that holds the gradebook {url} is full. Free some space and {AGAIN}.")
    if "is locked" in text:
        return CycleError(
            f"the gradebook {url} is locked by another program (a formgrader that saves, an open database browser, "
            f"another `autograder record`). Close it and {AGAIN}."
        )
    if "duplicate key" in text or "deadlock detected" in text:
        return CycleError(
            f"another machine wrote the same students into the gradebook {url} at the same time; {AGAIN}."
        )
    return CycleError(f"the gradebook {url} does not answer ({text}). Mend that and {AGAIN}.")
