"""What a rank did when: compute, communication and idle spans, as a Chrome trace and as a figure.

    def program():
        with Timeline() as timeline:
            step()
        return timeline.spans

    ranks = launch(program, 2)
    Path("trace.json").write_text(json.dumps(chrome_trace(ranks)))     # open it in ui.perfetto.dev
    figure(ranks)

PyTorch's profiler watches both sides on the CPU: operations of the calling thread, and gloo's work in flight on its own
threads. The clock starts behind a barrier, so that ranks, also of several nodes, share a zero to within its latency.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

__all__ = ["KINDS", "Span", "Timeline", "chrome_trace", "figure", "shares"]

KINDS = ("compute", "communication", "idle")
ZERO = "timeline: zero"
Interval = tuple[float | int, float | int]
Spans = Sequence[tuple]  # Spans; plain tuples after a launch


class Span(NamedTuple):
    """Seconds since the barrier. Spans of compute and idle fill the time; those of communication run beside them."""

    kind: str
    name: str
    start: float
    stop: float


class Timeline:
    """Records what happens inside `with`; `spans` is there after it. Recording slows small operations down.

    compute         operations on tensors, one after the other without a gap: one span
    communication   a collective or message from its start to its end, by name, hidden behind compute or not
    idle            no operation runs: this rank waits for another, or Python works
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        self.group = group
        self.spans: list[Span] = []

    def __enter__(self):
        self._profile = profile(activities=[ProfilerActivity.CPU])
        self._profile.__enter__()
        dist.barrier(group=self.group)
        with record_function(ZERO):
            pass
        return self

    def __exit__(self, *error):
        with record_function(ZERO):
            pass
        self._profile.__exit__(*error)
        if error[0] is None:
            self.spans = list(_spans(self._profile.events()))


def _spans(events: Iterable[Any]) -> Iterable[Span]:
    """The profiler's events between the two marks, in seconds."""
    events = list(events)
    begin, end = sorted(event.time_range.start for event in events if event.name == ZERO)
    inside = [event for event in events if event.time_range.end > begin and event.time_range.start < end]

    def seconds(event) -> Interval:
        return max(event.time_range.start - begin, 0) / 1e6, (min(event.time_range.end, end) - begin) / 1e6

    busy = union(seconds(event) for event in inside if _is_operation(event) and not _is_operation(event.cpu_parent))
    yield from (Span("compute", "compute", *interval) for interval in busy)
    yield from (Span("idle", "idle", *interval) for interval in without([(0.0, (end - begin) / 1e6)], busy))
    for event in inside:
        if event.name.startswith("gloo:"):
            yield Span("communication", event.name.removeprefix("gloo:"), *seconds(event))


def _is_operation(event: Any) -> bool:
    return event is not None and event.name.startswith("aten::")


def union(intervals: Iterable[Interval], gap: float | int = 2e-5) -> list[Interval]:
    """Joined where they overlap or lie at most `gap` seconds apart: Python's way from one operation to the next."""
    joined: list[Interval] = []
    for start, stop in sorted(intervals):
        if joined and start <= joined[-1][1] + gap:
            joined[-1] = joined[-1][0], max(joined[-1][1], stop)
        else:
            joined.append((start, stop))
    return joined


def without(intervals: Iterable[Interval], others: Iterable[Interval]) -> list[Interval]:
    """What is left of the intervals outside the others."""
    left = list(intervals)
    for low, high in others:
        parts = (
            (start, min(stop, low)) if side else (max(start, high), stop) for start, stop in left for side in (1, 0)
        )
        left = [(start, stop) for start, stop in parts if start < stop]
    return sorted(left)


def shares(spans: Spans) -> dict[str, float]:
    """Seconds of each kind, messages that overlap counted once, and `exposed`: communication while nothing computes."""
    found = {kind: union(((s[2], s[3]) for s in spans if s[0] == kind), gap=0) for kind in KINDS}
    found["exposed"] = without(found["communication"], found["compute"])
    return {kind: sum((stop - start for start, stop in intervals), 0.0) for kind, intervals in found.items()}


def chrome_trace(ranks: Sequence[Spans]) -> dict[str, Any]:
    """JSON of the Trace Event format: a process per rank, a thread per kind, microseconds."""
    events: list[dict[str, Any]] = []
    for rank, spans in enumerate(ranks):
        events.append({"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"rank {rank}"}})
        for row, kind in enumerate(KINDS):
            events.append({"ph": "M", "name": "thread_name", "pid": rank, "tid": row, "args": {"name": kind}})
        for kind, name, start, stop in spans:
            place = {"pid": rank, "tid": KINDS.index(kind), "ts": start * 1e6, "dur": (stop - start) * 1e6}
            events.append({"ph": "X", "name": name, "cat": kind, **place})
    return {"traceEvents": events, "displayTimeUnit": "ms"}


LOOKS = {
    "compute": ("#2f6f9f", ""),
    "communication": ("#e0a030", "///"),
    "idle": ("#dddddd", ""),
}  # differ in grey, too


def figure(ranks: Sequence[Spans]):
    """A matplotlib Figure: two lanes per rank, above what it computes, below what is on its way."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(8, 0.6 + 0.7 * len(ranks)), layout="constrained")
    axes = drawing.subplots()
    for rank, spans in enumerate(ranks):
        for kind, (colour, hatch) in LOOKS.items():
            bars = [(start * 1e3, (stop - start) * 1e3) for k, _, start, stop in spans if k == kind]
            lane = (rank + 0.05, 0.35) if kind == "communication" else (rank - 0.35, 0.35)
            look = {"facecolors": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.3}
            axes.broken_barh(bars, lane, label=kind if rank == 0 else None, **look)
    axes.set_yticks(range(len(ranks)), [f"rank {rank}" for rank in range(len(ranks))])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=3, frameon=False)
    return drawing
