"""The roof is measured, and judges work by its intensity."""

import pytest
import torch

from refimpl import roofline
from refimpl.cost_model import Cost, matmul
from refimpl.roofline import A100_DATASHEET, Machine, Measured, best_seconds, measure_machine, measure_work

MACHINE = Machine("drawn", flop_per_s=100.0, bytes_per_s=10.0, dtype="float32")


def test_the_ridge_is_where_memory_hands_over_to_arithmetic():
    """10 FLOP per byte here: below it bandwidth times intensity, above it the peak."""
    assert MACHINE.ridge == 10
    assert [MACHINE.attainable(i) for i in (1.0, 5.0, 10.0, 50.0)] == [10, 50, 100, 100]
    assert [MACHINE.limit(Cost(flops, 10)) for flops in (50, 100, 500)] == ["memory", "compute", "compute"]


def test_time_is_the_longer_of_arithmetic_and_memory():
    """200 FLOPs take 2 s, 50 bytes 5 s: 5 s, since both run at once."""
    assert MACHINE.seconds(Cost(200, 50)) == 5
    assert MACHINE.seconds(Cost(200, 10)) == 2
    assert 100 / MACHINE.seconds(Cost(100, 40)) == MACHINE.attainable(2.5) == 25


def test_a_dot_lies_at_its_share_of_the_roof():
    """10 s where 5 s are possible is half of the roof, and 20 FLOP/s."""
    dot = Measured(Cost(200, 50), 10.0)
    assert (dot.flop_per_s, dot.share_of_roof(MACHINE)) == (20, 0.5)


def test_a_measured_machine_moves_with_the_clock(monkeypatch):
    """Twice the time for each call halves both peaks: they come from the clock and from nothing else."""

    def slowed(factor):
        monkeypatch.setattr(roofline, "best_seconds", lambda call, **_: 1e-3 * factor)
        return measure_machine(copy_bytes=2**16)

    fast, slow = slowed(1), slowed(2)
    assert fast.flop_per_s == 2 * slow.flop_per_s == 2 * 2048**3 / 1e-3
    assert fast.bytes_per_s == 2 * slow.bytes_per_s == 2 * 2**16 / 1e-3


def test_this_machine_has_a_roof_and_a_large_matmul_comes_near_it():
    """A short measurement: arithmetic beats memory by more than one FLOP per byte; n = 512 reaches a tenth of it."""
    machine = measure_machine(seconds=0.1, copy_bytes=2**26)
    assert machine.threads == torch.get_num_threads()
    assert machine.dtype == "float32"
    assert machine.ridge > 1
    a = torch.rand(512, 512)
    dot = measure_work(lambda: a @ a, matmul(512, 512, 512, itemsize=4), budget=0.05)
    assert 0.1 < dot.share_of_roof(machine) < 3


def test_the_best_of_at_least_three_calls_counts():
    """One slow call among them does not matter; the warm-up is not among them."""
    now, costs = [0.0], [9.0, 3.0, 2.0, 5.0]

    def call():
        now[0] += costs.pop(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline.time, "perf_counter", lambda: now[0])
        assert best_seconds(call, budget=1.0) == 2.0
    assert costs == []


def test_the_same_step_is_on_different_sides_on_different_machines():
    """A prompt's matmul of 64 rows: limited by memory on the datasheet's A100, by arithmetic on a slow CPU."""
    work = matmul(64, 1600, 6400)
    assert A100_DATASHEET.limit(work) == "memory"
    assert Machine("slow", 1e11, 1e10, "float32").limit(work) == "compute"
    assert A100_DATASHEET.ridge == pytest.approx(153, abs=0.5)
