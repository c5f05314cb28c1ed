"""Nothing that a hostile process or student sends crashes, hangs or fills the one who reads it."""

import json
import random
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autograder import fuzz
from autograder.fuzz import attack, feed
from autograder.judge.intake import Refused, parse
from autograder.redteam.noise import changed_bytes, frame, hostile_blob, hostile_frame, hostile_notebook, split
from autograder.redteam.readers import Target, arrives_again, check_frame, check_notebook, depth, notebooks_of, same
from autograder.sandbox import wire

RESULTS = Path(__file__).resolve().parents[1] / "redteam" / "results"

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


def notebook(**changes):
    """A small notebook as bytes, with some of its top level replaced."""
    plain = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps({**plain, **changes}).encode()


@pytest.mark.parametrize("minor", [0.5, None, [], "5", True, -1, 10**30])
def test_whatever_nbformat_trips_over_is_refused(minor):
    """Its assertions are no ValueErrors: one such file once ended the run for the whole class."""
    try:
        parse(notebook(nbformat_minor=minor))
    except Refused:
        return
    assert minor in (True, -1, 10**30)  # nbformat reads these


def test_a_bool_with_another_byte_arrives_as_true():
    """Else it prints as True and differs from True."""
    form, blob = wire.encode(torch.tensor([True, False]))
    forged = blob[:-2] + b"\x02\x00"
    assert wire.decode(form, forged).view(torch.uint8).tolist() == [1, 0]


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_no_json_are_refused(name):
    """Python's parser reads them, and two such NaN are two keys of one dict."""
    with pytest.raises(wire.WireError, match=name):
        wire.parse_head(b'{"value": %s}' % name.encode())


# --- a slice of every campaign ------------------------------------------------------------------------


def frames(values):
    for value in values:
        form, blob = wire.encode(value)
        yield frame(json.dumps({"id": "0", "ok": True, "value": form}).encode(), blob)


VALUES = [
    (torch.randn(2, 3), {"mask": torch.ones(4, dtype=torch.bool)}),
    {"a": [1.5, float("nan"), (True, None)], 3: torch.zeros(0, 2, dtype=torch.bfloat16)},
    "text",
]


@pytest.fixture
def frame_reader():
    return Target("wire", list(frames(VALUES)), hostile_frame, check_frame)


def test_thousands_of_hostile_frames_are_accepted_or_refused(frame_reader):
    """Both happen: inputs that are all refused would show little."""
    attack(frame_reader, 4000, random.Random(7))
    assert not frame_reader.findings
    assert frame_reader.outcomes.total() == 4000
    assert min(frame_reader.outcomes["accepted"], frame_reader.outcomes["refused"]) > 400


def test_hundreds_of_hostile_notebooks_are_accepted_or_refused(tiny_release):
    """Repaired ones have every graded cell once; repairing again changes nothing."""

    def check(data):
        return check_notebook(data, tiny_release)

    reader = Target("intake", list(notebooks_of(tiny_release)), hostile_notebook, check)
    attack(reader, 600, random.Random(7))
    assert not reader.findings
    assert min(reader.outcomes["accepted"], reader.outcomes["refused"]) > 60


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | st.text(st.characters())
    | st.builds(
        lambda shape, dtype: (torch.rand(shape) * 4).to(dtype),
        st.lists(st.integers(0, 3), max_size=3),
        st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn]),
    ),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


@given(PLAIN)
@settings(max_examples=300, deadline=None)
def test_every_plain_value_arrives_as_it_was_sent(value):
    """Type, nesting, NaN, odd characters and every bit of a tensor."""
    if depth(value) <= 8:
        arrives_again(value)


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_bytes_of_any_kind_are_no_crash(data):
    """Of frames and of notebooks."""
    check_frame(data)
    with pytest.raises(Refused):
        parse(data)


# --- the fuzzer itself --------------------------------------------------------------------------------


def broken(check):
    return Target("wire", list(frames(VALUES)), hostile_frame, check)


def raise_a_panic(_):
    raise BaseException("panic")


def eat(_):
    kept.append(torch.ones(40 << 20))  # 160 MiB
    return "accepted"


def spin(_):
    while True:
        pass


kept = []
BROKEN = {
    "a crash": (lambda _: 1 / 0, "ZeroDivisionError"),
    "a panic that is no Exception": (raise_a_panic, "panic"),
    "a hang": (spin, "no answer"),
    "a broken promise": (lambda _: (_ for _ in ()).throw(AssertionError("changed")), "changed"),
}


@pytest.mark.parametrize(("check", "says"), BROKEN.values(), ids=BROKEN)
def test_a_reader_that_breaks_a_promise_is_found(check, says, monkeypatch):
    """A fuzzer that finds nothing must be able to find something."""
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    reader = broken(check)
    assert feed(reader, b"x") == "broke"
    assert says in reader.findings[0].problem and reader.findings[0].data == "78"


def test_a_reader_that_takes_too_much_memory_is_found(monkeypatch):
    """And the input that did it is named."""
    monkeypatch.setattr(fuzz, "BATCH", 2)
    reader = broken(eat)
    attack(reader, 2, random.Random(1))
    kept.clear()
    assert any("MiB" in finding.problem for finding in reader.findings)


def test_the_same_seed_makes_the_same_inputs_and_another_seed_others():
    """So that a finding can be repeated."""
    (seed, *_) = frames(VALUES)
    made = [[hostile_frame(random.Random(f"{s} {i}"), seed) for i in range(50)] for s in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
    assert len(set(made[0])) > 40


def test_lies_in_a_header_are_lies():
    """Most hostile blobs differ from the honest one in what their header says, not only in bytes."""
    (seed, *_) = frames(VALUES)
    _, blob = split(seed)
    rng = random.Random(3)
    assert sum(hostile_blob(rng, blob) != blob for _ in range(50)) > 40
    assert changed_bytes(rng, b"") is not None


def test_equal_means_equal_in_type_and_bits():
    """The promise "arrives equal" is as strict as this."""
    assert same(float("nan"), float("nan")) and same([1, (2.0,)], [1, (2.0,)])
    assert not same(1, True) and not same((1,), [1]) and not same({1: 2}, {1: 3}) and not same([1], [1, 2])
    assert not same(torch.zeros(2), torch.zeros(2, dtype=torch.float64)) and not same(torch.zeros(2), torch.ones(2))


def test_the_recorded_runs_are_large_and_clean():
    """What the handbook says of fuzzing is in these files, with versions and seed."""
    recorded = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("fuzz*.json"))]
    assert sum(each["inputs"] for each in recorded) >= 100_000
    assert all(each["findings"] == [] and each["seconds"] > 0 and "seed" in each for each in recorded)


def test_the_command_says_what_it_did(tmp_path, capsys, tiny, monkeypatch):
    """A table, a JSON file, and exit status 1 where something broke."""
    arguments = [
        "--inputs",
        "300",
        "--seed",
        "5",
        "--labs",
        str(tiny.folder.parent),
        "--json",
        str(tmp_path / "f.json"),
    ]
    assert fuzz.main(arguments) == 0
    said, record = capsys.readouterr().out, json.loads((tmp_path / "f.json").read_text())
    assert "0 findings, seed 5" in said and record["inputs"] >= 290
    assert {each["name"].split()[0] for each in record["targets"]} == {"wire", "intake"}
    monkeypatch.setattr(wire, "parse_head", json.loads)  # ValueError in place of the decoder's own refusal
    assert fuzz.main(arguments) == 1
    assert "FINDING  wire: " in capsys.readouterr().out
