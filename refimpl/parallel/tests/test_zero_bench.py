"""The benchmark against DDP, ZeroRedundancyOptimizer and FSDP2: it compares equals, and misses are named."""

import pytest

from refimpl.bench.cases import parallel_zero as bench
from refimpl.bench.cases.parallel_zero import network


@pytest.fixture(scope="module")
def rows():
    """Every contender at a tiny size, two processes."""
    return bench.run(1, {"layers": 2, "model": 16, "batch": 4})


def test_every_pair_trains_the_same_weights(rows):
    """Ours and PyTorch's own, all from DDP's within float32's rounding, in positive time."""
    assert [(row["case"], row["peer"]) for row in rows] == [(ours, peer) for ours, (peer, _) in bench.PAIRS.items()]
    assert all(row["weights_apart"] <= 1e-5 and row["seconds"] > 0 and row["peer_seconds"] > 0 for row in rows)


def test_bytes_are_2_psi_and_3_psi(rows):
    """At N = 2 that is Ψ and 1.5 Ψ numbers of 4 bytes; FSDP2's root holds nothing here, so it sends as much as ours."""
    psi = sum(p.numel() for p in network(2, 16).parameters())
    by_case = {row["case"]: row for row in rows}
    for case in ("data", "ZeRO-1", "ZeRO-2"):
        assert by_case[case]["bytes"] == 4 * psi
    assert by_case["data"]["peer_bytes"] == 4 * psi
    assert by_case["ZeRO-3"]["bytes"] == by_case["ZeRO-3"]["peer_bytes"] == 6 * psi


def test_a_slow_pair_and_a_wrong_one_are_problems():
    """Each in a sentence with its bound."""
    good = {"case": "ZeRO-3", "peer": "FSDP2", "time_over_peer": 1.3, "weights_apart": 0.0}
    slow, wrong = good | {"time_over_peer": 1.31}, good | {"case": "data", "peer": "DDP", "weights_apart": 1e-3}
    assert bench.problems([good]) == []
    assert bench.problems([slow, wrong]) == [
        "ZeRO-3: 1.31 times FSDP2's time, at most 1.3 allowed",
        "data: its weights or DDP's are 1.0e-03 from DDP's",
    ]
