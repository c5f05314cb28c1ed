"""Row 26, pruning SmolLM2 without retraining: a budget of nonzeros, who spends it well, and which parts can go.

Perplexity of SmolLM2-135M on 1,024 tokens of prose; scores that need data see 512 tokens of another message. Pruned are
the 210 linear layers, 106 million weights; the embedding, which is also the output matrix, stays. N is a share of those
weights, and the nonzeros are counted after pruning. Sources: S1, "Neural Network Pruning"; Han et al. 2015; Sun et al.
2023 (Wanda); Michel et al. 2019; Men et al. 2024.
"""

from collections.abc import Callable, Iterator

import torch

from refimpl.experiments.harness import Claim
from refimpl.experiments.row_13 import perplexity, ratio
from refimpl.experiments.row_24 import losses, windows
from refimpl.models import Llama, SmolLM, corpus, load_smollm2
from refimpl.pruning import (
    Gates,
    channel_norms,
    gate_gradients,
    gated,
    head_norms,
    input_norms,
    keep_largest,
    keep_largest_global,
    keep_largest_per_layer,
    keep_largest_per_row,
    layer_influence,
    n_m_mask,
    pruned,
    wanda_scores,
)
from refimpl.quantization.swap import linears
from refimpl.shapes import Int, Tensor

TITLE = "pruning by budget: magnitude, chance, Wanda, 2:4; heads, FFN channels, layers of SmolLM2"
CALIBRATION, TOKENS = "1980-Carter-1", 512
SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5)
ONE_BUDGET = (0.3, 0.5)  # where a budget for the whole model is tried, too
PARTS = {"ffn": 0.2, "heads": 0.1}  # share of channels of each layer; of the model's 90 key/value heads
SEEDS = (0, 1, 2)
LAYERS = (0, 8, 15, 22, 29)  # removed one at a time


def run() -> dict:
    return measure(load_smollm2())


def measure(lm: SmolLM, *, sparsities=SPARSITIES, seeds=SEEDS, layers=LAYERS) -> dict:
    """All rows: kind of pruning, criterion, share removed, losses per piece, and what was counted."""
    ids, text = windows(lm), lm.ids(corpus("prose", message=CALIBRATION), TOKENS).view(2, -1)
    rows = [{"kind": "none", "way": "full", "share": 0.0, "losses": losses(lm.model, ids)}]
    for way, share, budget, masks in [*weights(lm.model, text, sparsities, seeds), *patterns(lm.model, text)]:
        with pruned(lm.model, masks):
            left = sum(int(layer.weight.count_nonzero()) for layer in linears(lm.model).values())
            found = losses(lm.model, ids)
        rows.append({"kind": "weights", "way": way, "share": share, "N": budget, "nonzero": left, "losses": found})
    for kind, way, share, gates in [*parts(lm.model, text, seeds), *single_layers(lm.model, layers)]:
        with gated(lm.model, gates):
            rows.append({"kind": kind, "way": way, "share": share, "losses": losses(lm.model, ids)})
    influence = layer_influence(lm.model, text).tolist()
    return {"mark": lm.mark, "tokens": ids.numel(), "rows": rows, "influence": [round(x, 4) for x in influence]}


# --- what is removed -------------------------------------------------------------------------------------------------


def weights(model: Llama, text: Int[Tensor, "batch seq"], sparsities, seeds) -> Iterator:
    """(criterion, share removed, N, masks) for single weights."""
    sizes = {name: layer.weight.abs() for name, layer in linears(model).items()}
    norms = input_norms(model, lambda: model.residual(text))
    for share in sparsities:
        budget = round((1 - share) * sum(s.numel() for s in sizes.values()))
        yield "magnitude per layer", share, budget, keep_largest_per_layer(sizes, budget)
        if share in ONE_BUDGET:
            yield "magnitude, one budget", share, budget, keep_largest_global(sizes, budget)
        kept = {name: round((1 - share) * s.shape[1]) for name, s in sizes.items()}
        rows = {n: keep_largest_per_row(wanda_scores(s, norms[n]), kept[n]) for n, s in sizes.items()}
        yield "Wanda per row", share, sum(len(s) * kept[n] for n, s in sizes.items()), rows
    for seed in seeds:
        rng = torch.Generator().manual_seed(seed)
        budget = round((1 - sparsities[0]) * sum(s.numel() for s in sizes.values()))
        chance = {name: torch.rand(s.shape, generator=rng) for name, s in sizes.items()}
        yield f"random {seed}", sparsities[0], budget, keep_largest_per_layer(chance, budget)


