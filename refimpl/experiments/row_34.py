"""Row 34, Ring Attention (S0): exact on two and four ranks, what travels, who works, and the length that fits.

All of it is counted or compared, nothing timed, so the result is the same on every machine. What the layout is worth in
seconds is measured by the benchmark case `parallel_ring`.
"""

import torch
import torch.distributed as dist

from refimpl.experiments.harness import Claim
from refimpl.experiments.sequence_parallel import accounted, inputs, largest_error, on_this_rank, whole
from refimpl.parallel import launch
from refimpl.parallel.accounting import Account
from refimpl.parallel.ring import LAYOUTS, positions, ring_attention, sent_bytes, work

TITLE = "Ring Attention: equal to one process, bytes per rank, causal balance, memory per rank"
RANKS = (2, 4)
ODD, HEADS, KV_HEADS = 53, 6, 3
EVEN, DIM = 64, 8
LOCAL = 256  # tokens that each rank holds while the number of ranks grows
BALANCE = {"seq": 2**17, "ranks": (2, 4, 8)}
EXACT = 1e-12


def run(ranks=RANKS, local=LOCAL, start=launch) -> dict:
    """`start(fn, n, …)` runs fn on n ranks: real processes, or threads in a test."""
    sessions = {n: start(one_rank, n, local, backend="gloo", timeout=300) for n in ranks}
    return {
        "odd_length": ODD,
        "equality": [row for n, session in sessions.items() for row in equality(n, [s["shards"] for s in session])],
        "bytes": [row for n, session in sessions.items() for row in traffic(n, [s["sent"] for s in session])],
        "memory": [
            {"ranks": n, "tokens": n * local, "peak_bytes": max(s["peak_bytes"] for s in session)}
            for n, session in sessions.items()
        ],
        "balance": [balance(BALANCE["seq"], n, layout) for n in BALANCE["ranks"] for layout in LAYOUTS],
        "steps": {layout: work(EVEN, max(ranks), layout) for layout in LAYOUTS},
    }


def ways() -> list[tuple[str, bool]]:
    return [(layout, causal) for layout in LAYOUTS for causal in (True, False)]


def one_rank(local: int) -> dict:
    """On a rank: its shards of output and gradients, the bytes that it sent, and the most memory of one pass."""
    return {
        "shards": {f"{layout} {causal}": shards(layout, causal) for layout, causal in ways()},
        "sent": {layout: sent(layout) for layout in LAYOUTS},
        "peak_bytes": peak(local),
    }


def attend(seq: int, layout: str, causal: bool = True):
    return lambda q, k, v: ring_attention(q, k, v, seq=seq, causal=causal, layout=layout)


def here(seq: int, layout: str):
    return positions(seq, dist.get_world_size(), dist.get_rank(), layout)


def shards(layout: str, causal: bool) -> list:
    return on_this_rank(attend(ODD, layout, causal), here(ODD, layout), *inputs(ODD, HEADS, KV_HEADS))


def sent(layout: str) -> dict:
    """Counted forward and backward, for a length that N divides and for one that it does not."""
    even = accounted(attend(EVEN, layout), here(EVEN, layout), *inputs(EVEN, HEADS, HEADS))
    return {"even": even, "odd": accounted(attend(ODD, layout), here(ODD, layout), *inputs(ODD, HEADS, KV_HEADS))}


def peak(local: int) -> int:
    """Most bytes alive at once of what a rank makes in a forward and backward pass over N `local` tokens."""
    seq = local * dist.get_world_size()
    with Account() as account:
        on_this_rank(attend(seq, "zigzag"), slice(0, local), *inputs(local, 2, 2, batch=1, dtype=torch.float32))
    return account.peak_bytes


def equality(ranks: int, shards: list[dict]) -> list[dict]:
    """The largest error of output and gradients against one process, in float64."""
    rows = []
    for layout, causal in ways():
        where = [positions(ODD, ranks, rank, layout) for rank in range(ranks)]
        want = whole(*inputs(ODD, HEADS, KV_HEADS), causal)
        error = largest_error([s[f"{layout} {causal}"] for s in shards], where, want)
        rows.append({"ranks": ranks, "layout": layout, "causal": causal, "largest_error": error})
    return rows


