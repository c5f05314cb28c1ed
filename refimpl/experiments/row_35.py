"""Row 35, Ulysses (S2): exact on two and four ranks, 4 T (N - 1) / N bytes, and when a ring sends fewer.

All of it is counted or compared, nothing timed: the same result on every machine.
"""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from refimpl.experiments.harness import Claim
from refimpl.experiments.sequence_parallel import accounted, inputs, largest_error, on_this_rank, whole
from refimpl.parallel import launch, ring, ulysses

TITLE = "Ulysses: equal to one process, bytes per rank, and the ring beside it"
RANKS = (2, 4)
ODD, EVEN, DIM = 53, 64, 8
HEADS = [(6, 6), (6, 3), (6, 1), (5, 5)]  # query and key/value heads; neither 5 nor 6 divides among 4 ranks
GROUPED = (8, 2)  # four query heads read one key/value head, as in Llama 3 8B
EXACT = 1e-12


def run(ranks=RANKS, start=launch) -> dict:
    """`start(fn, n, …)` runs fn on n ranks: real processes, or threads in a test."""
    sessions = {n: start(one_rank, n, backend="gloo", timeout=300) for n in ranks}
    return {
        "odd_length": ODD,
        "equality": [row for n, session in sessions.items() for row in equality(n, [s["shards"] for s in session])],
        "mesh": [mesh_row(n, [s["mesh"] for s in session]) for n, session in sessions.items()],
        "bytes": [
            row for n, session in sessions.items() for row in traffic(n, [s["sent"] for s in session], GROUPED[0])
        ],
        "forecast": [forecast(n, *heads) for heads in ((32, 32), (32, 8), (64, 8)) for n in (2, 4, 8, 16, 32)],
    }


def one_rank() -> dict:
    """On a rank: shards of output and gradients by Ulysses and by the mesh, and the bytes of Ulysses and the ring."""
    return {
        "shards": {f"{heads} {kv_heads}": shards(heads, kv_heads) for heads, kv_heads in HEADS},
        "mesh": on_mesh(),
        "sent": {f"{kv_heads} {way}": sent(way, kv_heads) for kv_heads in GROUPED for way in ("ulysses", "ring")},
    }


def here(seq: int):
    return ring.positions(seq, dist.get_world_size(), dist.get_rank())


def shards(heads: int, kv_heads: int) -> list:
    def attend(q, k, v):
        return ulysses.ulysses_attention(q, k, v, seq=ODD, causal=True)

    return on_this_rank(attend, here(ODD), *inputs(ODD, heads, kv_heads))


