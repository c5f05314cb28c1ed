"""A paged optimizer: Adam's two averages live in pages that leave the device when its memory is short.

A page of state is on the device or on the host. Taking a page that is away first sends away the page that was used
longest ago, as an operating system does; with room enough nothing ever moves. When a long sequence needs the memory,
`resize` gives it up at once, and the pages come back one by one as the next step asks for them.
Source: S1, "QLoRA", figure 1; Dettmers et al. 2023, section 3 (there through NVIDIA's unified memory).
"""

from collections import OrderedDict
from collections.abc import Iterable

import torch

from refimpl.blockwise import Host
from refimpl.shapes import Float, Tensor

__all__ = ["PagedAdamW"]


class PagedAdamW:
    """AdamW (Loshchilov and Hutter 2019) whose state, 8 bytes per parameter, is paged.

    A page holds m and v of up to `page` numbers of one parameter in float32. `room` is what the device may hold of
    them, in bytes; one page is always allowed. The update is that of `torch.optim.AdamW`.
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0.01, page: int = 2**18, room: int | None = None,
    ):  # fmt: skip
        self.parameters = list(parameters)
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.pages = [
            (p, start, min(start + page, p.numel())) for p in self.parameters for start in range(0, p.numel(), page)
        ]
        self.host = Host()
        self.near: OrderedDict[int, Float[Tensor, "2 n"]] = OrderedDict()  # page -> (m, v), longest unused first
        self.far: dict[int, Float[Tensor, "2 n"]] = {}
        self.room, self.faults, self.peak_bytes, self.steps = room, 0, 0, 0

    @property
    def near_bytes(self) -> int:
        """State on the device now."""
        return sum(state.nbytes for state in self.near.values())

    def resize(self, room: int | None) -> None:
        """Room for state on the device from now on, in bytes; None: no limit. What no longer fits leaves at once."""
        self.room = room
        self._make_room(0)

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient, page by page."""
        self.steps += 1
        for number, (parameter, start, stop) in enumerate(self.pages):
            if parameter.grad is not None:
                self._update(*self._take(number), parameter, slice(start, stop))

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def _update(self, m: Tensor, v: Tensor, parameter: Tensor, part: slice) -> None:
        """m and v of one page, and the numbers they belong to, in place."""
        w, g = parameter.detach().view(-1)[part], parameter.grad.reshape(-1)[part].float()
        b1, b2 = self.betas
        w.mul_(1 - self.lr * self.weight_decay)
        m.lerp_(g, 1 - b1)
        v.mul_(b2).addcmul_(g, g, value=1 - b2)
        spread = (v.sqrt() / (1 - b2**self.steps) ** 0.5).add_(self.eps)
        w.addcdiv_(m.to(w.dtype), spread.to(w.dtype), value=-self.lr / (1 - b1**self.steps))

    def _take(self, number: int) -> Tensor:
        """The page on the device, as the most recently used one."""
        if number in self.near:
            self.near.move_to_end(number)
            return self.near[number]
        parameter, start, stop = self.pages[number]
        self._make_room(8 * (stop - start))
        if number in self.far:
            self.faults += 1
            state = self.host.take(self.far.pop(number), parameter.device)
        else:
            state = torch.zeros(2, stop - start, device=parameter.device)
        self.near[number] = state
        self.peak_bytes = max(self.peak_bytes, self.near_bytes)
        return state

    def _make_room(self, wanted: int) -> None:
        """Send pages to the host, longest unused first, until `wanted` bytes fit."""
        while self.room is not None and self.near and self.near_bytes + wanted > self.room:
            number, state = self.near.popitem(last=False)
            self.far[number] = self.host.put(state)
