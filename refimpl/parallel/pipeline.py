"""Pipeline parallelism: each rank holds some layers, and micro-batches follow each other through them.

    stage = LlamaStage(model, rank, ranks)
    pipeline = Pipeline(stage, loss, micros=8, schedule=one_f_one_b, between=stage.between, shared=stage.shared)
    loss = pipeline.step(ids, targets)          # gradients are in .grad; the last rank returns the loss
    optimizer.step()

Layers split over p ranks without micro-batches keep p - 1 of them idle at any moment. With m micro-batches only the
filling and the draining are lost: a rank works m of m + p - 1 turns; the bubble is (p - 1) / (m + p - 1).

    schedule        order on stage s                                                         micro-batches alive
    gpipe           m forward, then m backward                                               m
    one_f_one_b     p - 1 - s forward, then one forward and one backward in turn, the rest   min(p - s, m)

Both have the same bubble; 1F1B holds the activations of p micro-batches where GPipe holds m. In a step a rank sends the
activations of the whole batch to the next rank, and their gradients to the one before: no collective.
Source: Huang et al. 2019 (GPipe); Narayanan et al. 2019 (PipeDream) and 2021, figures 3 and 4 (1F1B with flushes).
"""

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own convention

from refimpl.models.llama import Llama
from refimpl.parallel.ring import spans
from refimpl.shapes import Tensor

__all__ = [
    "Action",
    "LlamaStage",
    "Pipeline",
    "Span",
    "bubble",
    "gpipe",
    "most_alive",
    "one_f_one_b",
    "predicted_bubble",
    "simulate",
]

FORWARD, BACKWARD, WAIT = "forward", "backward", "wait"


# --- schedules: who does what in which order -------------------------------------------------------------------------


class Action(NamedTuple):
    kind: str  # "forward" or "backward"
    micro: int


Schedule = Callable[[int, int, int], Sequence[Action]]  # (stage, stages, micros) -> the stage's actions in order


def gpipe(stage: int, stages: int, micros: int) -> list[Action]:
    """All forward, then all backward."""
    return [Action(kind, micro) for kind in (FORWARD, BACKWARD) for micro in range(micros)]


def one_f_one_b(stage: int, stages: int, micros: int) -> list[Action]:
    """As many forward as there are stages behind; then a backward after every forward; then what is left backward."""
    forward, backward = ([Action(kind, micro) for micro in range(micros)] for kind in (FORWARD, BACKWARD))
    ahead = min(stages - 1 - stage, micros)
    in_turn = [action for pair in zip(forward[ahead:], backward, strict=False) for action in pair]
    return forward[:ahead] + in_turn + backward[micros - ahead :]


def most_alive(actions: Iterable[Action]) -> int:
    """Micro-batches whose activations are kept at once, at most: forward passes that wait for their backward pass."""
    return max(accumulate(1 if action.kind == FORWARD else -1 for action in actions))


# --- time: predicted, simulated, measured ----------------------------------------------------------------------------


class Span(NamedTuple):
    """What a stage did from `start` to `stop`, in seconds of one clock; "wait" is for a neighbour."""

    stage: int
    kind: str
    micro: int
    start: float
    stop: float


def predicted_bubble(stages: int, micros: int) -> float:
    """(p - 1) / (m + p - 1): the idle share of the time, where stages take equally long and sending takes none."""
    return (stages - 1) / (micros + stages - 1)


def bubble(recorded: Iterable[Span]) -> float:
    """1 - working time / (stages · time from the first start to the last stop)."""
    work = [span for span in recorded if span.kind != WAIT]
    begin, end = min(span.start for span in work), max(span.stop for span in work)
    return 1 - sum(span.stop - span.start for span in work) / (len({span.stage for span in work}) * (end - begin))