def patterns(model: Llama, text: Int[Tensor, "batch seq"]) -> Iterator:
    """Two of every four neighbours, by both criteria."""
    norms = input_norms(model, lambda: model.residual(text))
    criteria: dict[str, Callable] = {"magnitude 2:4": lambda w, _: w.abs(), "Wanda 2:4": wanda_scores}
    for way, score in criteria.items():
        masks = {name: n_m_mask(score(x.weight, norms[name]), 2, 4) for name, x in linears(model).items()}
        yield way, 0.5, sum(x.weight.numel() for x in linears(model).values()) // 2, masks


def parts(model: Llama, text: Int[Tensor, "batch seq"], seeds) -> Iterator:
    """(kind, criterion, share, gates): channels within each layer, heads over the whole model."""
    gradients = gate_gradients(model, text)
    ffn, heads = channel_norms(model, text), head_norms(model, text)
    ways = {
        "ffn": {"output norm": ffn, "loss gradient": gradients.ffn},
        "heads": {"output norm": heads, "loss gradient": gradients.heads},
    }
    for kind, criteria in ways.items():
        for seed in seeds:
            rng = torch.Generator().manual_seed(seed)
            criteria[f"random {seed}"] = torch.rand(criteria["output norm"].shape, generator=rng)
        for way, score in criteria.items():
            share = PARTS[kind]
            keep = round((1 - share) * (score.shape[1] if kind == "ffn" else score.numel()))
            mask = keep_largest_per_row(score, keep) if kind == "ffn" else keep_largest(score, keep)
            yield kind, way, share, Gates(**{kind: mask.float()})


def single_layers(model: Llama, layers) -> Iterator:
    """Each of some layers removed, alone."""
    for layer in layers:
        gate = torch.ones(model.config.layers)
        gate[layer] = 0
        yield "layer", str(layer), 1 / model.config.layers, Gates(layers=gate)


# --- what the runs say -----------------------------------------------------------------------------------------------


def claims(result: dict) -> list[Claim]:
    return [
        _budget(result), _magnitude(result), _wanda(result), _pattern(result), _channels(result), _heads(result),
        _gradient(result), _layers(result),
    ]  # fmt: skip


def of(result: dict, kind: str, way: str, share: float | None = None) -> list[float]:
    """The losses of a row."""
    rows = (r for r in result["rows"] if (r["kind"], r["way"]) == (kind, way))
    return next(r["losses"] for r in rows if share is None or abs(r["share"] - share) < 1e-9)


def chance(result: dict, kind: str) -> list[float]:
    """Perplexity of each random seed."""
    return [perplexity(r["losses"]) for r in result["rows"] if r["kind"] == kind and r["way"].startswith("random")]


def _full(result) -> str:
    return f"Full {perplexity(of(result, 'none', 'full')):.2f}; {result['tokens']:,} tokens, no retraining"


def free(result: dict) -> list[dict]:
    """Rows in which a score chose without a pattern; chance and 2:4 also keep weights that were 0 from the start."""
    rows = [r for r in result["rows"] if r["kind"] == "weights"]
    return [r for r in rows if not r["way"].startswith("random") and not r["way"].endswith("2:4")]


def _budget(result) -> Claim:
    rows, chosen = [r for r in result["rows"] if r["kind"] == "weights"], free(result)
    exact = sum(r["nonzero"] == r["N"] for r in chosen)
    return Claim(
        "the number of nonzeros is N", "S1, formulation of pruning: ||W_P||_0, N is the target #nonzeros",
        "N", f"{exact} of {len(chosen)} choices by score leave exactly N",
        exact == len(chosen) and all(r["nonzero"] <= r["N"] for r in rows),
        f"Counted in the pruned model, N from {min(r['N'] for r in rows):,} to {max(r['N'] for r in rows):,} of 106 "
        f"million weights; the slide prints < N. Random and 2:4 masks keep N places, too, and among them up to "
        f"{max(r['N'] - r['nonzero'] for r in rows):,} weights that were 0 before.",
    )  # fmt: skip


