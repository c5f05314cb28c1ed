"""The class's figure and the HTML page around it."""

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autograder.insights import Group, Insights

MOST = 12  # mistakes in the figure
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1B1F24}
img{max-width:100%}pre{background:#F6F8FA;padding:.8rem;overflow-x:auto;font-size:13px}"""
HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<style>{style}</style></head><body>
"""


def page(found: "Insights", names: bool = False) -> str:
    """The report for a browser: one figure with its words, and the text."""
    from autograder.insights import text

    title = f"{html.escape(found.lab)}: what the class did"
    picture = base64.b64encode(png(found, names)).decode()
    return (
        HEAD.format(title=title, style=STYLE)
        + f'<h1>{title}</h1>\n<img alt="{html.escape(alt_text(found, names))}" src="data:image/png;base64,{picture}">\n'
        + f"<pre>{html.escape(text(found, names))}</pre>\n</body></html>\n"
    )


def alt_text(found: "Insights", names: bool = False) -> str:
    """The figure in words."""
    from autograder.insights import shown

    hardest = min(found.items, key=lambda item: item.difficulty)
    easiest = max(found.items, key=lambda item: item.difficulty)
    words = (
        f"Bars for {len(found.items)} questions and {found.students} students. Easiest: {easiest.question}, mean "
        f"{easiest.difficulty:.0%} of the points. Hardest: {hardest.question}, {hardest.difficulty:.0%}."
    )
    visible, _ = shown(found.mistakes, names)
    if visible:
        words += (
            f" Most common mistake: {visible[0].what} in {visible[0].question}, {len(visible[0].students)} students."
        )
    return words


def png(found: "Insights", names: bool = False) -> bytes:
    """Two panels: how each question went, and the most common mistakes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    from autograder.insights import shown

    visible = shown(found.mistakes, names)[0][:MOST]
    rows = len(found.items) + len(visible)
    figure = Figure(figsize=(8, 1.8 + 0.32 * rows), layout="constrained")
    heights = [max(len(found.items), 1), max(len(visible), 1)]
    top, bottom = figure.subplots(2, 1, gridspec_kw={"height_ratios": heights})
    draw_items(top, found)
    draw_mistakes(bottom, visible)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def draw_items(axes, found: "Insights") -> None:  # type: ignore[no-untyped-def]
    """Mean share of the points; how many passed would tell groups of one or two."""
    items = found.items[::-1]
    axes.barh([item.question for item in items], [item.difficulty for item in items], color="#0B4F8A")
    hardest = min(found.items, key=lambda item: item.difficulty)
    axes.set_title(f"{hardest.question} was the hardest: {hardest.difficulty:.0%} of its points", loc="left")
    axes.set(xlim=(0, 1), xlabel="mean share of the points")


def draw_mistakes(axes, visible: "Sequence[Group]") -> None:  # type: ignore[no-untyped-def]
    """One bar per mistake that enough people made."""
    if not visible:
        axes.axis("off")
        axes.set_title("No mistake was made by three people or more", loc="left")
        return
    labels = [f"{group.question}: {group.what}" for group in visible][::-1]
    axes.barh(labels, [len(group.students) for group in visible][::-1], color="#C8452F")
    axes.set_title(f"Most common: {visible[0].what}", loc="left")
    axes.set(xlabel="students")
