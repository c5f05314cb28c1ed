"""Row 10, Longformer (S1): what a window costs, how far it sees, and what global tokens repair.

FLOPs and bytes are counted, spans are read off the graph of a stack of layers; seconds are this machine's: read their
slope. SmolLM2 and MiniLM were trained with full attention and see a window here without further training, which
Longformer gets. Source: S1, "Sparse Attention - LongFormer"; Beltagy et al. 2020.
"""

import math
import statistics
from itertools import pairwise

import torch
from torch.nn import functional as F  # noqa: N812 - PyTorch's own convention

from refimpl.attention import naive_attention
from refimpl.bench.measure import interleaved
from refimpl.experiments.harness import Claim
from refimpl.experiments.row_13 import losses, perplexity, ratio, windows
from refimpl.meter import Meter
from refimpl.models import MiniLM, SmolLM, corpus, load_minilm, load_smollm2, replace_attention
from refimpl.models.bert import mean_of_tokens
from refimpl.shapes import Tensor
from refimpl.sparse_attention import (
    dense_mask,
    either,
    global_tokens,
    reached,
    sliding_window,
    sliding_window_attention,
)

TITLE = "Longformer: sliding, dilated and global + sliding windows"
LENGTHS, WIDTHS, HEADS, DIM, WINDOW = [1024, 2048, 4096, 8192], [128, 256, 512, 1024], 2, 64, 512
STACKS = [(8, [1]), (8, [4]), (8, [1, 1, 1]), (8, [4, 4, 4]), (8, [1, 2, 4])]  # window, dilation of each layer
KEYS, SINKS = 64, 4  # keys per query in the language model; of them global
TEXTS, TOKENS, NARROW = 8, 256, 32  # of the encoder; its window
GLOBAL = {"window": (False, False), "rows": (True, False), "columns": (False, True), "symmetric": (True, True)}


def run() -> dict:
    lm, encoder = load_smollm2(), load_minilm()
    return {
        "cost": [cost(n, WINDOW) for n in LENGTHS],
        "width": [cost(LENGTHS[-1], width, peers=False) for width in WIDTHS],
        "reach": [reach(window, dilations) for window, dilations in STACKS],
        "language_model": {"mark": lm.mark, "keys": KEYS, "losses": model_losses(lm, windows(lm))},
        "encoder": {"mark": encoder.mark, "rows": encoder_rows(encoder, TEXTS, TOKENS)},
    }


# --- cost ------------------------------------------------------------------------------------------------------------


def cost(n: int, window: int, *, peers: bool = True, runs: int = 5) -> dict:
    """Counted FLOPs, largest tensor and peak bytes of a causal window; seconds beside causal SDPA and SDPA + mask."""
    draw = torch.Generator().manual_seed(0)
    qkv = [torch.randn(1, HEADS, n, DIM, generator=draw) for _ in range(3)]
    calls = {"window": lambda: sliding_window_attention(*qkv, window=window, causal=True)}
    with Meter() as meter:
        calls["window"]()
    row = {
        "tokens": n, "window": window, "flops": meter.flops, "peak_bytes": meter.peak_bytes,
        "full_flops": HEADS * 4 * n * n * DIM, "full_scores_bytes": HEADS * 4 * n * n,
    }  # fmt: skip
    if peers:
        mask = dense_mask(sliding_window(window, causal=True), n)
        calls["sdpa causal"] = lambda: F.scaled_dot_product_attention(*qkv, is_causal=True)
        calls["sdpa mask"] = lambda: F.scaled_dot_product_attention(*qkv, attn_mask=mask)
    seconds = interleaved(calls, runs)
    return row | {"seconds": {name: round(statistics.median(times), 5) for name, times in seconds.items()}}


def slope(rows: list[dict], name: str) -> float:
    """log(time ratio) / log(length ratio) over the last two doublings: 1 is linear, 2 quadratic."""
    a, b = rows[-3], rows[-1]
    return math.log(b["seconds"][name] / a["seconds"][name]) / math.log(b["tokens"] / a["tokens"])


# --- how far it sees -------------------------------------------------------------------------------------------------


