"""Four small tasks for a small model: copy a short text and change its form. Steps, not hours, to learn.

    dates         - July 4 ->              04-Jul
    identifiers   - max_line_width ->      maxLineWidth
    numbers       - 84731 ->               84,731
    words         - government ->          "government"

Questions and answers are made in code, from the calendar, the standard library's source, and prose. Nothing in a
question names its task, so a model without a module can only guess. Held-out questions are never trained on.
The dash is not decoration: the model makes the first token an attention sink, and what that token said is hardly read
any more. Row 20 measures it: without the dash LoRA learns the form of a date and not which month it was.
"""

import calendar
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone uses

from refimpl.models.data import corpus
from refimpl.models.load import SmolLM
from refimpl.peft.attach import Delta
from refimpl.shapes import Bool, Int, Tensor

__all__ = ["START", "TASKS", "Batch", "Pair", "batch", "fit", "loss", "score", "split"]

Pair = tuple[str, str]  # (question, answer)
START, ARROW, END = "- ", " ->", "\n"


@cache
def _dates() -> list[Pair]:
    days = [(month, day) for month in range(1, 13) for day in range(1, 29)]
    return [(f"{calendar.month_name[m]} {d}", f"{d:02}-{calendar.month_abbr[m]}") for m, d in days]


@cache
def _identifiers() -> list[Pair]:
    names = sorted(set(re.findall(r"\b[a-z]{2,8}(?:_[a-z]{2,8}){1,2}\b", corpus("code"))))
    return [(name, re.sub("_([a-z])", lambda m: m[1].upper(), name)) for name in names]


@cache
def _numbers() -> list[Pair]:
    return [(str(n), f"{n:,}") for n in range(10_000, 100_000, 97)]


@cache
def _words() -> list[Pair]:
    words = sorted(set(re.findall(r"\b[a-z]{6,9}\b", corpus("prose"))))
    return [(word, f'"{word}"') for word in words]


TASKS = {"dates": _dates, "identifiers": _identifiers, "numbers": _numbers, "words": _words}


def split(task: str, train: int, held_out: int, *, seed: int = 0, start: str = START) -> tuple[list[Pair], list[Pair]]:
    """`train` and `held_out` pairs of a task, no question in both, drawn by the seed; `start` before each question."""
    if task not in TASKS:
        raise ValueError(f"split: task {task!r} is unknown; here are {', '.join(TASKS)}")
    pairs = [(start + question, answer) for question, answer in TASKS[task]()]
    if train + held_out > len(pairs):
        raise ValueError(f"split: {task} has {len(pairs)} pairs, asked for {train} + {held_out}")
    random.Random(seed).shuffle(pairs)
    return pairs[:train], pairs[train : train + held_out]


@dataclass(frozen=True)
class Batch:
    """Questions with their answers as tokens, padded on the right: causal attention never sees the padding."""

    ids: Int[Tensor, "batch seq"]
    is_answer: Bool[Tensor, "batch seq"]  # the answer's tokens and the line's end


def batch(lm: SmolLM, pairs: Sequence[Pair]) -> Batch:
    """ "question -> answer" and a line's end for every pair."""
    encode = lm.tokenizer.encode
    rows = [(encode(question + ARROW), encode(f" {answer}{END}")) for question, answer in pairs]
    width = max(len(q) + len(a) for q, a in rows)
    ids = torch.full((len(rows), width), lm.tokenizer.eos_id)
    is_answer = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (q, a) in enumerate(rows):
        ids[i, : len(q) + len(a)] = torch.tensor(q + a)
        is_answer[i, len(q) : len(q) + len(a)] = True
    return Batch(ids, is_answer)


def _logits(lm: SmolLM, given: Batch) -> Tensor:
    """(tokens of all answers, vocab): the head, a fifth of SmolLM2's work, only where it is asked."""
    x = lm.model.residual(given.ids)[:, :-1]
    return lm.model.head(x[given.is_answer[:, 1:]][None])[0]


def loss(lm: SmolLM, given: Batch) -> Tensor:
    """Mean nats per token of the answers. `response_only_loss` of the whole logits is equal."""
    return F.cross_entropy(_logits(lm, given), given.ids[:, 1:][given.is_answer[:, 1:]])


@torch.no_grad()
def score(lm: SmolLM, pairs: Sequence[Pair]) -> dict[str, float]:
    """Nats per answer token, and the share of answers whose every token is the most likely one: greedy decoding's."""
    given = batch(lm, pairs)
    logits, wanted = _logits(lm, given), given.ids[:, 1:][given.is_answer[:, 1:]]
    right = torch.ones_like(given.is_answer[:, 1:])
    right[given.is_answer[:, 1:]] = logits.argmax(-1) == wanted
    return {"loss": F.cross_entropy(logits, wanted).item(), "exact": right.all(dim=1).double().mean().item()}


def fit(
    lm: SmolLM, delta: Delta, pairs: Sequence[Pair], *, steps: int = 16, size: int = 8, lr: float = 2e-3, seed: int = 0
) -> list[float]:
    """Adam on the delta's numbers alone, `size` pairs a step, drawn by the seed; the loss of every step."""
    draw, losses = random.Random(seed), []
    optimizer = torch.optim.Adam(delta.parameters(), lr=lr)
    with delta.attached(lm.model):
        for _ in range(steps):
            found = loss(lm, batch(lm, draw.sample(list(pairs), min(size, len(pairs)))))
            optimizer.zero_grad()
            found.backward()
            optimizer.step()
            losses.append(found.item())
    return losses
