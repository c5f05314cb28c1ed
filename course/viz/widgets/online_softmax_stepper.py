"""The stepper of unit 03: a stream of scores, its running state, and the change of unit at each new maximum."""

import math
from collections.abc import Iterable, Mapping

import traitlets

from course.viz.widgets.explorable import Explorable, bundle, option

DECIMALS = 4  # of a score on its way to the browser: 1,024 of them take 8 kB
MOST_SCORES = 4096


class OnlineSoftmaxStepper(Explorable):
    """Step, play or scrub through one-pass softmax; beside the given `rows` there are presets and a field to type in.

    rows: name -> scores, for example of one query against all keys. start: the row, or preset, that is shown first.
    """

    title = "Online softmax, step by step"
    _esm = bundle("online_softmax_stepper.js")
    rows = option(traitlets.Dict)
    start = option(traitlets.Unicode, "random")

    def __init__(self, rows: Mapping[str, Iterable[float]] | None = None, *, start: str = ""):
        given = {name: _scores(name, row) for name, row in (rows or {}).items()}
        super().__init__(rows=given, start=start or next(iter(given), "random"))

    def alt(self) -> str:
        rows = [(name, [float(score) for score in row.split()]) for name, row in self.rows.items()]
        words = [f"{name}: {len(row):,} scores, new maxima: {_maxima(row)}" for name, row in rows]
        return f"Explorable: one-pass softmax, key by key. {'; '.join(words) or 'Six streams of 8 to 16 scores.'}"


def _scores(name: str, row: Iterable[float]) -> str:
    """The scores as one text: shorter than a list in a notebook's JSON, and it can say -inf."""
    scores = [float(score) for score in row]
    if not 1 <= len(scores) <= MOST_SCORES:
        raise ValueError(f"{name}: {len(scores)} scores; give 1 to {MOST_SCORES:,}, one query's row.")
    if bad := [score for score in scores if math.isnan(score) or score == math.inf]:
        raise ValueError(f"{name}: holds {bad[0]}; a score is a number, or -inf for a masked key.")
    return " ".join(str(round(score, DECIMALS)) for score in scores)


def _maxima(row: Iterable[float]) -> int:
    found, largest = 0, -math.inf
    for score in row:
        found, largest = found + (score > largest), max(largest, score)
    return found
