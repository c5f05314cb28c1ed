"""Row 4, the KV cache: the same logits as reading everything again, its bytes, and where the FLOPs go.

SmolLM2-135M on prose. FLOPs are counted while the model runs, bytes read off the tensors; seconds are CPU time of
one thread. Sources: S3, "Transformer Models - Inference"; Shazeer 2019; Pope et al. 2022, section 2.
"""

import statistics
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import torch

from refimpl.attention import attention
from refimpl.cost_model import ModelShape, forward, total
from refimpl.experiments.harness import Claim
from refimpl.kv_cache import KVCache, PagedKVCache
from refimpl.memory_model import kv_cache_bytes
from refimpl.meter import Meter
from refimpl.models import SmolLM, corpus, load_smollm2, replace_attention

TITLE = "a KV cache: equal logits, 2 L Hkv D N itemsize bytes, and FLOPs of prefill and decoding"
PROMPTS = [128, 512, 1024]
STEPS = 8
FLOAT32_ERROR = 1e-3  # of logits up to 40: sums of 576 and 1,536 products in another order
BLOCK = 16


@torch.no_grad()
def equality(lm: SmolLM, prompt: int, steps: int = STEPS) -> list[dict]:
    """Logits of `steps` decoding steps after a prompt, through two caches, against one pass without a cache."""
    model, ids = lm.model, lm.ids(corpus("prose"), prompt + steps)
    want = model(ids, last=steps)
    pool = PagedKVCache(model, -(-ids.shape[1] // BLOCK), block_size=BLOCK)
    rows = []
    for name, cache in {"static": KVCache(model, ids.shape[1]), "paged": pool.batch(pool.add())}.items():
        model(ids[:, :prompt], cache, last=1)
        got = torch.cat([model(token, cache) for token in ids[:, prompt:].split(1, dim=1)], dim=1)
        error, same = (got - want).abs().max().item(), int((got.argmax(-1) == want.argmax(-1)).sum())
        rows.append({"cache": name, "prompt": prompt, "steps": steps, "largest_difference": error, "same_argmax": same})
    return rows


@torch.no_grad()
def ragged(lm: SmolLM, prompts: list[int], steps: int = STEPS) -> dict:
    """Texts of different lengths decoded as one batch, against each one alone without a cache."""
    model, text = lm.model, lm.ids(corpus("prose"), sum(prompts) + steps * len(prompts))
    texts = text.split([n + steps for n in prompts], dim=1)
    pool = PagedKVCache(model, sum(-(-t.shape[1] // BLOCK) for t in texts), block_size=BLOCK)
    sequences = [pool.add() for _ in texts]
    for sequence, ids in zip(sequences, texts, strict=True):
        model(ids[:, :-steps], pool.batch(sequence), last=1)
    tokens = torch.cat([ids[:, -steps:] for ids in texts]).split(1, dim=1)
    got = torch.cat([model(token, pool.batch(*sequences)) for token in tokens], dim=1)
    want = torch.cat([model(ids, last=steps) for ids in texts])
    error, same = (got - want).abs().max().item(), int((got.argmax(-1) == want.argmax(-1)).sum())
    used, held = sum(pool.lengths.values()), sum(map(len, pool.tables.values())) * BLOCK
    return {
        "prompts": prompts, "steps": steps, "largest_difference": error, "same_argmax": same,
        "tokens": used, "paged_places": held, "static_places": max(pool.lengths.values()) * len(prompts),
    }  # fmt: skip


def cache_bytes(lm: SmolLM, tokens: int) -> list[dict]:
    """Allocated bytes against the formula, for as many key/value heads as query heads, for the model's own, and one."""
    c, rows = lm.config, []
    for kv_heads in sorted({c.heads, c.kv_heads, 1}, reverse=True):
        for dtype in (torch.float32, torch.bfloat16):
            like = SimpleNamespace(
                config=replace(c, kv_heads=kv_heads), embed_tokens=SimpleNamespace(weight=torch.empty(0, dtype=dtype))
            )
            allocated = KVCache(like, tokens).nbytes
            formula = kv_cache_bytes(ModelShape.of(like.config), tokens=tokens, itemsize=dtype.itemsize)
            kind = "MHA" if kv_heads == c.heads else "MQA" if kv_heads == 1 else "GQA"
            rows.append({
                "kind": kind, "kv_heads": kv_heads, "dtype": str(dtype).removeprefix("torch."), "tokens": tokens,
                "allocated": allocated, "formula": formula, "per_token": formula // tokens,
            })  # fmt: skip
    return rows


@torch.no_grad()
def flops(lm: SmolLM, prompt: int) -> dict:
    """Counted FLOPs of a prefill and of the next decoding step, attention apart; bytes that must be read at least."""
    model, ids, cache = lm.model, lm.ids(corpus("prose"), prompt + 1), KVCache(lm.model, prompt + 1)
    weights = sum(p.nbytes for p in model.parameters())
    row = {"prompt": prompt}
    with replace_attention(model, partial(attention, impl="naive")):
        for name, part in (("prefill", ids[:, :prompt]), ("decode", ids[:, prompt:])):
            with Meter() as meter:
                model(part, cache, last=1)
            inside = sum(m.flops for m in meter.matmuls if m.batch > 1)  # products of many heads at once
            read = weights + cache.nbytes * cache.length // (prompt + 1)
            row |= {f"{name}_flops": meter.flops, f"{name}_attention_flops": inside, f"{name}_bytes": read}
    return row


def expected_flops(lm: SmolLM, prompt: int) -> tuple[int, int]:
    """(prefill, decode) by the cost model, the output head for one token."""
    sizes, passes = ModelShape.of(lm.config), ((prompt, 0), (1, prompt))  # (new tokens, cached tokens)
    return tuple(total(forward(sizes, batch=1, tokens=new, cached=old, last=1)).flops for new, old in passes)


@torch.no_grad()
def seconds(lm: SmolLM, prompt: int) -> dict:
    """Median seconds of a step with the cache, and of the pass that replaces it where there is none."""
    model, ids, cache = lm.model, lm.ids(corpus("prose"), prompt + STEPS), KVCache(lm.model, prompt + STEPS)
    model(ids[:, :prompt], cache, last=1)
    cached = [_timed(lambda token=token: model(token, cache, last=1)) for token in ids[:, prompt:].split(1, dim=1)]
    again = [_timed(lambda: model(ids[:, :prompt], last=1)) for _ in range(3)]
    return {"prompt": prompt, "cached": statistics.median(cached), "recomputed": statistics.median(again)}


def _timed(call) -> float:
    start = time.process_time()
    call()
    return round(time.process_time() - start, 4)


def run() -> dict:
    lm = load_smollm2()
    return {
        "mark": lm.mark,
        "equality": [row for prompt in PROMPTS[:2] for row in equality(lm, prompt)],
        "ragged": ragged(lm, [7, 200, 64]),
        "bytes": cache_bytes(lm, 8192),
        "flops": [flops(lm, n) | dict(zip(("prefill_formula", "decode_formula"), expected_flops(lm, n), strict=True))
                  for n in PROMPTS],
        "seconds": [seconds(lm, n) for n in [16, *PROMPTS[:2]]],
    }  # fmt: skip


def claims(result: dict) -> list[Claim]:
    return [_equal(result), _bytes(result), _sharing(result), _split(result), _intensity(result), _faster(result)]


def _equal(result) -> Claim:
    rows = [*result["equality"], result["ragged"]]
    worst = max(row["largest_difference"] for row in rows)
    steps = sum(row["steps"] * len(row.get("prompts", [0])) for row in rows)
    same = sum(row["same_argmax"] for row in rows)
    return Claim(
        "decoding with a cache gives what reading the whole text again gives", "S3, Transformer Models - Inference",
        "the same next token", f"{same} of {steps} steps, logits within {worst:.1g}",
        same == steps and worst < FLOAT32_ERROR,
        "Static, paged, and a ragged batch of three texts; float32, sums in another order.",
    )  # fmt: skip


def _bytes(result) -> Claim:
    rows = result["bytes"]
    own = next(row for row in rows if row["kind"] != "MHA" and row["dtype"] == "bfloat16")
    return Claim(
        "a cache takes 2 L Hkv D N itemsize bytes", "Shazeer 2019; Pope et al. 2022", own["formula"], own["allocated"],
        all(row["allocated"] == row["formula"] for row in rows),
        f"{own['tokens']:,} tokens in bfloat16, {own['per_token']:,} bytes each; equal to the byte for every row.",
    )  # fmt: skip


def _sharing(result) -> Claim:
    per_token = {row["kind"]: row["per_token"] for row in result["bytes"] if row["dtype"] == "bfloat16"}
    times = {kind: per_token["MHA"] / n for kind, n in per_token.items()}
    return Claim(
        "grouped-query attention divides the cache by heads / kv_heads, multi-query by heads", "Ainslie et al. 2023",
        "9 / 3 and 9", f"{times.get('GQA', 1):g} and {times['MQA']:g}", times == {"MHA": 1, "GQA": 3, "MQA": 9},
        "SmolLM2-135M has 9 query heads on 3 key/value heads; the other two are its sizes with 9 and 1.",
    )  # fmt: skip


def _split(result) -> Claim:
    rows = result["flops"]
    equal = all(row[f"{part}_flops"] == row[f"{part}_formula"] for row in rows for part in ("prefill", "decode"))
    last = rows[-1]
    share = [last[f"{part}_attention_flops"] / last[f"{part}_flops"] for part in ("prefill", "decode")]
    return Claim(
        "prefill costs 2 W N + 4 L H D N², a decoding step 2 W + 4 L H D N", "Kaplan et al. 2020, table 1",
        f"{last['prefill_formula']:,} and {last['decode_formula']:,}",
        f"{last['prefill_flops']:,} and {last['decode_flops']:,}", equal,
        f"N = {last['prompt']:,}, output head for one token; attention is {100 * share[0]:.0f} and "
        f"{100 * share[1]:.0f} % of it. The score matrix is counted whole, causal or not. Equal for every N.",
    )  # fmt: skip


def _intensity(result) -> Claim:
    last = result["flops"][-1]
    prefill, decode = (last[f"{part}_flops"] / last[f"{part}_bytes"] for part in ("prefill", "decode"))
    return Claim(
        "prefill is bound by compute, decoding by memory", "Pope et al. 2022, section 2",
        "FLOPs per byte: hundreds, and about 1", f"{prefill:.0f} and {decode:.2f}", decode < 1 < 100 < prefill,
        f"Weights and cache read once, float32, N = {last['prompt']:,}, batch 1; twice as many in 16 bits.",
    )  # fmt: skip


def _faster(result) -> Claim:
    rows = result["seconds"]
    times = [row["recomputed"] / row["cached"] for row in rows]
    return Claim(
        "the longer the text, the more the cache saves", "S3, Transformer Models - Inference", "N tokens against 1",
        " ".join(f"{x:.1f}x" for x in times), times == sorted(times) and times[-1] > 5,
        f"One step after {', '.join(str(row['prompt']) for row in rows)} tokens, CPU time, one thread.",
    )  # fmt: skip
