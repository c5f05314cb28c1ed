"""Sharded checkpoints: what any cut of a model wrote, any other reads, and training goes on as if nothing happened."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.api import CheckpointException

from refimpl.language_modelling import next_token_loss
from refimpl.parallel import checkpoint, launch, tensor
from refimpl.parallel.checkpoint import blocks_of_run, of_model, of_zero
from refimpl.parallel.pipeline import LlamaStage, Pipeline
from refimpl.parallel.tests.model_parallel import ADAMW, ODD, STEPS, alone, batches, llama
from refimpl.parallel.tests.ranks import run_ranks
from refimpl.parallel.tests.training import difference
from refimpl.parallel.zero import Zero

BREAK = 3  # steps before the program ends


class OneProcess:
    """What the ways below have in common: one training step, the parts of a checkpoint, and the whole weights."""

    def __init__(self):
        self.model = llama(ODD)
        self.optimizer = ADAMW(self.model.parameters())

    def step(self, ids):
        self.optimizer.zero_grad()
        next_token_loss(self.model(ids), ids).backward()
        self.optimizer.step()

    def training(self):
        return of_model(self.model, self.optimizer)

    def weights(self):
        return {name: p.detach() for name, p in self.model.named_parameters()}


class Tensors(OneProcess):
    def __init__(self):
        self.model = tensor.split_llama(llama(ODD))
        self.optimizer = ADAMW(self.model.parameters())

    def step(self, ids):
        self.optimizer.zero_grad()
        tensor.next_token_loss(self.model, ids).backward()
        self.optimizer.step()

    def weights(self):
        return tensor.whole_state_dict(self.model)


class Stages(OneProcess):
    def __init__(self):
        self.model = stage = LlamaStage(llama(ODD), dist.get_rank(), dist.get_world_size())
        self.optimizer = ADAMW(stage.parameters())
        self.pipeline = Pipeline(stage, next_token_loss, micros=3, between=stage.between, shared=stage.shared)

    def step(self, ids):
        self.optimizer.zero_grad()
        self.pipeline.step(ids, ids)
        self.optimizer.step()


class Shards(OneProcess):
    """ZeRO; every rank is given the whole batch, so that the average over the ranks is its gradient on any number."""

    def __init__(self, stage, dtype=None):
        self.model = llama(ODD)
        self.zero = Zero(self.model, ADAMW, stage=stage, units=self.model.layers, dtype=dtype)

    def step(self, ids):
        next_token_loss(self.model(ids).float(), ids).backward()
        self.zero.step()

    def training(self):
        return of_zero(self.zero)

    def weights(self):
        return self.zero.state_dict()


WAYS = {
    "one process": OneProcess, "tensor": Tensors, "pipeline": Stages,
    "zero 1": partial(Shards, 1), "zero 2": partial(Shards, 2), "zero 3": partial(Shards, 3),
    "zero 2 in bf16": partial(Shards, 2, torch.bfloat16), "zero 3 in bf16": partial(Shards, 3, torch.bfloat16),
}  # fmt: skip


def train(way: str, folder: Path, last: int) -> dict:
    """From the newest checkpoint, if there is one, to step `last`, where one is written."""
    run = WAYS[way]()
    first = checkpoint.load(folder, run.training()) or 0
    for ids in batches(ODD)[first:last]:
        run.step(ids)
    checkpoint.save(folder, last, run.training())
    return {"first": first, "weights": run.weights()}


def whole(ranks: list[dict]) -> dict:
    return {name: weight for rank in ranks for name, weight in rank["weights"].items()}


@pytest.fixture(scope="module")
def uninterrupted():
    return alone(ODD)["weights"]


# --- real processes --------------------------------------------------------------------------------------------------


def test_four_processes_of_zero_3_go_on_as_two(tmp_path, uninterrupted):
    """Three steps on four, two more on two: the weights of five steps in one process, in fp32 within 1e-5."""
    launch(train, 4, "zero 3", tmp_path, BREAK, backend="gloo", timeout=100)
    ranks = launch(train, 2, "zero 3", tmp_path, STEPS, backend="gloo", timeout=100)
    for rank in ranks:
        assert rank["first"] == BREAK
        assert difference(rank["weights"], uninterrupted) <= 1e-5


# --- ranks as threads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("zero 3", 4), ("zero 1", 3)),
        (("zero 2", 2), ("tensor", 3)),
        (("tensor", 3), ("pipeline", 2)),
        (("pipeline", 3), ("zero 3", 2)),
        (("one process", 1), ("zero 2", 4)),
        (("zero 1", 3), ("one process", 1)),
    ],
)
def test_any_way_goes_on_where_any_other_ended(tmp_path, uninterrupted, before, after):
    """Five layers, 37 ids, five heads in grouped pairs: sizes that nothing divides, all cut again."""
    run_ranks(before[1], train, before[0], tmp_path, BREAK)
    ranks = run_ranks(after[1], train, after[0], tmp_path, STEPS)
    assert all(rank["first"] == BREAK for rank in ranks)
    assert difference(whole(ranks), uninterrupted) <= 1e-5


def test_master_weights_are_what_mixed_precision_keeps(tmp_path):
    """bf16 work, saved by two ranks of stage 2, read by three of stage 3: the very weights of no interruption."""
    ranks = run_ranks(2, train, "zero 2 in bf16", tmp_path / "never", STEPS)
    run_ranks(2, train, "zero 2 in bf16", tmp_path, BREAK)
    resumed = run_ranks(3, train, "zero 3 in bf16", tmp_path, STEPS)
    assert resumed[0]["weights"]["norm.weight"].dtype == torch.float32
    # Sums over 2 and over 3 ranks round differently in bf16 (8 bits): a thousandth of the largest weights.
    assert difference(resumed[0]["weights"], ranks[0]["weights"]) < 3e-3


def test_every_number_is_written_once(tmp_path):
    """Weights and two moments: 12 bytes per parameter over all files, whether ranks hold parts, or all hold all."""
    numbers = sum(p.numel() for p in llama(ODD).parameters())
    for way in ("zero 3", "tensor", "one process"):
        run_ranks(3, train, way, tmp_path / way, 1)
        files = list((tmp_path / way).rglob("*.distcp"))
        index = checkpoint.dcp.FileSystemReader(tmp_path / way / "step-00000001").read_metadata().storage_data
        assert 12 * numbers < sum(file.stat().st_size for file in files)
        blocks = {(key.fqn, tuple(key.offset)) for key in index}
        assert len(blocks) == len(index)  # nothing twice
        assert len(files) == (1 if way == "one process" else 3) or way == "one process"


def test_a_save_that_was_cut_short_does_not_count(tmp_path, monkeypatch):
    """The files of step 2 are there, LAST was not moved: step 1 is the newest."""
    run_ranks(2, train, "zero 3", tmp_path, 1)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        run_ranks(1, train, "zero 3", tmp_path, 2)
    monkeypatch.undo()
    assert (tmp_path / "step-00000002").exists()
    assert [rank["first"] for rank in run_ranks(2, train, "zero 3", tmp_path, 2)] == [1, 1]
    with pytest.raises(FileExistsError, match="step-00000002 is the newest checkpoint here"):
        train("one process", tmp_path, 2)


def test_one_process_needs_no_group(tmp_path, uninterrupted):
    """What ranks wrote, a program without torch.distributed reads, and writes."""
    run_ranks(2, train, "zero 2", tmp_path, BREAK)
    assert not dist.is_initialized()
    found = train("one process", tmp_path, STEPS)
    assert found["first"] == BREAK and difference(found["weights"], uninterrupted) <= 1e-5
    assert (tmp_path / "LAST").read_text() == f"step-{STEPS:08d}"


def test_nothing_saved_is_nothing_loaded(tmp_path):
    """The first start of a program that always tries to continue."""
    assert checkpoint.load(tmp_path, OneProcess().training()) is None


def test_state_that_cannot_be_cut_is_refused(tmp_path):
    """A factored second moment (one number per row) belongs to no block of numbers."""
    run = OneProcess()
    weight = run.model.embed_tokens.weight
    run.optimizer.state[weight]["row"] = torch.zeros(weight.shape[0])
    with pytest.raises(ValueError, match=r"state for embed_tokens.weight has shape \(37,\)"):
        checkpoint.save(tmp_path, 1, run.training())


def test_another_model_is_refused(tmp_path):
    """A different width: the sizes are compared before a number is read."""
    train("one process", tmp_path, 1)
    other = torch.nn.ModuleDict({"embed_tokens": torch.nn.Embedding(37, 21)})
    with pytest.raises(CheckpointException, match=r"embed_tokens.weight is \(37, 21\) in this model, and \(37, 20\)"):
        checkpoint.load(tmp_path, of_model(other, ADAMW(other.parameters())))


@settings(max_examples=60, deadline=None)
@given(shape=st.lists(st.integers(1, 5), max_size=4), data=st.data())
def test_a_run_of_a_flat_tensor_is_a_few_blocks(shape, data):
    """Every number of the run once, at its place, read from where it lies; at most three blocks of a matrix."""
    total = math.prod(shape)
    start = data.draw(st.integers(-2, total))
    stop = data.draw(st.integers(start, total))
    start, at = max(start, 0), 3
    whole = torch.arange(total).view(shape)
    local = torch.cat((torch.full((at,), -1), whole.flatten()[start:stop]))
    seen = []
    blocks = blocks_of_run(tuple(shape), start, stop, at=at)
    for block in blocks:
        there = whole[tuple(slice(o, o + n) for o, n in zip(block.offsets, block.sizes, strict=True))]
        assert torch.equal(block.view(local), there)
        seen += there.flatten().tolist()
    assert sorted(seen) == list(range(start, stop))
    assert len(blocks) <= max(1, 2 * len(shape) - 1)
