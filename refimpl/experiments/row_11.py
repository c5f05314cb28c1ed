"""Row 11, BigBird (S1): random + window + global attention as a graph, as tiles, and in a model never trained for it.

The graph: how many layers until any token has heard of any other, and how soon a random walk forgets where it began,
at a fixed number of keys per query. The tiles: only what the pattern keeps is computed; the Triton kernel agrees.
Source: S1, "Sparse Attention - Big Bird"; Zaheer et al. 2020.
"""

import math
import statistics
from collections.abc import Callable
from itertools import pairwise

import torch
from torch.nn import functional as F  # noqa: N812 - PyTorch's own convention

from refimpl._triton import HAS_TRITON
from refimpl.attention import naive_attention
from refimpl.bench.measure import interleaved
from refimpl.experiments.harness import Claim
from refimpl.experiments.row_13 import losses, perplexity, ratio, windows
from refimpl.meter import Meter
from refimpl.models import SmolLM, load_smollm2, replace_attention
from refimpl.shapes import Bool, Tensor
from refimpl.sparse_attention import (
    UNREACHABLE,
    bigbird_blocks,
    block_layout,
    block_sparse_attention,
    both,
    by_blocks,
    causal,
    dense_mask,
    global_tokens,
    mixing_time,
    random_blocks,
    shortest_paths,
    sliding_window,
    spectral_gap,
)

TITLE = "BigBird: random + window + global, as a graph and as tiles"
SIZES, SEEDS, KEYS = [64, 128, 256, 512], 3, 12  # tokens of the graph; draws; keys per query, global ones apart
BLOCK, TOKENS, DIM, HEADS = 64, 4096, 64, 2
BLOCKS = {"window": 3, "random": 3, "first": 2}  # of BigBird between blocks
BUDGET, SINKS, RANDOM = 64, 4, 16  # keys per query in the language model; of them global, and random


def run() -> dict:
    lm = load_smollm2()
    return {
        "graph": [graph(name, n) for name in GRAPHS for n in SIZES],
        "tiles": tiles(TOKENS),
        "kernel": kernel_error(),
        "language_model": {"mark": lm.mark, "keys": BUDGET, "losses": model_losses(lm, windows(lm), SEEDS)},
    }


# --- the graph -------------------------------------------------------------------------------------------------------


def _window(n: int, keys: int) -> Tensor:
    return dense_mask(sliding_window(keys), n)


def _random(n: int, keys: int, seed: int) -> Tensor:
    """r random keys, and each token itself."""
    return random_blocks(n, keys, seed=seed, free=~torch.eye(n, dtype=torch.bool)) | torch.eye(n, dtype=torch.bool)


