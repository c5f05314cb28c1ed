"""Pipeline parallelism: one process's weights, the schedules' order, what they keep alive, and the bubble."""

import pytest
import torch
import torch.distributed as dist

from refimpl.models.llama import Llama
from refimpl.parallel import launch, pipeline
from refimpl.parallel.pipeline import Action, LlamaStage, Pipeline, bubble, gpipe, most_alive, one_f_one_b, simulate
from refimpl.parallel.tests.model_parallel import (
    CONFIGS,
    EVEN,
    MICROS,
    ODD,
    ROWS,
    SEQ,
    alone,
    asleep,
    llama,
    with_pipeline,
)
from refimpl.parallel.tests.ranks import run_ranks
from refimpl.parallel.tests.training import difference

SCHEDULES = {"gpipe": gpipe, "1f1b": one_f_one_b}
PAUSE = 0.03  # seconds forward; twice that backward


def everything() -> dict:
    """Both models with both schedules, and stages of known duration."""
    trained = {
        (model, name): with_pipeline(config, schedule)
        for model, config in CONFIGS.items()
        if config.layers >= dist.get_world_size()
        for name, schedule in SCHEDULES.items()
    }
    slept = {(name, m): asleep(schedule, m, PAUSE) for name, schedule in SCHEDULES.items() for m in (1, 4)}
    return {"trained": trained, "slept": slept}


@pytest.fixture(scope="module", params=[2, 4])
def processes(request):
    """One start of two processes, and one of four, for all tests on real ones."""
    return launch(everything, request.param, backend="gloo", timeout=200)


def together(ranks: list[dict]) -> dict:
    """The weights of all stages, by their names in the whole model."""
    return {name: weight for rank in ranks for name, weight in rank["weights"].items()}


# --- real processes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("model", CONFIGS)
def test_processes_train_the_weights_of_one_process(processes, model, schedule):
    """Five AdamW steps in fp32, 8 rows as micro-batches of 2, 2, 2, 1, 1, five layers on 2 and 4 stages: <= 1e-5."""
    ranks, reference = [rank["trained"][model, schedule] for rank in processes], alone(CONFIGS[model])
    assert set(together(ranks)) == set(reference["weights"])
    assert difference(reference["weights"], llama(CONFIGS[model]).state_dict()) > 4e-3  # training moved the weights
    assert difference(together(ranks), reference["weights"]) <= 1e-5
    assert ranks[-1]["losses"] == pytest.approx(reference["losses"], abs=1e-5)
    assert all(set(rank["losses"]) == {None} for rank in ranks[:-1])


def test_both_copies_of_a_tied_embedding_stay_equal_to_the_bit(processes):
    """First and last stage each add the other's gradient to their own."""
    for schedule in SCHEDULES:
        first, *_, last = (rank["trained"]["odd, tied", schedule]["weights"] for rank in processes)
        assert torch.equal(first["embed_tokens.weight"], last["embed_tokens.weight"])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_stage_sends_its_activations_on_and_their_gradients_back(processes, schedule):
    """batch · seq · model numbers to each neighbour, whatever the micro-batches, and a tied embedding's gradient."""
    for model, config in CONFIGS.items():
        residual, tied = ROWS * SEQ * config.model * 4, config.vocab * config.model * 4 * config.tied
        for rank, found in enumerate(processes):
            inner = 0 < rank < len(processes) - 1
            want = 2 * residual if inner else residual + tied
            assert found["trained"][model, schedule]["sent"] == {"send": want}


def test_gpipe_keeps_m_micro_batches_and_1f1b_at_most_p(processes):
    """Counted on every stage: m, and min(p - s, m); where the counts differ, so do the bytes."""
    p = len(processes)
    for stage, rank in enumerate(processes):
        found = {name: rank["trained"]["odd, tied", name] for name in SCHEDULES}
        assert found["gpipe"]["alive"] == MICROS
        assert found["1f1b"]["alive"] == min(p - stage, MICROS)
        if p - stage < MICROS - 1:
            assert found["1f1b"]["peak_bytes"] < found["gpipe"]["peak_bytes"]


