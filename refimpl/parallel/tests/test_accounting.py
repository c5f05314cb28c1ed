"""The account: each collective's bytes by the standard cost, in integers, on every path by which PyTorch calls it."""

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from refimpl.parallel import launch
from refimpl.parallel.accounting import Account, all_reduce_bytes, ring_parts
from refimpl.parallel.collectives import all_gather_single, reduce_scatter_single
from refimpl.parallel.tests.ranks import run_ranks

N = 3  # ranks; 12 numbers of 4 bytes divide among them, 13 do not
ROOT = 1


def counted(call) -> tuple[dict, dict]:
    with Account() as account:
        call()
    return dict(account.sent), dict(account.calls)


def ring_exchange(x):
    me = dist.get_rank()
    operations = [
        dist.P2POp(dist.isend, x, (me + 1) % N),
        dist.P2POp(dist.irecv, torch.empty_like(x), (me - 1) % N),
    ]
    for work in dist.batch_isend_irecv(operations):
        work.wait()


def one_of_each() -> dict:
    """What each call costs this rank."""
    x, root = torch.ones(12), dist.get_rank() == ROOT
    parts, three = list(x.chunk(N)), [torch.empty(12) for _ in range(N)]
    uneven = [1, 4, 7]
    received = [uneven[dist.get_rank()]] * N
    calls = {
        "all_reduce": lambda: dist.all_reduce(x),
        "all_reduce later": lambda: dist.all_reduce(x, async_op=True).wait(),
        "all_reduce of 13": lambda: dist.all_reduce(torch.ones(13)),
        "all_gather": lambda: dist.all_gather(three, x),
        "all_gather_single": lambda: all_gather_single(torch.empty(36), x),
        "reduce_scatter": lambda: dist.reduce_scatter(torch.empty(4), parts),
        "reduce_scatter_single": lambda: reduce_scatter_single(torch.empty(4), x),
        "all_to_all": lambda: dist.all_to_all(list(torch.empty(12).chunk(N)), parts),
        "all_to_all_single": lambda: dist.all_to_all_single(torch.empty(12), x),
        "all_to_all uneven": lambda: dist.all_to_all_single(torch.empty(sum(received)), x, received, uneven),
        "broadcast": lambda: dist.broadcast(x, ROOT),
        "reduce": lambda: dist.reduce(x, ROOT),
        "gather": lambda: dist.gather(x, three if root else None, ROOT),
        "scatter": lambda: dist.scatter(torch.empty(4), parts if root else None, ROOT),
        "send": lambda: ring_exchange(x),
        "barrier": dist.barrier,
    }
    return {name: counted(call) for name, call in calls.items()}


@pytest.fixture(scope="module")
def ranks():
    return run_ranks(N, one_of_each)


