"""ZeRO: one process's weights in every stage, every byte as the paper's table says, nothing kept that is not owned."""

import copy
import time
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn

from refimpl.parallel import launch
from refimpl.parallel.accounting import Account
from refimpl.parallel.tests.ranks import run_ranks
from refimpl.parallel.tests.training import (
    ADAMW,
    EVEN,
    ODD,
    TinyLM,
    alone,
    batches,
    difference,
    everything,
    loss,
    together,
)
from refimpl.parallel.zero import Zero

SGD = partial(torch.optim.SGD, lr=0.1)


@pytest.fixture(scope="module", params=[2, 4])
def processes(request):
    """Every method on real processes: [(method, clip) -> weights] of each rank."""
    return launch(everything, request.param, timeout=300)


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("method", ["data", "1", "2", "3"])
def test_processes_train_the_weights_of_one_process(processes, method, clip):
    """Five AdamW steps in fp32, odd sizes and tied weights, with and without clipping by the norm: within 1e-5."""
    reference = alone(ODD, clip)
    assert difference(reference, TinyLM(**ODD).state_dict()) > 1e-2  # training moved the weights
    for rank in processes:
        assert difference(rank[method, clip], reference) <= 1e-5


@pytest.mark.parametrize("clip", [None, 0.1])
def test_lomo_on_processes_is_sgd(processes, clip):
    """The same, fused."""
    for rank in processes:
        assert difference(rank["lomo", clip], alone(ODD, clip, SGD)) <= 1e-5


# --- the rest with ranks as threads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(("ranks", "rows"), [(1, 8), (2, 8), (3, 6), (4, 8)])
def test_in_double_precision_only_the_order_of_sums_differs(stage, ranks, rows):
    """1e-12 after five AdamW steps, on any number of ranks that divides the batch."""
    reference = alone(ODD | {"dtype": torch.float64}, rows=rows)
    for rank in run_ranks(ranks, together, stage, TinyLM(**ODD, dtype=torch.float64), rows=rows):
        assert difference(rank["state"], reference) < 1e-12


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(("stage", "gathers"), [(1, 1), (2, 1), (3, 2)])
def test_a_step_sends_2_psi_and_stage_3_sends_3_psi(stage, gathers, ranks):
    """All-gathers once or twice, reduce-scatter once, (N-1)/N of Ψ each, to the byte; half of it in bf16."""
    psi = sum(p.numel() for p in TinyLM(**EVEN).parameters())
    for dtype, itemsize in ((None, 4), (torch.bfloat16, 2)):
        part = itemsize * psi * (ranks - 1) // ranks
        for rank in run_ranks(ranks, together, stage, TinyLM(**EVEN), dtype=dtype):
            assert rank["sent"] == {"all_gather": gathers * part, "reduce_scatter": part}
            assert rank["calls"] == {"all_gather": gathers * 4, "reduce_scatter": 4}


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bytes_held_are_the_papers_table(stage, ranks):
    """Mixed precision: 2Ψ + 2Ψ + 12Ψ, of which the stage's parts are divided by N; fp32: 4 + 4 + 8."""
    psi = sum(p.numel() for p in TinyLM(**EVEN).parameters())
    n = {1: (1, 1), 2: (1, ranks), 3: (ranks, ranks)}[stage]
    for dtype, (weights, gradients, state) in ((torch.bfloat16, (2, 2, 12)), (None, (4, 4, 8))):
        for rank in run_ranks(ranks, together, stage, TinyLM(**EVEN), dtype=dtype):
            assert rank["held"] == {
                "weights": weights * psi // n[0],
                "gradients": gradients * psi // n[1],
                "optimizer": state * psi // ranks,
            }


def test_odd_sizes_are_padded_by_less_than_one_number_per_rank_and_unit():
    """65 and three times 144 parameters on 4 ranks: what each holds is the next multiple."""
    psi = sum(p.numel() for p in TinyLM(**ODD).parameters())
    for rank in run_ranks(4, together, 3, TinyLM(**ODD)):
        assert 4 * psi < 4 * rank["held"]["weights"] < 4 * (psi + 4 * 4)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_work_on_fp32_state_stays_near_full_precision(stage):
    """Master weights add up what bf16 weights would round away: all stages alike, and near the fp32 run."""
    reference = alone(EVEN)
    first, second = (rank["state"] for rank in run_ranks(2, together, stage, TinyLM(**EVEN), dtype=torch.bfloat16))
    assert difference(first, second) == 0 and first["norm.weight"].dtype == torch.float32
    assert 1e-5 < difference(first, reference) < 0.05
    assert not torch.equal(first["norm.weight"], first["norm.weight"].bfloat16().float())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_micro_batches_add_up(stage):
    """Two backward passes before a step are the whole batch."""
    for rank in run_ranks(2, together, stage, TinyLM(**ODD), micro=2):
        assert difference(rank["state"], alone(ODD)) < 1e-6