def _bigbird(n: int, keys: int, seed: int) -> Tensor:
    """One global token, and half of the other keys random, half a window."""
    return bigbird_blocks(n, window=keys // 2 + 1, random=keys // 2, first=1, seed=seed)


GRAPHS: dict[str, Callable[[int, int], Tensor]] = {
    "window": lambda n, seed: _window(n, KEYS),
    "random": lambda n, seed: _random(n, KEYS, seed),
    "window + random": lambda n, seed: _window(n, KEYS // 2) | _random(n, KEYS // 2, seed),
    "window + global": lambda n, seed: _window(n, KEYS) | dense_mask(global_tokens([0]), n),
    "BigBird": lambda n, seed: _bigbird(n, KEYS, seed),
}


def graph(name: str, n: int) -> dict:
    """Density, paths and mixing; random graphs over `SEEDS` draws, each number a list."""
    seeds = range(SEEDS if "random" in name or name == "BigBird" else 1)
    found = [measures(GRAPHS[name](n, seed)) for seed in seeds]
    return {"pattern": name, "tokens": n} | {key: [one[key] for one in found] for key in found[0]}


def measures(mask: Bool[Tensor, "n n"]) -> dict:
    """Paths are means over ordered pairs of different tokens; -1 where some pair is not connected."""
    hops = shortest_paths(mask)
    n, connected = len(mask), bool((hops != UNREACHABLE).all())
    return {
        "density": round(mask.double().mean().item(), 5),
        "mean_path": round(hops.sum().item() / (n * (n - 1)), 3) if connected else -1,
        "longest_path": int(hops.max()) if connected else -1,
        "gap": round(spectral_gap(mask), 5),
        "mixing_time": mixing_time(mask),
    }


# --- the tiles -------------------------------------------------------------------------------------------------------


def pattern(n: int, block: int = BLOCK, **parts):
    """BigBird between blocks, in both directions."""
    return by_blocks(bigbird_blocks(-(-n // block), **(parts or BLOCKS)), block)


def tiles(n: int, block: int = BLOCK, runs: int = 3) -> dict:
    """Pairs kept, tiles computed, FLOPs counted, error in float64, seconds beside SDPA full and masked."""
    layout = block_layout(pattern(n, block), n, block=block)
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, n, DIM, generator=draw) for _ in range(3))
    with Meter() as meter:
        ours = block_sparse_attention(q, k, v, layout)
    mask = dense_mask(pattern(n, block), n)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask)
    seconds = interleaved({
        "block-sparse": lambda: block_sparse_attention(q, k, v, layout),
        "sdpa full": lambda: F.scaled_dot_product_attention(q, k, v),
        "sdpa mask": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
    }, runs)  # fmt: skip
    return {
        "tokens": n, "block": block, "parts": BLOCKS, "density": layout.density, "tile_density": layout.tile_density,
        "flops": meter.flops, "full_flops": HEADS * 4 * n * n * DIM, "layout_bytes": layout.nbytes,
        "mask_bytes": n * n, "error": (ours - exact).abs().max().item(),
        "seconds": {name: round(statistics.median(times), 5) for name, times in seconds.items()},
    }  # fmt: skip


def kernel_error(n: int = 200, block: int = 16) -> dict:
    """Largest error of the Triton kernel in float32, causal BigBird, ragged length, two query heads per key head."""
    if not HAS_TRITON:
        return {"unavailable": "Triton is not installed (its wheels are for Linux only)"}
    from refimpl.sparse_attention.kernel import block_sparse_attention as kernel

    seen = both(by_blocks(bigbird_blocks(-(-n // block), causal=True, **BLOCKS), block), causal)
    draw, layout = torch.Generator().manual_seed(0), block_layout(seen, n, block=block)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v = (torch.randn(1, heads, n, 32, generator=draw).to(device) for heads in (4, 2, 2))
    exact = naive_attention(q.double(), k.double(), v.double(), mask=dense_mask(seen, n).to(device))
    error = (kernel(q, k, v, layout) - exact).abs().max().item()
    return {
        "tokens": n,
        "block": block,
        "tile_density": layout.tile_density,
        "masks": len(layout.tiles),
        "error": error,
    }


# --- on a real model -------------------------------------------------------------------------------------------------


def model_losses(lm: SmolLM, ids: Tensor, seeds: int) -> dict:
    """Nats per token and text window with `BUDGET` keys per query: one list per way, or per way and seed."""
    n = ids.shape[1]
    near = lambda keys: dense_mask(sliding_window(keys, causal=True), n)  # noqa: E731
    first = dense_mask(both(global_tokens(range(SINKS)), causal), n)
    past = dense_mask(causal, n)

    def with_random(kept: Tensor, count: int, seed: int) -> Tensor:
        return kept | random_blocks(n, count, seed=seed, free=past & ~kept)

    def under(mask: Tensor) -> list[float]:
        def attend(q, k, v, causal):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

        with replace_attention(lm.model, attend):
            return losses(ids, lm.model)

    return {
        "full": losses(ids, lm.model),
        "window": under(near(BUDGET)),
        "window + global": under(near(BUDGET - SINKS) | first),
        "random": under(with_random(near(1), BUDGET - 1, 0)),
        "window + random": [under(with_random(near(BUDGET - RANDOM), RANDOM, seed)) for seed in range(seeds)],
        "BigBird": [under(with_random(near(BUDGET - SINKS - RANDOM) | first, RANDOM, seed)) for seed in range(seeds)],
    }


# --- what it says ----------------------------------------------------------------------------------------------------


def claims(result: dict) -> list[Claim]:
    return [*_graph_claims(result["graph"]), *_tile_claims(result), *_model_claims(result["language_model"])]


def at(rows: list[dict], name: str, n: int, key: str) -> float:
    """The mean over draws."""
    (row,) = (r for r in rows if (r["pattern"], r["tokens"]) == (name, n))
    return statistics.mean(row[key])


def _graph_claims(rows) -> list[Claim]:
    small, large = SIZES[0], SIZES[-1]
    path = {name: [at(rows, name, n, "mean_path") for n in SIZES] for name in GRAPHS}
    mixing = {name: [at(rows, name, n, "mixing_time") for n in SIZES] for name in GRAPHS}
    per_doubling = [b - a for a, b in pairwise(path["random"])]
    ideal = math.log(2) / math.log(KEYS)
    longest = max(max(r["longest_path"]) for r in rows if r["pattern"] in ("BigBird", "window + global"))
    return [
        Claim("random keys: information flows fast between any pair; paths grow as log N", "S1, Big Bird",
              f"+{ideal:.2f} per doubling of N", ", ".join(f"+{x:.2f}" for x in per_doubling),
              max(per_doubling) < 2 * ideal and path["window"][-1] > 7 * path["window"][0],
              f"Mean layers from token to token at {large} tokens, {KEYS} keys per query: random "
              f"{path['random'][-1]:.2f}, window {path['window'][-1]:.1f}, which grows as N / W: at {small} tokens "
              f"{path['random'][0]:.2f} and {path['window'][0]:.1f}. Mean of {SEEDS} draws."),
        Claim("rapid mixing of random walks", "S1, Big Bird; Zaheer et al. 2020, section 2", "steps as log N, not N²",
              f"{mixing['random'][0]:.0f} to {mixing['random'][-1]:.0f} against {mixing['window'][0]:.0f} to "
              f"{mixing['window'][-1]:,.0f}",
              mixing["random"][-1] <= 2 * mixing["random"][0] and mixing["window"][-1] > 16 * mixing["window"][0],
              f"Steps until within 1/4 of the stationary distribution, {small} to {large} tokens; spectral gap at "
              f"{large}: random {at(rows, 'random', large, 'gap'):.2f}, window {at(rows, 'window', large, 'gap'):.4f}, "
              f"half window, half random {at(rows, 'window + random', large, 'gap'):.2f}."),
        Claim("one global token joins all: no path longer than 2", "Zaheer et al. 2020: global tokens", 2, longest,
              longest == 2,
              f"So in BigBird random keys are not what makes paths short. They carry what one token cannot: the walk "
              f"mixes in {mixing['window + global'][-1]:,.0f} steps with window and global token, in "
              f"{mixing['BigBird'][-1]:.0f} with random keys, too."),
        Claim("density falls as 1 / N", "S1, Big Bird: r keys per query",
              f"{SIZES[-1] // SIZES[-2]} per doubling",
              f"{at(rows, 'BigBird', SIZES[-2], 'density') / at(rows, 'BigBird', large, 'density'):.2f}",
              1.9 < at(rows, "BigBird", SIZES[-2], "density") / at(rows, "BigBird", large, "density") <= 2.01,
              f"BigBird keeps {at(rows, 'BigBird', large, 'density'):.1%} of the pairs of {large} tokens, "
              f"{at(rows, 'BigBird', small, 'density'):.0%} of {small}."),
    ]  # fmt: skip


def _tile_claims(result) -> list[Claim]:
    row, kernel = result["tiles"], result["kernel"]
    share = row["flops"] / row["full_flops"]
    times = row["seconds"]
    return [
        Claim("work is the tiles that are kept", "Zaheer et al. 2020, appendix D", round(row["tile_density"], 4),
              round(share, 4), abs(share - row["tile_density"]) < 1e-9 and row["error"] < 5e-6,
              f"Counted FLOPs over those of full attention, {row['tokens']:,} tokens, blocks of {row['block']}. "
              f"Largest error {row['error']:.0e}, float32. One thread: {times['block-sparse']:.3f} s, full SDPA "
              f"{times['sdpa full']:.3f} s, SDPA with the mask {times['sdpa mask']:.3f} s. The layout takes "
              f"{row['layout_bytes'] / 2**10:.0f} KiB, the mask {row['mask_bytes'] / 2**20:.0f} MiB."),
        Claim("a block-sparse kernel computes the same", "Zaheer et al. 2020, appendix D", 0.0,
              kernel.get("error", "not run"), kernel.get("error", 1.0) < 5e-6,
              kernel.get("unavailable", f"Triton, float32, causal, {kernel.get('tokens')} tokens in blocks of "
              f"{kernel.get('block')}, {kernel.get('masks')} different masks; in the interpreter where there is no "
              "GPU.")),
    ]  # fmt: skip


def _model_claims(found) -> list[Claim]:
    kept = found["losses"]
    ppl = {name: draws(each) for name, each in kept.items()}
    alone = [ratio(each, kept["window"])[0] for each in kept["window + random"]]
    added = [ratio(each, kept["window + global"])[0] for each in kept["BigBird"]]
    return [
        Claim(f"random keys repair a window: {BUDGET} keys per query",
              "Zaheer et al. 2020, table 1: 58.3 to 62.7 % of masked words",
              "better than a window alone",
              f"perplexity window {ppl['window']}, {RANDOM} of its keys random {ppl['window + random']}",
              max(alone) < 1, f"SmolLM2, no training, full attention {ppl['full']}; all but the query itself random: "
              f"{ppl['random']}. Mean ± standard deviation of {SEEDS} draws. {found['mark']}"),
        Claim("and they add to window + global", "S1, Big Bird: the three parts together", "better",
              f"perplexity {ppl['BigBird']} against {ppl['window + global']}", max(added) < 1,
              f"At the same {BUDGET} keys per query, {RANDOM} random keys take the place of near ones. A model trained "
              "with full attention has no use for keys drawn at random; BigBird trains with them."),
    ]  # fmt: skip


def draws(kept: list) -> str:
    """Perplexity; mean and standard deviation where there are several draws."""
    if not isinstance(kept[0], list):
        return f"{perplexity(kept):.1f}"
    each = [perplexity(one) for one in kept]
    return f"{statistics.mean(each):.1f} ± {statistics.stdev(each):.1f}"