def simulate(
    schedule: Schedule, stages: int, micros: int, forward_s: float | int = 1.0, backward_s: float | int = 2.0
) -> list[Span]:
    """When each stage would work if only the order and its neighbours held it up.

    Raises ValueError where the schedule waits for itself: the same schedule on real ranks would never end.
    """
    waiting = [list(schedule(stage, stages, micros)) for stage in range(stages)]
    clock, done, found = [0.0] * stages, {}, []
    while any(waiting):
        able = [s for s in range(stages) if waiting[s] and _needs(*waiting[s][0], s, stages) <= done.keys()]
        if not able:
            heads = "; ".join(f"stage {s}: {w[0].kind} {w[0].micro}" for s, w in enumerate(waiting) if w)
            raise ValueError(f"simulate: the schedule waits for itself. Next, and not possible: {heads}")
        for stage in able:
            kind, micro = waiting[stage].pop(0)
            start = max([clock[stage], *(done[need] for need in _needs(kind, micro, stage, stages))])
            clock[stage] = done[kind, micro, stage] = start + (forward_s if kind == FORWARD else backward_s)
            found.append(Span(stage, kind, micro, start, clock[stage]))
    return found


def _needs(kind: str, micro: int, stage: int, stages: int) -> set[tuple[str, int, int]]:
    """What must be over before: forward, the stage before it; backward, its own forward and the stage behind it."""
    if kind == FORWARD:
        return {(FORWARD, micro, stage - 1)} if stage else set()
    behind = {(BACKWARD, micro, stage + 1)} if stage < stages - 1 else set()
    return {(FORWARD, micro, stage)} | behind


# --- a rank's work ---------------------------------------------------------------------------------------------------


class Pipeline:
    """Runs a schedule over the ranks of `group`, one stage each, in their order.

    stage     this rank's layers: input of the pipeline -> …, … -> what `loss` takes
    loss      (output, targets) -> mean over a micro-batch
    between   micro-batch of the pipeline's input -> an empty tensor like the one that passes between stages
    shared    parameters that the first and the last stage both have (tied embeddings): their gradients are added
    clock     on a GPU, work is not over when the call returns: pass one that synchronizes to see true spans
    After a step: `spans`, and `alive`, the most micro-batches whose activations were kept at once.
    """

    def __init__(
        self, stage: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], *, micros: int,
        schedule: Schedule = one_f_one_b, between: Callable[[Tensor], Tensor] = torch.empty_like,
        shared: Sequence[nn.Parameter] = (), group: dist.ProcessGroup | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):  # fmt: skip
        self.stage, self.loss, self.between, self.shared, self.clock = stage, loss, between, shared, clock
        self.group, self.rank, self.ranks = group, dist.get_rank(group), dist.get_world_size(group)
        self.first, self.last = self.rank == 0, self.rank == self.ranks - 1
        self.micros, self.plan = micros, list(schedule(self.rank, self.ranks, micros))
        self.spans: list[Span] = []
        self.alive = 0
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}  # micro-batch -> what the stage got, what it made of it
        self._leaving: list = []  # a message on its way, and its handle

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor | None:
        """Forward and backward pass of a batch, which every rank is given; the mean loss on the last rank.

        Micro-batches are as even as they come, and weighted by their rows: gradients are those of the batch's mean.
        """
        if len(inputs) < self.micros:
            raise ValueError(f"Pipeline: {len(inputs)} rows do not make {self.micros} micro-batches; use fewer of them")
        rows = [len(part) for part in spans(len(inputs), self.micros)]
        self._inputs, self._targets, self._rows = inputs.split(rows), targets.split(rows), rows
        self.spans, self.alive, self._total = [], 0, torch.zeros((), device=inputs.device)
        message = self._exchange(None, None, self.plan[0])
        for action, following in zip(self.plan, [*self.plan[1:], None], strict=True):
            start = self.clock()
            answer = (self._forward if action.kind == FORWARD else self._backward)(action.micro, message)
            self.spans.append(Span(self.rank, *action, start, self.clock()))
            message = self._exchange(action, answer, following)
        self._wait_until_sent()
        self._add_shared()
        return self._total if self.last else None

    def _forward(self, micro: int, received: Tensor | None) -> Tensor | None:
        x = self._inputs[micro] if self.first else received.requires_grad_()
        y = self.stage(x)
        if self.last:
            y = self.loss(y, self._targets[micro]) * (self._rows[micro] / sum(self._rows))
            self._total = self._total + y.detach()
        self._kept[micro] = x, y
        self.alive = max(self.alive, len(self._kept))
        return None if self.last else y.detach()

    def _backward(self, micro: int, gradient: Tensor | None) -> Tensor | None:
        x, y = self._kept.pop(micro)
        torch.autograd.backward(y, gradient)
        return None if self.first else x.grad

    def _exchange(self, done: Action | None, answer: Tensor | None, following: Action | None) -> Tensor | None:
        """Send what the last action made, and receive what the next one needs.

        Both in one batch: two ranks that send to each other would wait for each other on a GPU.
        """
        self._wait_until_sent()
        operations, arriving = [], None if following is None else self._room(following)
        if answer is not None:
            to = self.rank + (1 if done.kind == FORWARD else -1)
            answer = answer.contiguous()
            operations.append(dist.P2POp(dist.isend, answer, group=self.group, group_peer=to))
        if arriving is not None:
            source = self.rank + (-1 if following.kind == FORWARD else 1)
            operations.append(dist.P2POp(dist.irecv, arriving, group=self.group, group_peer=source))
        works = dist.batch_isend_irecv(operations) if operations else []
        if arriving is not None:
            start = self.clock()
            works.pop().wait()
            self.spans.append(Span(self.rank, WAIT, following.micro, start, self.clock()))
        self._leaving = [(work, answer) for work in works]
        return arriving

    def _room(self, action: Action) -> Tensor | None:
        """Where the message for an action will be; None where the stage needs none."""
        starts_here = self.first if action.kind == FORWARD else self.last
        return None if starts_here else self.between(self._inputs[action.micro])

    def _wait_until_sent(self):
        while self._leaving:
            self._leaving.pop()[0].wait()

    def _add_shared(self):
        """First and last stage send each other their gradients; a sum of two is the same in either order."""
        for parameter in self.shared:
            theirs = torch.empty_like(parameter)
            operations = [
                dist.P2POp(operation, tensor, group=self.group, group_peer=self.ranks - 1 - self.rank)
                for operation, tensor in ((dist.isend, parameter.grad), (dist.irecv, theirs))
            ]
            for work in dist.batch_isend_irecv(operations):
                work.wait()
            parameter.grad += theirs


