"""python -m refimpl.experiments [ROW …] [--list] [--force] [--jobs N]: published, measured, shows or does not show.

python -m refimpl.experiments            the table of all rows; runs what has no record, or a stale one
python -m refimpl.experiments 38         one row
python -m refimpl.experiments --list     rows, their records' dates and seconds; runs nothing
python -m refimpl.experiments 1 --force  run again although the record is fresh
python -m refimpl.experiments --jobs 1   one row at a time [default: as many as there are cores]
"""

import argparse
import multiprocessing
import os
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from refimpl.experiments import harness


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m refimpl.experiments",
        description="Published claims beside what we measured.",
        epilog="Example: python -m refimpl.experiments 38 --force",
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows such as 38 [default: all]")
    parser.add_argument("--list", action="store_true", help="show rows and the state of their records, run nothing")
    parser.add_argument("--force", action="store_true", help="run again although the record is fresh")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="rows at a time, one thread each [default: cores]"
    )
    options = parser.parse_args(argv)
    wanted = [row.zfill(2) for row in options.rows] or harness.rows()
    if unknown := [row for row in wanted if row not in harness.rows()]:
        print(f"there is no row {', '.join(unknown)}; here are {', '.join(harness.rows())}", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(map(state, wanted)))
        return 0
    for kept in records(wanted, options.force, options.jobs):
        print(table(kept), end="\n\n", flush=True)
    return 0


def records(wanted: list[str], force: bool, jobs: int) -> Iterator[dict]:
    """The record of each row in its order; those without a fresh one are made, `jobs` at a time."""
    to_do = [row for row in wanted if force or harness.is_stale(row)]
    if min(jobs, len(to_do)) < 2:
        yield from (harness.record(row) if row in to_do else harness.load(row) for row in wanted)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        made = {row: pool.submit(harness.record, row) for row in to_do}
        yield from (made[row].result() if row in made else harness.load(row) for row in wanted)


def state(row: str) -> str:
    """One line: row, title, and whether its record can be trusted."""
    kept = harness.load(row)
    if kept is None:
        return f"{row}  {harness.module(row).TITLE}  (never run)"
    made = kept["provenance"]
    word = "STALE" if harness.is_stale(row) else "fresh"
    return f"{row}  {kept['title']}  ({word}, {made['date']}, {made['seconds']} s on {made['device']})"


def table(kept: dict) -> str:
    """The claims of one record as text: verdict, claim and source, then published, measured and the note."""
    made = kept["provenance"]
    lines = [f"row {kept['row']}: {kept['title']}   [{made['date']}, {made['seconds']} s, {made['device']}]"]
    for claim in kept["claims"]:
        lines.append(f"  {'shows' if claim['shows'] else 'DOES NOT SHOW':<13}  {claim['says']}  [{claim['source']}]")
        lines.append(f"{'':17}published {_text(claim['published'])} | measured {_text(claim['measured'])}")
        lines += textwrap.wrap(claim["note"], 110, initial_indent=" " * 17, subsequent_indent=" " * 17)
    return "\n".join(lines)


def _text(value) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main())
