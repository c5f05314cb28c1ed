"""Row 24, LLM.int8() on a real model: where the outliers are, and what each way to scale costs in perplexity.

SmolLM2-135M on 1,024 tokens of prose, two windows read as one batch. All 210 linear layers multiply int8 codes; the
embedding, which is also the output matrix, stays as it is. A feature is an outlier where one of the batch's tokens
reaches the threshold. The weights came from a file of 5 bits per weight (Q4_1): int8 is their second rounding.
Sources: S1, "LLM.int8()"; Dettmers et al. 2022, sections 3 and 4.
"""

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone uses

from refimpl.experiments.harness import Claim
from refimpl.experiments.row_13 import perplexity, ratio
from refimpl.models import Llama, SmolLM, corpus, load_smollm2
from refimpl.quantization import Int8Linear, Int8Product, outlier_features, replaced_linears
from refimpl.quantization.int8 import THRESHOLD
from refimpl.quantization.swap import linears
from refimpl.shapes import Int, Tensor

TITLE = "LLM.int8(): outlier features of SmolLM2, and perplexity by the scales of int8 products"
WINDOWS, LENGTH, PIECE = 2, 512, 73  # 511 scored tokens of a window are 7 pieces
INPUTS = {"attention": "q_proj", "attention output": "o_proj", "ffn": "gate_proj", "ffn down": "down_proj"}
WAYS = {
    "weights only": Int8Product(None),
    "one scale": Int8Product("tensor", "tensor", None),
    "one scale for x": Int8Product("tensor", "row", None),
    "vector-wise": Int8Product("row", "row", None),
} | {f"split at {t:g}": Int8Product(threshold=t) for t in (4.0, THRESHOLD, 20.0)}
SPLIT = f"split at {THRESHOLD:g}"


def windows(lm: SmolLM, count: int = WINDOWS) -> Int[Tensor, "windows length"]:
    return lm.ids(corpus("prose"), count * LENGTH).view(count, LENGTH)


@torch.no_grad()
def losses(model: Llama, ids: Int[Tensor, "windows length"]) -> list[float]:
    """Mean nats per token of each piece of PIECE tokens."""
    logits = model(ids)[:, :-1]
    each = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return each.view(-1, PIECE).mean(1).tolist()


@torch.no_grad()
def outliers(model: Llama, ids: Int[Tensor, "windows length"]) -> dict:
    """Per kind of input: outlier features of each layer, largest magnitude of each layer, and the width."""
    found = {kind: {"features": [], "largest": [], "which": []} for kind in INPUTS}
    hooks = []
    for name, layer in linears(model).items():
        kind = next((k for k, end in INPUTS.items() if name.endswith(end)), None)
        if kind is not None:
            hooks.append(layer.register_forward_pre_hook(_watch(found[kind])))
    try:
        model.residual(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _watch(kept: dict):
    def hook(layer, inputs):
        x = inputs[0].flatten(0, -2)
        which = outlier_features(x).nonzero().flatten().tolist()
        kept["width"] = x.shape[1]
        kept["features"].append(len(which))
        kept["largest"].append(round(x.abs().max().item(), 2))
        kept["which"].append(which[:8])

    return hook


def run() -> dict:
    lm = load_smollm2()
    ids, layers = windows(lm), linears(lm.model).values()
    result = {"mark": lm.mark, "tokens": ids.numel(), "outliers": outliers(lm.model, ids)}
    rows = [{"way": "full", "bytes": sum(x.weight.nbytes for x in layers), "losses": losses(lm.model, ids)}]
    for way, how in WAYS.items():
        with replaced_linears(lm.model, lambda name, layer, how=how: Int8Linear(layer, how)):
            held = [m.weight.nbytes for m in lm.model.modules() if isinstance(m, Int8Linear)]
            rows.append({"way": way, "bytes": sum(held), "losses": losses(lm.model, ids)})
    return result | {"rows": rows}


def claims(result: dict) -> list[Claim]:
    return [_few(result), _breaks(result), _vector_wise(result), _split(result), _memory(result)]


def _of(result, way) -> list[float]:
    return next(row["losses"] for row in result["rows"] if row["way"] == way)


def share(result: dict) -> float:
    """Outlier columns, of all input columns of q, k, v (one input), o, gate, up (one) and down."""
    times = {"attention": 3, "attention output": 1, "ffn": 2, "ffn down": 1}
    kinds = result["outliers"].items()
    many = sum(times[k] * sum(found["features"]) for k, found in kinds)
    return many / sum(times[k] * found["width"] * len(found["features"]) for k, found in kinds)


def _few(result) -> Claim:
    kinds = result["outliers"]
    text = ", ".join(f"{k} {max(v['features'])} of {v['width']}" for k, v in kinds.items())
    top = max(max(v["largest"]) for v in kinds.values())
    part = share(result)
    return Claim(
        "few features hold large values, in particular dimensions", "S1, LLM.int8()", "outlier features exist",
        f"{100 * part:.1f} % of the input columns reach {THRESHOLD:g}", 0 < part < 0.1,
        f"Most in any layer: {text}; largest magnitude {top:,.0f}. {result['tokens']:,} tokens; one token is enough to "
        "make a column an outlier, so the share grows with the text.",
    )  # fmt: skip


def _against(result, way, other="full") -> str:
    times, error = ratio(_of(result, way), _of(result, other))
    return f"{way} {perplexity(_of(result, way)):.2f} (times {times:.3f} ± {error:.3f})"


def _breaks(result) -> Claim:
    times, error = ratio(_of(result, "one scale"), _of(result, "weights only"))
    return Claim(
        "outliers lead to large quantization error with one scale per matrix", "S1, LLM.int8()", "large error",
        f"{_against(result, 'one scale')}", times - 2 * error > 1.1,
        f"Full precision {perplexity(_of(result, 'full')):.2f}; {_against(result, 'weights only')}; "
        f"{_against(result, 'one scale for x')}. Standard error over {len(_of(result, 'full'))} pieces, paired.",
    )  # fmt: skip


def _vector_wise(result) -> Claim:
    times, error = ratio(_of(result, "vector-wise"), _of(result, "one scale"))
    return Claim(
        "a scale per token and per output channel repairs most of it", "S1, LLM.int8()", "vector-wise helps",
        _against(result, "vector-wise"), times + 2 * error < 1,
        f"Times {times:.3f} ± {error:.3f} of one scale.",
    )  # fmt: skip


def _split(result) -> Claim:
    times, error = ratio(_of(result, SPLIT), _of(result, "vector-wise"))
    sweep = ", ".join(_against(result, way) for way in WAYS if way.startswith("split"))
    return Claim(
        f"the outliers in 16 bits (threshold {THRESHOLD:g}) bring the rest back", "Dettmers et al. 2022, table 1",
        "no degradation", _against(result, SPLIT), times + 2 * error < 1,
        f"Times {times:.3f} ± {error:.3f} of vector-wise. Thresholds: {sweep}. The paper's gap opens at 6.7 billion "
        "parameters; this model has 0.135.",
    )  # fmt: skip


def _memory(result) -> Claim:
    full, held = result["rows"][0]["bytes"], {row["bytes"] for row in result["rows"] if row["way"] == SPLIT}.pop()
    return Claim(
        "half of the memory of 16-bit weights", "Dettmers et al. 2022, abstract", 0.5, round(held / (full / 2), 4),
        abs(held / (full / 2) - 0.5) < 0.01,
        f"{held:,} bytes in 210 layers against {full // 2:,}: a byte per weight and a float32 per channel.",
    )  # fmt: skip
