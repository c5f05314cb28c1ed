"""The runs of row 30 that take time: what a pass over several tokens costs, and decoding with and without guesses.

Seconds are CPU time of one thread. Every way reads the prompt alike, so that is timed apart: gains are of decoding, as
the papers' milliseconds per token are.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from refimpl.kv_cache import KVCache
from refimpl.models import Llama, SmolLM, corpus, generate
from refimpl.shapes import Tensor
from refimpl.speculative_sampling import Draft, ModelDraft, PromptLookup, speculative_sample

PROMPT, NEW, PLACES, STRIDE, KS = 512, 40, 4, 1500, (2, 3, 5)
SHALLOW, VERIFIED, REPEATS = 24, (1, 2, 3, 4, 5, 6, 9), 5


def places(lm: SmolLM) -> list[tuple[str, int, Tensor]]:
    """(text, start, prompt): PLACES prompts of each text."""
    starts = [STRIDE * i for i in range(PLACES)]
    return [(kind, s, lm.ids(corpus(kind), s + PROMPT)[:, s:]) for kind in ("code", "prose") for s in starts]


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    out = call()
    return out, time.process_time() - start


@torch.no_grad()
def verify(lm: SmolLM) -> list[dict]:
    """Milliseconds of a pass over 1 to 9 tokens with PROMPT tokens in the cache."""
    ids, cache = lm.ids(corpus("code"), PROMPT + max(VERIFIED)), KVCache(lm.model, PROMPT + max(VERIFIED))
    lm.model(ids[:, :PROMPT], cache, last=1)
    seconds = {n: [] for n in VERIFIED}
    for _ in range(REPEATS):
        for n, found in seconds.items():
            cache.length = PROMPT
            found.append(timed(lambda n=n: lm.model(ids[:, PROMPT : PROMPT + n], cache, last=n))[1])
    return [{"tokens": n, "ms": 1e3 * statistics.median(found)} for n, found in seconds.items()]


@torch.no_grad()
def alone(lm: SmolLM, ids: Tensor, new: int) -> tuple[list[int], dict]:
    """(the target's own greedy text, seconds of its prompt and of all)."""
    generate(lm.model, ids, 2)  # the first call after other shapes is slower
    _, prompt = timed(lambda: lm.model(ids, KVCache(lm.model, ids.shape[1]), last=1))
    text, seconds = timed(lambda: generate(lm.model, ids, new))
    return text[0, ids.shape[1] :].tolist(), {"prompt_seconds": prompt, "plain_seconds": seconds}


def speculated(
    lm: SmolLM, draft: Draft, ids: Tensor, k: int, new: int, *, temperature: float = 0.0
) -> tuple[list[int], dict]:
    """(the text, how it went), timed."""
    generator = torch.Generator().manual_seed(1)
    out, seconds = timed(
        lambda: speculative_sample(lm.model, draft, ids, new, k=k, temperature=temperature, generator=generator)
    )
    row = {"k": k, "seconds": seconds, "alpha": out.alpha, "proposed": out.proposed, "accepted": out.accepted}
    return out.ids[0, ids.shape[1] :].tolist(), row


def lookups(lm: SmolLM, kind: str, start: int, ids: Tensor) -> dict:
    """Greedy decoding alone and with prompt lookup by K; and sampled at temperature 1, K = 3."""
    own, row = alone(lm, ids, NEW)
    runs = [speculated(lm, PromptLookup(), ids, k, NEW) for k in KS]
    _, hot = speculated(lm, PromptLookup(), ids, 3, NEW, temperature=1.0)
    same = all(text == own for text, _ in runs)
    return {"text": kind, "start": start, "same_text": same, **row, "runs": [run for _, run in runs], "sampled": hot}


def self_drafted(lm: SmolLM, kind: str, ids: Tensor) -> dict:
    """The target's first blocks as the draft, greedy, K = 3, a third of the tokens."""
    depth, new = SHALLOW * lm.config.layers // 30, max(1, NEW // 3)
    own, row = alone(lm, ids, new)
    text, run = speculated(lm, ModelDraft(shallow(lm.model, depth)), ids, 3, new)
    return {"text": kind, "blocks": depth, "same_text": text == own, **row, "runs": [run]}


def shallow(model: Llama, depth: int) -> Llama:
    """The first `depth` blocks of a model with its norm and head, no weight copied."""
    with torch.device("meta"):
        cut = Llama(replace(model.config, layers=depth))
    cut.embed_tokens, cut.norm, cut.lm_head = model.embed_tokens, model.norm, model.lm_head
    cut.layers = model.layers[:depth]
    return cut.eval()


def gain(place: dict, run: dict) -> float:
    """Times faster than the target alone, the prompt apart. A longer last round counts whole: its tokens are cut."""
    return (place["plain_seconds"] - place["prompt_seconds"]) / (run["seconds"] - place["prompt_seconds"])
