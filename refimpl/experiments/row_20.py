"""Row 20, LoRA: what is trained and kept, merged against unmerged, and how low the rank may be.

SmolLM2-135M, W_q and W_v of all 30 layers, on a small task (dates: "July 4" -> "04-Jul"), 16 steps of 6 pairs, three
seeds for data, order and start. Beside rank 1 and 8 stands the full change of the same matrices, as many numbers as
they have. Learning rates were chosen on seed 9, which is not used here, each the better of two.
Sources: S1, "LoRA Tuning"; Hu et al. 2022.
"""

import torch
from torch import nn

from refimpl.attention import naive_attention
from refimpl.experiments.harness import Claim
from refimpl.meter import Meter
from refimpl.models import SmolLM, load_smollm2, replace_attention
from refimpl.peft.attach import Delta, matching
from refimpl.peft.budget import gradient_bytes, state_bytes, trained_numbers, training_bytes
from refimpl.peft.full import FullChange
from refimpl.peft.lora import LoRA, LoRALinear
from refimpl.peft.tasks import START, Pair, batch, fit, loss, score, split
from refimpl.shapes import Tensor

TITLE = "LoRA: trained numbers, bytes of Adam's state, merged and unmerged, ranks"
TASK, SEEDS, STEPS, SIZE, TRAIN, HELD_OUT = "dates", 3, 16, 6, 96, 24
RANK, TOP = 8, 8  # TOP: singular values of a full change that are asked how much they hold
BARE = "rank 8, no dash"  # the question is the first token: the one that attention uses as its sink
RATES = {"rank 1": 4e-3, "rank 8": 2e-3, BARE: 2e-3, "full": 3e-4}
TARGETS = ("q_proj", "v_proj")


def begin(model: nn.Module, method: str, seed: int) -> Delta:
    return (
        FullChange(model, TARGETS)
        if method == "full"
        else LoRA(model, rank=int(method.split()[1].strip(",")), seed=seed)
    )


def mean(values: list[float]) -> tuple[float, float]:
    """(mean, its standard error)."""
    x = torch.tensor(values, dtype=torch.float64)
    return x.mean().item(), (x.std() / len(x) ** 0.5).item()


def share_of_top(matrix: Tensor, top: int) -> float:
    """Share of the squared singular values that the `top` largest hold."""
    squares = torch.linalg.svdvals(matrix).square()
    return (squares[:top].sum() / squares.sum()).item()


