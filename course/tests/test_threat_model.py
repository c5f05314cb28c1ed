"""The threat model promises nothing that no attack and no test shows."""

import re

import pytest

from course.tests.test_docs import CODE
from course.tests.tree import ROOT

PAGE = ROOT / "course" / "staff" / "threat-model.md"
ROW = re.compile(r"^\| (?!somebody|---)(.+) \|$", re.MULTILINE)


def rows():
    for line in ROW.findall(PAGE.read_text(encoding="utf-8")):
        tried, mechanism, tier, shown = (cell.strip() for cell in line.split(" | "))
        yield pytest.param(tier, mechanism, CODE.findall(shown), id=tried)


def defined(folder, pattern):
    texts = (path.read_text(encoding="utf-8") for path in (ROOT / "autograder" / folder).rglob(pattern))
    return {name for text in texts for name in re.findall(r"^def (\w+)\(", text, re.MULTILINE)}


@pytest.mark.parametrize(("tier", "mechanism", "shown"), list(rows()))
def test_each_line_of_defence_has_a_mechanism_a_tier_and_an_attack_or_test_that_exists(tier, mechanism, shown):
    """A renamed attack would leave a promise that nothing checks."""
    known = defined("redteam/attacks", "*.py") | defined("tests", "test_*.py")
    assert mechanism and tier in ("T0", "T1", "T2")
    assert shown and not set(shown) - known


def test_the_page_says_what_is_not_defended():
    """The kernel, copying, the owner's machine, side channels, GPU memory, the public repository."""
    text = PAGE.read_text(encoding="utf-8").partition("## What is not defended")[2]
    for word in ("Copied answers", "kernel", "Your own machine", "Side channels", "GPU memory", "repository is public"):
        assert word in text
