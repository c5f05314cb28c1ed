"""Speculative decoding of SmolLM2 against the same model alone: greedy, the same text, prompt lookup as the draft."""

import statistics

import torch

from refimpl.bench.measure import interleaved, median_ratio
from refimpl.models import corpus, generate, load_smollm2
from refimpl.speculative_sampling import PromptLookup, speculative_sample

TITLE = "prompt-lookup speculation against plain cached decoding, greedy, the text identical"
PROMPT, NEW, K = 512, 64, 5
STARTS = {"code": (0, 1500, 3000, 4500), "prose": (0,)}  # a prompt decides much: four places in the code
FASTEST = {"code": 1.5}  # times plain decoding, on average; prose is only reported


def run(runs: int) -> list[dict]:
    lm = load_smollm2()
    return [row for kind, starts in STARTS.items() for start in starts for row in _rows(lm, kind, start, runs)]


def _rows(lm, kind: str, start: int, runs: int) -> list[dict]:
    ids = lm.ids(corpus(kind), start + PROMPT)[:, start:]
    written, plain = speculative_sample(lm.model, PromptLookup(), ids, NEW, k=K), generate(lm.model, ids, NEW)
    calls = {
        "plain": lambda: generate(lm.model, ids, NEW),
        "prompt lookup": lambda: speculative_sample(lm.model, PromptLookup(), ids, NEW, k=K),
    }
    seconds = interleaved(calls, runs)
    return [
        {
            "text": f"{kind} at {start}", "implementation": name,
            "tokens_per_second": round(NEW / statistics.median(times), 1),
            "speed_over_plain": round(median_ratio(seconds["plain"], times), 2),
            "target_calls": NEW if name == "plain" else written.target_calls,
            "same_text": bool(torch.equal(plain, written.ids)), "weights": "toy" if lm.is_toy else lm.source,
        }
        for name, times in seconds.items()
    ]  # fmt: skip


def problems(rows: list[dict]) -> list[str]:
    """Where the text differs, or speculation does not pay on average. Toy weights repeat nothing: no bound for them."""
    found = [f"{row['text']}: the text is not the target's own" for row in rows if not row["same_text"]]
    for kind, wanted in FASTEST.items():
        mine = [
            r for r in rows if r["text"].startswith(kind) and r["implementation"] != "plain" and r["weights"] != "toy"
        ]
        speed = statistics.mean(row["speed_over_plain"] for row in mine) if mine else wanted
        if speed < wanted:
            found.append(f"{kind}: {speed:.2f} times plain decoding on average, at least {wanted} asked")
    return found
