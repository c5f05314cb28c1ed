"""LOMO: SGD's weights, one gradient alive at a time, under data parallelism as well."""

from functools import partial

import pytest
import torch
from torch import nn

from refimpl.meter import Memory
from refimpl.parallel.lomo import Lomo
from refimpl.parallel.tests.ranks import run_ranks
from refimpl.parallel.tests.training import ODD, TinyLM, alone, batches, difference, loss, together

LAYERS, WIDTH = 6, 32


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_weights_are_those_of_sgd(ranks, clip):
    """The fused update is the plain one, clipped by the norm of the whole gradient or not."""
    reference = alone(ODD, clip, partial(torch.optim.SGD, lr=0.1))
    for rank in run_ranks(ranks, together, "lomo", TinyLM(**ODD), clip=clip):
        assert difference(rank["state"], reference) < 1e-6


def test_without_a_group_it_trains_alone_and_options_hold():
    """Weight decay as SGD has it, entries cut to a value; frozen parameters stay."""
    ours, theirs = TinyLM(**ODD), TinyLM(**ODD)
    for model in (ours, theirs):
        model.norm.bias.requires_grad_(False)
    lomo = Lomo(ours.parameters(), lr=0.1, weight_decay=0.01, clip_value=1e-3)
    sgd = torch.optim.SGD((p for p in theirs.parameters() if p.requires_grad), lr=0.1, weight_decay=0.01)
    for ids in batches(11):
        lomo.step(loss(ours, ids))
        sgd.zero_grad()
        loss(theirs, ids).backward()
        nn.utils.clip_grad_value_(theirs.parameters(), 1e-3)
        sgd.step()
    assert difference(ours.state_dict(), theirs.state_dict()) < 1e-6
    assert all(p.grad is None for p in ours.parameters())


def peak(fused: bool) -> tuple[int, Lomo | None]:
    """The most bytes alive in a backward pass over equal layers, all gradients kept or fused."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    lomo = Lomo(model.parameters(), lr=0.1) if fused else None
    x = torch.ones(1, WIDTH)
    with Memory() as memory:
        value = model(x).sum()
        lomo.step(value) if fused else value.backward()
    return memory.peak_bytes, lomo


def test_one_gradient_is_alive_at_a_time():
    """Measured where tensors are made: the other layers' gradients are what the plain pass has more at its peak.

    Which is at its end, when it has freed the activations, one row per layer; the fused pass has its peak at once.
    """
    one, row = 4 * WIDTH**2, 4 * WIDTH
    (plain, _), (fused, lomo) = peak(False), peak(True)
    assert plain - fused == (LAYERS - 1) * (one - row)
    assert lomo.peak_gradient_bytes == one


@pytest.mark.parametrize("ranks", [2, 4])
def test_under_data_parallelism_every_gradient_travels_once(ranks):
    """2 Ψ (N-1)/N over all ranks, one collective per parameter, still one gradient at a time."""
    model = TinyLM(**ODD)
    parameters = list(model.parameters())
    found = run_ranks(ranks, together, "lomo", model)
    assert sum(rank["sent"]["all_reduce"] for rank in found) == 4 * 2 * (ranks - 1) * sum(p.numel() for p in parameters)
    for rank in found:
        assert rank["calls"] == {"all_reduce": len(parameters)}
        assert rank["held"] == max(p.nbytes for p in parameters)


def test_clipping_by_the_norm_takes_a_second_backward_pass():
    """Twice the collectives; the norm is that of the whole gradient."""
    for rank in run_ranks(2, together, "lomo", TinyLM(**ODD), clip=0.1):
        assert rank["calls"] == {"all_reduce": 2 * len(list(TinyLM(**ODD).parameters()))}
    model = TinyLM(**ODD)
    lomo = Lomo(model.parameters(), lr=0.0, clip_norm=1)
    lomo.step(loss(model, batches(11)[0]))
    plain = TinyLM(**ODD)
    loss(plain, batches(11)[0]).backward()
    assert lomo.norm.item() == pytest.approx(
        nn.utils.get_total_norm([p.grad for p in plain.parameters()]).item(), rel=1e-5
    )