def on_mesh() -> list:
    """Two rings' length, the rest of the ranks Ulysses; the tokens of this rank, then its shards."""
    ranks = dist.get_world_size()
    mesh = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("ring", "ulysses"))
    groups = {f"{name}_group": mesh.get_group(name) for name in ("ring", "ulysses")}
    ring_rank, ulysses_rank = mesh.get_local_rank("ring"), mesh.get_local_rank("ulysses")

    def attend(q, k, v):
        return ulysses.hybrid_attention(q, k, v, seq=ODD, causal=True, **groups)

    at = ulysses.hybrid_positions(ODD, 2, ring_rank, ranks // 2, ulysses_rank)
    return [at, *on_this_rank(attend, at, *inputs(ODD, 6, 3))]


def sent(way: str, kv_heads: int) -> tuple[int, int]:
    call = ulysses.ulysses_attention if way == "ulysses" else ring.ring_attention
    return accounted(lambda q, k, v: call(q, k, v, seq=EVEN), here(EVEN), *inputs(EVEN, GROUPED[0], kv_heads))


def equality(ranks: int, shards: list[dict]) -> list[dict]:
    """The largest error of output and gradients against one process, in float64."""
    rows = []
    for heads, kv_heads in HEADS:
        parts, where = [s[f"{heads} {kv_heads}"] for s in shards], [ring.positions(ODD, ranks, r) for r in range(ranks)]
        error = largest_error(parts, where, whole(*inputs(ODD, heads, kv_heads), True))
        rows.append({"ranks": ranks, "heads": heads, "kv_heads": kv_heads, "largest_error": error})
    return rows


def mesh_row(ranks: int, shards: list[list]) -> dict:
    where, parts = [s[0] for s in shards], [s[1:] for s in shards]
    error = largest_error(parts, where, whole(*inputs(ODD, 6, 3), True))
    return {"ring": 2, "ulysses": ranks // 2, "largest_error": error}


def traffic(ranks: int, sent: list[dict], heads: int) -> list[dict]:
    """Bytes of each rank, counted, beside the formulas for equal heads."""
    tensor = 2 * heads * (EVEN // ranks) * DIM * 8  # T: batch 2, float64
    return [
        {
            "ranks": ranks, "heads": heads, "kv_heads": kv_heads, "tensor_bytes": tensor,
            "ulysses": [s[f"{kv_heads} ulysses"][0] for s in sent],
            "ulysses_backward": [s[f"{kv_heads} ulysses"][1] for s in sent],
            "ulysses_equal_heads": 4 * tensor * (ranks - 1) // ranks,
            "ring": [s[f"{kv_heads} ring"][0] for s in sent],
            "ring_equal_heads": 2 * (ranks - 1) * tensor,
        }
        for kv_heads in GROUPED
    ]  # fmt: skip


def forecast(ranks: int, heads: int, kv_heads: int) -> dict:
    """Forward bytes over T of both, by the formulas that the counts above confirm, for shapes of real models."""
    sizes = {"kv_heads": kv_heads, "dim": 1}
    tensor = heads  # T in numbers, for one token per rank
    ours = ulysses.sent_bytes(ranks, ranks, 0, heads=heads, itemsize=4, **sizes)[0]
    theirs = ring.sent_bytes(ranks, ranks, 0, dtype=torch.float32, **sizes)[0]
    return {
        "ranks": ranks, "heads": heads, "kv_heads": kv_heads,
        "ulysses_over_t": ours / (4 * tensor), "ring_over_t": theirs / (4 * tensor),
    }  # fmt: skip


def claims(result: dict) -> list[Claim]:
    return [_exact(result), _bytes(result), _scaling(result), _against_the_ring(result), _grouped(result)]


def _exact(result) -> Claim:
    errors = [row["largest_error"] for row in (*result["equality"], *result["mesh"])]
    return Claim(
        "output and gradients are those of one process", "Jacobs et al. 2023", f"<= {EXACT:g}", max(errors),
        max(errors) <= EXACT, f"float64, causal, {result['odd_length']} tokens, heads that divide and do not, fewer "
        "key/value heads than ranks, and a mesh with the ring.",
    )  # fmt: skip


def _bytes(result) -> Claim:
    rows = [row for row in result["bytes"] if row["heads"] == row["kv_heads"]]
    last = rows[-1]
    counted = [{*row["ulysses"], *row["ulysses_backward"]} == {row["ulysses_equal_heads"]} for row in rows]
    return Claim(
        "a rank sends 4 T (N - 1) / N", "four all-to-alls", last["ulysses_equal_heads"], last["ulysses"][0],
        all(counted),
        f"N = {last['ranks']}, T = {last['tensor_bytes']:,} bytes; the same again in the backward pass. Every rank.",
    )  # fmt: skip


def _at(result, ranks, heads, kv_heads) -> dict:
    return next(
        row for row in result["forecast"] if (row["ranks"], row["heads"], row["kv_heads"]) == (ranks, heads, kv_heads)
    )


def _scaling(result) -> Claim:
    over_t = [_at(result, n, 32, 32)["ulysses_over_t"] for n in (2, 8, 32)]
    return Claim(
        "bytes per rank stay nearly constant when sequence and ranks grow together", "Jacobs et al. 2023, section 3",
        "at most 4 T", " ".join(f"{x:.3g}" for x in over_t), max(over_t) < 4,
        "Bytes over T for N = 2, 8 and 32 at a fixed number of tokens per rank, 32 heads; the limit is 4.",
    )  # fmt: skip


def _against_the_ring(result) -> Claim:
    row = _at(result, 8, 32, 32)
    measured = row["ring_over_t"] / row["ulysses_over_t"]
    return Claim(
        "a ring sends N / 2 times as much", "2 (N - 1) T against 4 T (N - 1) / N", 4.0, measured, measured == 4,
        "N = 8, as many key/value as query heads. But a ring's bytes hide behind compute, and Ulysses' do not.",
    )  # fmt: skip


def _grouped(result) -> Claim:
    fewer = {
        heads: [n for n in (2, 4, 8, 16, 32) if _less(_at(result, n, *heads))] for heads in ((32, 32), (32, 8), (64, 8))
    }
    counted = next(row for row in result["bytes"] if row["kv_heads"] < row["heads"] and row["ranks"] == 4)
    return Claim(
        "Ulysses sends less than a ring", "the usual comparison", "from N = 3 on",
        "; ".join(f"{h} heads on {kv}: from N = {min(ns)}" for (h, kv), ns in fewer.items()),
        all(min(ns) <= 4 for ns in fewer.values()),
        "Not with grouped heads: a ring moves keys and values alone, Ulysses queries and outputs as well. A ring sends "
        "fewer bytes as long as N < 1 + heads / kv_heads. Counted at N = 4 with 8 heads on 2: "
        f"{sum(counted['ring']):,} against {sum(counted['ulysses']):,} bytes. Among N = 2, 4, 8, 16, 32.",
    )  # fmt: skip


def _less(row) -> bool:
    return row["ulysses_over_t"] < row["ring_over_t"]