@pytest.mark.parametrize("micros", [1, 4])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_measured_bubble_is_the_predicted_one(processes, schedule, micros):
    """Stages of 30 + 60 ms on 2 and 4 ranks: idle time within 0.06 of (p - 1) / (m + p - 1)."""
    spans = [pipeline.Span(*span) for rank in processes for span in rank["slept"][schedule, micros]]
    assert bubble(spans) == pytest.approx(pipeline.predicted_bubble(len(processes), micros), abs=0.06)


# --- schedules -------------------------------------------------------------------------------------------------------


def test_1f1b_is_the_order_of_the_paper():
    """Four stages, five micro-batches: PipeDream's figure, stage by stage."""
    want = [
        "F0 F1 F2 F3 B0 F4 B1 B2 B3 B4",
        "F0 F1 F2 B0 F3 B1 F4 B2 B3 B4",
        "F0 F1 B0 F2 B1 F3 B2 F4 B3 B4",
        "F0 B0 F1 B1 F2 B2 F3 B3 F4 B4",
    ]
    plans = [one_f_one_b(stage, 4, 5) for stage in range(4)]
    assert [" ".join(f"{a.kind[0].upper()}{a.micro}" for a in plan) for plan in plans] == want


@pytest.mark.parametrize("schedule", SCHEDULES.values())
@pytest.mark.parametrize("micros", [1, 2, 3, 8])
@pytest.mark.parametrize("stages", [1, 2, 4, 7])
def test_both_schedules_have_the_predicted_bubble(stages, micros, schedule):
    """Simulated from the very lists that ranks execute: (p - 1) / (m + p - 1), however forward and backward compare."""
    for forward_s, backward_s in ((1, 1), (1, 2), (3, 1)):
        spans = simulate(schedule, stages, micros, forward_s, backward_s)
        assert len(spans) == 2 * stages * micros
        assert bubble(spans) == pytest.approx(pipeline.predicted_bubble(stages, micros))


@pytest.mark.parametrize("stages", [1, 2, 4, 7])
def test_what_schedules_keep_alive_follows_from_their_order(stages):
    """GPipe m on every stage; 1F1B p - s, where there are as many."""
    for micros in (1, 3, 8):
        for stage in range(stages):
            assert most_alive(gpipe(stage, stages, micros)) == micros
            assert most_alive(one_f_one_b(stage, stages, micros)) == min(stages - stage, micros)


def test_a_schedule_that_waits_for_itself_is_named_before_it_hangs():
    """Stage 0 wants a gradient before it sent what the gradient is of."""

    def hasty(stage, stages, micros):
        return gpipe(stage, stages, micros)[:: 1 if stage else -1]

    with pytest.raises(ValueError, match="stage 0: backward 1; stage 1: forward 0"):
        simulate(hasty, 2, 2)


# --- ranks as threads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES.values())
@pytest.mark.parametrize("ranks", [1, 3])
def test_any_number_of_stages_up_to_the_layers_will_do(ranks, schedule):
    """One stage is gradient accumulation; three stages have 2, 2 and 1 layers."""
    reference = alone(ODD)
    found = run_ranks(ranks, with_pipeline, ODD, schedule, 3)
    assert difference(together(found), reference["weights"]) <= 1e-5


def too_few_rows():
    stage = LlamaStage(llama(EVEN), dist.get_rank(), dist.get_world_size())
    Pipeline(stage, torch.nn.functional.mse_loss, micros=3).step(torch.zeros(2, 4).long(), torch.zeros(2))


def test_more_micro_batches_than_rows_are_refused():
    """Before anything is sent, on every rank."""
    with pytest.raises(ValueError, match="2 rows do not make 3 micro-batches"):
        run_ranks(2, too_few_rows)


def test_more_stages_than_layers_are_refused():
    """Four layers, five stages."""
    model: Llama = llama(EVEN)
    with pytest.raises(ValueError, match="4 layers do not make 5 stages"):
        LlamaStage(model, 0, 5)


def test_actions_are_plain_data():
    """A student's schedule is a list of pairs."""
    assert gpipe(0, 2, 1) == [("forward", 0), ("backward", 0)] == [Action("forward", 0), Action("backward", 0)]