EVERYWHERE = {
    "all_reduce": ("all_reduce", 2 * 48 * 2 // 3), "all_reduce later": ("all_reduce", 2 * 48 * 2 // 3),
    "all_gather": ("all_gather", 48 * 2), "all_gather_single": ("all_gather", 48 * 2),
    "reduce_scatter": ("reduce_scatter", 32), "reduce_scatter_single": ("reduce_scatter", 32),
    "all_to_all": ("all_to_all", 32), "all_to_all_single": ("all_to_all", 32), "send": ("send", 48),
}  # fmt: skip
BY_RANK = {
    "all_reduce of 13": ("all_reduce", [4 * (26 - 5 - 4), 4 * (26 - 4 - 4), 4 * (26 - 4 - 5)]),
    "all_to_all uneven": ("all_to_all", [4 * 11, 4 * 8, 4 * 5]),
    "broadcast": ("broadcast", [0, 48, 0]), "reduce": ("reduce", [48, 0, 48]),
    "gather": ("gather", [48, 0, 48]), "scatter": ("scatter", [0, 32, 0]),
}  # fmt: skip


@pytest.mark.parametrize("call", EVERYWHERE)
def test_every_rank_sends_the_same(ranks, call):
    """(N-1)/N of what is exchanged, twice for an all-reduce; one call each."""
    name, sent = EVERYWHERE[call]
    assert [rank[call] for rank in ranks] == [({name: sent}, {name: 1})] * N


@pytest.mark.parametrize("call", BY_RANK)
def test_a_rank_sends_its_own_part(ranks, call):
    """Uneven parts, and collectives with a root."""
    name, sent = BY_RANK[call]
    assert [rank[call][0].get(name, 0) for rank in ranks] == sent
    assert all(rank[call][1] == {name: 1} for rank in ranks)


def test_a_barrier_carries_nothing(ranks):
    """It is no collective with a payload."""
    assert all(rank["barrier"] == ({}, {}) for rank in ranks)


@settings(max_examples=50, deadline=None)
@given(elements=st.integers(0, 1000), size=st.integers(1, 9))
def test_a_ring_of_uneven_parts_sends_2_n_times_n_minus_1_in_all(elements, size):
    """Each rank within two elements of the others; parts add up."""
    sent = [all_reduce_bytes(elements, 1, rank, size) for rank in range(size)]
    assert sum(sent) == 2 * elements * (size - 1) and max(sent) - min(sent) <= 2
    assert sum(ring_parts(elements, size)) == elements


def in_other_ways() -> dict:
    """The same collectives from autograd, from functional calls, in a subgroup, from DTensor, FSDP2 and DDP."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    x, world, mesh = torch.ones(12), dist.group.WORLD, init_device_mesh("cpu", (2,))
    p = torch.ones(3, requires_grad=True)
    p.register_post_accumulate_grad_hook(lambda p: dist.all_reduce(p.grad))
    turned = dist.new_group([1, 0], use_local_synchronization=False)
    linear = fully_shard(nn.Linear(4, 4, bias=False), mesh=mesh, reshard_after_forward=True)
    ddp = nn.parallel.DistributedDataParallel(nn.Linear(4, 4, bias=False))
    calls = {
        "backward": lambda: (p * 2).sum().backward(),
        "functional all_reduce": lambda: functional.all_reduce(x, "sum", world).sum(),
        "functional all_gather": lambda: functional.all_gather_tensor(x, 0, world).sum(),
        "functional reduce_scatter": lambda: functional.reduce_scatter_tensor(x, "sum", 0, world).sum(),
        "functional all_to_all": lambda: functional.all_to_all_single(x, None, None, world).sum(),
        "functional broadcast": lambda: functional.broadcast(x, 1, world).sum(),
        "subgroup": lambda: dist.broadcast(x, 1, group=turned),
        "DTensor": lambda: distribute_tensor(torch.ones(4, 4), mesh, [Shard(0)], src_data_rank=None).full_tensor(),
        "FSDP2": lambda: linear(torch.ones(2, 4)).sum().backward(),
        "DDP": lambda: ddp(torch.ones(2, 4)).sum().backward(),
    }
    return {name: counted(call)[0] for name, call in calls.items()}


def test_every_path_into_a_collective_is_seen():
    """On two processes: hooks of the backward pass, functional collectives, DTensor, FSDP2 and DDP."""
    first, second = launch(in_other_ways, 2, timeout=120)
    same = {
        "backward": {"all_reduce": 12},
        "functional all_reduce": {"all_reduce": 48},
        "functional all_gather": {"all_gather": 48},
        "functional reduce_scatter": {"reduce_scatter": 24},
        "functional all_to_all": {"all_to_all": 24},
        "DTensor": {"all_gather": 32},
        "FSDP2": {"all_gather": 64, "reduce_scatter": 32},
        "DDP": {"all_reduce": 64},
    }
    for rank in (first, second):
        assert {name: rank[name] for name in same} == same
    assert first["functional broadcast"] == {} and second["functional broadcast"] == {"broadcast": 48}
    assert first["subgroup"] == {} and second["subgroup"] == {"broadcast": 48}


def test_an_operation_without_a_known_cost_is_refused():
    """Rather than counted as nothing."""
    with pytest.raises(NotImplementedError, match="no cost is known for allfoo_"):
        Account()._count("allfoo_", ())


def test_memory_is_watched_beside_the_traffic():
    """The gathered tensor is the largest, and all that is alive at the peak."""

    def gather():
        with Account() as account:
            out = torch.empty(24)
            all_gather_single(out, torch.ones(12))
        return account.largest_bytes, account.peak_bytes, account.total

    assert run_ranks(2, gather) == [(96, 144, 48)] * 2