def _magnitude(result) -> Claim:
    by_size = perplexity(of(result, "weights", "magnitude per layer", 0.3))
    random = chance(result, "weights")
    curve = [(r["share"], perplexity(r["losses"])) for r in result["rows"] if r["way"] == "magnitude per layer"]
    text = ", ".join(f"{100 * share:.0f} %: {p:.4g}" for share, p in curve)
    return Claim(
        "weights can be removed, the small ones first", "S1, Neural Network Pruning; Han et al. 2015",
        "smaller network", f"30 % by magnitude {by_size:.1f}, 10 % at random {min(random):.0f} to {max(random):.0f}",
        by_size < min(random), f"{_full(result)}. Magnitude per layer: {text}. {len(random)} random masks.",
    )  # fmt: skip


def _wanda(result) -> Claim:
    ours, theirs = of(result, "weights", "Wanda per row", 0.5), of(result, "weights", "magnitude per layer", 0.5)
    times, error = ratio(ours, theirs)
    one = perplexity(of(result, "weights", "magnitude, one budget", 0.5))
    return Claim(
        "scores that know the inputs survive 50 %, magnitude does not", "Sun et al. 2023, table 2",
        "Wanda far below magnitude", f"{perplexity(ours):.1f} against {perplexity(theirs):.0f}", times + 2 * error < 1,
        f"Times {times:.3f} ± {error:.3f}, paired over {len(ours)} pieces. One magnitude budget for the model: "
        f"{one:.3g}. {_full(result)}.",
    )  # fmt: skip


def _pattern(result) -> Claim:
    wanda, size = of(result, "weights", "Wanda 2:4"), of(result, "weights", "magnitude 2:4")
    free = of(result, "weights", "Wanda per row", 0.5)
    (times, error), (price, spread) = ratio(wanda, size), ratio(wanda, free)
    return Claim(
        "the 2:4 pattern costs more than a free choice of half the weights", "Sun et al. 2023, table 2",
        "2:4 above unstructured", f"{perplexity(wanda):.1f} against {perplexity(free):.1f}", price - 2 * spread > 1,
        f"Wanda; times {price:.2f} ± {spread:.2f}. By magnitude 2:4 gives {perplexity(size):.4g}; Wanda is "
        f"{times:.3f} ± {error:.3f} of it.",
    )  # fmt: skip


def _channels(result) -> Claim:
    best, random = perplexity(of(result, "ffn", "output norm")), chance(result, "ffn")
    gradient = perplexity(of(result, "ffn", "loss gradient"))
    return Claim(
        "neurons can be removed: FFN channels that add little go first", "S1, removing synapses and neurons",
        "better than chance", f"{best:.1f} against {min(random):.1f} to {max(random):.1f} at random",
        best < min(random),
        f"{100 * PARTS['ffn']:.0f} % of the channels of each layer, by the norm of what they add; by the loss's "
        f"gradient {gradient:.1f}. {len(random)} random choices. {_full(result)}.",
    )  # fmt: skip


def _heads(result) -> Claim:
    norm, random = perplexity(of(result, "heads", "output norm")), chance(result, "heads")
    return Claim(
        "heads that add little can go", "a common belief", "better than chance",
        f"{norm:.1f} against {min(random):.1f} to {max(random):.1f} at random", norm < min(random),
        f"{100 * PARTS['heads']:.0f} % of the key/value heads of the whole model, with their queries, by the norm of "
        f"their output. Norms of different layers do not compare. {_full(result)}.",
    )  # fmt: skip


def _gradient(result) -> Claim:
    gradient, random = perplexity(of(result, "heads", "loss gradient")), chance(result, "heads")
    return Claim(
        "heads that the loss's gradient calls unimportant can go", "Michel et al. 2019, section 4",
        "better than chance",
        f"{gradient:.1f} against {min(random):.1f} to {max(random):.1f} at random", gradient < min(random),
        f"The same number of heads; |dL/dgate| summed over {TOKENS} tokens in two texts.",
    )  # fmt: skip


def _layers(result) -> Claim:
    alone = {r["way"]: perplexity(r["losses"]) for r in result["rows"] if r["kind"] == "layer"}
    middle = min(alone, key=alone.__getitem__)
    text = ", ".join(f"{layer}: {p:.4g}" for layer, p in alone.items())
    least = min(range(len(result["influence"])), key=result["influence"].__getitem__)
    return Claim(
        "a whole layer can be removed from the middle, not from the ends", "Men et al. 2024 (ShortGPT)",
        "middle layers are redundant", f"layer {middle} costs least of {len(alone)}",
        middle not in ("0", str(len(result["influence"]) - 1)),
        f"Perplexity without layer {text}. {_full(result)}. By cosine of input and output layer {least} turns the "
        "stream least.",
    )  # fmt: skip
