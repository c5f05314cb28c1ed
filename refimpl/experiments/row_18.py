"""Row 18, mixture of experts: routing against a loop over tokens, the load with and without balance loss, capacity.

A two-block model (`mixture_lm`) whose second block is a Switch layer of 16 experts, three seeds, trained with the
balance loss at the paper's weight, at 0, and beside a dense one of equal compute. Load, drops and losses are those of
held-out text; a capacity is set only there. Sources: S1, "Mixture of Expert"; Fedus et al. 2021, section 2; Shazeer et
al. 2017.
"""

import math
import statistics
from itertools import pairwise

import torch

from refimpl.experiments.harness import Claim
from refimpl.experiments.mixture_lm import PIECE, MixtureLM, data, judge, paired, parameters, train
from refimpl.meter import Meter
from refimpl.mixture_of_experts import (
    capacity,
    dense_experts,
    dropped,
    expert_flops,
    grouped_experts,
    load,
    top_k_routing,
    within_capacity,
)
from refimpl.shapes import Tensor

TITLE = "mixture of experts: routing against an oracle, load, drops and loss by capacity, with and without balance loss"
EXPERTS, BLOCK, SEEDS, WEIGHTS = 16, 1, 3, (0.0, 0.01)  # 0.01 is the paper's weight of the balance loss
FACTORS = (0.5, 1.0, 1.25, 1.5, 2.0, 4.0)
EVERY = 10  # steps between two looks at the load


# --- the oracle ------------------------------------------------------------------------------------------------------


def one_by_one(x: Tensor, routing, w_1: Tensor, w_2: Tensor) -> Tensor:
    """The formula as it is written: a loop over tokens and their choices, dropped ones left out."""
    y = torch.zeros_like(x)
    for t, (experts, weights) in enumerate(zip(routing.expert.tolist(), routing.weight, strict=True)):
        for e, weight in zip(experts, weights, strict=True):
            if e >= 0:
                y[t] += weight * (torch.relu(x[t] @ w_1[e]) @ w_2[e])
    return y


@torch.no_grad()
def oracle(tokens: int = 256, width: int = 64) -> list[dict]:
    """Largest difference in float64 of sorted groups and of all experts at once, by choices and capacity; FLOPs."""
    draw, rows = torch.Generator().manual_seed(18), []
    x, w_1, w_2, logits = (
        torch.randn(*shape, generator=draw, dtype=torch.float64)
        for shape in ((tokens, width), (EXPERTS, width, width), (EXPERTS, width, width), (tokens, EXPERTS))
    )
    for choices in (1, 2):
        for factor in (None, 1.0):
            routing = top_k_routing(logits, choices, renormalize=choices > 1)
            if factor is not None:
                routing = within_capacity(routing, capacity(tokens, EXPERTS, factor=factor, choices=choices))
            want = one_by_one(x, routing, w_1, w_2)
            with Meter() as meter:
                grouped = grouped_experts(x, routing, w_1, w_2)
            gap = max((got - want).abs().max().item() for got in (grouped, dense_experts(x, routing, w_1, w_2)))
            kept = int(load(routing).sum())
            rows.append({
                "choices": choices, "factor": factor, "difference": gap, "dropped": dropped(routing),
                "flops": meter.flops, "formula": expert_flops(kept, choices=1, model=width, hidden=width),
            })  # fmt: skip
    return rows


# --- trained models --------------------------------------------------------------------------------------------------


def switch(seed: int, weight: float) -> dict:
    """One Switch model: how its load went while training, and load, drops and loss on held-out text."""
    history = []

    def watch(step, model):
        if step % EVERY == 0:
            history.append(most(load(model.mixtures[0].layer.routing)))

    model = train(2, {BLOCK: (EXPERTS, None)}, seed=seed, watch=watch,
                  extra=lambda m: weight * m.mixtures[0].layer.balance)  # fmt: skip
    shares, drops = routed(model)
    return {
        "weight": weight, "seed": seed, "loss": judge(model), "parameters": parameters(model), "history": history,
        "shares": shares, "most": EXPERTS * max(shares), "used": math.exp(-sum(s * math.log(s) for s in shares if s)),
        "dropped": drops, "losses": [limited(model, factor) for factor in FACTORS],
    }  # fmt: skip


def most(counts: Tensor) -> float:
    """Tokens of the fullest expert over the mean: the capacity factor that would drop nobody."""
    return (counts.max() / counts.float().mean()).item()


@torch.no_grad()
def routed(model: MixtureLM) -> tuple[list[float], list[float]]:
    """(share of each expert, share of dropped tokens by FACTORS) on held-out text, PIECE windows at a time."""
    counts, gone, total = torch.zeros(EXPERTS), [0] * len(FACTORS), 0
    for ids in data()[1].split(PIECE):
        model(ids)
        routing = model.mixtures[0].layer.routing
        counts += load(routing)
        total += ids.numel()
        for i, factor in enumerate(FACTORS):
            gone[i] += dropped(within_capacity(routing, capacity(ids.numel(), EXPERTS, factor=factor)))
    return (counts / total).tolist(), [n / total for n in gone]


def limited(model: MixtureLM, factor: float) -> float:
    """Loss on held-out text with a capacity; the last piece may be shorter, which only widens its room."""
    layer = model.mixtures[0].layer
    layer.room = capacity(PIECE * data()[1].shape[1], EXPERTS, factor=factor)
    try:
        return judge(model)
    finally:
        layer.room = None