# --- a model in stages -----------------------------------------------------------------------------------------------


class LlamaStage(nn.Module):
    """The layers of one stage, under their names in the whole model: the embedding first, norm and head last.

    Layers are spread as evenly as they come, the longer stages first. A tied embedding is on both ends.
    """

    def __init__(self, model: Llama, stage: int, stages: int):
        super().__init__()
        if model.config.layers < stages:
            raise ValueError(f"LlamaStage: {model.config.layers} layers do not make {stages} stages; use fewer ranks")
        self.width, self.first, self.last = model.config.model, stage == 0, stage == stages - 1
        on_both = model.lm_head is None and self.last
        self.embed_tokens = model.embed_tokens if self.first or on_both else None
        self.layers = nn.ModuleDict(
            {str(layer): model.layers[layer] for layer in spans(model.config.layers, stages)[stage]}
        )
        self.norm, self.lm_head = (model.norm, model.lm_head) if self.last else (None, None)
        tied_ends = model.lm_head is None and self.first != self.last
        self.shared = [model.embed_tokens.weight] if tied_ends else []

    def forward(self, x: Tensor) -> Tensor:
        """ids, or the residual stream (batch, seq, model) -> the residual stream, or logits (batch, seq, vocab)."""
        x = self.embed_tokens(x) if self.first else x
        positions = torch.arange(x.shape[1], device=x.device)
        for block in self.layers.values():
            x = block(x, positions)
        return F.linear(self.norm(x), (self.lm_head or self.embed_tokens).weight) if self.last else x

    def between(self, ids: Tensor) -> Tensor:
        """An empty residual stream for a micro-batch of ids."""
        weight = next(self.parameters())
        return weight.new_empty(*ids.shape, self.width)
