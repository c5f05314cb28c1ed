"""Show a report: HTML for the notebook, the same words as plain text for terminals, logs and screen readers."""

import html
from collections.abc import Iterable

from autograder.score import CaseResult, Report
from autograder.tolerance import Difference

MARK = {True: "✓", False: "✗"}
STYLE = (
    "border-left:4px solid {colour};padding:.4em .9em;margin:.3em 0;background:var(--jp-layout-color1,#fff);"
    "color:var(--jp-ui-font-color1,#1B1F24);font-family:var(--jp-ui-font-family,sans-serif)"
)
COLOURS = {"passed": "#4FA392", "partly right": "#E8B23A", "not right yet": "#C8452F", "not attempted yet": "#5B6470"}


def as_text(report: Report, reveal: bool = True) -> str:
    """The report in plain text. `reveal` adds expected values: in a student's own check, never in a grade."""
    lines = [headline(report)]
    if report.note:
        lines.append(f"  {report.note}")
    for case in report.cases:
        lines.append(f"  {MARK[case.passed]} {case.name}{measured(case)}")
        lines += [f"      {line}" for line in case_lines(case, reveal)]
    for mechanism in report.mechanisms:
        lines.append(f"  {MARK[mechanism.passed]} {mechanism.name}: {mechanism.message}")
    if report.diagnosis:
        lines += ["", f"  What happened: {report.diagnosis}"]
    if report.attempted and not report.passed:
        lines += ["", f'  A hint: lab.hint("{report.question}")']
    if report.passed:
        lines += [f'  A worked solution to compare with: lab.solution("{report.question}")']
    return "\n".join(lines)


def as_html(report: Report, reveal: bool = True) -> str:
    """The same as HTML. Every word is escaped: a student's error message may hold markup."""
    items = [item(case.passed, f"{case.name}{measured(case)}", case_lines(case, reveal)) for case in report.cases]
    items += [item(m.passed, f"{m.name}: {m.message}", ()) for m in report.mechanisms]
    parts = [f"<b>{html.escape(headline(report))}</b>"]
    if report.note:
        parts.append(f"<div>{html.escape(report.note)}</div>")
    if items:
        parts.append(f'<ul style="list-style:none;padding-left:.4em;margin:.3em 0">{"".join(items)}</ul>')
    if report.diagnosis:
        parts.append(f"<div><b>What happened:</b> {inline_code(report.diagnosis)}</div>")
    if report.attempted and not report.passed:
        parts.append(f'<div>A hint: <code>lab.hint("{html.escape(report.question)}")</code></div>')
    if report.passed:
        parts.append(
            f'<div>A worked solution to compare with: <code>lab.solution("{html.escape(report.question)}")</code></div>'
        )
    return f'<div role="status" style="{STYLE.format(colour=COLOURS[report.status])}">{"".join(parts)}</div>'


def headline(report: Report) -> str:
    return f"{report.question}: {report.status} · {report.earned:g} of {report.points:g} points"


def measured(case: CaseResult) -> str:
    """How close a passed case came to its bound."""
    if not case.passed or not 0 < case.bound < float("inf"):
        return ""
    return f" (largest error {case.error:.1e}, allowed {case.bound:.1e})"


def case_lines(case: CaseResult, reveal: bool) -> list[str]:
    """Why a case failed, with the first differing element where that may be shown."""
    if case.passed:
        return []
    if not case.differences:
        return [case.message]
    return [line for difference in case.differences[:3] for line in difference_lines(difference, reveal)]


def difference_lines(difference: Difference, reveal: bool) -> Iterable[str]:
    yield f"{difference.where}: {difference.message}"
    if reveal and difference.values is not None:
        index, got, want = difference.values
        place = f"first at index {index}: " if index else ""
        yield f"{place}got {number(got)}, expected {number(want)}"


def number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


def item(passed: bool, text: str, lines: Iterable[str]) -> str:
    word = "passed" if passed else "failed"
    detail = "".join(f'<div style="padding-left:1.6em"><code>{html.escape(line)}</code></div>' for line in lines)
    return f'<li><span aria-label="{word}">{MARK[passed]}</span> {html.escape(text)}{detail}</li>'


def inline_code(text: str) -> str:
    """Escape, then turn `backticks` into code."""
    pieces = html.escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if i % 2 else piece for i, piece in enumerate(pieces))