def run() -> dict:
    dense = [train(2, {}, seed=seed) for seed in range(SEEDS)]
    return {
        "oracle": oracle(), "experts": EXPERTS, "factors": FACTORS,
        "dense": [judge(model) for model in dense], "dense_parameters": parameters(dense[0]),
        "switch": [switch(seed, weight) for weight in WEIGHTS for seed in range(SEEDS)],
    }  # fmt: skip


# --- what the runs say -----------------------------------------------------------------------------------------------


def claims(result: dict) -> list[Claim]:
    return [_oracle(result), _flops(result), _balance(result), _harm(result), _drops(result), _price(result),
            _better(result)]  # fmt: skip


def _of(result, weight, key) -> list:
    return [row[key] for row in result["switch"] if row["weight"] == weight]


def _spread(values, form=".3f") -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{form}} ± {error:{form}}"


def _oracle(result) -> Claim:
    worst = max(row["difference"] for row in result["oracle"])
    return Claim(
        "tokens sorted by expert give what a loop over tokens gives", "S1, Mixture of Expert; Fedus et al. 2021", 0.0,
        worst, worst < 1e-12,
        f"Largest difference in float64, {result['experts']} experts, 1 and 2 choices, with drops "
        f"({', '.join(str(row['dropped']) for row in result['oracle'] if row['factor'])} tokens) and without.",
    )  # fmt: skip


def _flops(result) -> Claim:
    rows = result["oracle"]
    equal = all(row["flops"] == row["formula"] for row in rows)
    model = result["switch"][0]
    return Claim(
        "compute grows with the choices and not with the experts", "S1, Sparsity (e.g., Mixture of Expert)",
        rows[0]["formula"], rows[0]["flops"], equal,
        "FLOPs counted at one choice, equal to 4 T k model hidden less what was dropped in every case. The Switch "
        f"model holds {model['parameters']:,} parameters, the dense one {result['dense_parameters']:,}.",
    )  # fmt: skip


def _balance(result) -> Claim:
    without, with_ = (_of(result, weight, "most") for weight in WEIGHTS)
    gap, error = paired(without, with_)
    used = [_spread(_of(result, weight, "used"), ".1f") for weight in WEIGHTS]
    return Claim(
        "the balance loss spreads the load", "Fedus et al. 2021, equation 4", "fullest expert nearer to the mean",
        f"{_spread(without, '.2f')} to {_spread(with_, '.2f')} times the mean", gap - 2 * error > 0,
        f"Fullest expert without and with, {len(with_)} seeds; experts in use (exp of the load's entropy) {used[0]} "
        f"and {used[1]} of {result['experts']}.",
    )  # fmt: skip


def _harm(result) -> Claim:
    without, with_ = (_of(result, weight, "loss") for weight in WEIGHTS)
    gap, error = paired(with_, without)
    return Claim(
        "and costs no quality", "Fedus et al. 2021, section 2.2", "no harm",
        f"{gap:+.4f} ± {error:.4f} nats", gap < 2 * error,
        f"Held-out loss with against without, no capacity limit: {_spread(with_)} and {_spread(without)}.",
    )  # fmt: skip


def _by_factor(result, weight, key, form) -> str:
    rows = _of(result, weight, key)
    return ", ".join(
        f"{factor:g}: {statistics.mean(row[i] for row in rows):{form}}" for i, factor in enumerate(result["factors"])
    )


def _drops(result) -> Claim:
    at = result["factors"].index(1.25)
    without, with_ = ([row[at] for row in _of(result, weight, "dropped")] for weight in WEIGHTS)
    gap, error = paired(without, with_)
    return Claim(
        "a capacity factor of 1.25 drops few tokens, where the load is balanced", "Fedus et al. 2021, section 2.2",
        "typically < 1 %", f"{100 * statistics.mean(with_):.1f} %", statistics.mean(with_) < 0.01,
        f"Without balance loss {100 * statistics.mean(without):.1f} % ({100 * gap:.1f} ± {100 * error:.1f} points "
        f"more). By factor, without: {_by_factor(result, WEIGHTS[0], 'dropped', '.1%')}; with: "
        f"{_by_factor(result, WEIGHTS[1], 'dropped', '.1%')}.",
    )  # fmt: skip


def _price(result) -> Claim:
    rows = [row["losses"] for row in result["switch"]]
    falls = all(a >= b - 1e-3 for row in rows for a, b in pairwise(row))
    return Claim(
        "more room, less loss", "Fedus et al. 2021, section 2.2", "falls with the factor",
        f"{statistics.mean(r[0] for r in rows):.3f} to {statistics.mean(r[-1] for r in rows):.3f}", falls,
        f"Held-out nats by factor, without: {_by_factor(result, WEIGHTS[0], 'losses', '.3f')}; with balance loss: "
        f"{_by_factor(result, WEIGHTS[1], 'losses', '.3f')}. A dropped token passes the layer unchanged.",
    )  # fmt: skip


def _better(result) -> Claim:
    best = min(WEIGHTS, key=lambda weight: statistics.mean(_of(result, weight, "loss")))
    gap, error = paired(_of(result, best, "loss"), result["dense"])
    return Claim(
        "at equal compute per token experts beat the dense model", "Fedus et al. 2021, figure 1", "lower loss",
        f"{gap:+.3f} ± {error:.3f} nats", gap + 2 * error < 0,
        f"Dense {_spread(result['dense'])}, Switch at balance weight {best:g} {_spread(_of(result, best, 'loss'))}. "
        "Seconds of training, where a gate has hardly learned; the paper trains for weeks.",
    )  # fmt: skip
