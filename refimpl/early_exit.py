"""Early exiting: an easy token leaves the model after some of its layers.

An exit stands behind a layer: a small trained map from the residual stream there to the tokens that the whole model
writes most, and to one answer more, "go on". A token is written at the first exit whose largest probability reaches
the threshold. Untrained, this is the logit lens, and fails on SmolLM2 (row 29): its layers do not speak the language
of its head until the last.

Whoever leaves early has no keys and values in the layers it skipped, and later tokens look there. Two ways out:
    copy    the stream at the exit goes through the key and value matrices of the skipped layers; cheap, and not what
            the layers would have made of it
    later   the token waits at the exit until another goes deeper, and is taken along; exact, so work is put off rather
            than saved, but the weights of a layer are read once for all who waited
Source: Teerapittayanon et al. 2016 (BranchyNet); Elbayad et al. 2020 and Schuster et al. 2022 (language models, copied
states); Chen et al. 2023, EE-LLM (taken along); Belrose et al. 2023 (trained maps to the head, the tuned lens).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone uses
from torch import nn

from refimpl.attention import rope
from refimpl.models.llama import Block, KVCache, Llama, LlamaConfig, RMSNorm
from refimpl.shapes import Float, Int, Tensor

__all__ = [
    "Decided",
    "Exit",
    "Written",
    "decide",
    "early_exit_generate",
    "exit_labels",
    "frequent_tokens",
    "streams",
    "train_exit",
]


# --- an exit, and its training -----------------------------------------------------------------------------


class Exit(nn.Module):
    """Logits of `tokens` and of "go on" after `depth` blocks: head(norm(x + x W + b)), W and b zero before training.

    The head's rows are the model's own, so only W (model, model), b and the row of "go on" are trained; with few
    tokens an exit is cheap: 2 model (model + tokens + 1) FLOPs, where SmolLM2's whole head costs as much as 8 blocks.
    """

    tokens: Tensor
    rows: Tensor

    def __init__(self, model: Llama, depth: int, tokens: Int[Tensor, "tokens"]):
        super().__init__()
        if not 1 <= depth < model.config.layers:
            raise ValueError(f"Exit: depth lies between 1 and {model.config.layers - 1} blocks, given {depth}")
        width = model.config.model
        head = (model.embed_tokens if model.lm_head is None else model.lm_head).weight
        self.depth = depth
        self.translate, self.go_on = nn.Linear(width, width), nn.Linear(width, 1)
        self.norm = RMSNorm(width, model.config.norm_eps).requires_grad_(False)
        self.norm.weight.copy_(model.norm.weight)
        self.register_buffer("tokens", tokens)
        self.register_buffer("rows", head[tokens].detach().clone())  # a copy: reading it reads nothing else
        for part in (self.translate, self.go_on):
            nn.init.zeros_(part.weight), nn.init.zeros_(part.bias)

    def forward(self, x: Float[Tensor, "*batch model"]) -> Float[Tensor, "*batch tokens_and_go_on"]:
        x = self.norm(x + self.translate(x))
        return torch.cat((x @ self.rows.T, self.go_on(x)), dim=-1)

    def best(self, x: Float[Tensor, "*batch model"]) -> tuple[Int[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """(most likely of `tokens`, its probability); "go on" takes its share of the probability."""
        probability, index = self(x).softmax(-1)[..., :-1].max(-1)
        return self.tokens[index], probability


def frequent_tokens(written: Int[Tensor, "seq"], count: int) -> Int[Tensor, "tokens"]:
    """The `count` most frequent ids, in ascending order: what an exit may write. Ties go to the smaller id."""
    ranked = sorted(Counter(written.tolist()).items(), key=lambda pair: (-pair[1], pair[0]))
    return torch.tensor(sorted(token for token, _ in ranked[:count]))


@torch.no_grad()
def streams(
    model: Llama, ids: Int[Tensor, "batch seq"], depths: Sequence[int]
) -> tuple[Float[Tensor, "depths batch seq model"], Int[Tensor, "batch seq"]]:
    """(residual stream after each of `depths` blocks, the token that the whole model would write), in one pass."""
    seen: dict[int, Tensor] = {}
    hooks = [
        model.layers[depth - 1].register_forward_hook(lambda _, __, x, depth=depth: seen.update({depth: x}))
        for depth in depths
    ]
    try:
        last = model.residual(ids)
    finally:
        for hook in hooks:
            hook.remove()
    written = torch.cat([model.head(x).argmax(-1) for x in last.split(64, dim=1)], dim=1)  # 64 x vocab at a time
    return torch.stack([seen[depth] for depth in depths]), written


def exit_labels(written: Int[Tensor, "*shape"], tokens: Int[Tensor, "tokens"]) -> Int[Tensor, "*shape"]:
    """Place of each id among the ascending `tokens`; len(tokens), "go on", for an id that is not there."""
    place = torch.searchsorted(tokens, written)
    known = tokens[place.clamp(max=len(tokens) - 1)] == written
    return torch.where(known, place, len(tokens))


def train_exit(
    exit_: Exit,
    x: Float[Tensor, "seq model"],
    written: Int[Tensor, "seq"],
    *,
    epochs: int = 3,
    batch: int = 256,
    lr: float = 1e-3,
    seed: int = 0,
) -> list[float]:
    """Teach an exit what the whole model writes; the loss of every step. The model is not touched.

    Cross entropy makes probabilities mean what they say, which the threshold relies on.
    """
    labels, draw = exit_labels(written, exit_.tokens), torch.Generator().manual_seed(seed)
    trained = [p for p in exit_.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.Adam(trained, lr=lr), []
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=draw).split(batch):
            loss = F.cross_entropy(exit_(x[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


# --- on a text that is given -------------------------------------------------------------------------------


class Decided(NamedTuple):
    """What is written after each token, and after how many blocks."""

    token: Int[Tensor, "seq"]
    depth: Int[Tensor, "seq"]


@torch.no_grad()
def decide(
    exits: Sequence[Exit],
    x: Float[Tensor, "depths seq model"],
    written: Int[Tensor, "seq"],
    *,
    threshold: float | int,
    layers: int,
) -> Decided:
    """The first exit of probability >= threshold decides, else the whole model, whose tokens are `written`."""
    token, depth = written.clone(), torch.full_like(written, layers)
    for exit_, stream in reversed(list(zip(exits, x, strict=True))):  # the earliest has the last word
        guess, probability = exit_.best(stream)
        sure = probability >= threshold
        token, depth = torch.where(sure, guess, token), torch.where(sure, exit_.depth, depth)
    return Decided(token, depth)


# --- while generating --------------------------------------------------------------------------------------


@dataclass
class Written:
    """What `early_exit_generate` wrote, and the work it took after the prompt."""

    ids: Int[Tensor, "1 longer"]
    depths: list[int] = field(default_factory=list)  # blocks behind each new token when it was written
    blocks: int = 0  # times a block read one token, those who had waited included
    pairs: int = 0  # query-key pairs in these
    copies: int = 0  # times a block made a key and a value, nothing else
    checks: int = 0  # times an exit was asked
    heads: int = 0  # times the whole vocabulary was multiplied

    def flops(self, config: LlamaConfig, tokens: int) -> int:
        """Of all matmuls, exits of `tokens` ids included; `Meter` counts the same."""
        c, pair = config, 4 * config.heads * config.dim
        block = 2 * c.model * c.dim * (2 * c.heads + 2 * c.kv_heads) + 6 * c.model * c.ffn
        copy, check = 4 * c.model * c.kv_heads * c.dim, 2 * c.model * (c.model + tokens + 1)
        head = 2 * c.model * c.vocab
        parts = ((self.blocks, block), (self.pairs, pair), (self.copies, copy), (self.checks, check))
        return sum(count * cost for count, cost in parts) + self.heads * head


@torch.no_grad()
def early_exit_generate(
    model: Llama,
    exits: Sequence[Exit],
    ids: Int[Tensor, "1 seq"],
    new_tokens: int,
    *,
    threshold: float | int,
    skipped: str = "later",
) -> Written:
    """Append `new_tokens` tokens, each written at the first exit that is sure, else by the whole model, greedily.

    skipped: "copy" or "later", how the layers behind an exit get their keys and values. The prompt is read by all
    layers. Raises ValueError for another word, or exits out of order.
    """
    depths = [exit_.depth for exit_ in exits]
    if skipped not in ("copy", "later") or depths != sorted(set(depths)):
        raise ValueError(
            f"early_exit_generate: skipped is 'copy' or 'later', exits come in ascending depth; given {skipped!r}, "
            f"{depths}"
        )
    reader, written = _Reader(model, exits, ids.shape[1] + new_tokens, threshold, skipped == "copy"), Written(ids)
    if ids.shape[1] > 1:
        model.residual(ids[:, :-1], reader.cache)
    for _ in range(new_tokens):
        token, depth = reader.read(written.ids[:, -1:], written.ids.shape[1], written)
        written.ids = torch.cat((written.ids, token), dim=1)
        written.depths.append(depth)
    return written


class _Reader:
    """The model cut into stretches at its exits, and who waits in front of each of them."""

    def __init__(self, model: Llama, exits: Sequence[Exit], capacity: int, threshold: float | int, copies: bool):
        self.model, self.exits, self.threshold, self.copies = model, exits, threshold, copies
        self.cache = KVCache(model, capacity)
        self.stretches = list(pairwise([0, *(exit_.depth for exit_ in exits), model.config.layers]))
        nobody = model.embed_tokens.weight.new_empty(1, 0, model.config.model)
        self.waiting = [nobody for _ in self.stretches]

    def read(self, last: Int[Tensor, "1 1"], length: int, done: Written) -> tuple[Int[Tensor, "1 1"], int]:
        """(the next token, after how many blocks it is written); `last` is token number `length`, counted from 1."""
        x = self.model.embed_tokens(last)
        for i, (start, end) in enumerate(self.stretches):
            # Who went through a stretch did so in order: those in front of it are the end of the text.
            x, self.waiting[i] = torch.cat((self.waiting[i], x), dim=1), x[:, :0]
            x = self._through(x, start, end, length, done)
            if i == len(self.exits):
                break
            token, probability = self.exits[i].best(x[:, -1:])
            done.checks += 1
            if probability >= self.threshold:
                self._leave(x, i + 1, length, done)
                return token, end
        done.heads += 1
        return self.model.head(x[:, -1:]).argmax(-1), self.model.config.layers

    def _through(self, x: Tensor, start: int, end: int, length: int, done: Written) -> Tensor:
        """The last tokens of a text of `length` through blocks start to end."""
        self.cache.length = length - x.shape[1]
        positions = self.cache.positions(x.shape[1])
        for block in self.model.layers[start:end]:
            x = block(x, positions, self.cache)
        done.blocks += (end - start) * x.shape[1]
        done.pairs += (end - start) * x.shape[1] * length
        return x

    def _leave(self, x: Tensor, stretch: int, length: int, done: Written) -> None:
        """Wait in front of a stretch, or leave copies behind and be gone."""
        if not self.copies:
            self.waiting[stretch] = torch.cat((self.waiting[stretch], x), dim=1)
            return
        self.cache.length = length - 1
        for layer, block in enumerate(self.model.layers[self.stretches[stretch][0] :], self.stretches[stretch][0]):
            self.cache.append(layer, *_key_and_value(block, x, self.cache.positions(1)))
            done.copies += 1


def _key_and_value(block: nn.Module, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """What a block would put into the cache if x came to it."""
    assert isinstance(block, Block)
    attention, x = block.self_attn, block.input_layernorm(x)
    k, v = (proj(x).unflatten(-1, (-1, attention.dim)).transpose(1, 2) for proj in (attention.k_proj, attention.v_proj))
    return rope(k, positions, base=attention.rope_base), v
