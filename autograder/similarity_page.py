"""The similarity report as one HTML page for staff: no script, no link out, every student's word escaped."""

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autograder.fingerprint import Fingerprint
    from autograder.similarity import Comparison, Found

TEXTS = 200  # pairs of texts on the page; a class that copied one answer would fill it with the same text
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:78rem;margin:2rem auto;padding:0 1rem;color:#1B1F24}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem;border-bottom:1px solid #E6E9EE;text-align:left}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:1rem}pre{background:#F6F8FA;padding:.6rem;overflow-x:auto;
font-size:13px;margin:0}mark{background:#F7E3B0;display:block}h2{margin-top:2.5rem}figcaption{color:#5B6470}"""
HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>{style}</style></head><body>
"""
ADVICE = """A pair stands here because two programs share more than answers that nobody copied. That is a reason to
ask both people to explain a line, and no proof. Marked lines hold what the two share; names, constants and order were
not compared. No grade depends on this page."""


def page(result: "Comparison") -> str:
    """The whole report."""
    pairs = result.pairs()
    shown = [section(result, left, right, found) for left, right, found in pairs[:TEXTS]]
    more = [f"<p>{len(pairs) - TEXTS} more pairs are in the JSON.</p>"] if len(pairs) > TEXTS else []
    unread = [f"<li>{html.escape(student)}: {html.escape(why)}</li>" for student, why in sorted(result.unread.items())]
    title = f"{html.escape(result.lab)}: similar answers"
    body = [
        f"<h1>{title}</h1><p>{ADVICE}</p>",
        f"<p>{result.students} submissions, {len(pairs)} pairs; {result.explained} pairs of students who both "
        "resemble one published answer are not listed.</p>",
        *scales(result),
        *shown,
        *more,
        *(["<h2>Not compared</h2><ul>", *unread, "</ul>"] if unread else []),
    ]
    return HEAD.format(title=title, style=STYLE) + "\n".join(body) + "\n</body></html>\n"


def scales(result: "Comparison") -> list[str]:
    """What similarity means in each question."""
    rows = []
    for each in result.scales:
        limit = f"{each.threshold:.2f}" if each.tells else "too short to tell"
        rows.append(
            f"<tr><td>{html.escape(each.question)}</td><td>{each.independent:.2f}</td><td>{each.copied:.2f}</td>"
            f"<td>{limit}</td></tr>"
        )
    head = (
        "<tr><th>question</th><th>most similar, not copied</th><th>copy with one change</th><th>listed from</th></tr>"
    )
    return ["<table>", head, *rows, "</table>"]


def section(result: "Comparison", left: str, right: str, found: "list[Found]") -> str:
    """One pair of people, every question in which they agree."""
    parts = [f"<h2>{html.escape(left)} and {html.escape(right)}</h2>"]
    for each in found:
        a, b = result.programs[each.question, left], result.programs[each.question, right]
        shared = a.marks & b.marks
        parts.append(
            f"<figure><figcaption>{html.escape(each.question)}: {each.score:.0%} shared</figcaption>"
            f'<div class="pair">{text(a, shared)}{text(b, shared)}</div></figure>'
        )
    return "\n".join(parts)


def text(program: "Fingerprint", shared: frozenset[int]) -> str:
    """The program's lines, those that hold something shared marked."""
    marked = {program.lines[mark] for mark in shared}
    lines = [
        f"<mark>{html.escape(line)}</mark>" if number in marked else f"{html.escape(line)}\n"
        for number, line in enumerate(program.source.splitlines(), start=1)
    ]
    return f"<pre>{''.join(lines)}</pre>"
