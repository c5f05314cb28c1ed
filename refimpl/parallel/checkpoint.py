"""Checkpoints that each rank writes its part of, and that any number of ranks, cut in any way, can read.

    save(folder, step, of_zero(zero))                           # every rank; or of_model(model, optimizer)
    step = load(folder, of_zero(zero))                          # the newest whole one; None where there is none

A checkpoint knows tensors by the names and shapes of the whole model. A rank holds blocks of them (offsets, sizes):
rows or columns in tensor parallelism, whole tensors in a pipeline stage, and in ZeRO a run of a flattened unit, which
is a few blocks as well. `torch.distributed.checkpoint` writes one file per rank and an index of all blocks; on load
each rank reads the parts of blocks that overlap its own. So 4 ranks of ZeRO-3 continue as 2, or as one process.

Bytes written, over all ranks: what the wholes take, once, for weights and each kind of optimizer state; no rank gathers
anything. A checkpoint counts when LAST names it, which happens after every rank has written: a job that dies while
saving continues from the one before. What depends on the step (data, learning rate) is the program's to set from it.
Source: PyTorch Distributed Checkpoint; Zhao et al. 2023 (FSDP), section 5.
"""

import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import LoadPlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.optim import Optimizer

from refimpl.parallel import tensor
from refimpl.parallel.zero import Zero
from refimpl.shapes import Tensor

__all__ = ["Block", "Held", "Training", "blocks_of_run", "load", "of_model", "of_zero", "save"]

LAST = "LAST"
Shape = tuple[int, ...]


# --- what a rank holds -----------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """A block of a named tensor, and where its numbers begin in the flattened tensor that this rank keeps."""

    offsets: Shape
    sizes: Shape
    start: int

    def view(self, local: Tensor) -> Tensor:
        return local.detach().view(-1)[self.start : self.start + math.prod(self.sizes)].view(self.sizes)


@dataclass(frozen=True)
class Held:
    """A tensor of the whole model as far as this rank has it: blocks inside `local`, which the optimizer steps."""

    name: str
    shape: Shape
    local: Tensor
    blocks: list[Block]


@dataclass(frozen=True)
class Training:
    """What a checkpoint of a rank is made of."""

    held: list[Held]
    optimizer: Optimizer
    after_load: Callable[[], None] = field(default=lambda: None)
    group: dist.ProcessGroup | None = None


def of_model(model: nn.Module, optimizer: Optimizer, *, group: dist.ProcessGroup | None = None) -> Training:
    """One process, data parallelism (all hold all, one writes), a pipeline's stage, or a model split by `tensor`."""
    held = []
    for name, parameter, cut in tensor.cuts(model):
        offsets = [0] * parameter.ndim
        if cut is not None:
            offsets[cut.dim] = cut.mine.start
        block = Block(tuple(offsets), tuple(parameter.shape), 0)
        held.append(Held(name, cut.shape if cut else block.sizes, parameter, [block]))
    return Training(held, optimizer, group=group)


def of_zero(zero: Zero) -> Training:
    """ZeRO of any stage: master weights and optimizer state, which the stages cut alike."""
    held = []
    for unit in zero.units:
        mine, end = dist.get_rank(zero.group) * unit.master.numel(), 0
        for shape, owners in zip(unit.shapes, unit.owners, strict=True):
            begin, end = end, end + shape.numel()  # the parameter's numbers in the flat unit
            start, stop = max(mine, begin), min(mine + unit.master.numel(), end)
            blocks = blocks_of_run(tuple(shape), start - begin, stop - begin, at=start - mine)
            held.append(Held(owners[0][2], tuple(shape), unit.master, blocks))
    return Training(held, zero.optimizer, zero.spread, zero.group)


def blocks_of_run(shape: Shape, start: int, stop: int, *, at: int = 0) -> list[Block]:
    """Numbers start … stop - 1 of a flattened tensor as blocks of the tensor, of which a matrix needs at most three.

    (3, 4), 2 … 11: the end of row 0, row 1, the beginning of row 2. `at` is where the run begins in local memory.
    """
    if start >= stop:
        return []
    if len(shape) < 2:
        return [Block((start,)[: len(shape)], (stop - start,)[: len(shape)], at)]
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row  # rows first … last - 1 are whole
    if first > last:  # begins and ends inside one row
        return _in_row(shape, last, start, stop, at)
    middle = Block((first, *[0] * (len(shape) - 1)), (last - first, *shape[1:]), at + first * row - start)
    head = _in_row(shape, first - 1, start, first * row, at)
    return [*head, *[middle] * (last > first), *_in_row(shape, last, last * row, stop, at + last * row - start)]


def _in_row(shape: Shape, index: int, start: int, stop: int, at: int) -> list[Block]:
    below = index * math.prod(shape[1:])
    inside = blocks_of_run(shape[1:], start - below, stop - below, at=at)
    return [Block((index, *b.offsets), (1, *b.sizes), b.start) for b in inside]


# --- writing and reading ---------------------------------------------------------------------------------------------