def clipped(model, stage):
    """A step of SGD, which unlike Adam shows a wrong scale: the norms seen, and the weights."""
    model = copy.deepcopy(model)
    zero, norms = Zero(model, SGD, stage=stage, units=model.layers), []
    for ids in batches(11):
        loss(model, ids.chunk(dist.get_world_size())[dist.get_rank()]).backward()
        norms.append(zero.clip_grad_norm(0.1).item())
        zero.step()
    return norms, zero.state_dict()


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_clipping_is_by_the_norm_of_the_whole_gradient(stage, ranks):
    """A rank knows the squares of its shards alone; all ranks scale alike, as one process would."""
    model, reference = TinyLM(**ODD), alone(ODD, 0.1, SGD)
    loss(model, batches(11)[0]).backward()
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()
    for norms, state in run_ranks(ranks, clipped, TinyLM(**ODD), stage):
        assert norms[0] == pytest.approx(norm, rel=1e-5) and norm > 0.1
        assert difference(state, reference) < 1e-6


def after_forward(model, stage, prefetch):
    """Bytes alive between the passes, at the peak, and which units are here, before and after the backward pass."""
    model = copy.deepcopy(model)
    zero = Zero(model, ADAMW, stage=stage, units=model.layers, prefetch=prefetch)
    ids = batches(12)[0, :4]
    with Account() as account:
        value = loss(model, ids)
        time.sleep(0.2)  # gloo's own thread lets go of the last gathered weights a moment later
        alive, here = account.alive_bytes, [unit.full is not None or unit.arriving is not None for unit in zero.units]
        value.backward()
    return alive, account.peak_bytes, here, [unit.full is not None for unit in zero.units]


def test_between_the_passes_stage_3_holds_no_weights():
    """The graph remembers which weights it needs, not the weights: activations alone are alive, as in stage 2."""
    model = TinyLM(**EVEN)
    whole = run_ranks(2, after_forward, model, 2, True)
    for prefetch in (False, True):
        for (alive, _, here, left), (activations, *_) in zip(
            run_ranks(2, after_forward, model, 3, prefetch), whole, strict=True
        ):
            assert alive == activations and not any(here) and not any(left)


def test_prefetch_costs_one_unit_more_at_the_peak():
    """Another unit's weights are under way while one works; they are the same bytes on the wire."""
    wide = TinyLM(vocab=12, model=4, hidden=256)
    peaks = [run_ranks(2, after_forward, wide, 3, prefetch)[0][1] for prefetch in (False, True)]
    layer = 4 * sum(p.numel() for p in wide.layers[0].parameters())
    assert peaks[0] + layer // 2 <= peaks[1] <= peaks[0] + 2 * layer


def ask_ahead(model):
    """Which units were on their way when each began to work, in both directions."""
    zero = Zero(model, ADAMW, stage=3, units=model.layers)
    ahead, line = [], zero.line
    bring = zero._bring

    def watched(unit, step):
        bring(unit, step)
        ahead.append([line.index(u) for u in line if u.arriving is not None])

    zero._bring = watched
    loss(model, batches(12)[0]).backward()
    return ahead


def test_the_next_unit_is_on_its_way_while_one_works():
    """Root, then layers 0, 1, 2; in the backward pass root, then 2, 1, 0."""
    (ahead,) = run_ranks(1, ask_ahead, TinyLM(**EVEN))
    assert ahead == [[0], [1], [2], [], [2], [1], [0], []]


def unused(model):
    """A step that reaches only one layer: the others keep their weights, and prefetched ones are not kept."""
    zero = Zero(model, SGD, stage=3, units=model.layers)
    before = zero.state_dict()
    model.layers[1](torch.ones(1, 4)).sum().backward()
    zero.step()
    after = zero.state_dict()
    return [name for name in before if not torch.equal(before[name], after[name])], [u.full for u in zero.units]


def test_units_that_took_no_part_keep_their_weights():
    """And nothing that was fetched for them is out of date later."""
    (changed, here), *_ = run_ranks(1, unused, TinyLM(**EVEN))
    assert changed and all(name.startswith("layers.1.") for name in changed) and here == [None] * 4


def test_what_cannot_be_sharded_is_refused():
    """A stage that does not exist, nested units, a frozen parameter."""

    def wrong():
        model = TinyLM(**EVEN)
        for options, message in (
            ({"stage": 0}, "stage is 1"),
            ({"stage": 1, "units": [model.layers, model.layers[0]]}, "side by side"),
        ):
            with pytest.raises(ValueError, match=message):
                Zero(model, ADAMW, **options)
        model.norm.bias.requires_grad_(False)
        with pytest.raises(ValueError, match=r"norm\.bias is frozen"):
            Zero(model, ADAMW, stage=1)

    run_ranks(1, wrong)


def test_an_error_in_the_forward_pass_leaves_the_model_whole():
    """Weights are taken away again, and the next pass works."""

    def fail():
        model = TinyLM(**EVEN)
        zero = Zero(model, ADAMW, stage=3, units=model.layers)
        with pytest.raises(IndexError):
            model(torch.tensor([[99]]))
        assert not hasattr(model.norm, "weight") and zero.root.full is None
        return loss(model, batches(12)[0]).isfinite().item()

    assert run_ranks(1, fail) == [True]
