"""The order in which streams wait for each other, told by streams that write down what they are asked."""

import contextlib
import itertools

import pytest
import torch

from refimpl.parallel.stage import Stage, _StreamBus


class Recorder:
    """Stands in for torch.cuda: streams that execute at once and log waits, copies and events."""

    def __init__(self):
        self.log, self.numbers, self.running = [], itertools.count(), "compute"
        self.compute = self.stream_named("compute")

    def stream_named(self, name):
        recorder = self

        class Event:
            def __init__(self):
                self.name = f"{name}{next(recorder.numbers)}"
                recorder.log.append(f"{name} records {self.name}")

            def synchronize(self):
                recorder.log.append(f"host waits for {self.name}")

        class Stream:
            def record_event(self):
                return Event()

            def wait_event(self, event):
                recorder.log.append(f"{name} waits for {event.name}")

        Stream.name = name
        return Stream()

    @contextlib.contextmanager
    def running_on(self, stream):
        self.running, before = stream.name, self.running
        yield
        self.running = before


@pytest.fixture
def recorder(monkeypatch):
    """A recorder in the place of torch.cuda's streams."""
    made = Recorder()
    names = iter(["inward", "outward"])
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.stream_named(next(names)))
    monkeypatch.setattr(torch.cuda, "stream", made.running_on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: made.compute)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: made.log.append(f"{stream.name} keeps"))
    copy = torch.Tensor.copy_

    def logged(target, x, non_blocking=False):
        made.log.append(f"{made.running} copies")
        return copy(target, x)

    monkeypatch.setattr(torch.Tensor, "copy_", logged)
    return made


def staged(recorder):
    """A stage on the CPU with CUDA's bus."""
    stage = Stage()
    stage._bus = _StreamBus(stage)
    return stage


def test_a_room_is_filled_again_only_after_the_compute_that_read_it(recorder):
    """Two rooms, three chunks: the third copy waits for the event that follows the first chunk's compute, and compute
    waits for each arrival; the second copy starts before the first chunk is computed."""
    stream = staged(recorder).stream([(torch.full((2,), float(n)),) for n in range(3)], buffers=2)
    for n, (x,) in enumerate(stream):
        assert x.tolist() == [n, n]
        recorder.log.append(f"compute {n}")
    text = [entry for entry in recorder.log if "keeps" not in entry]
    copies = [i for i, entry in enumerate(text) if entry == "inward copies"]
    assert len(copies) == 3 and copies[1] < text.index("compute 0") < copies[2] < text.index("compute 1")
    between = text[text.index("compute 0") : copies[2]]
    assert [entry.split()[:2] for entry in between[1:]] == [["compute", "records"], ["inward", "waits"]]
    assert between[1].split()[-1] == between[2].split()[-1]
    for n, copy in enumerate(copies):
        arrival = text[copy + 1].removeprefix("inward records ")
        assert text.index(f"compute waits for {arrival}") < text.index(f"compute {n}")


def test_results_leave_after_they_are_computed_and_are_added_by_the_host(recorder):
    """The outward stream waits for compute; the host for the landing; then the sum is there."""
    stage = staged(recorder)
    total = torch.ones(3)
    stage.add(total, torch.full((3,), 2.0))
    kept = stage.store(torch.full((3,), 5.0))
    stage.finish()
    assert total.tolist() == [3.0] * 3 and kept.tolist() == [5.0] * 3
    assert stage.bytes_out == 2 * 3 * 4
    log = recorder.log
    ready, copied, landed = log[0].split()[-1], log.index("outward copies"), log.index("outward keeps")
    assert log[0] == f"compute records {ready}" and log[1] == f"outward waits for {ready}" and copied == 2
    assert log[landed + 1].startswith("outward records ")
    assert f"host waits for {log[landed + 1].split()[-1]}" in log
