"""What must never stand in a page that students see, in a form that can be searched for."""

import html
import re
from collections.abc import Iterator

from autograder.judge.intake import load_release
from autograder.labs import Lab
from autograder.tree import tensors

DIGITS = 6  # a printed number with so many significant digits is recognised as a hidden one


def hidden_numbers(lab: Lab, seed: int) -> set[str]:
    """The hidden inputs and expected values, each as its first significant digits; the seed as it is."""
    found = {str(seed)}
    for question in lab.checks.values():
        oracle = lab.oracle(question)
        for _, case in question.draw(seed):
            values = [case.args, case.kwargs]
            if oracle is not None:
                values.append(question.drive(oracle, case))
            for tensor in tensors(values):
                if tensor.is_floating_point():
                    found |= set(significant(" ".join(f"{v:.12g}" for v in tensor.detach().flatten()[:200].tolist())))
    return found


def significant(text: str) -> Iterator[str]:
    """Every number of `text` that has enough digits to be recognised, cut to them, without sign or exponent."""
    for number in re.findall(r"\d[\d.]*(?:e[+-]?\d+)?", text):
        digits = re.sub(r"e.*|\.", "", number).lstrip("0")
        if len(digits) >= DIGITS:
            yield digits if len(digits) > 15 else digits[:DIGITS]


def secret_texts(lab: Lab) -> list[str]:
    """Lines of checks.py that are not also in the notebook that everybody has, and the folder of the judge."""
    given = " ".join(cell.source for cell in load_release(lab.folder).notebook.cells)
    lines = [line.strip() for line in (lab.folder / "checks.py").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if len(line) >= 30 and not line.startswith("#") and line not in given] + [".judge"]


def visible(page: str) -> str:
    """The text of an HTML page."""
    page = re.sub(r"<(style|script)\b.*?</\1>", " ", page, flags=re.S | re.I)
    return html.unescape(re.sub(r"<[^>]+>", "", page))