def traffic(ranks: int, sent: list[dict]) -> list[dict]:
    """Bytes of each rank as counted, as the formula with T says, and as `sent_bytes` says for the odd length."""
    tensor = 2 * HEADS * (EVEN // ranks) * DIM * 8  # T: batch 2, float64
    odd = {"kv_heads": KV_HEADS, "dim": DIM, "dtype": torch.float64, "batch": 2}
    return [
        {
            "ranks": ranks, "layout": layout, "tensor_bytes": tensor,
            "forward": [s[layout]["even"][0] for s in sent], "forward_formula": 2 * (ranks - 1) * tensor,
            "backward": [s[layout]["even"][1] for s in sent], "backward_formula": (4 * ranks - 2) * tensor,
            "odd": [list(s[layout]["odd"]) for s in sent],
            "odd_formula": [list(sent_bytes(ODD, ranks, r, layout=layout, **odd)) for r in range(ranks)],
        }
        for layout in LAYOUTS
    ]  # fmt: skip


def balance(seq: int, ranks: int, layout: str) -> dict:
    """Scores of each rank, and the largest over the mean."""
    each = [sum(steps) for steps in work(seq, ranks, layout)]
    largest = max(each) * ranks / sum(each)
    return {"ranks": ranks, "layout": layout, "tokens": seq, "scores": each, "largest_over_mean": largest}


def claims(result: dict) -> list[Claim]:
    return [_exact(result), _bytes(result), _contiguous(result), _zigzag(result), _memory(result)]


def _exact(result) -> Claim:
    worst = max(row["largest_error"] for row in result["equality"])
    return Claim(
        "output and gradients are those of one process", "Liu et al. 2023, section 3", f"<= {EXACT:g}", worst,
        worst <= EXACT, f"float64, {result['odd_length']} tokens on {_ranks(result)} ranks, three layouts, causal and "
        f"full, {HEADS} query heads on {KV_HEADS}.",
    )  # fmt: skip


def _ranks(result) -> str:
    return " and ".join(str(row["ranks"]) for row in result["memory"])


def _bytes(result) -> Claim:
    rows = result["bytes"]
    even = all(set(row[way]) == {row[f"{way}_formula"]} for row in rows for way in ("forward", "backward"))
    last = rows[-1]
    return Claim(
        "a rank sends 2 (N - 1) T forward", "keys and values, N - 1 hops", last["forward_formula"], last["forward"][0],
        even and all(row["odd"] == row["odd_formula"] for row in rows),
        f"N = {last['ranks']}, T = {last['tensor_bytes']:,} bytes; backward {last['backward'][0]:,}, 2 N T more: "
        "gradients go one hop further, home. Equal on every rank and for an odd length, rank by rank.",
    )  # fmt: skip


def _of(result, layout, ranks=4) -> float:
    rows = result["balance"]
    return next(row["largest_over_mean"] for row in rows if (row["layout"], row["ranks"]) == (layout, ranks))


def _contiguous(result) -> Claim:
    measured = _of(result, "contiguous")
    return Claim(
        "contiguous causal ring: largest over mean work at N = 4", "(2N - 1) / N", 1.75, measured,
        abs(measured - 1.75) < 1e-4, f"{BALANCE['seq']:,} tokens; 1.75 is the limit of long sequences. At N = 8 "
        f"{_of(result, 'contiguous', 8):.4f}: 53 % of ideal speed is all that this layout allows.",
    )  # fmt: skip


def _zigzag(result) -> Claim:
    return Claim(
        "zigzag: largest over mean work at N = 4", "Zhu 2024, ring-flash-attention", 1.0, _of(result, "zigzag"),
        _of(result, "zigzag") == 1, f"Exactly; striped {_of(result, 'striped'):.5f}, whose ranks differ by a diagonal.",
    )  # fmt: skip


def _memory(result) -> Claim:
    rows = result["memory"]
    first, last = rows[0], rows[-1]
    growth = last["peak_bytes"] / first["peak_bytes"]
    return Claim(
        "the context grows with the number of devices, the memory of each does not", "Liu et al. 2023, abstract",
        "1 for twice the ranks", round(growth, 3), growth < 1.05,
        f"{first['tokens']} tokens on {first['ranks']} ranks: {first['peak_bytes']:,} bytes at most per rank, forward "
        f"and backward; {last['tokens']} on {last['ranks']}: {last['peak_bytes']:,}.",
    )  # fmt: skip
