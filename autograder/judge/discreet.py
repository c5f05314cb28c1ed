"""What may be said about a graded answer: words of ours, without numbers that the answer chose.

Shapes, lengths and counts are the answer's to choose, so a hidden input could be spelt with them: return a tensor of
shape (0, 216293) and read the message. The student's own check, on inputs that everybody knows, says all of it.
"""

import re

NUMBER = r"\d{1,3}(?:,\d{3})+(?!\d)|\d+"
SHAPE = re.compile(r"(expected )?\((\d+(?:, \d+)*),?\)")
LONG = re.compile(rf"(?<![\d.,(-])(?:{NUMBER})(?![\d.]*[)e]|\.\d)")
EXPECTED = re.compile(r"(?:expected|allowed)\b[^;]*")
ALWAYS = {"0", "1"}
DIGITS = 3  # a longer count is rounded


def discreet(text: str, counts: bool = True) -> str:
    """`text` with axes of shapes that nobody expected as "?", and, unless its `counts` are ours, long ones rounded."""
    expected = {number for part in EXPECTED.findall(text) for number in re.findall(NUMBER, part)}
    text = SHAPE.sub(lambda found: axes(found, expected), text)
    return LONG.sub(lambda found: rounded(found[0], expected), text) if counts else text


def axes(found: re.Match[str], expected: set[str]) -> str:
    if found[1]:
        return found[0]
    sizes = found[2].split(", ")
    if len(sizes) > len(expected) + 2:
        return "(…)"
    shown = ", ".join(size if size in expected | ALWAYS else "?" for size in sizes)
    return f"({shown},)" if len(sizes) == 1 else f"({shown})"


def rounded(number: str, expected: set[str]) -> str:
    digits = number.replace(",", "")
    if len(digits) <= DIGITS or number in expected:
        return number
    return f"about {int(float(f'{int(digits):.2g}')):,}"
