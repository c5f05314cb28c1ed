"""Show a figure together with the words that stand for it."""

import base64
import io
import re

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

ALT_WORDS = 60  # a screen reader reads it in about 25 seconds


def show(fig: Figure, *, alt: str) -> None:
    """Display `fig` as PNG with `alt` as its text, then close it.

    `alt` names the kind of figure, its axes, the two numbers that carry the claim, and the conclusion. It is stored
    as the output's alt text and as its plain text, so it is what a screen reader, a terminal and the book's `<img>`
    show. The bytes depend on the figure alone: matplotlib's version is not written into the file.
    """
    check_alt(alt)
    png = to_png(fig)
    width, height = (int.from_bytes(png[at : at + 4], "big") // 2 for at in (16, 20))  # drawn at twice the size
    plt.close(fig)
    _display(png, alt, {"alt": alt, "width": width, "height": height})


def check_alt(alt: str) -> None:
    """Raise ValueError where `alt` cannot stand for a figure."""
    count = len(alt.split())
    if count > ALT_WORDS:
        raise ValueError(
            f"show: alt has {count} words, at most {ALT_WORDS} are read aloud well. Keep the claim and its numbers."
        )
    if not re.search(r"\d", alt):
        raise ValueError(f"show: alt holds no number: {alt!r}. Write the two numbers that carry the claim.")


def to_png(fig: Figure) -> bytes:
    """The figure's PNG, without the version and date that matplotlib would add."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=2 * fig.dpi, metadata={"Software": None})
    return buffer.getvalue()


def _display(png: bytes, alt: str, metadata: dict[str, str | int]) -> None:
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.display import display

    if not InteractiveShell.initialized():  # a plain script has nowhere to put a picture
        print(alt)
        return
    data = {"image/png": base64.b64encode(png).decode(), "text/plain": alt}
    display(data, metadata={"image/png": metadata}, raw=True)  # type: ignore[no-untyped-call]