def energy(full: FullChange, top: int) -> float:
    """The same of a full change; mean over matrices of the first, a middle and the last layer."""
    return mean([share_of_top(full.full[i].detach(), top) for i in (0, 1, len(full.names) // 2, -2, -1)])[0]


def learning(lm: SmolLM, steps: int, seeds: int, size: int) -> list[dict]:
    """Each method on each seed: held-out score before and after, losses on the way."""
    rows = []
    for seed in range(seeds):
        for method, rate in RATES.items():
            train, held_out = split(TASK, TRAIN, HELD_OUT, seed=seed, start="" if method == BARE else START)
            before, delta = score(lm, held_out), begin(lm.model, method, seed)
            losses = fit(lm, delta, train, steps=steps, size=size, lr=rate, seed=seed)
            with delta.attached(lm.model):
                row = {"method": method, "seed": seed, "numbers": delta.numbers, "training": losses, "before": before}
                rows.append(row | {"after": score(lm, held_out)})
            if method == "full":
                rows[-1]["energy"] = energy(delta, TOP)
    return rows


def kept(lm: SmolLM, pairs: list[Pair]) -> dict:
    """Bytes after one step of Adam, counted and by formula, for LoRA and for the whole model; lr 0 moves nothing."""
    everything, lora = list(lm.model.parameters()), LoRA(lm.model, rank=RANK)
    found = {}
    for name, parameters in (("lora", list(lora.parameters())), ("full", everything)):
        for p in parameters:
            p.requires_grad_(True)
        adam = torch.optim.Adam(parameters, lr=0.0)
        with lora.attached(lm.model):
            loss(lm, batch(lm, pairs)).backward()
        adam.step()
        trained, frozen = sum(p.numel() for p in parameters), sum(p.numel() for p in everything)
        want = training_bytes(frozen if name == "lora" else 0, trained, tensors=len(parameters))
        found[name] = {
            "trained": trained, "gradients": gradient_bytes(parameters), "optimizer": state_bytes(adam),
            "formula": [want.gradients, want.optimizer], "total": want.total,
        }  # fmt: skip
        del adam
        for p in everything:
            p.requires_grad_(False).grad = None
    return found | {"formula": trained_numbers("lora", lm.config, size=RANK)}


@torch.no_grad()
def merging(lm: SmolLM, lora: LoRA, pairs: list[Pair]) -> dict:
    """Differences of logits, attached against merged, in two precisions; what an unmerged bfloat16 weight lost."""
    given, found = batch(lm, pairs), {}
    for dtype in (torch.float32, torch.bfloat16):
        lm.model.to(dtype)  # the model is this experiment's own copy, and bfloat16 comes last
        with lora.attached(lm.model):
            beside, beside_loss = lm.model(given.ids).float(), loss(lm, given).item()
        with lora.merged(lm.model):
            merged, merged_loss = lm.model(given.ids).float(), loss(lm, given).item()
        found[str(dtype)] = {
            "largest": beside.abs().max().item(), "difference": (beside - merged).abs().max().item(),
            "same_argmax": (beside.argmax(-1) == merged.argmax(-1)).double().mean().item(),
            "beside": beside_loss, "merged": merged_loss, "lost": lost(lm.model, lora),
        }  # fmt: skip
    return found


def lost(model: nn.Module, lora: LoRA) -> float:
    """Share of the weights that merging and unmerging in place did not give back; they are put back here."""
    changed = total = 0
    for i, name in enumerate(lora.names):
        linear = model.get_submodule(name)
        before, layer = linear.weight.clone(), lora.wrap(i, linear)
        layer.merge()
        layer.unmerge()
        changed, total = changed + int((linear.weight != before).sum()), total + before.numel()
        linear.weight.copy_(before)
    return changed / total


def double(rank: int = RANK) -> float:
    """Largest difference of one layer of SmolLM2's size in float64, outputs of size 1: merged against unmerged."""
    draw = torch.Generator().manual_seed(0)
    W, a, b, x = (torch.randn(s, generator=draw, dtype=torch.float64) * 576**-0.5 for s in
                  ((576, 576), (rank, 576), (576, rank), (64, 576)))  # fmt: skip
    layer = LoRALinear(nn.Linear(576, 576, bias=False), a, b, 2.0).double().requires_grad_(False)
    layer.base.weight.copy_(W)
    beside = layer(24 * x)
    layer.merge()
    return (layer(24 * x) - beside).abs().max().item()


@torch.no_grad()
def flops(lm: SmolLM, lora: LoRA, tokens: int = 16) -> dict:
    """Matmul FLOPs of the blocks for `tokens` tokens: without, beside, merged."""
    ids, found = torch.arange(tokens)[None], {}
    for name, within in (("plain", None), ("beside", lora.attached), ("merged", lora.merged)):
        with replace_attention(lm.model, naive_attention), Meter() as meter:
            if within is None:
                lm.model.residual(ids)
            else:
                with within(lm.model):
                    meter.matmuls.clear()  # merging multiplies B and A once; counted is what every token pays
                    lm.model.residual(ids)
        found[name] = meter.flops
    return found | {"tokens": tokens, "formula": 2 * tokens * lora.numbers}


def run(lm: SmolLM | None = None, steps: int = STEPS, seeds: int = SEEDS, size: int = SIZE) -> dict:
    lm = lm or load_smollm2()
    train, held_out = split(TASK, TRAIN, HELD_OUT)
    runs, lora = learning(lm, steps, seeds, size), LoRA(lm.model, rank=RANK)
    fit(lm, lora, train, steps=max(2, steps // 4), size=size, lr=RATES["rank 8"])
    draw = torch.Generator().manual_seed(0)
    shapes = sorted({tuple(m.weight.shape) for m in matching(lm.model, TARGETS).values()}, reverse=True)
    return {
        "mark": lm.mark, "steps": steps, "random": share_of_top(torch.randn(shapes[0], generator=draw), TOP),
        "weights": sum(p.numel() for p in lm.model.parameters()), "runs": runs, "shapes": shapes,
        "kept": kept(lm, held_out[:2]), "flops": flops(lm, lora), "double": double(),
        "merging": merging(lm, lora, held_out),
    }  # fmt: skip


def claims(result: dict) -> list[Claim]:
    return [judge(result) for judge in (
        _numbers, _bytes, _equal, _half, _no_cost, _learns, _on_par, _low, _low_update, _first_token, _which_matrix
    )]  # fmt: skip


def of(result: dict, method: str, when: str = "after", what: str = "loss") -> list[float]:
    """A score of one method, seed by seed."""
    return [row[when][what] for row in result["runs"] if row["method"] == method]


def _numbers(result) -> Claim:
    kept = result["kept"]
    share = kept["lora"]["trained"] / result["weights"]
    return Claim(
        "r (d + k) numbers are trained per matrix", "S1, LoRA Tuning", kept["formula"], kept["lora"]["trained"],
        kept["formula"] == kept["lora"]["trained"],
        f"Rank {RANK} on W_q and W_v of every layer: {share:.2%} of {result['weights']:,} weights.",
    )  # fmt: skip


def _bytes(result) -> Claim:
    lora, full = result["kept"]["lora"], result["kept"]["full"]
    exact = all([k["gradients"], k["optimizer"]] == k["formula"] for k in (lora, full))
    return Claim(
        "gradients and Adam's state are kept for the trained numbers alone", "S1; Hu et al. 2022, section 4.2",
        "4 + 8 bytes each", f"{lora['gradients']:,} + {lora['optimizer']:,} bytes", exact,
        f"Counted after a step; for all weights {full['gradients']:,} + {full['optimizer']:,}. "
        f"With weights {lora['total'] / 1e6:.0f} MB against {full['total'] / 1e6:.0f} MB.",
    )  # fmt: skip


def _equal(result) -> Claim:
    m = result["merging"]["torch.float32"]
    return Claim(
        "merged equals unmerged", "S1, LoRA Tuning", "to rounding", f"{result['double']:.0e}",
        result["double"] < 1e-13 and m["difference"] < 1e-4 * m["largest"],
        f"One layer in float64. All of SmolLM2 in float32: logits differ by {m['difference']:.0e} of "
        f"{m['largest']:.0f}, {m['same_argmax']:.1%} of the likeliest tokens are the same.",
    )  # fmt: skip


def _half(result) -> Claim:
    half, full = result["merging"]["torch.bfloat16"], result["merging"]["torch.float32"]
    return Claim(
        "and can be taken out again", "Hu et al. 2022, section 4.1", 0.0, round(half["lost"], 4), half["lost"] == 0.0,
        f"Share of bfloat16 weights that W + BA - BA does not give back; in float32 {full['lost']:.0%}, off by an ulp. "
        f"Merged into bfloat16 the loss is {half['merged']:.4f} against {half['beside']:.4f} beside it. Keep W.",
    )  # fmt: skip


def _no_cost(result) -> Claim:
    f = result["flops"]
    return Claim(
        "merged, LoRA costs no time", "Hu et al. 2022, section 4.1", f["plain"], f["merged"],
        f["merged"] == f["plain"] and f["beside"] - f["plain"] == f["formula"],
        f"Matmul FLOPs of the blocks for {f['tokens']} tokens, counted; unmerged {f['beside'] / f['plain'] - 1:.2%} "
        "more, 2 r (d + k) per token.",
    )  # fmt: skip


def _learns(result) -> Claim:
    before, after = of(result, "rank 8", "before"), of(result, "rank 8")
    (m, error), right = mean(after), [mean(of(result, "rank 8", when, "exact"))[0] for when in ("after", "before")]
    return Claim(
        "few trained numbers learn a task", "S1, Parameter-efficient Fine-tuning", "loss falls",
        f"{mean(before)[0]:.2f} -> {m:.2f} ± {error:.2f}", all(a < b / 2 for a, b in zip(after, before, strict=True)),
        f"Nats per answer token on held-out pairs, {len(after)} seeds, rank 8. Answers right to the last token: "
        f"{right[0]:.0%}, before {right[1]:.0%}.",
    )  # fmt: skip


def _differences(result, method, base) -> tuple[float, float]:
    return mean([a - b for a, b in zip(of(result, method), of(result, base), strict=True)])


def _on_par(result) -> Claim:
    d, error = _differences(result, "rank 8", "full")
    return Claim(
        "LoRA is as good as training the matrices in full", "Hu et al. 2022, section 5", "on par or better",
        f"{d:+.3f} ± {error:.3f} nats", d < 2 * error,
        f"Rank 8 against the full change of W_q and W_v, paired by seed; full {mean(of(result, 'full'))[0]:.2f}. "
        "One learning rate each, 16 steps.",
    )  # fmt: skip


def _low(result) -> Claim:
    d, error = _differences(result, "rank 1", "rank 8")
    return Claim(
        "a rank of one is enough", "Hu et al. 2022, section 7.2", "on par", f"{d:+.3f} ± {error:.3f} nats",
        d < 2 * error, f"Rank 1 against rank 8, paired by seed; rank 1 {mean(of(result, 'rank 1'))[0]:.2f}.",
    )  # fmt: skip


def _low_update(result) -> Claim:
    m, error = mean([row["energy"] for row in result["runs"] if row["method"] == "full"])
    return Claim(
        "the full change is itself of low rank", "Hu et al. 2022, section 4.1", "low rank", f"{m:.0%} ± {error:.0%}",
        m > 0.5, f"Share of its squared singular values that the {TOP} largest of up to {result['shapes'][0][0]} hold "
        f"after {result['steps']} steps; of a random matrix of this size they hold {result['random']:.0%}.",
    )  # fmt: skip


def _first_token(result) -> Claim:
    bare, dash = (of(result, method, what="exact") for method in (BARE, "rank 8"))
    (with_dash, a), (without, b) = mean(dash), mean(bare)
    gain, error = mean([x - y for x, y in zip(dash, bare, strict=True)])
    return Claim(
        "it does not matter whether the question is the first token", "measured, no claim", "-",
        f"{without:.0%} ± {b:.0%} right, with a dash in front {with_dash:.0%} ± {a:.0%}", abs(gain) < 2 * error,
        "SmolLM2 uses token 0 as an attention sink (row 14): what it said is lost to later layers, and no few steps of "
        "LoRA bring it back. The task loses a word, here the month.",
    )  # fmt: skip


def _which_matrix(result) -> Claim:
    shapes = ", ".join(f"{out} x {inner}" for out, inner in result["shapes"])
    return Claim(
        "LoRA assumes low rank of the N x N matrix", "S1, Low-Rank Approximations (LoRA)", "N x N", shapes, False,
        "What is low in rank is the change of a weight matrix, d x k: no sequence length enters. Low rank of the N x N "
        "attention matrix is Linformer's assumption.",
    )  # fmt: skip
