"""The ledger keeps what a student measured, and never loses a row."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from autograder import ledger
from autograder.ledger import LedgerError, Row, path_for, record, rows

ROW = Row("03_online_softmax", "blocks of 128", "1/8", 1.0, "1/2", 0.25, "exact", "bought memory, paid a product")


@pytest.fixture
def book(tmp_path):
    return tmp_path / ledger.NAME


def test_a_row_is_written_and_read_back(book):
    """As plain JSON that a person can read."""
    assert record(book, ROW) == "03_online_softmax: recorded in ledger.json."
    assert rows(book) == [ROW]
    assert json.loads(book.read_text(encoding="utf-8"))["rows"][0]["what"] == "blocks of 128"


def test_labs_stand_in_their_order_one_row_each(book):
    """Whenever they were done."""
    for slug in ("04_flash_attention", "03_online_softmax", "04_flash_attention"):
        record(book, replace(ROW, lab=slug))
    assert [row.lab for row in rows(book)] == ["03_online_softmax", "04_flash_attention"]


def test_a_changed_row_keeps_the_earlier_one_and_says_so(book):
    """Running the last cell again loses nothing."""
    record(book, ROW)
    assert "earlier row is kept" in record(book, replace(ROW, time=0.5))
    assert record(book, replace(ROW, time=0.5)) == "03_online_softmax: already in ledger.json."
    kept = ledger.read(book)
    assert [row["time"] for row in kept["rows"]] == [0.5] and [row["time"] for row in kept["earlier"]] == [0.25]


@pytest.mark.parametrize(
    "changes",
    [
        {"sentence": "bought …, paid …"},
        {"what": " "},
        {"memory": "..."},
        {"time": float("nan")},
        {"flops": float("inf")},
    ],
)
def test_an_unfinished_row_is_not_written(book, changes):
    """It says which field; an untouched notebook leaves no file."""
    said = record(book, replace(ROW, **changes))
    assert said.startswith(f"Not recorded yet: {next(iter(changes))}") and not book.exists()


@pytest.mark.parametrize("content", ["", "[]", '{"rows": [{"lab": "x"}], "earlier": []}', "{"])
def test_a_file_that_is_no_ledger_is_left_alone(book, content):
    """It may hold something that matters to its owner."""
    book.write_text(content, encoding="utf-8")
    with pytest.raises(LedgerError, match="It was left as it is: rename it"):
        record(book, ROW)
    assert book.read_text(encoding="utf-8") == content


def test_a_write_that_fails_leaves_the_old_ledger_and_no_draft(book, monkeypatch):
    """A full disk in the middle of a write, for example."""
    record(book, ROW)
    before = book.read_bytes()

    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        record(book, replace(ROW, time=9))
    assert book.read_bytes() == before and [path.name for path in book.parent.iterdir()] == [ledger.NAME]


def test_a_folder_that_cannot_be_written_says_what_to_do(tmp_path):
    """A lab opened from a read-only place."""
    with pytest.raises(LedgerError, match="Copy the lab to a folder of yours"):
        record(tmp_path / "gone" / ledger.NAME, ROW)


def test_all_labs_of_a_student_share_one_ledger(tmp_path, monkeypatch):
    """Above `labs/`, above a lab's own folder, where one lies already, or where the variable says."""
    monkeypatch.delenv("COURSE_LEDGER", raising=False)
    slug = ROW.lab
    assert path_for(slug, tmp_path / "labs" / slug) == tmp_path / "ledger.json"
    assert path_for(slug, tmp_path / slug) == tmp_path / "ledger.json"
    assert path_for(slug, tmp_path / "elsewhere") == tmp_path / "elsewhere" / "ledger.json"
    (tmp_path / "ledger.json").touch()
    assert path_for(slug, tmp_path / "a" / "b") == tmp_path / "ledger.json"
    monkeypatch.setenv("COURSE_LEDGER", str(tmp_path / "mine.json"))
    assert path_for(slug, tmp_path / slug) == Path(tmp_path / "mine.json")


def test_what_a_student_types_is_text(book):
    """The table shows it and does not run it."""
    record(book, replace(ROW, sentence="<script>x</script>"))
    shown = ledger.as_html(book)
    assert "&lt;script&gt;" in shown and "<script>" not in shown and shown.count("<tr>") == 2
    assert ledger.as_text(book).startswith("03_online_softmax | blocks of 128 | 1/8 | 1 | 1/2 | 0.25 | exact | ")


def test_an_empty_ledger_shows_nothing(book):
    """A first lab's status has no empty table."""
    assert ledger.as_text(book) == "" and ledger.as_html(book) == ""
