"""Rows 31 and 32 run whole at small sizes, on threads; records are judged in refimpl/tests/test_experiments.py."""

import json
from dataclasses import replace

import pytest
import torch

from refimpl.experiments import harness, row_31, row_32
from refimpl.parallel.tests.ranks import run_ranks


def on_threads(function, ranks, *args, backend=None, timeout=None):
    return run_ranks(ranks, function, *args)


def verdicts(experiment, result):
    """What each claim says -> whether it shows, from the result as a reader of the record has it."""
    return {claim.says: claim.shows for claim in experiment.claims(json.loads(json.dumps(result)))}


@pytest.fixture(scope="module")
def lomo():
    return row_31.run(steps=2, config=replace(row_31.CONFIG, layers=2), start=on_threads)


def test_lomo_holds_one_gradient_and_no_state(lomo):
    """SGD's weights after the same steps; AdamW keeps two numbers per weight."""
    ways, weights = lomo["ways"], lomo["weight_bytes"]
    assert [ways[how]["state_bytes"] for how in ("sgd", "lomo", "adamw")] == [0, 0, 2 * weights]
    assert [ways[how]["gradient_bytes"] for how in ("sgd", "lomo")] == [weights, lomo["largest_bytes"]]
    assert lomo["sgd_minus_lomo"] < 1e-6 and ways["lomo"]["losses"] == pytest.approx(ways["sgd"]["losses"])
    assert ways["lomo"]["peak_bytes"] < ways["sgd"]["peak_bytes"] <= ways["adamw"]["peak_bytes"]


def test_on_ranks_lomo_ends_where_one_process_ends(lomo):
    """Two halves of each batch, the same loss afterwards."""
    assert [rank["loss"] for rank in lomo["ranks"]] == pytest.approx([lomo["loss_of_lomo"]] * 2, rel=1e-4)


def test_the_lomo_tables_slip_is_the_one_claim_that_does_not_show(lomo):
    """Everything that follows from the number of parameters does."""
    (failed,) = [says for says, shows in verdicts(row_31, lomo).items() if not shows]
    assert failed.startswith("total memory without checkpointing")


def test_many_devices_train_as_one_and_every_claim_shows():
    """Data, tensor and pipeline parallelism on two ranks; bytes by their laws."""
    result = row_32.run(ranks=(2,), start=on_threads)
    assert all(verdicts(row_32, result).values())
    weights, row = result["weights"], result["counted"][1]
    assert [rank["data"]["sent"] for rank in row["methods"]] == [8 * weights] * 2
    assert row["methods"][0]["pipeline"]["sent"] == 8 * row_32.ROWS * row["tokens"] * row_32.CONFIG.model


def test_fourteen_minutes_are_a_division():
    """And one part in a thousand that is not divided doubles them."""
    assert row_32.minutes(0.0) == 14.0625
    assert row_32.minutes(1e-3) == pytest.approx(14.4 + 0.999 * 14.0625)


def test_updates_below_half_a_step_of_bfloat16_are_lost():
    """A weight of 1 does not move by 1e-4, a float32 copy of it does."""
    assert 0.5 < row_32.lost_updates(3) < 1
    assert (torch.tensor(1.0).bfloat16() + 1e-4).item() == 1


@pytest.mark.parametrize("row", ["31", "32"])
def test_records_are_of_processes_on_two_and_four_ranks(row):
    """Not of threads: bytes per rank in the record are those of the launch."""
    result = harness.load(row)["result"]
    assert len(result["ranks"]) == 2 if row == "31" else {r["ranks"] for r in result["counted"]} == {2, 4}
