"""Why a launch failed, in words: the first failure of all ranks, with the caller's own lines."""

import json
import linecache
import re
import signal
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["LaunchError", "LaunchTimeout", "RankError", "first_failure", "where_they_are"]

Frame = tuple[str, int, str]  # file, line, function
ENDED = "was killed by SIGTERM"


class LaunchError(RuntimeError):
    """A launch gave no results. `logs` is the folder with what each rank printed."""

    def __init__(self, message: str, logs: Path):
        super().__init__(f"{message}\nWhat each rank printed: {logs}/rank*.out and rank*.err")
        self.logs = logs


class RankError(LaunchError):
    """A rank raised an exception or died; `rank` is the first of them, None where none had started."""

    def __init__(self, message: str, logs: Path, rank: int | None):
        super().__init__(message, logs)
        self.rank = rank


class LaunchTimeout(LaunchError):
    """Not all ranks came back in time: most often they wait for each other."""


def first_failure(folder: Path, ranks: int) -> RankError | None:
    """The failure that caused the others, or None where every rank left a result.

    A rank that died without a word is the cause: ranks that lose their connection to it can still say so. Otherwise
    it is the earliest error. A rank that ended by SIGTERM was mostly ended by torchrun, because another had failed.
    """
    errors = {rank: folder / f"rank{rank}.error.json" for rank in range(ranks)}
    errors = {rank: path for rank, path in errors.items() if path.exists()}
    died = {rank: text for rank, text in _deaths(folder) if rank not in errors and (text != ENDED or not errors)}
    died = {rank: text for rank, text in died.items() if text != ENDED} or died
    if died:
        rank, text = min(died.items())
        return RankError(f"rank {rank} {text}{_last_words(folder, rank)}", folder, rank)
    if errors:
        rank = min(errors, key=lambda rank: errors[rank].stat().st_mtime_ns)
        chain = json.loads(errors[rank].read_text())
        count = f"{len(errors)} of {ranks} ranks failed"
        return RankError(f"rank {rank} failed first ({count}): {_told(chain)}", folder, rank)
    if any(not (folder / f"rank{rank}.result.pt").exists() for rank in range(ranks)):
        return RankError(f"the ranks did not start. torchrun says:\n{_tail(folder / 'agent0.log')}", folder, None)
    return None


def _deaths(folder: Path) -> Iterator[tuple[int, str]]:
    """(rank, how) of each that ended by a signal or an exit code of its own."""
    for path in folder.glob("rank*.stack"):  # first: a rank that crashes is seen here before torchrun sees it
        if found := re.search(r"Fatal Python error: (.*)", path.read_text(errors="replace")):
            yield int(path.name[4:-6]), f"crashed: {found[1]}"
    for path in folder.glob("agent*.json"):
        for rank, code in json.loads(path.read_text()).items():
            yield int(rank), _ending(code)


def _ending(code: int) -> str:
    if code >= 0:
        return f"left with exit code {code} and no result: did it call os._exit?"
    name = signal.Signals(-code).name
    hint = ": the system does that where memory is short" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def _last_words(folder: Path, rank: int) -> str:
    """Its stack where it crashed, else the end of what it wrote to stderr."""
    frames = _stack(folder, rank)
    return "\n" + _lines(frames) if frames else "\n" + _tail(folder / f"rank{rank}.err")


def where_they_are(folder: Path, ranks: int) -> str:
    """For each rank: the call in which it waits and the caller's own lines that led there."""
    return "\n".join(f"rank {rank} {_state(folder, rank)}" for rank in range(ranks))


def _state(folder: Path, rank: int) -> str:
    if (folder / f"rank{rank}.result.pt").exists():
        return "has returned from fn"
    if not (folder / f"rank{rank}.ready").exists():
        return "has not started fn: torch is not imported, or not every rank has joined"
    if not (frames := _stack(folder, rank)):
        return "does not answer"
    file, line, function = frames[-1]
    own = [frame for frame in frames if not _is_library(frame[0])]
    inside = f"is inside {function} ({Path(file).name}, line {line})" if frames[-1] not in own else "is here"
    return f"{inside}\n{_lines(own)}"


def _stack(folder: Path, rank: int) -> list[Frame]:
    """The last stack that faulthandler wrote, outermost first, without the runner's frames."""
    path = folder / f"rank{rank}.stack"
    text = path.read_text(errors="replace") if path.exists() else ""
    last = re.split(r"(?:Current thread|Stack|Fatal)[^\n]*\n", text)[-1]
    found = re.findall(r'File "(.+)", line (\d+) in (.+)', last)
    return [(file, int(line), name) for file, line, name in found[::-1] if not file.endswith("_runner.py")]


def _is_library(file: str) -> bool:
    return "site-packages" in file or "dist-packages" in file or file.startswith(("<", sysconfig.get_path("stdlib")))


def _told(chain: list[dict[str, Any]]) -> str:
    """The exception first, because readers stop early; then its lines; then what it came from."""
    *earlier, last = chain
    text = f"{last['type']}: {last['message']}\n{_lines(last['frames'])}"
    for cause in reversed(earlier):
        text += f"\n  after {cause['type']}: {cause['message']}\n{_lines(cause['frames'])}"
    return text


def _lines(frames: list[Any]) -> str:
    """One or two lines each, "Cell In[3], line 4, in f" and the source: here, where it was typed, a cell is known."""
    text = []
    for file, line, function in frames:
        text.append(f"  {_place(file)}, line {line}, in {function}")
        if source := linecache.getline(file, line).strip():
            text.append(f"    {source}")
    return "\n".join(text)


def _place(file: str) -> str:
    """A file's path; for a notebook's cell, its number."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    named = getattr(getattr(shell, "compile", None), "format_code_name", lambda file: None)(file)
    return " ".join(named) if named else file


def _tail(path: Path, size: int = 2000) -> str:
    return path.read_text(errors="replace")[-size:].strip() if path.exists() else ""
