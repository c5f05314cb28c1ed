"""Rows 4, 13 and 14 and the benchmark: cheap parts again, on the toy; the records are judged in test_experiments."""

import math

import pytest
import torch

from refimpl.bench.cases import kv_cache as bench
from refimpl.experiments import harness, row_04, row_13, row_14
from refimpl.models import SmolLM
from refimpl.models.llama import LlamaConfig
from refimpl.models.tokenizer import ByteTokenizer
from refimpl.models.toy import toy_llama

SMALL = LlamaConfig(
    layers=2, model=36, heads=9, kv_heads=3, dim=8, ffn=48, vocab=256, context=1024, rope_base=100.0, norm_eps=1e-5
)


@pytest.fixture
def lm():
    return SmolLM(toy_llama(SMALL), ByteTokenizer(), SMALL, True, "toy")


def test_caches_repeat_what_one_pass_says(lm):
    """Row 4's comparison, static, paged and ragged, on another model."""
    rows = [*row_04.equality(lm, 40, 4), row_04.ragged(lm, [5, 33, 16], 4)]
    assert [row["same_argmax"] for row in rows] == [4, 4, 12]
    assert max(row["largest_difference"] for row in rows) < 1e-3
    assert rows[-1]["tokens"] <= rows[-1]["paged_places"] < rows[-1]["static_places"]


def test_counted_flops_are_those_of_the_cost_model(lm):
    """Prefill and decoding step, to the last FLOP; attention is the part that grows with the square."""
    row = row_04.flops(lm, 50)
    assert (row["prefill_flops"], row["decode_flops"]) == row_04.expected_flops(lm, 50)
    assert row["prefill_attention_flops"] == 2 * 4 * 9 * 8 * 50**2
    assert row["decode_attention_flops"] == 2 * 4 * 9 * 8 * 51


def test_allocated_bytes_follow_the_number_of_kv_heads(lm):
    """9, 3 and 1 heads, two precisions: the formula to the byte."""
    rows = row_04.cache_bytes(lm, 100)
    assert [row["kv_heads"] for row in rows] == [9, 9, 3, 3, 1, 1]
    assert all(row["allocated"] == row["formula"] for row in rows)


def test_top_k_with_every_key_has_the_loss_of_full_attention(lm):
    """And the k largest weights hold a share that grows with k, to 1."""
    ids = torch.randint(256, (2, row_13.FROM + 20), generator=torch.Generator().manual_seed(0))
    full = row_13.losses(ids, lm.model)
    assert row_13.top_k_losses(lm, ids, ids.shape[1]) == pytest.approx(full, abs=1e-4)
    assert row_13.top_k_losses(lm, ids, 1) != pytest.approx(full, abs=1e-2)
    share = row_13.mass(lm, ids, [1, 8, ids.shape[1]])
    assert len(share) == 2 and all(a < b < c and c == pytest.approx(1, abs=1e-3) for a, b, c in share)


def test_the_ratio_of_perplexities_pairs_the_windows():
    """A constant factor between two runs has no error, however far windows lie apart."""
    times, error = row_13.ratio([1.0 + math.log(2), 3.0 + math.log(2)], [1.0, 3.0])
    assert times == pytest.approx(2) and error == pytest.approx(0, abs=1e-6)


def test_eviction_counts_what_it_keeps(lm):
    """Row 14's prose run at a small size: exactly the budget in each layer, window and head."""
    ids = torch.randint(256, (2, row_13.FROM + 20), generator=torch.Generator().manual_seed(0))
    for name in row_14.PROSE:
        row = row_14.prose(lm, ids, 16, name)
        assert (row["kept"], row["counted"], row["evicted"]) == ([16], 2 * 2 * 3, ids.shape[1] - 16)
        assert row["bytes"] == 2 * 2 * 2 * 3 * 16 * 8 * 4


def test_a_glossary_asks_for_each_partner_in_each_round(monkeypatch, lm):
    """Every question's answer stands at the beginning, after the same word."""
    monkeypatch.setattr(row_14, "_words", lambda lm, text: list(range(97, 123)))
    ids, asked = row_14.glossary(lm, 0)
    pairs = {ids[4 * i].item(): ids[4 * i + 2].item() for i in range(row_14.PAIRS)}
    assert len(asked) == row_14.PAIRS * row_14.ROUNDS and len(set(pairs)) == row_14.PAIRS
    assert all(pairs[ids[at - 1].item()] == ids[at + 1].item() for at in asked.tolist())


@pytest.mark.parametrize("row", ["04", "13", "14"])
def test_records_are_of_the_real_model(row):
    """No figure of the course is made with toy weights."""
    assert harness.load(row)["result"]["mark"] == ""


def test_the_bench_case_has_a_row_for_a_missing_peer_and_a_bound_for_a_slow_one(monkeypatch):
    """Without transformers it says what to install; slower rows are problems, in words."""
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    (row,) = bench.model_rows(1)
    assert "pip install '.[peers]'" in row["unavailable"] and bench.problems([row]) == []
    slow = {"case": "step", "keys": 128, "peer": "transformers", "speed_over_peer": 0.9}
    other = {"case": "generate", "keys": 128, "peer": "transformers", "speed_over_peer": 1.1, "same_tokens": False}
    attention = {"case": "attention", "keys": 8192, "peer": "sdpa", "speed_over_peer": 0.5}
    first, second, third = bench.problems([slow, other, attention])
    assert "0.9 of transformers" in first and "differ" in second and "2.00 times SDPA" in third
    assert bench.problems([slow | {"speed_over_peer": 1.0}]) == []


def test_the_attention_row_measures_the_same_thing_twice():
    """FLOPs and bytes of one query over 64 keys, both times positive."""
    row = bench.attention_row(64, 1)
    assert row["flops"] == 4 * 9 * 64 * 64 and row["bytes"] == 2 * 3 * 64 * 64 * 4
    assert row["seconds"] > 0 and row["peer_seconds"] > 0


def test_the_gpu_rows_compare_split_unsplit_and_sdpa(device):
    """The same code on a short cache, in the interpreter where there is no GPU: no number of it is kept."""
    rows = bench.gpu(device, 1, lengths=(40,))
    assert [row["implementation"] for row in rows] == ["split", "unsplit", "sdpa"]
    assert all(row["gb_per_s"] > 0 for row in rows)
