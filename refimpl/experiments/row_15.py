"""Row 15, redundancy in trained weights (S1): principal components, truncation without and with the inputs, parts.

Weights: MiniLM (float32, never quantized) for the components; SmolLM2 for what truncation does to perplexity. Text: the
1981 presidential message.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from refimpl.experiments.harness import Claim
from refimpl.low_rank import components_for, energy, feed_forward_neurons, input_rms, paired, truncate
from refimpl.models import corpus, load_minilm, load_smollm2, perplexity

TITLE = "redundancy: principal components of trained weights, and what is left of a model after truncation"
SHARE = 0.9  # of the variance
CALIBRATION, SCORED, WINDOW = 512, 1024, 512  # tokens: the first set the input scales, the next are scored
PARTS = {"attention q, k": ("q_proj", "k_proj"), "attention v, o": ("v_proj", "o_proj")}
KEPT = (0.75, 0.5)  # of the full rank


def run() -> dict:
    return {"components": components(), "pairs": pairs(), "truncation": truncation(), "parts": parts()}


def components() -> dict:
    """MiniLM: share of the components that hold 90 % of the variance, per kind of matrix, over its 6 blocks.

    The shuffled matrix has the same numbers in other places: what remains of the effect is the numbers' alone.
    """
    blocks = load_minilm().model.blocks
    kinds = {
        "query": lambda b: b.attention.query.weight, "key": lambda b: b.attention.key.weight,
        "value": lambda b: b.attention.value.weight, "output": lambda b: b.attention.output.weight,
        "ffn in": lambda b: b.w_1.weight, "ffn out": lambda b: b.w_2.weight,
        "pair query, key": lambda b: paired(b.attention.query.weight, b.attention.key.weight),
        "pair ffn in, out": lambda b: paired(b.w_1.weight.T, b.w_2.weight),
    }  # fmt: skip
    draw, found = torch.Generator().manual_seed(0), {}
    for name, pick in kinds.items():
        matrices = [pick(block) for block in blocks]
        shuffled = [m.flatten()[torch.randperm(m.numel(), generator=draw)].view_as(m) for m in matrices]
        found[name] = {
            "needed": [components_for(SHARE, m) / min(m.shape) for m in matrices],
            "shuffled": [components_for(SHARE, m) / min(m.shape) for m in shuffled],
            "curve": [round(v, 4) for v in energy(matrices[0])[:: max(min(matrices[0].shape) // 32, 1)].tolist()],
        }
    return found


def pairs() -> dict:
    """[Q K] of each block, beside [Q, K turned]: the same singular values in directions that ignore Q."""
    rows = {"single": [], "pair": [], "turned": []}
    draw = torch.Generator().manual_seed(0)
    for block in load_minilm().model.blocks:
        q, k = block.attention.query.weight.double(), block.attention.key.weight.double()
        turn = torch.linalg.qr(torch.randn(k.shape, generator=draw, dtype=k.dtype)).Q
        for name, matrix in {"single": q, "pair": paired(q, k), "turned": paired(q, turn @ k)}.items():
            rows[name].append(components_for(SHARE, matrix) / len(q))
    return rows


def truncation() -> dict:
    """SmolLM2: perplexity with a kind of matrix cut to a share of its rank in all layers, then put back."""
    lm = load_smollm2()
    tokens = lm.ids(corpus("prose"), CALIBRATION + SCORED)
    calibration, scored = tokens[:, :CALIBRATION], tokens[:, CALIBRATION:]
    scales = input_scales(lm.model, calibration, [name for names in PARTS.values() for name in names])
    result = {"perplexity": perplexity(lm.model, scored, window=WINDOW), "mark": lm.mark, "rows": []}
    for part, names in PARTS.items():
        for kept in KEPT:
            row = {"part": part, "kept": kept}
            for way in ("plain", "scaled"):
                with truncated(lm.model, names, kept, scales if way == "scaled" else None):
                    row[way] = perplexity(lm.model, scored, window=WINDOW)
            result["rows"].append(row)
    result["restored"] = perplexity(lm.model, scored, window=WINDOW)
    return result


def input_scales(model: nn.Module, ids: torch.Tensor, names: list[str]) -> dict[str, torch.Tensor]:
    """Root mean square of every input feature of the named linear layers, over one pass."""
    scales, hooks = {}, []
    for name, layer in linear_layers(model, names):
        hooks.append(layer.register_forward_pre_hook(lambda _, x, name=name: scales.update({name: input_rms(x[0])})))
    model(ids)
    for hook in hooks:
        hook.remove()
    return scales


def linear_layers(model: nn.Module, names: list[str]) -> Iterator[tuple[str, nn.Linear]]:
    return ((n, layer) for n, layer in model.named_modules() if n.rpartition(".")[2] in names)


@contextmanager
def truncated(model: nn.Module, names: list[str], kept: float, scales: dict | None) -> Iterator[None]:
    """Within the `with`, the named layers multiply by a matrix of `kept` of the full rank."""
    before = {name: layer.weight.data for name, layer in linear_layers(model, names)}
    try:
        for name, layer in linear_layers(model, names):
            rank = max(1, round(kept * min(layer.weight.shape)))
            b, a = truncate(layer.weight.data, rank, input_scale=None if scales is None else scales[name])
            layer.weight.data = b @ a
        yield
    finally:
        for name, layer in linear_layers(model, names):
            layer.weight.data = before[name]


def parts() -> dict:
    """MiniLM's first feed-forward network as the sum of its 1,536 neurons, and its share of neurons that matter."""
    lm = load_minilm()
    ids, real = lm.ids([corpus("prose")[:2000]])
    block = lm.model.blocks[0]
    x = lm.model.hidden(ids, real)[0]
    x = block.norm_1(x + block.attention(x, None))
    outputs = torch.stack(list(feed_forward_neurons(x, block.w_1.weight.T, block.w_1.bias, block.w_2.weight.T)))
    dense = block.w_2(torch.nn.functional.gelu(block.w_1(x)))
    sizes = outputs.square().sum(dim=(1, 2, 3)).sort(descending=True).values
    return {
        "neurons": len(outputs),
        "difference": float((outputs.sum(0) + block.w_2.bias - dense).abs().max() / dense.abs().max()),
        "share_of_neurons_for_90_percent": float((sizes.cumsum(0) / sizes.sum() < SHARE).float().mean()),
    }


