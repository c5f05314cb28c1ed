"""Rows 33 and 36: ZeRO's table, shards and bytes at small sizes with threads for ranks, and Llama 3's table whole."""

import copy
import json

import pytest

from refimpl.cost_model import ModelShape
from refimpl.experiments import row_33, row_36
from refimpl.parallel import fake_group
from refimpl.parallel.tests.ranks import as_launch


def as_kept(result):
    """As a reader of the record has it."""
    return json.loads(json.dumps(result))


def shown(row, result):
    """Sentence -> whether it shows."""
    return {claim.says: claim.shows for claim in row.claims(result)}


@pytest.fixture(scope="module")
def zero():
    """FSDP2 itself is in test_planner, seconds per start; here its shards are foretold."""

    def foretold(shape, ranks):
        return {n: (fake_group.predicted(shape, n, 0), fake_group.predicted(shape, n, n - 1)) for n in ranks}

    tiny = {"tiny": ModelShape(layers=2, model=640, heads=1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_group, "measure", foretold)
        return as_kept(row_33.run(shapes=tiny, table_ranks=(1, 1024), start=as_launch))


@pytest.fixture(scope="module")
def llama():
    return as_kept(row_36.run())


def test_row_33_shows_all_but_the_128b_model_on_64_gpus(zero):
    """All 54 cells, FSDP2's shards, bytes kept and sent; the states of 128B leave nothing of 64 x 32 GB."""
    says = shown(row_33, zero)
    assert len(zero["cells"]) == 54 and len(zero["fsdp2"]) == 2 and len(zero["counted"]) == 2 * 4
    assert [sentence for sentence, shows in says.items() if not shows] == [
        "a 128B model trains on 64 GPUs of 32 GB"
    ]  # fmt: skip


def test_one_byte_or_one_row_more_would_not_show(zero):
    """Claims are judged from the result, each from its own part."""
    spoiled = copy.deepcopy(zero)
    spoiled["cells"][7]["rounded"] = "1"
    spoiled["fsdp2"][1]["first"] += 640
    spoiled["counted"][3]["held"][0] += 1
    spoiled["counted"][7]["sent"][2] += 1
    assert not any(
        shown(row_33, spoiled)[claim.says] for claim in row_33.claims(zero) if "model trains" not in claim.says
    )


def test_row_36_finds_the_slips_of_the_llama_3_table(llama):
    """Products of the third row and 41 % do not follow; with DP = 8 all products do."""
    says = shown(row_36, llama)
    assert [shows for sentence, shows in says.items() if sentence.startswith(("GPUs", "tokens", "MFU"))] == [False] * 3
    assert sum(says.values()) == len(says) - 3


def test_row_36_would_show_a_table_without_slips(llama):
    """The same judgement on the right third row and on 40 %."""
    right = copy.deepcopy(llama)
    right["rows"][2] = right["third_row_with_dp_8"]
    right["rows"][1]["printed"]["mfu"] = 40
    assert all(shown(row_36, right).values())
