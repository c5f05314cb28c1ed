"""The timeline: spans of both sides, a trace that viewers read, and hidden communication told from exposed."""

import json
import time
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from refimpl.parallel import launch
from refimpl.parallel.tests.ranks import run_ranks
from refimpl.parallel.timeline import ZERO, Span, Timeline, _spans, chrome_trace, figure, shares, union, without

SLEEP = 0.3


def late_rank_0():
    """Rank 0 sleeps while rank 1 is in the all-reduce; then both compute."""
    a = torch.randn(300, 300)
    with Timeline() as timeline:
        if dist.get_rank() == 0:
            time.sleep(SLEEP)
        dist.all_reduce(torch.ones(1000))
        for _ in range(20):
            a = torch.tanh(a @ a)
    return timeline.spans


@pytest.fixture(scope="module")
def ranks():
    return launch(late_rank_0, 2, timeout=120)


def test_a_late_rank_makes_the_other_wait(ranks):
    """Rank 1's all-reduce lasts as long as rank 0 sleeps; rank 0's is short; both are idle meanwhile."""
    late, waiting = (shares(spans) for spans in ranks)
    assert late["communication"] < 0.5 * SLEEP < 0.9 * SLEEP < waiting["communication"]
    assert min(late["idle"], waiting["idle"]) > 0.9 * SLEEP and min(late["compute"], waiting["compute"]) > 0
    assert waiting["exposed"] > 0.9 * SLEEP


def test_compute_and_idle_fill_the_time_of_a_rank(ranks):
    """From zero to the end, without overlap."""
    for spans in ranks:
        filled = sorted(span[2:] for span in spans if span[0] != "communication")
        assert filled[0][0] == 0
        assert all(one[1] == pytest.approx(two[0]) for one, two in pairwise(filled))


def test_the_trace_is_json_with_a_row_per_kind(ranks):
    """Names for ranks and rows, microseconds, every span once."""
    events = json.loads(json.dumps(chrome_trace(ranks)))["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == sum(len(spans) for spans in ranks)
    assert {event["pid"] for event in spans} == {0, 1} and max(event["dur"] for event in spans) > 0.9e6 * SLEEP
    assert [e["args"]["name"] for e in events if e["name"] == "process_name"] == ["rank 0", "rank 1"]


def test_the_figure_has_a_lane_for_each_rank_and_kind(ranks):
    """Bars of three looks per rank, drawn without a display."""
    pytest.importorskip("matplotlib")
    axes = figure(ranks).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["rank 0", "rank 1"]
    assert len(axes.collections) == 6


def test_one_rank_in_this_process_is_recorded_as_well():
    """A failure inside leaves no spans and is not hidden."""

    def program():
        with pytest.raises(ValueError, match="inside"), Timeline() as broken:
            raise ValueError("inside")
        with Timeline() as timeline:
            torch.ones(100, 100) @ torch.ones(100, 100)
        return broken.spans, timeline.spans

    ((broken, spans),) = run_ranks(1, program)
    assert broken == [] and {span.kind for span in spans} == {"compute", "idle"}


def test_hidden_communication_is_not_exposed():
    """Two messages of 4 s in all, 3 s of them while the rank computes."""
    spans = [
        Span("compute", "", 0.0, 3.0),
        Span("communication", "send", 1.0, 3.0),
        Span("communication", "recv", 2.0, 4.0),
    ]
    assert shares(spans) == {"compute": 3, "communication": 3, "idle": 0, "exposed": 1}


def test_intervals_join_and_subtract():
    """Across gaps, in any order, to nothing."""
    assert union([(3, 4), (0, 1), (1, 2)], gap=0) == [(0, 2), (3, 4)]
    assert union([(0, 1), (1.5, 2)], gap=0.5) == [(0, 2)]
    assert without([(0, 10)], [(2, 3), (5, 12)]) == [(0, 2), (3, 5)]
    assert without([(0, 1)], [(0, 1)]) == [] and without([(0, 1)], []) == [(0, 1)]


def test_only_outermost_operations_between_the_marks_count():
    """What runs before zero is cut; an operation inside another is part of it."""

    def event(name, start, end, parent=None):
        return SimpleNamespace(name=name, time_range=SimpleNamespace(start=start, end=end), cpu_parent=parent)

    outer = event("aten::linear", 90, 200)
    events = [event(ZERO, 100, 101), event(ZERO, 300, 301), outer, event("aten::mm", 120, 150, outer),
              event("gloo:all_reduce", 150, 400), event("aten::add", 10, 20)]  # fmt: skip
    assert list(_spans(events)) == [
        Span("compute", "compute", 0.0, pytest.approx(1e-4)),
        Span("idle", "idle", pytest.approx(1e-4), pytest.approx(2e-4)),
        Span("communication", "all_reduce", pytest.approx(5e-5), pytest.approx(2e-4)),
    ]
