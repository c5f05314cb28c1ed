"""The way between host and device: chunks come in while the device computes, results go out, and every byte is counted.

On CUDA the host's memory is pinned, each direction has a stream of its own (PCIe carries both at once), and events say
who may read or overwrite what. On a CPU both sides are the same memory; the copies are real, made by a thread per
direction, and a bus can be imitated by waiting for as long as it would take.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from refimpl.shapes import Tensor

__all__ = ["Stage"]


class Stage:
    """One device's loading dock.

    bytes_in, bytes_out      host to device and back, so far
    held_bytes, peak_bytes   rooms for chunks that came in: taken now, and the most there were at once
    waited_s                 seconds that compute stood still for a chunk (CPU only: on CUDA the streams wait, not we)
    buffers                  2 is a double buffer; with 1 each chunk is fetched when it is asked for
    bytes_per_s              the imitated bus of a CPU; None copies as fast as memory does
    """

    def __init__(self, device: torch.device | str = "cpu", *, buffers: int = 2, bytes_per_s: float | None = None):
        if buffers < 1:
            raise ValueError(f"Stage: at least one buffer is needed to hold a chunk, given buffers={buffers}")
        self.device, self.buffers, self.bytes_per_s = torch.device(device), buffers, bytes_per_s
        self._pinned = self.device.type == "cuda"
        self.bytes_in = self.bytes_out = self.held_bytes = self.peak_bytes = 0
        self.waited_s = 0.0
        self._bus = (_StreamBus if self._pinned else _ThreadBus)(self)
        self._leaving: list = []

    def stream(self, bundles: Sequence[Sequence[Tensor]], *, buffers: int) -> Iterator[list[Tensor]]:
        """Each bundle of host tensors in turn, on the device; the next `buffers` - 1 are on their way meanwhile.

        What was yielded may be read until the next one is asked for: then its room is filled again.
        """
        rooms = [_Room(self, bundles) for _ in range(min(buffers, len(bundles)))]
        ahead = len(rooms) - 1
        try:
            for n in range(ahead):
                rooms[n].fill(bundles[n])
            for n in range(len(bundles)):
                if n + ahead < len(bundles):
                    rooms[(n + ahead) % len(rooms)].fill(bundles[n + ahead])
                yield rooms[n % len(rooms)].read()
        finally:
            for room in rooms:
                room.close()

    def store(self, x: Tensor) -> Tensor:
        """A copy on the host, complete after `finish`."""
        return self._send(x, self._room_on_host(x), adds=False)

    def add(self, total: Tensor, part: Tensor) -> None:
        """total += part, with `total` on the host; complete after `finish`."""
        self._send(part, total, adds=True)

    def _send(self, x, target, adds):
        self.finish()  # one at a time: a second one would need room on the device as well
        self.bytes_out += x.nbytes
        self._leaving = [self._bus.send(x, target, adds)]
        return target

    def finish(self) -> None:
        """Wait until what was sent to the host is there."""
        while self._leaving:
            self._leaving.pop().result()

    def on_host(self, x: Tensor) -> Tensor:
        """The tensor on the host and in one piece; pinned where a GPU will read it, since only then copies overlap."""
        x = x.cpu().contiguous()
        return x.pin_memory() if self._pinned and not x.is_pinned() else x

    def _room_on_host(self, x: Tensor) -> Tensor:
        return torch.empty_like(x, device="cpu", pin_memory=self._pinned)

    def hold(self, nbytes: int) -> None:
        """Room was taken (or, below 0, given back)."""
        self.held_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)

    def reset(self) -> None:
        """Counts back to zero, between a forward and a backward pass."""
        self.bytes_in = self.bytes_out = 0
        self.peak_bytes, self.waited_s = self.held_bytes, 0.0


class _Room:
    """Place on the device for the largest bundle of a stream; smaller ones use the front of it."""

    def __init__(self, stage: Stage, bundles):
        self.stage, self.arrival = stage, None
        sizes = [max(x.numel() for x in kind) for kind in zip(*bundles, strict=True)]
        kinds = zip(sizes, bundles[0], strict=True)
        self.places = [torch.empty(size, dtype=like.dtype, device=stage.device) for size, like in kinds]
        self.nbytes = sum(place.nbytes for place in self.places)
        stage.hold(self.nbytes)

    def fill(self, bundle):
        """Start to bring a bundle in, once the compute that was asked for so far, this room's reader, is through."""
        pairs = zip(self.places, bundle, strict=True)
        self.views = [place[: chunk.numel()].view(chunk.shape) for place, chunk in pairs]
        self.stage.bytes_in += sum(chunk.nbytes for chunk in bundle)
        self.arrival = self.stage._bus.bring(list(zip(self.views, bundle, strict=True)))

    def read(self):
        self.stage._bus.await_arrival(self.arrival)
        return self.views

    def close(self):
        self.stage._bus.await_arrival(self.arrival)  # whatever is still on its way must not land in freed memory
        self.stage.hold(-self.nbytes)
        self.places = self.views = []


class _ThreadBus:
    """Memory to memory on a CPU. One thread per direction, and a wait in place of a slow bus."""

    def __init__(self, stage: Stage):
        self.stage = stage
        self.inward, self.outward = ThreadPoolExecutor(1, "inward"), ThreadPoolExecutor(1, "outward")

    def bring(self, pairs) -> Future:
        return self.inward.submit(self._carry, pairs, False)  # the last reader is through: it ran before this call

    def send(self, x, target, adds) -> Future:
        return self.outward.submit(self._carry, [(target, x)], adds)

    @torch.no_grad()  # gradient mode belongs to a thread, and this is another one
    def _carry(self, pairs, adds):
        for target, x in pairs:
            if self.stage.bytes_per_s:
                time.sleep(x.nbytes / self.stage.bytes_per_s)
            target.add_(x) if adds else target.copy_(x)

    def await_arrival(self, arrival):
        start = time.perf_counter()
        if arrival is not None:
            arrival.result()
        self.stage.waited_s += time.perf_counter() - start


class _StreamBus:
    """PCIe on CUDA: a stream inward, a stream outward, and events between them and the compute stream."""

    def __init__(self, stage: Stage):
        self.stage, self.device = stage, stage.device
        self.inward, self.outward = torch.cuda.Stream(self.device), torch.cuda.Stream(self.device)
        self.adder = ThreadPoolExecutor(1, "adder")

    def bring(self, pairs):
        self.inward.wait_event(self._compute_so_far())  # not later compute: that one runs beside this transfer
        with torch.cuda.stream(self.inward):
            for target, x in pairs:
                target.copy_(x, non_blocking=True)
                target.record_stream(self.inward)
            return self.inward.record_event()

    def send(self, x, target, adds):
        landing = self.stage._room_on_host(x) if adds else target
        self.outward.wait_event(self._compute_so_far())
        with torch.cuda.stream(self.outward):
            landing.copy_(x, non_blocking=True)
            x.record_stream(self.outward)
            landed = self.outward.record_event()
        return self.adder.submit(self._land, landed, landing, target if adds else None)

    @torch.no_grad()
    def _land(self, landed, landing, total):
        landed.synchronize()
        if total is not None:
            total.add_(landing)  # the host adds while the device computes the next part

    def await_arrival(self, arrival):
        if arrival is not None:
            torch.cuda.current_stream(self.device).wait_event(arrival)

    def _compute_so_far(self):
        return torch.cuda.current_stream(self.device).record_event()
