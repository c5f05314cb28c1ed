"""A small model that learns from a large one: from its probabilities, its layers, its texts, or its judgement.

    logits      T² KL(p_T || q_T), p the teacher's softmax at temperature T, q the student's    Hinton et al. 2015
    layers      MSE of attention scores, and of hidden states through a matrix W_h           Jiao et al. 2020, TinyBERT
    sequences   cross entropy on texts that the teacher wrote                                Kim and Rush 2016
    MiniLLM     KL(q || p) over texts that the student writes, by policy gradient            Gu et al. 2023

None of them needs a label, so any text will do. KL(p || q) asks the student to cover all that the teacher might say;
KL(q || p) asks it to say nothing the teacher would not, and a student that is too small for everything settles on a
part. `fit_normal` shows both on a density with two modes.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F  # noqa: N812  the name everyone uses

from refimpl.models.bert import Bert
from refimpl.shapes import Bool, Float, Int, Tensor

__all__ = [
    "BertRecord",
    "Normal",
    "attention_loss",
    "continuations",
    "fit_normal",
    "forward_kl",
    "hidden_loss",
    "importance_weights",
    "kd_loss",
    "minillm_loss",
    "nearest_words",
    "read_bert",
    "replace_words",
    "reverse_kl",
    "tinybert_loss",
    "token_log_probs",
    "uniform_layers",
]

Reader = Callable[[Tensor], Tensor]  # ids (batch, seq) -> logits (batch, seq, vocab)

# --- logits ----------------------------------------------------------------------------------------------------------


def forward_kl(
    student: Float[Tensor, "*batch vocab"], teacher: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """KL(p || q) = sum of p (log p - log q) from logits, p the teacher's: large where q misses what p does."""
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def reverse_kl(
    student: Float[Tensor, "*batch vocab"], teacher: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """KL(q || p): large where q does what p would not."""
    return forward_kl(teacher, student)


def kd_loss(
    student: Float[Tensor, "*batch vocab"],
    teacher: Float[Tensor, "*batch vocab"],
    labels: Int[Tensor, "*batch"] | None = None,
    *,
    temperature: float | int = 1.0,
    alpha: float | int = 1.0,
) -> Float[Tensor, ""]:
    """alpha T² KL(p_T || q_T) + (1 - alpha) cross entropy with the labels, means over the batch.

    p_T = softmax(logits / T): a high temperature shows the student which wrong answers the teacher finds less wrong.
    The gradient shrinks as 1/T², hence the factor. labels may be missing where alpha is 1: unannotated data.
    """
    if labels is None and alpha != 1:
        raise ValueError(f"kd_loss: alpha={alpha} gives the labels a share, but there are none; pass them or alpha=1")
    soft = temperature**2 * forward_kl(student / temperature, teacher / temperature).mean()
    if labels is None:
        return soft
    return alpha * soft + (1 - alpha) * F.cross_entropy(student.flatten(0, -2), labels.flatten())


# --- layers: TinyBERT ------------------------------------------------------------------------------------------------


class BertRecord(NamedTuple):
    """What TinyBERT compares: the stream after the embedding and each block, and each block's scores."""

    streams: list[Tensor]  # layers + 1 of (batch, seq, model)
    scores: list[Tensor]  # layers of (batch, heads, seq, seq), Q K^T / sqrt(d) before the softmax


def read_bert(model: Bert, ids: Int[Tensor, "batch seq"], real: Bool[Tensor, "batch seq"] | None = None) -> BertRecord:
    """One pass that keeps streams and scores, differentiable; the model is as before afterwards."""
    scores = []

    def attend(q, k, v, mask):
        S = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        scores.append(S)
        return (S if mask is None else S.masked_fill(~mask, -torch.inf)).softmax(-1) @ v

    before = [block.attention.attend for block in model.blocks]
    try:
        for block in model.blocks:
            block.attention.attend = attend
        return BertRecord(model.hidden(ids, real), scores)
    finally:
        for block, function in zip(model.blocks, before, strict=True):
            block.attention.attend = function


def attention_loss(
    student: Float[Tensor, "batch heads q_len k_len"],
    teacher: Float[Tensor, "batch heads q_len k_len"],
    real: Bool[Tensor, "batch q_len"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared difference of the scores, head by head: the student looks where the teacher looks.

    Scores and not probabilities, as published: they converge faster. Both models need the same number of heads; `real`
    leaves padding out, as query and as key.
    """
    squares = (student - teacher).square()
    if real is None:
        return squares.mean()
    both = (real[:, :, None] & real[:, None, :])[:, None].expand_as(squares)
    return squares[both].mean()


def hidden_loss(
    student: Float[Tensor, "batch seq small"],
    teacher: Float[Tensor, "batch seq wide"],
    projection: Float[Tensor, "small wide"],
    real: Bool[Tensor, "batch seq"] | None = None,
) -> Float[Tensor, ""]:
    """MSE(H_S W_h, H_T): W_h is learned beside the student and thrown away, so widths may differ."""
    squares = (student @ projection - teacher).square()
    return squares.mean() if real is None else squares[real].mean()


def uniform_layers(student: int, teacher: int) -> list[int]:
    """The teacher's layer for each of the student's, counted from 1: g(m) = m teacher / student. 2 of 6 are 3 and 6."""
    if teacher % student:
        raise ValueError(f"uniform_layers: {teacher} layers cannot be dealt out evenly to {student}")
    return [m * teacher // student for m in range(1, student + 1)]


def tinybert_loss(
    student: BertRecord,
    teacher: BertRecord,
    projection: Float[Tensor, "small wide"],
    real: Bool[Tensor, "batch seq"] | None = None,
) -> Float[Tensor, ""]:
    """Sum over the student's layers m of hidden_loss + attention_loss against layer g(m), and the embedding's loss."""
    layers = uniform_layers(len(student.scores), len(teacher.scores))
    total = hidden_loss(student.streams[0], teacher.streams[0], projection, real)
    for m, g in enumerate(layers):
        total = total + hidden_loss(student.streams[m + 1], teacher.streams[g], projection, real)
        total = total + attention_loss(student.scores[m], teacher.scores[g - 1], real)
    return total


def nearest_words(embedding: Float[Tensor, "vocab model"], count: int) -> Int[Tensor, "vocab count"]:
    """For each word the `count` others with the largest cosine. 2 vocab² model FLOPs: give it part of a vocabulary."""
    unit = F.normalize(embedding.detach(), dim=-1)
    return (unit @ unit.T).fill_diagonal_(-2).topk(count, dim=-1).indices


def replace_words(
    ids: Int[Tensor, "batch seq"],
    near: Int[Tensor, "vocab count"],
    fixed: Bool[Tensor, "batch seq"],
    share: float,
    rng: torch.Generator | None = None,
) -> Int[Tensor, "batch seq"]:
    """TinyBERT's data augmentation: each word, with probability `share`, becomes one of its neighbours.

    fixed: places that stay, such as padding and [CLS].
    """
    pick = torch.randint(near.shape[1], ids.shape, generator=rng)
    swapped = near[ids].gather(-1, pick[..., None])[..., 0]
    chosen = (torch.rand(ids.shape, generator=rng) < share) & ~fixed
    return torch.where(chosen, swapped, ids)


# --- texts: sequence-level distillation, MiniLLM ---------------------------------------------------------------------


@torch.no_grad()
def continuations(
    read: Reader, prompts: Int[Tensor, "batch seq"], new_tokens: int, rng: torch.Generator | None = None
) -> Int[Tensor, "batch longer"]:
    """Prompts with `new_tokens` tokens drawn from softmax(read(ids)); the most likely ones where rng is None.

    Sequence-level distillation trains on the teacher's with `refimpl.language_modelling.response_only_loss`. Every step
    reads the whole text again.
    """
    ids = prompts
    for _ in range(new_tokens):
        logits = read(ids)[:, -1]
        chosen = logits.argmax(-1, True) if rng is None else torch.multinomial(logits.softmax(-1), 1, generator=rng)
        ids = torch.cat((ids, chosen), dim=1)
    return ids


def token_log_probs(
    logits: Float[Tensor, "batch seq vocab"], ids: Int[Tensor, "batch seq"], start: int
) -> Float[Tensor, "batch new"]:
    """log p(ids[t] | ids[0 … t-1]) for t from `start`."""
    return logits[:, start - 1 : -1].log_softmax(-1).gather(-1, ids[:, start:, None])[..., 0]


def minillm_loss(
    student: Float[Tensor, "batch seq vocab"],
    teacher: Float[Tensor, "batch seq vocab"],
    ids: Int[Tensor, "batch seq"],
    start: int,
    *,
    single_step: bool = True,
    normalize_length: bool = True,
    weights: Float[Tensor, "batch new"] | None = None,
) -> Float[Tensor, ""]:
    """A loss whose gradient is that of KL(q || p) over texts y ~ q from position `start`, averaged over the batch.

        r_t = log p(y_t | y_<t) - log q(y_t | y_<t)        R_t = r_t + … + r_T          reward, and reward to come
        gradient of KL = -E sum over t of (R_t - 1) grad log q(y_t)                          policy gradient
                       = E sum over t of grad KL(q_t || p_t) - R_{t+1} grad log q(y_t)      single_step

    The second form computes the expectation over the next token exactly, so that less is left to chance.
    normalize_length divides R_{t+1} by the number of its terms: short texts are not preferred any more, at the price of
    a different expectation. weights: importance of each token where y was not drawn from q. The value of the loss means
    nothing; only its gradient does. ids are the student's own samples and are constants here.
    """
    log_q, log_p = token_log_probs(student, ids, start), token_log_probs(teacher.detach(), ids, start)
    r = (log_p - log_q).detach()
    to_come = r.flip(1).cumsum(1).flip(1)  # R_t
    if single_step:
        after = F.pad(to_come[:, 1:], (0, 1))  # R_{t+1}, 0 after the last
        if normalize_length:
            after = after / torch.arange(r.shape[1] - 1, -1, -1).clamp(min=1)
        each = reverse_kl(student[:, start - 1 : -1], teacher[:, start - 1 : -1].detach()) - after * log_q
    else:
        each = -(to_come - 1) * log_q
    return (each if weights is None else each * weights).sum(1).mean()


def importance_weights(
    student: Float[Tensor, "batch new"], teacher: Float[Tensor, "batch new"], mix: float, *, whole_text: bool = False
) -> Float[Tensor, "batch new"]:
    """q / p~ for texts drawn from p~ = mix p + (1 - mix) q, from log-probabilities of tokens; constants.

    The published approximation looks at the token itself; whole_text multiplies over all of them: exact, and noisy.
    MiniLLM draws from the mixture so that the student cannot earn rewards with texts the teacher never writes.
    """
    q, p = student.detach().exp(), teacher.detach().exp()
    ratio = q / (mix * p + (1 - mix) * q)
    return ratio.prod(dim=1, keepdim=True).expand_as(ratio) if whole_text else ratio


# --- two directions, one picture -------------------------------------------------------------------------------------


class Normal(NamedTuple):
    """A fitted normal density and its divergence."""

    mean: float
    std: float
    kl: float  # nats, in the direction that was asked


def fit_normal(
    density: Sequence[float] | Float[Tensor, "points"],
    x: Float[Tensor, "points"],
    direction: str,
    *,
    start: tuple[float, float] = (0.0, 1.0),
) -> Normal:
    """The normal density q nearest to p > 0 on an even, wide grid x: by KL(p || q) ("forward"), KL(q || p) ("reverse").

    Forward has one optimum, p's mean and standard deviation: it covers. Reverse has one per mode of p, and `start`,
    (mean, std), decides which is found: it seeks.
    """
    if direction not in ("forward", "reverse"):
        raise ValueError(f"fit_normal: direction={direction!r}; choose 'forward' or 'reverse'")
    log_p, grid = torch.as_tensor(density, dtype=torch.float64).log(), x.double()
    mean, log_std = (torch.tensor(v, dtype=torch.float64).requires_grad_() for v in (start[0], math.log(start[1])))
    divergence = forward_kl if direction == "forward" else reverse_kl
    optimizer = torch.optim.LBFGS([mean, log_std], max_iter=200, line_search_fn="strong_wolfe")

    def kl() -> Tensor:
        optimizer.zero_grad()
        log_q = -((grid - mean) / log_std.exp()).square() / 2  # up to a constant: on the grid a softmax normalises
        found = divergence(log_q, log_p)
        found.backward()
        return found

    optimizer.step(kl)
    return Normal(mean.item(), log_std.exp().item(), kl().item())