def claims(result: dict) -> list[Claim]:
    kinds, cut = result["components"], result["truncation"]
    mean = {name: {key: sum(row[key]) / len(row[key]) for key in ("needed", "shuffled")} for name, row in kinds.items()}
    worst = {(row["part"], row["kept"]): row for row in cut["rows"]}
    vo = worst["attention v, o", 0.5]
    single = mean["query"]["needed"]
    pair, turned = (sum(result["pairs"][name]) / len(result["pairs"][name]) for name in ("pair", "turned"))
    listed = ", ".join(f"{name} {row['needed']:.2f}" for name, row in mean.items())
    return [
        Claim("parameter redundancy exists: components that hold 90 % of a matrix's variance",
              "S1, PCA for each matrix",
              "< those of shuffled numbers", listed,
              all(row["needed"] < row["shuffled"] for row in mean.values()),
              "MiniLM, share of the full rank, mean of 6 blocks; the same numbers in other places need "
              f"{min(r['shuffled'] for r in mean.values()):.2f} to {max(r['shuffled'] for r in mean.values()):.2f}. "
              "The lecture shows BERT-base."),
        Claim("attention is lower in rank than the feed-forward network", "S1, figure 1", "attention < FFN",
              f"{single:.2f} < {mean['ffn in']['needed']:.2f}", single < mean["ffn in"]["needed"], "MiniLM, query."),
        Claim("a pair of matrices shares directions: components of [Q K]", "S1, PCA for a pair of matrices",
              "fewer than by chance", f"{pair:.2f} < {turned:.2f}",
              all(a < b for a, b in zip(result["pairs"]["pair"], result["pairs"]["turned"], strict=True)),
              f"Share of the full rank for 90 %, in each of 6 blocks; Q alone needs {single:.2f}, Q beside K turned at "
              f"random {turned:.2f}: they share directions, though not many."),
        Claim("low energy is not low importance: perplexity of v, o at half rank by SVD", "Yuan et al. 2023",
              "explodes",
              round(vo["plain"], 1), vo["plain"] > 10 * cut["perplexity"],
              f"SmolLM2, no retraining, from {cut['perplexity']:.1f}; scaled by the inputs: {vo['scaled']:.1f}."
              + cut["mark"]),
        Claim("scaling by the inputs repairs it", "Yuan et al. 2023, ASVD", "scaled < plain",
              "; ".join(f"{r['part']} {r['kept']:.0%}: {r['plain']:.1f} -> {r['scaled']:.1f}" for r in cut["rows"]),
              all(row["scaled"] <= 1.02 * row["plain"] for row in cut["rows"]) and vo["scaled"] < vo["plain"] / 10,
              "Perplexity on 1,024 tokens that set no scale; 2 % is within noise."),
        Claim("FFN(X) is a sum of 4D one-neuron heads", "S1, decomposability", 0.0, result["parts"]["difference"],
              result["parts"]["difference"] < 1e-5,
              f"{result['parts']['neurons']:,} neurons; {result['parts']['share_of_neurons_for_90_percent']:.0%} of "
              "them make 90 % of the squared output on one text."),
    ]  # fmt: skip