def reach(window: int, dilations: list[int], n: int = 257) -> dict:
    """Of the middle token after the layers: first to last position reached, and how many positions in between."""
    stack = [dense_mask(sliding_window(window, dilation=d), n) for d in dilations]
    field = reached(stack)[n // 2].nonzero()[:, 0]
    return {
        "window": window, "dilations": dilations, "span": int(field[-1] - field[0]), "tokens": len(field),
        "keys_per_query": int(stack[0][n // 2].sum()),
    }  # fmt: skip


# --- on real models --------------------------------------------------------------------------------------------------


def model_losses(lm: SmolLM, ids: Tensor) -> dict:
    """Nats per token of each text window: full attention, and `KEYS` keys per query chosen in four ways."""
    ways = {
        "window": {"window": KEYS},
        "dilated": {"window": KEYS, "dilation": 4},
        "window + global": {"window": KEYS - SINKS, "tokens": range(SINKS)},
        "dilated + global": {"window": KEYS - SINKS, "dilation": 4, "tokens": range(SINKS)},
    }
    found = {"full": losses(ids, lm.model)}
    for name, options in ways.items():

        def attend(q, k, v, causal, options=options):
            return sliding_window_attention(q, k, v, causal=causal, **options)

        with replace_attention(lm.model, attend):
            found[name] = losses(ids, lm.model)
    return found


@torch.no_grad()
def encoder_rows(lm: MiniLM, texts: int, tokens: int) -> list[dict]:
    """Cosine with full attention's vectors, of the first token [CLS] and of the text: the global part taken apart."""
    text = corpus("prose")
    ids, real = lm.ids([text[i * 3000 :] for i in range(texts)], longest=tokens)
    full = lm.model(ids, real)
    rows = []
    for name, (as_row, as_column) in GLOBAL.items():
        pattern = either(sliding_window(NARROW), global_tokens([0], rows=as_row, columns=as_column))
        sparse = with_mask(lm, ids, real, dense_mask(pattern, ids.shape[1]))
        alike = {
            "cls": F.cosine_similarity(sparse[:, 0], full[:, 0], dim=-1),
            "text": (mean_of_tokens(sparse, real) * mean_of_tokens(full, real)).sum(-1),
        }
        rows.append({"pattern": name} | {key: [round(x, 4) for x in each.tolist()] for key, each in alike.items()})
    return rows


def with_mask(lm: MiniLM, ids: Tensor, real: Tensor, allowed: Tensor) -> Tensor:
    """The encoder's last hidden state with every layer's attention limited to `allowed`; attention is put back."""
    layers = [block.attention for block in lm.model.blocks]
    before = [layer.attend for layer in layers]
    try:
        for layer in layers:
            layer.attend = lambda q, k, v, mask: naive_attention(q, k, v, mask=allowed & mask)
        return lm.model(ids, real)
    finally:
        for layer, attend in zip(layers, before, strict=True):
            layer.attend = attend


# --- what it says ----------------------------------------------------------------------------------------------------


def claims(result: dict) -> list[Claim]:
    return [*_cost_claims(result), *_reach_claims(result["reach"]), *_model_claims(result)]


def _cost_claims(result) -> list[Claim]:
    rows, widths = result["cost"], result["width"]
    exponents = {name: slope(rows, name) for name in rows[-1]["seconds"]}
    grown = rows[-1]["flops"] / rows[-2]["flops"], rows[-1]["full_flops"] / rows[-2]["full_flops"]
    last = rows[-1]
    per_key = [(b["flops"] - a["flops"]) / (b["window"] - a["window"]) for a, b in pairwise(widths)]
    return [
        Claim("work falls from O(N²) to O(N W): counted FLOPs per doubling of N", "S1, LongFormer", "4 and 2",
              f"{grown[1]:.2f} and {grown[0]:.2f}", 1.9 < grown[0] < 2.2 and grown[1] == 4,
              f"Causal window of {WINDOW}, {rows[-2]['tokens']:,} to {last['tokens']:,} tokens; a little over 2, since "
              "the first window of a text is cut."),
        Claim("time: exponent of N", "S1, LongFormer", "2 and 1",
              ", ".join(f"{name} {value:.2f}" for name, value in exponents.items()),
              exponents["window"] < 1.4 < exponents["sdpa causal"],
              f"{rows[-3]['tokens']:,} to {last['tokens']:,} tokens, one thread. At {last['tokens']:,} a window takes "
              f"1/{last['seconds']['sdpa causal'] / last['seconds']['window']:.1f} of causal SDPA's time and "
              f"1/{last['seconds']['sdpa mask'] / last['seconds']['window']:.1f} of SDPA's with a mask, which computes "
              "what it hides."),
        Claim("memory falls from N² to N W", "S1, LongFormer; Beltagy et al. 2020", "N W at most",
              f"{last['peak_bytes'] / (4 * HEADS * last['tokens'] * WINDOW):.2f} N W",
              all(row["peak_bytes"] <= 4 * HEADS * row["tokens"] * WINDOW for row in rows[-2:]),
              f"Counted peak at {last['tokens']:,} tokens {last['peak_bytes'] / 2**20:.1f} MiB, output included; the "
              f"scores alone would take {last['full_scores_bytes'] / 2**20:.0f} MiB."),
        Claim("work is linear in W: FLOPs for one more key per query, at three widths", "S1, LongFormer", "equal",
              ", ".join(f"{x / 1e6:.2f}M" for x in per_key), max(per_key) / min(per_key) < 1.15,
              f"{last['tokens']:,} tokens, windows {', '.join(map(str, WIDTHS))}."),
    ]  # fmt: skip


def _reach_claims(rows) -> list[Claim]:
    plain, dilated, plain_stack, dilated_stack, mixed = rows
    return [
        Claim("dilation D widens the receptive field from W to W D", "S1, LongFormer", "W and W D",
              f"{plain['span']} and {dilated['span']} at W = {plain['window']}, D = {dilated['dilations'][0]}",
              plain["span"] == plain["window"] and dilated["span"] == dilated["window"] * dilated["dilations"][0]
              and plain["keys_per_query"] == dilated["keys_per_query"],
              f"With the same number of keys, {plain['keys_per_query']}: the field is wider, not fuller. Only every "
              f"{dilated['dilations'][0]}th token of the span is seen."),
        Claim("the receptive field grows with depth: L layers", "Beltagy et al. 2020, section 3.1", "L W and L W D",
              f"{plain_stack['span']} and {dilated_stack['span']} after {len(plain_stack['dilations'])} layers",
              plain_stack["span"] == 3 * plain["span"] and dilated_stack["span"] == 3 * dilated["span"], ""),
        Claim("a stack of equal dilations sees the whole span", "not claimed; what the slide's W D suggests",
              dilated_stack["span"] + 1, dilated_stack["tokens"], dilated_stack["tokens"] == dilated_stack["span"] + 1,
              f"Gaps stay gaps, however deep. Dilations 1, 2, 4 in turn see {mixed['tokens']} of {mixed['span'] + 1}; "
              "Longformer gives different dilations to different heads."),
    ]  # fmt: skip


def _model_claims(result) -> list[Claim]:
    found = result["language_model"]["losses"]
    ppl = {name: perplexity(each) for name, each in found.items()}
    worse = {name: ratio(each, found["full"]) for name, each in found.items()}
    rows = {row["pattern"]: row for row in result["encoder"]["rows"]}
    mean = {name: statistics.mean(row["cls"]) for name, row in rows.items()}
    text = {name: statistics.mean(row["text"]) for name, row in rows.items()}
    return [
        Claim(f"a few global tokens beside the window: {KEYS} keys per query", "S1, LongFormer: global + sliding",
              "better than a window alone",
              f"perplexity full {ppl['full']:.1f}, window {ppl['window']:.1f}, window + global "
              f"{ppl['window + global']:.1f}", worse["window + global"][0] < worse["window"][0],
              f"SmolLM2, first {SINKS} tokens global, no training. Times full attention's: window "
              f"{_times(worse['window'])}, with global {_times(worse['window + global'])}, standard error over windows "
              f"of text. {result['language_model']['mark']}"),
        Claim("dilation for the same number of keys", "Beltagy et al. 2020, table 4: small gain", "better",
              f"perplexity {ppl['dilated + global']:.1f} against {ppl['window + global']:.1f} without gaps",
              worse["dilated + global"][0] < worse["window + global"][0],
              "Every head of every layer dilated by 4, in a model trained without: neighbours are lost. The paper "
              "trains, and dilates 2 heads of the upper layers only."),
        Claim("global attention is symmetric: [CLS] sees all, and all see it", "S1, LongFormer",
              "both directions matter",
              ", ".join(f"{name} {mean[name]:.3f}" for name in GLOBAL),
              mean["symmetric"] > max(mean["rows"], mean["columns"]) > mean["window"],
              f"Cosine of [CLS] with full attention's: MiniLM, {TOKENS} tokens, window {NARROW}, {TEXTS} texts. "
              f"Of the text's vector: {', '.join(f'{name} {text[name]:.3f}' for name in GLOBAL)}. "
              f"{result['encoder']['mark']}"),
    ]  # fmt: skip


def _times(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.2f} ± {pair[1]:.2f}"
