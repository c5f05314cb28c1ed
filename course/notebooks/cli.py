"""`python -m course notebooks`: build, check and run the notebooks."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import nbformat
from nbformat.notebooknode import NotebookNode

from course.notebooks.build import build, to_text
from course.notebooks.execute import TIMEOUT_S, attach, execute, has_outputs, scrub
from course.notebooks.leaks import leaks
from course.notebooks.lint import lint
from course.notebooks.release import holds_answers, student_text
from course.notebooks.sources import NotebookError, Problem, Source, discover, open_source, shown

DESCRIPTION = """Build every notebook from its .py source.
Lectures keep their outputs while their code is unchanged; labs become the student's version."""
EPILOG = """examples:
  python -m course notebooks                                 build what is stale
  python -m course notebooks --execute                       also run the lectures whose code changed
  python -m course notebooks --check                         change nothing; exit 1 on a stale or faulty notebook
  python -m course notebooks --check --execute labs/_template
                                                             run it too, labs with their solutions; store nothing"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = _parser().parse_args(argv)
    verb = check if arguments.check else write
    failed, start = 0, time.monotonic()
    try:
        sources = [open_source(path) for path in arguments.paths] or list(discover())
    except NotebookError as error:
        print(error, file=sys.stderr)
        return 1
    for source in sources:
        problems: Sequence[Problem | NotebookError]
        try:
            problems = verb(source, run=arguments.execute, force=arguments.force)
        except NotebookError as error:
            problems = [error]
        for problem in problems:
            print(problem, file=sys.stderr)
        failed += bool(problems)
    done = "checked" if arguments.check else "built"
    print(f"{len(sources)} notebooks {done} in {time.monotonic() - start:.1f} s, {failed or 'none'} with problems.")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="course notebooks", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("paths", nargs="*", type=Path, help="lectures or lab folders [default: all]")
    parser.add_argument("--check", action="store_true", help="write nothing; compare, lint, look for leaks")
    parser.add_argument("--execute", action="store_true", help=f"run lectures, at most {TIMEOUT_S:.0f} s each")
    parser.add_argument("--force", action="store_true", help="with --execute: run lectures that are not stale, too")
    return parser


def write(source: Source, *, run: bool, force: bool) -> list[Problem]:
    """Build one notebook and write it if its bytes changed; with `run`, execute a stale lecture first."""
    built = build(source)
    problems = lint(source, built)
    if source.is_lab:
        text = student_text(source)
        if leaked := leaks(source, _parse(text)):
            return [*problems, *leaked]  # not written: a leak must not reach a commit
        if holds_answers(_committed(source)):
            fix = "Move it to a folder of your own, then build again."
            return [*problems, Problem(shown(source.notebook), None, "holds somebody's answers; not overwritten", fix)]
    else:
        built = attach(built, _committed(source) or built)
        if run and (force or not has_outputs(built)):
            _run(built, source)
        problems += scrub(source, built)
        text = to_text(built)
        if not has_outputs(built):
            print(
                f"{shown(source.notebook)}: without outputs. Run: python -m course notebooks --execute {source.shown}"
            )
    _write(source.notebook, text)
    return problems


def check(source: Source, *, run: bool, force: bool) -> list[Problem]:
    """Compare one committed notebook with what its source makes; with `run`, execute it and store nothing."""
    del force
    built = build(source)
    problems = lint(source, built)
    committed = source.notebook.read_text(encoding="utf-8") if source.notebook.is_file() else ""
    if source.is_lab:
        expected = student_text(source)
        problems += leaks(source, _committed(source) or _parse(expected))
    else:
        expected = to_text(attach(build(source), _committed(source) or built))
        problems += scrub(source, _parse(expected))
        if committed == expected and not has_outputs(_parse(expected)):
            problems.append(_stale(source, "its outputs are not those of its code", "--execute "))
    if committed != expected:
        problems.append(_stale(source, "it is not what its source makes" if committed else "it is missing", ""))
    if run:
        _run(built, source)
        problems += scrub(source, built) if not source.is_lab else []
    return problems


def _stale(source: Source, why: str, option: str) -> Problem:
    path = source.shown.removesuffix("/lab.py")
    return Problem(f"STALE {shown(source.notebook)}", None, why, f"Run: python -m course notebooks {option}{path}")


def _run(notebook: NotebookNode, source: Source) -> None:
    seconds = execute(notebook, source, _progress(source.shown))
    print(f"\r{source.shown}: ran in {seconds:.1f} s{' ' * 20}")


def _progress(name: str) -> Callable[[str], None]:
    """Rewrite one line on a terminal; stay silent in a log."""
    return (lambda text: print(f"\r{name}: {text}", end="   ", flush=True)) if sys.stdout.isatty() else (lambda _: None)


def _parse(text: str) -> NotebookNode:
    return nbformat.reads(text, as_version=4)


def _committed(source: Source) -> NotebookNode | None:
    if not source.notebook.is_file():
        return None
    try:
        return _parse(source.notebook.read_text(encoding="utf-8"))
    except nbformat.reader.NotJSONError:  # most often a merge conflict
        fix = "Delete it; it is made from the .py file beside it."
        raise NotebookError(f"{shown(source.notebook)}: no notebook, perhaps a merge conflict. {fix}") from None


def _write(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"{shown(path)}: written")