def save(folder: Path | str, step: int, training: Training) -> Path:
    """Write the checkpoint of a step; every rank of the group calls it. Returns its own folder inside `folder`."""
    folder = Path(folder)
    target, alone = folder / f"step-{step:08d}", not dist.is_initialized()
    if _newest(folder) == target:
        raise FileExistsError(f"checkpoint: {target} is the newest checkpoint here; load it, or choose another folder")
    leader = alone or dist.get_rank(training.group) == 0
    if leader:
        shutil.rmtree(target, ignore_errors=True)  # what a job left that died while saving
    _meet(training)
    state = {f"model/{held.name}": _Blocks(held, held.local) for held in training.held}
    for held in training.held:
        for key, value in training.optimizer.state[held.local].items():
            state[f"optimizer/{held.name}/{key}"] = _state_blocks(held, value)
    with _quietly(alone):
        writer = dcp.FileSystemWriter(target, single_file_per_rank=True)
        dcp.save(state, storage_writer=writer, planner=_Writing(), process_group=training.group, no_dist=alone)
    if leader:
        part = folder / f"{LAST}.tmp"
        part.write_text(target.name)
        part.replace(folder / LAST)  # whole or not at all
    _meet(training)  # when this returns on any rank, the checkpoint counts
    return target


def _newest(folder: Path) -> Path | None:
    last = folder / LAST
    return folder / last.read_text() if last.exists() else None


def _meet(training: Training):
    if dist.is_initialized():
        dist.barrier(training.group)


def load(folder: Path | str, training: Training) -> int | None:
    """Read the newest whole checkpoint in place, weights and optimizer state; every rank calls it. Returns its step."""
    target = _newest(Path(folder))
    if target is None:
        return None
    reader = dcp.FileSystemReader(target)
    kept = reader.read_metadata().state_dict_metadata
    state = {}
    for held in training.held:
        if not held.blocks:
            continue
        state[f"model/{held.name}"] = _Blocks(held, held.local)
        for key, shape in _kinds_of_state(kept, held.name):
            memory = training.optimizer.state[held.local]  # an optimizer makes it in its first step: it may be empty
            if key not in memory:
                memory[key] = torch.zeros(()) if shape == () else torch.zeros_like(held.local)
            state[f"optimizer/{held.name}/{key}"] = _state_blocks(held, memory[key])
    alone = not dist.is_initialized()
    with _quietly(alone):
        dcp.load(
            dict.fromkeys(state),
            storage_reader=reader,
            planner=_Reading(state),
            process_group=training.group,
            no_dist=alone,
        )
    training.after_load()
    return int(target.name.removeprefix("step-"))


@contextmanager
def _quietly(alone: bool) -> Iterator[None]:
    """PyTorch warns that there is one process even where it was told so."""
    if not alone:  # filters belong to the whole process, and ranks may be threads
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _kinds_of_state(kept: dict, name: str) -> Iterator[tuple[str, Shape]]:
    """What the checkpoint has beside a parameter: Adam's moments in its shape, and the count of steps, one number."""
    prefix = f"optimizer/{name}/"
    return ((key.removeprefix(prefix), tuple(entry.size)) for key, entry in kept.items() if key.startswith(prefix))


def _state_blocks(held: Held, value: Tensor) -> "_Blocks":
    if value.shape == held.local.shape:
        return _Blocks(held, value)
    if value.ndim == 0:  # the same on every rank: one of them writes it
        return _Blocks(Held(held.name, (), value, [Block((), (), 0)]), value)
    raise ValueError(
        f"checkpoint: the optimizer's state for {held.name} has shape {tuple(value.shape)}, and the parameter "
        f"{tuple(held.local.shape)}: it is no number per number, and cannot be cut with it"
    )


class _Blocks:
    """A distributed tensor as PyTorch's planners want it: its size, its blocks here, and their memory."""

    def __init__(self, held: Held, memory: Tensor):
        self.shape, self.dtype = torch.Size(held.shape), memory.dtype
        self.views = {torch.Size(block.offsets): block.view(memory) for block in held.blocks}

    def chunks(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(offsets, view.size()) for offsets, view in self.views.items()]

    def __create_write_items__(self, name: str, _) -> list[WriteItem]:
        properties = TensorProperties(dtype=self.dtype)
        return [
            WriteItem(
                index=MetadataIndex(name, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.shape),
            )
            for chunk in self.chunks()
        ]


class _Writing(dcp.DefaultSavePlanner):
    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].views[index.offset]


class _Reading(dcp.DefaultLoadPlanner):
    """Has the blocks itself: PyTorch would pass on tensors only."""

    def __init__(self, blocks: dict[str, _Blocks]):
        super().__init__()
        self.blocks = blocks

    def create_local_plan(self) -> LoadPlan:
        """Of every block here, the parts of blocks in the files that overlap it."""
        items = []
        for name, wanted in self.blocks.items():
            found = self.metadata.state_dict_metadata.get(name)
            if found is None or found.size != wanted.shape:
                there = "no such tensor" if found is None else f"{tuple(found.size)}"
                raise ValueError(
                    f"checkpoint: {name} is {tuple(wanted.shape)} in this model, and {there} in the files: they were "
                    "written for another model; choose another folder"
                )
            items += create_read_items_for_chunk_list(name, found, wanted.chunks())
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.blocks[index.fqn].views[index.offset]
