"""Data parallelism: one process's weights, its bytes exact, buckets that leave early."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from refimpl.parallel.accounting import all_reduce_bytes
from refimpl.parallel.data import DataParallel, broadcast_weights, fill_buckets, shard_batch
from refimpl.parallel.tests.ranks import run_ranks
from refimpl.parallel.tests.training import EVEN, ODD, TinyLM, alone, difference, together


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("bucket_bytes", [1, 400, 2**20])
def test_weights_are_those_of_one_process(ranks, bucket_bytes):
    """One parameter per bucket, a few, all; odd sizes, tied weights; rank 0's initial weights."""
    reference = alone(ODD)
    for rank in run_ranks(ranks, together, "data", TinyLM(**ODD), bucket_bytes=bucket_bytes):
        assert difference(rank["state"], reference) < 1e-6


def test_accumulated_gradients_are_those_of_the_whole_batch():
    """Local passes first, one that sends: as many bytes as without accumulation."""
    for rank in run_ranks(2, together, "data", TinyLM(**EVEN), micro=4):
        assert difference(rank["state"], alone(EVEN)) < 1e-6
        assert rank["calls"] == {"all_reduce": 1}


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_step_sends_2_psi_in_a_ring(ranks):
    """2 Ψ (N-1)/N to the byte where N divides Ψ; elsewhere ranks differ by an element and the sum is exact."""
    psi = sum(p.numel() for p in TinyLM(**EVEN).parameters())
    for rank in run_ranks(ranks, together, "data", TinyLM(**EVEN)):
        assert rank["sent"] == {"all_reduce": 4 * 2 * psi * (ranks - 1) // ranks}
    psi = sum(p.numel() for p in TinyLM(**ODD).parameters())
    sent = [rank["sent"]["all_reduce"] for rank in run_ranks(ranks, together, "data", TinyLM(**ODD))]
    assert sum(sent) == 4 * 2 * psi * (ranks - 1) and psi % ranks
    assert sent == [all_reduce_bytes(psi, 4, rank, ranks) for rank in range(ranks)]


def test_buckets_hold_the_last_parameters_first_and_one_dtype():
    """Sizes are respected unless one parameter alone is larger; frozen parameters stay out."""
    sizes = ((2, torch.float32), (2, torch.float32), (2, torch.float64), (9, torch.float32))
    small, second, other, large = (nn.Parameter(torch.zeros(n, dtype=dtype)) for n, dtype in sizes)
    frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
    buckets = fill_buckets([small, second, other, frozen, large], 16)
    assert [[p.numel() for p in bucket.parameters] for bucket in buckets] == [[9], [2], [2, 2]]
    assert buckets[2].parameters[1] is small and buckets[1].buffer.dtype == torch.float64


def overlap(model):
    """How many buckets were on their way when each layer's gradients came."""
    model = copy.deepcopy(model)  # ranks are threads here: each has its own
    data = DataParallel(model, bucket_bytes=1)
    seen = []
    model[0].register_full_backward_hook(lambda *_: seen.append(data.started))
    model(torch.ones(2, 3, requires_grad=True)).sum().backward()
    data.finish()
    return seen, data.started, len(data.buckets)


def test_buckets_leave_while_the_backward_pass_goes_on():
    """When the first layer's turn comes, the last layer's gradients are on their way."""
    for seen, started, buckets in run_ranks(2, overlap, nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))):
        assert seen[0] >= 4 and buckets == 6 and started == 0


def unlike_graphs():
    """Rank 0 uses the first layer alone, rank 1 the second alone."""
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(2))
    data = DataParallel(copy.deepcopy(layers), bucket_bytes=1)
    model = [bucket.parameters[0] for bucket in data.buckets][::-1]
    (model[dist.get_rank()] * 3).sum().backward()
    data.finish()
    return [p.grad.clone() for p in model]


def test_a_parameter_without_a_gradient_counts_as_zero_and_the_order_holds():
    """Ranks whose gradients come in different orders, or not at all, still meet in the same collectives."""
    for gradients in run_ranks(2, unlike_graphs):
        assert all(torch.equal(gradient, torch.full((2, 2), 1.5)) for gradient in gradients)


def test_weights_and_buffers_start_as_those_of_rank_0():
    """Batch norm's running mean, too."""

    def start():
        model = nn.BatchNorm1d(2)
        for tensor in (model.weight.data, model.running_mean):
            tensor.fill_(dist.get_rank() + 1)
        broadcast_weights(model)
        return [model.weight.detach().clone(), model.running_mean.clone()]

    for weight, mean in run_ranks(2, start):
        assert weight.tolist() == mean.tolist() == [1, 1]


def test_uneven_parts_of_a_batch_are_refused():
    """The mean of means would be another gradient."""
    assert shard_batch(torch.arange(6), 1, 3).tolist() == [2, 3]
    with pytest.raises(ValueError, match="7 rows do not divide among 2"):
        shard_batch(torch.zeros(7), 0, 2)
