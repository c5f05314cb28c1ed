"""The three ways to cut a sequence on real processes: two and four ranks, odd sizes, each against one process."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from refimpl.experiments.sequence_parallel import DIM, accounted, inputs, largest_error, on_this_rank, whole
from refimpl.parallel import launch, ring, ulysses
from refimpl.parallel.fpdt import fpdt_attention, fpdt_positions
from refimpl.parallel.stage import Stage

SEQ, HEADS, KV_HEADS, EXACT = 53, 6, 3, 1e-12
EVEN = 64  # for the formulas that assume that N divides


def ways(seq, causal):
    """Name -> (attend, tokens of this rank)."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    options = {"seq": seq, "causal": causal}
    found = {
        f"ring {layout}": (
            lambda q, k, v, layout=layout: ring.ring_attention(q, k, v, layout=layout, **options),
            ring.positions(seq, ranks, rank, layout),
        )
        for layout in ring.LAYOUTS
    }
    found["ulysses"] = (lambda q, k, v: ulysses.ulysses_attention(q, k, v, **options), ring.positions(seq, ranks, rank))
    mesh = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("ring", "ulysses"))
    groups = {f"{name}_group": mesh.get_group(name) for name in ("ring", "ulysses")}
    at = ulysses.hybrid_positions(seq, 2, mesh.get_local_rank("ring"), ranks // 2, mesh.get_local_rank("ulysses"))
    found["hybrid"] = (lambda q, k, v: ulysses.hybrid_attention(q, k, v, **groups, **options), at)
    found["fpdt"] = (lambda q, k, v: fpdt_attention(q, k, v, chunks=5, **options), fpdt_positions(seq, 5, ranks, rank))
    return found


def everything():
    """What a rank finds out: {(way, causal): (tokens, out, dq, dk, dv)}, bytes sent, FPDT's peak."""
    found = {}
    for causal in (True, False):
        for name, (attend, at) in ways(SEQ, causal).items():
            found[f"{name}, causal={causal}"] = [at, *on_this_rank(attend, at, *inputs(SEQ, HEADS, KV_HEADS))]
    sent = {name: accounted(attend, at, *inputs(EVEN, 4, 4)) for name, (attend, at) in ways(EVEN, True).items()}
    stage = Stage()
    q, k, v, _ = (x[:, :, : EVEN // dist.get_world_size()] for x in inputs(EVEN, 4, 4))
    fpdt_attention(q, k, v, seq=EVEN, chunks=4, stage=stage)
    return found, sent, stage.peak_bytes


@pytest.fixture(scope="module", params=[2, 4])
def session(request):
    """One start of two processes, and one of four, for all tests of this file."""
    return launch(everything, request.param, backend="gloo", timeout=120)


def test_forward_and_backward_equal_one_process(session):
    """53 tokens, 6 heads on 3: ring in three layouts, Ulysses, both as a mesh, FPDT through all-to-alls; <= 1e-12."""
    want = {causal: whole(*inputs(SEQ, HEADS, KV_HEADS), causal) for causal in (True, False)}
    for way in session[0][0]:
        parts = [found[way] for found, _, _ in session]
        where = [at for at, *_ in parts]
        assert torch.cat(where).sort().values.equal(torch.arange(SEQ)), way
        assert largest_error([tensors for _, *tensors in parts], where, want[way.endswith("True")]) <= EXACT, way


def test_every_rank_sends_the_formulas_bytes(session):
    """Ring 2 (N - 1) T forward and that plus 2 N T backward; Ulysses, FPDT through it, 4 T (N - 1) / N each way."""
    ranks = len(session)
    tensor = 2 * 4 * (EVEN // ranks) * DIM * 8  # T, with a batch of 2, 4 heads, float64
    for _, sent, _ in session:
        for layout in ring.LAYOUTS:
            assert sent[f"ring {layout}"] == (2 * (ranks - 1) * tensor, (4 * ranks - 2) * tensor)
        assert sent["ulysses"] == (4 * tensor * (ranks - 1) // ranks,) * 2


def test_each_device_holds_a_chunk_of_queries_and_two_of_keys(session):
    """(q + 2 kv) / u of the rank's heads and all tokens, u = 4."""
    ranks = len(session)
    whole_tensor = 2 * (4 // ranks) * EVEN * DIM * 8
    assert [peak for _, _, peak in session] == [(whole_tensor + 2 * 2 * whole_tensor) // 4] * ranks
