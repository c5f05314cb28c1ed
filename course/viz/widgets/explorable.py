"""What the explorables share: one ES module made of several files, one style sheet, words where neither is run."""

import re
from pathlib import Path
from typing import Any

import anywidget
import traitlets

HERE = Path(__file__).parent
IMPORT = re.compile(r'^import \{[^}]*\} from "\./([\w.]+)";\n', re.M)


def bundle(name: str) -> str:
    """`name` and the files it imports as one ES module: the imported ones first, each once, their exports made local.

    A browser gets a widget's code as one text and could not fetch a second file. Names of top-level declarations must
    therefore differ between the files; the browser refuses the module otherwise.
    """
    order: list[str] = []
    _collect(name, order)
    parts = [IMPORT.sub("", _read(part)) for part in order]
    return "\n".join([*(re.sub(r"^export ", "", part, flags=re.M) for part in parts[:-1]), parts[-1]])


def _collect(name: str, order: list[str]) -> None:
    for needed in IMPORT.findall(_read(name)):
        if needed not in order:
            _collect(needed, order)
    order.append(name)


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


class Explorable(anywidget.AnyWidget):
    """A widget with a title and the words that stand for it where no script runs."""

    _css = _read("style.css")
    title = ""

    def alt(self) -> str:
        """What it shows, in one sentence with its numbers."""
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """The values that JavaScript reads: those of the traits declared by the subclass."""
        names = self.traits(sync=True, explorable=True)
        return {name: getattr(self, name) for name in sorted(names)}

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        shown = super()._repr_mimebundle_(**kwargs)
        if shown is not None:
            shown[0]["text/plain"] = self.alt()
        return shown


def option(kind: type[traitlets.TraitType[Any, Any]], *args: Any) -> Any:
    """A trait that travels to JavaScript."""
    return kind(*args).tag(sync=True, explorable=True)
