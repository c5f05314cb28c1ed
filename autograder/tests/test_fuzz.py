"""Nothing that a hostile process or student sends crashes, hangs or fills the one who reads it."""

import time

import pytest

from autograder.judge.intake import Refused, parse
from autograder.sandbox import wire

# Found by fuzzing; each once cost minutes or more.
OPEN_STRINGS = {"escaped quotes": b'"' + b'\\"' * 400_000, "backslashes": b'"' + b"\\" * 800_001}


@pytest.mark.parametrize("text", OPEN_STRINGS.values(), ids=OPEN_STRINGS)
def test_a_string_that_never_ends_costs_one_pass(text):
    """Counting brackets once began anew at each quote: a megabyte took an hour of the judge's time."""
    start = time.process_time()
    with pytest.raises(wire.WireError):
        wire.parse_head(text)
    with pytest.raises(Refused):
        parse(text)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("before", [b"", b'"\\"[", ', b'"\\\\", '])
def test_brackets_inside_strings_are_not_counted_and_those_outside_are(before):
    """Escapes end where JSON says they end."""
    deep = wire.MAX_DEPTH + 1
    assert wire.parse_head(b'{"a": [' + before + b'"' + b"[" * deep + b'"]}')
    with pytest.raises(wire.WireError, match="deeper"):
        wire.parse_head(b'{"a": [' + before + b"[" * deep + b"]" * deep + b"]}")
