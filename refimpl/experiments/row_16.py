"""Row 16, Linformer (S1): is a softmax map of low rank, and what do k summaries cost? Maps of MiniLM on real text."""

from itertools import pairwise

import torch

from refimpl.attention import naive_attention
from refimpl.experiments.harness import Claim
from refimpl.linformer import best_projection, linformer_attention, spectrum
from refimpl.meter import Meter
from refimpl.models import corpus, load_minilm

TITLE = "Linformer: the spectrum of real attention maps, and cost against length"
TOKENS, TEXTS, RANKS = 256, 4, (32, 64, 128)
LENGTHS, SUMMARIES, DIM = [256, 512, 1024, 2048], 64, 32


def run() -> dict:
    return {"spectrum": spectra(), "cost": [cost(n) for n in LENGTHS]}


def attention_maps() -> list[torch.Tensor]:
    """Per block, the maps (texts, heads, N, N) over pieces of one message, and the values they weigh."""
    lm, maps = load_minilm(), []
    text = corpus("prose")
    ids, _ = lm.ids([text[i * 3000 :] for i in range(TEXTS)], longest=TOKENS)

    def keep(q, k, v, mask):
        p = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1)
        maps.append((p, v))
        return p @ v

    for block in lm.model.blocks:
        block.attention.attend = keep
    lm.model(ids)
    return maps


def spectra() -> list[dict]:
    """Share of the singular values at a few ranks, and what the output keeps at best and with random projections."""
    rows, draw = [], torch.Generator().manual_seed(0)
    for layer, (p, v) in enumerate(attention_maps()):
        share = spectrum(p).flatten(0, 1)
        row = {"layer": layer, "share": {k: share[:, k - 1].mean().item() for k in RANKS}}
        row["share_std"] = {k: share[:, k - 1].std().item() for k in RANKS}
        wanted = p @ v
        for k in RANKS:
            best = best_projection(p, k)
            random = torch.randn(k, TOKENS, generator=draw) / k**0.5
            row[f"best_{k}"] = relative(p @ best.mT @ (best @ v), wanted)
            row[f"random_{k}"] = relative(p @ random.mT @ (random @ v), wanted)
        rows.append(row)
    return rows


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


def cost(n: int) -> dict:
    """Counted FLOPs and largest tensor of one head, full and with 64 summaries."""
    q, k, v = (torch.zeros(1, 1, n, DIM) for _ in range(3))
    e = torch.zeros(SUMMARIES, n)
    row = {"tokens": n}
    for name, call in {
        "full": lambda: naive_attention(q, k, v),
        "linformer": lambda: linformer_attention(q, k, v, e, e),
    }.items():
        with Meter() as meter:
            call()
        row[name] = {"flops": meter.flops, "largest_bytes": meter.largest_bytes}
    return row


def claims(result: dict) -> list[Claim]:
    rows, costs = result["spectrum"], result["cost"]
    share = lambda k: ", ".join(f"{row['share'][str(k)]:.2f}" for row in rows)  # noqa: E731  keys are JSON's
    last, first = rows[-1], rows[0]
    growth = {
        n: [b[n]["largest_bytes"] / a[n]["largest_bytes"] for a, b in pairwise(costs)] for n in ("full", "linformer")
    }
    return [
        Claim("attention maps have low rank: singular values in the first 128 of 256", "Wang et al. 2020, figure 1",
              "most of them", share(128), sum(row["share"]["128"] > 0.85 for row in rows) > len(rows) / 2,
              f"MiniLM, {TOKENS} tokens, mean over heads and {TEXTS} texts, layers 1 to 6; in the first 64: "
              f"{share(64)}."),
        Claim("higher layers are of lower rank", "Wang et al. 2020, figure 1", "last > first",
              f"{last['share']['64']:.2f} > {first['share']['64']:.2f}", last["share"]["64"] > first["share"]["64"],
              f"Share in 64 values; standard deviation over heads {last['share_std']['64']:.2f} and "
              f"{first['share_std']['64']:.2f}."),
        Claim("memory falls from N² to N k: factor per doubling of N", "S1, Linformer", "4 and 2",
              f"{max(growth['full']):.0f} and {max(growth['linformer']):.0f}",
              set(growth["full"]) == {4.0} and set(growth["linformer"]) == {2.0},
              f"Largest tensor, {SUMMARIES} summaries; at {costs[-1]['tokens']:,} tokens "
              f"{costs[-1]['full']['largest_bytes'] / costs[-1]['linformer']['largest_bytes']:.0f} times less."),
        Claim("a random projection is good enough without training", "Wang et al. 2020, theorem 1", "small error",
              "; ".join(f"{row['random_128']:.2f}" for row in rows), all(row["random_128"] < 0.3 for row in rows),
              "Relative error of the output at k = 128 of 256, by layer; the best projection of that size errs by "
              + ", ".join(f"{row['best_128']:.2f}" for row in rows)
              + ". The theorem's k does not depend on N, but is larger than 256 here: E and F have to be trained."),
    ]  # fmt: skip
