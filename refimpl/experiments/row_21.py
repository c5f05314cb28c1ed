"""Row 21, the table of methods: what each trains, and one small task that each learns.

SmolLM2-135M learns row 20's dates by six methods, three seeds, 12 steps of 6 pairs. A prefix and a soft prompt start
from an instruction, the others from zero change. Learning rates were chosen on seed 9, which is not used here.
Beside the loss: numbers trained, FLOPs that stay after training, and places that the method takes from the context.
Sources: S1, "Adapter Tuning", "Prefix-Tuning", "Which to implement the efficient finetuning".
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn

from refimpl.attention import naive_attention
from refimpl.experiments.harness import Claim
from refimpl.experiments.row_20 import HELD_OUT, TASK, TRAIN, mean
from refimpl.meter import Meter
from refimpl.models import SmolLM, load_smollm2, replace_attention
from refimpl.peft.adapters import Adapters
from refimpl.peft.attach import Delta
from refimpl.peft.budget import trained_numbers
from refimpl.peft.experts import IA3, LoRAExperts
from refimpl.peft.lora import LoRA
from refimpl.peft.prefix import Prefix, SoftPrompt
from refimpl.peft.tasks import fit, score, split
from refimpl.shapes import Int, Tensor

TITLE = "LoRA, adapters, prefix, soft prompt, experts, (IA)³: numbers trained, and the same task learned"
SEEDS, STEPS, SIZE, TOKENS = 3, 12, 6, 16
INSTRUCTION = "Write each date with two digits for the day:\n"
EXPERTS, CHOICES = 4, 2


def methods(lm: SmolLM, seed: int) -> dict[str, tuple[Callable[[], Delta], float, int]]:
    """Name -> (how it is made, learning rate, its size in the formula)."""
    model, ids = lm.model, instruction(lm)
    return {
        "lora": (lambda: LoRA(model, rank=8, seed=seed), 2e-3, 8),
        "adapters": (lambda: Adapters(model, width=8, seed=seed), 2e-3, 8),
        "experts": (lambda: LoRAExperts(model, experts=EXPERTS, choices=CHOICES, rank=2, seed=seed), 4e-3, 2),
        "prefix": (lambda: Prefix(model, ids), 2e-2, ids.shape[1]),
        "ia3": (lambda: IA3(model), 2e-2, 0),
        "prompt": (lambda: SoftPrompt(model, ids), 1e-2, ids.shape[1]),
    }


def instruction(lm: SmolLM) -> Int[Tensor, "1 length"]:
    return lm.ids(INSTRUCTION)


@torch.no_grad()
def flops(model: nn.Module, delta: Delta | None) -> int:
    """Matmul FLOPs of the blocks for TOKENS tokens, attention included; what can be merged is merged."""
    ids = torch.arange(TOKENS)[None]
    merged = getattr(delta, "merged", None) or getattr(delta, "attached", None)
    with replace_attention(model, naive_attention), merged(model) if merged else nullcontext(), Meter() as meter:
        model.residual(ids)
    return meter.flops


def learn(lm: SmolLM, name: str, seed: int, steps: int, size: int) -> dict:
    """One method on one seed: what it trains, what it costs afterwards, what it has learned."""
    make, rate, parameter = methods(lm, seed)[name]
    delta, (train, held_out) = make(), split(TASK, TRAIN, HELD_OUT, seed=seed)
    losses = fit(lm, delta, train, steps=steps, size=size, lr=rate, seed=seed)
    with delta.attached(lm.model):
        after = score(lm, held_out)
    return {
        "method": name, "seed": seed, "numbers": delta.numbers, "learning_rate": rate,
        "mergeable": hasattr(delta, "merged"),
        "formula": trained_numbers(name, lm.config, size=parameter, experts=EXPERTS), "after": after,
        "training": losses, "flops": flops(lm.model, delta), "places": parameter if name in ("prefix", "prompt") else 0,
    }  # fmt: skip


def run(lm: SmolLM | None = None, steps: int = STEPS, seeds: int = SEEDS, size: int = SIZE) -> dict:
    lm = lm or load_smollm2()
    before = [score(lm, split(TASK, TRAIN, HELD_OUT, seed=seed)[1]) for seed in range(seeds)]
    runs = [learn(lm, name, seed, steps, size) for seed in range(seeds) for name in methods(lm, seed)]
    return {
        "mark": lm.mark, "weights": sum(p.numel() for p in lm.model.parameters()), "before": before,
        "flops": flops(lm.model, None), "instruction": INSTRUCTION, "runs": runs,
    }  # fmt: skip


def table(result: dict) -> list[dict]:
    """A row per method: numbers and their share, loss and its standard error, exact answers, FLOPs added in percent."""
    rows = []
    for name in dict.fromkeys(row["method"] for row in result["runs"]):
        runs = [row for row in result["runs"] if row["method"] == name]
        loss, error = mean([row["after"]["loss"] for row in runs])
        rows.append({
            "method": name, "numbers": runs[0]["numbers"], "share": runs[0]["numbers"] / result["weights"],
            "loss": loss, "error": error, "exact": mean([row["after"]["exact"] for row in runs])[0],
            "flops": runs[0]["flops"] / result["flops"] - 1, "places": runs[0]["places"],
            "mergeable": runs[0]["mergeable"],
        })  # fmt: skip
    return rows


def claims(result: dict) -> list[Claim]:
    return [_numbers(result), _learns(result), _order(result), _merged(result), _adapters(result)]


def _numbers(result) -> Claim:
    rows = table(result)
    return Claim(
        "only the added numbers are trained", "S1, Other Parameter-efficient Tunings", "a small share",
        ", ".join(f"{row['method']} {row['share']:.3%}" for row in rows),
        all(row["numbers"] == row["formula"] < result["weights"] / 100 for row in result["runs"]),
        "Counted, and equal to the formulas: " + ", ".join(f"{row['method']} {row['numbers']:,}" for row in rows) + ".",
    )  # fmt: skip


def _learns(result) -> Claim:
    before = [row["loss"] for row in result["before"]]
    failed = {row["method"] for row in result["runs"] if row["after"]["loss"] > before[row["seed"]] / 2}
    return Claim(
        "each learns the same small task", "S1, Parameter-efficient Fine-tuning", "loss falls",
        ", ".join(f"{r['method']} {r['loss']:.2f} ± {r['error']:.2f}" for r in table(result)), not failed,
        f"Nats per answer token on held-out pairs, from {mean(before)[0]:.2f}; asked is less than half, for all of "
        f"{len(before)} seeds" + (f"; not so {', '.join(sorted(failed))}." if failed else "."),
    )  # fmt: skip


def _order(result) -> Claim:
    rows = {row["method"]: row for row in table(result)}
    last = max(rows, key=lambda name: rows[name]["loss"])
    return Claim(
        "a small model learns least from a soft prompt", "Lester et al. 2021, figure 1", "prompt", last,
        last == "prompt",
        f"Worst after {len(result['runs'][0]['training'])} steps, loss {rows[last]['loss']:.2f}. "
        "The paper trains soft prompts for 30,000 steps, and larger models.",
    )  # fmt: skip


def _merged(result) -> Claim:
    rows = table(result)
    return Claim(
        "what is a matrix or scales one costs nothing afterwards", "Hu et al. 2022; Liu et al. 2022", 0.0,
        max(row["flops"] for row in rows if row["mergeable"]), all(r["flops"] == 0 for r in rows if r["mergeable"]),
        f"FLOPs of the blocks for {TOKENS} tokens, merged, against the plain model's; of the others "
        + ", ".join(f"{row['method']} +{row['flops']:.1%}" for row in rows if not row["mergeable"]) + ".",
    )  # fmt: skip


def _adapters(result) -> Claim:
    rows = {row["method"]: row for row in table(result)}
    return Claim(
        "prefix and prompt take their places from the context", "Hu et al. 2022, section 3", "some of 8,192",
        f"{rows['prefix']['places']} and {rows['prompt']['places']}",
        rows["prefix"]["places"] > 0 and rows["prompt"]["flops"] > rows["prefix"]["flops"],
        f"A prompt's tokens go through every layer (+{rows['prompt']['flops']:.0%} FLOPs for {TOKENS} of "
        f"text), a prefix's are only looked at (+{rows['prefix']['flops']:.1%}).",
    )  # fmt: skip
