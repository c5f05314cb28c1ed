"""Row 17, alternatives to softmax (S3): linear attention and a selective state-space layer, three forms, linear cost.

Agreement is in float64; FLOPs and bytes are counted. Times are this machine's: read their slope.
"""

import math
import statistics

import torch

from refimpl.attention import naive_attention
from refimpl.bench.measure import interleaved
from refimpl.experiments.harness import Claim
from refimpl.linear_attention import FORMS, linear_attention, linear_attention_flops
from refimpl.models import corpus, load_smollm2, perplexity, replace_attention
from refimpl.state_space import selective_scan

TITLE = "kernel methods and a state-space layer: recurrent = parallel = chunked, and linear in the length"
LENGTHS, HEADS, DIM, STATE = [512, 1024, 2048, 4096], 2, 64, 16


def run() -> dict:
    return {"agreement": agreement(), "time": timing(), "swap": swap()}


def inputs(n: int, dtype=torch.float64) -> dict:
    """Queries, keys and values; and x, dt, log_a, B, C for the scan; from a fixed seed."""
    g = torch.Generator().manual_seed(0)
    qkv = [torch.randn(1, HEADS, n, DIM, generator=g, dtype=dtype) for _ in range(3)]
    dt = torch.rand(1, HEADS, n, generator=g, dtype=dtype) * 0.1
    b, c = (torch.randn(1, HEADS, n, STATE, generator=g, dtype=dtype) for _ in range(2))
    return {"qkv": qkv, "scan": (qkv[0], dt, torch.zeros(HEADS, dtype=dtype), b, c)}


def agreement(n: int = 300) -> dict:
    """Largest difference between any form and the recurrent one, relative to the largest value."""
    given = inputs(n)

    def spread(call) -> float:
        outputs = {form: call(form) for form in FORMS}
        wanted = outputs["recurrent"]
        return max(((out - wanted).abs().max() / wanted.abs().max()).item() for out in outputs.values())

    return {
        "linear attention": spread(lambda form: linear_attention(*given["qkv"], form=form)),
        "state space": spread(lambda form: selective_scan(*given["scan"], form=form)),
    }


def timing() -> list[dict]:
    """Seconds of the chunked forms and of softmax attention, one thread, interleaved medians of 5."""
    rows = []
    for n in LENGTHS:
        given = inputs(n, torch.float32)
        calls = {
            "softmax": lambda given=given: naive_attention(*given["qkv"], causal=True),
            "linear attention": lambda given=given: linear_attention(*given["qkv"]),
            "state space": lambda given=given: selective_scan(*given["scan"]),
        }
        seconds = {name: statistics.median(times) for name, times in interleaved(calls, 5).items()}
        flops = {"softmax": 4 * n * n * DIM, "linear attention": linear_attention_flops(n, DIM, form="chunked")}
        rows.append({"tokens": n, "seconds": seconds, "flops_per_head": flops})
    return rows


def swap() -> dict:
    """SmolLM2's perplexity with linear attention in place of softmax, in one layer and in all, without training."""
    lm = load_smollm2()
    ids = lm.ids(corpus("prose"), 512)
    attend = lambda q, k, v, *, causal=True: linear_attention(q, *repeat(q, k, v), causal=causal)  # noqa: E731
    result = {"mark": lm.mark, "softmax": perplexity(lm.model, ids)}
    middle = len(lm.model.layers) // 2
    for name, where in {"one layer": {middle: attend}, "all layers": attend}.items():
        with replace_attention(lm.model, where):
            result[name] = perplexity(lm.model, ids)
    return result


def repeat(q, k, v):
    """Each key head once per query head that reads it."""
    return (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))


def slope(rows: list[dict], name: str) -> float:
    """log(time ratio) / log(length ratio) over the last doubling: 1 is linear, 2 quadratic."""
    a, b = rows[-2], rows[-1]
    return math.log(b["seconds"][name] / a["seconds"][name]) / math.log(b["tokens"] / a["tokens"])


def claims(result: dict) -> list[Claim]:
    rows, worst = result["time"], max(result["agreement"].values())
    measured = {name: slope(rows, name) for name in rows[-1]["seconds"]}
    linear = max(measured["linear attention"], measured["state space"])
    speedup = rows[-1]["seconds"]["softmax"] / rows[-1]["seconds"]["linear attention"]
    swapped = result["swap"]
    return [
        Claim("recurrent, parallel and chunked forms compute the same", "Katharopoulos 2020; Dao and Gu 2024", 0.0,
              worst, worst < 1e-12, "Largest relative difference, float64, 300 tokens, chunks of 64."),
        Claim("time is linear in the length: exponent of N", "S3, kernel methods", "1 against 2",
              ", ".join(f"{name} {value:.2f}" for name, value in measured.items()),
              linear < 1.5 < measured["softmax"],
              f"{LENGTHS[-2]:,} to {LENGTHS[-1]:,} tokens, one thread. At {LENGTHS[-1]:,} linear attention takes "
              f"1/{speedup:.0f} of the naive softmax's time."),
        Claim("a drop-in replacement for softmax in a trained model", "not claimed by the papers: they train it", "no",
              f"{swapped['softmax']:.1f} -> one layer {swapped['one layer']:.1f}, all {swapped['all layers']:,.0f}",
              swapped["all layers"] > 2 * swapped["softmax"],
              f"Perplexity of SmolLM2 without training: the weights expect softmax's sharp maps. {swapped['mark']}"),
    ]  # fmt: skip
