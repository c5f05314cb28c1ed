"""Rows 34, 35 and 37 and the ring's benchmark at small sizes, with threads for ranks; records are judged elsewhere."""

import copy
import json

import pytest

from refimpl.bench.cases import fpdt as bench_fpdt
from refimpl.bench.cases import parallel_ring
from refimpl.experiments import row_34, row_35, row_37
from refimpl.parallel.ring import LAYOUTS
from refimpl.parallel.tests.ranks import as_launch


def as_kept(result):
    """As a reader of the record has it."""
    return json.loads(json.dumps(result))


def shown(row, result):
    """Sentence -> whether it shows."""
    return {claim.says: claim.shows for claim in row.claims(result)}


@pytest.fixture(scope="module")
def ring_result():
    return as_kept(row_34.run(local=16, start=as_launch))


@pytest.fixture(scope="module")
def ulysses_result():
    return as_kept(row_35.run(start=as_launch))


@pytest.fixture(scope="module")
def fpdt_result():
    sizes = {"seq": 32, "block": 256, "timed": {"seq": 64, "heads": 2, "dim": 16}, "sizes": [16, 64]}
    return as_kept(row_37.run(**sizes, start=as_launch))


def test_row_34_shows_all_that_it_claims(ring_result):
    """Two and four ranks: errors, bytes, balance and memory."""
    assert len(ring_result["equality"]) == 2 * 6 and len(ring_result["bytes"]) == 2 * 3
    assert all(shown(row_34, ring_result).values())


def test_one_byte_more_or_one_score_less_would_not_show(ring_result):
    """Claims are judged from the result."""
    spoiled = copy.deepcopy(ring_result)
    spoiled["bytes"][0]["odd"][1][0] += 1
    spoiled["balance"][-4]["largest_over_mean"] = 1.01  # zigzag on 4 ranks
    spoiled["memory"][1]["peak_bytes"] *= 2
    spoiled["equality"][3]["largest_error"] = 1e-9
    assert [claim.shows for claim in row_34.claims(spoiled)] == [False, False, True, False, False]


def test_row_35_shows_the_bytes_and_finds_where_the_ring_sends_fewer(ulysses_result):
    """With grouped heads the usual comparison turns around: recorded as a claim that does not show."""
    assert [says for says, shows in shown(row_35, ulysses_result).items() if not shows] == [
        "Ulysses sends less than a ring"
    ]
    for row in ulysses_result["forecast"]:
        ring_is_less = row["ring_over_t"] < row["ulysses_over_t"]
        assert ring_is_less == (row["ranks"] < 1 + row["heads"] / row["kv_heads"])


def test_row_37_counts_what_it_foretells(fpdt_result):
    """All but what depends on the clock or on size shows at 32 tokens; the headline's chunk does not."""
    found = shown(row_37, fpdt_result)
    counted = [
        "QKV projection needs 3x",
        "output and gradients are those of full attention",
        "with a double buffer the device holds (q + 2 kv) / u",
        "causal, q + kv (u + 1) / 2 bytes are fetched",
    ]
    assert all(found[says] for says in counted)
    assert not found["64K tokens are the chunk whose transfer can just be hidden"]
    assert 8 <= fpdt_result["block"]["backward"] < 10


def test_a_chunk_that_is_never_hidden_is_recorded_as_none(monkeypatch):
    """A bus too slow for every size: no choice, and the claim does not show."""
    monkeypatch.setattr(row_37, "BUS", 1e5)
    found = row_37.chunk_size([8], 1, 8)
    assert found["chosen"] is None
    (claim,) = [row_37._choice({"chunk_size": found})]
    assert claim.measured == "none" and not claim.shows


def test_the_benchmark_times_each_layout_and_counts_larger_rings(monkeypatch):
    """The whole path at 64 tokens; the largest over the mean is 1.75 at four ranks, and 1 with zigzag."""
    monkeypatch.setattr(parallel_ring, "launch", as_launch)
    monkeypatch.setattr(parallel_ring, "SHAPE", {"seq": 64, "heads": 2, "dim": 8})
    rows = parallel_ring.run(runs=2)
    assert [row["layout"] for row in rows] == list(LAYOUTS) * 3
    assert all(row["seconds"] > 0 for row in rows[:3]) and rows[0]["speed_over_peer"] == 1
    assert [row["max_over_mean_work"] for row in rows[3:6]] == [1.75, 1.0, 1.0]
    assert rows[0]["flops"] == rows[2]["flops"] == 14 * 2 * 8 * 64 * 65 // 2


def test_a_slow_or_unequal_zigzag_is_a_problem():
    """Two sentences; a row that is only counted has no speed to miss."""
    slow = {"case": "2 ranks", "layout": "zigzag", "speed_over_peer": 1.1, "max_over_mean_work": 1.0}
    unequal = {"case": "4 ranks", "layout": "zigzag", "max_over_mean_work": 1.2}
    other = {"case": "4 ranks", "layout": "contiguous", "max_over_mean_work": 1.75}
    assert parallel_ring.problems([slow, unequal, other]) == [
        "zigzag is 1.1 times as fast as contiguous, 1.2 asked",
        "zigzag, 4 ranks: largest over mean work is 1.2, 1 asked",
    ]


def test_the_benchmark_compares_one_buffer_with_two(monkeypatch):
    """The whole path at 64 tokens; two buffers hold (q + 2 kv) / u where one holds (q + kv) / u."""
    monkeypatch.setattr(bench_fpdt, "SHAPE", {"seq": 64, "heads": 2, "dim": 8})
    monkeypatch.setattr(bench_fpdt, "BUS", 1e7)
    rows = bench_fpdt.run(runs=1)
    tensor = 64 * 2 * 8 * 4
    assert [row["peak_bytes"] * n for row, n in zip(rows, (2, 2, 4, 4, 8, 8), strict=True)] == [
        3 * tensor,
        5 * tensor,
    ] * 3
    assert all(row["seconds"] > 0 and row["waited_seconds"] > 0 for row in rows)


def test_a_double_buffer_that_waits_longer_is_a_problem():
    """In words, with both numbers."""
    rows = [{"case": "c", "buffers": "single", "waited_seconds": 0.5}, {"case": "c", "buffers": "double"}]
    assert bench_fpdt.problems([rows[0], rows[1] | {"waited_seconds": 0.2}]) == []
    assert bench_fpdt.problems([rows[0], rows[1] | {"waited_seconds": 0.6}]) == ["c: two buffers wait 0.6 s, one 0.5 s"]


def test_the_gpu_rows_have_transfers_memory_and_chunk_sizes():
    """The same code on a CPU at a small size: no number of it is kept."""
    rows = bench_fpdt.gpu("cpu", 1)
    assert [row["buffers"] for row in rows[:4]] == ["single", "double"] * 2
    assert [row["chunk"] for row in rows[4:]] == [1, 2, 4, 8, 16]
    assert rows[0]["bytes_in"] == rows[1]["bytes_in"] < rows[2]["bytes_in"]
