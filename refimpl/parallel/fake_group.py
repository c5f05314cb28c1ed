"""What PyTorch's FSDP2 puts on one rank of a thousand, without the other ranks and without a byte of weights.

A fake process group says it has N ranks and communicates with none; parameters on the meta device have shapes and no
numbers. `fully_shard` cannot tell: the shards it makes are those of a real run. They are not quite Ψ/N, because FSDP2
cuts each parameter along its first axis, in pieces of ceil(rows / N) rows:

    rank r has    min(ceil(rows / N), what is left after r such pieces)    rows

so the first ranks carry up to one row more than their share, and the last ranks may have nothing (4,352 rows on 1,024
ranks: 870 ranks with 5 rows, one with 2, 153 with none). ZeRO's own shards cut flat tensors and miss by one number.

    python -m refimpl.parallel.fake_group 33 4352 1024      elements on the first and the last rank, as JSON

A process has one default group, so `measure` runs that command in a process of its own.
Sources: PyTorch's fully_shard; Rajbhandari et al. 2020, table 1.
"""

import json
import subprocess
import sys
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from refimpl.cost_model import ModelShape
from refimpl.parallel.plan_memory import ceil_div

__all__ = ["SHAPES", "matrices", "measure", "predicted", "shard_elements"]

# Blocks without embeddings, 12 layers d² parameters, within 0.04 % of the sizes in ZeRO's table.
SHAPES = {
    "7.5B": ModelShape(layers=33, model=4352, heads=34),
    "128B": ModelShape(layers=88, model=11_008, heads=86),
    "1T": ModelShape(layers=138, model=24_576, heads=192),
}


def matrices(shape: ModelShape) -> list[tuple[int, int]]:
    """(rows, columns) of one layer's weights as `nn.Linear` has them: outputs first."""
    d, qkv = shape.model, shape.q_width + 2 * shape.kv_width
    return [(qkv, d), (d, shape.q_width), (shape.hidden, d), (d, shape.hidden)]


def predicted(shape: ModelShape, ranks: int, rank: int) -> int:
    """Elements of the layers' matrices on a rank, cut along rows."""
    return shape.layers * sum(_rows(rows, ranks, rank) * columns for rows, columns in matrices(shape))


def _rows(rows: int, ranks: int, rank: int) -> int:
    piece = ceil_div(rows, ranks)
    return max(0, min(piece, rows - rank * piece))


def shard_elements(shape: ModelShape, ranks: int, rank: int) -> int:
    """The same, counted on the parameters that `fully_shard` leaves on rank `rank` of a fake group of `ranks`."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # seldom needed

    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    try:
        from torch.distributed.device_mesh import init_device_mesh  # seconds to import
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (ranks,))
        with torch.device("meta"):
            layers = [_layer(shape) for _ in range(shape.layers)]
            model = nn.Sequential(*layers)
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return sum(parameter.to_local().numel() for parameter in model.parameters())  # type: ignore[attr-defined]
    finally:
        dist.destroy_process_group()


def _layer(shape: ModelShape) -> nn.Module:
    """The matrices of one layer; they are never run, so their order does not matter."""
    return nn.Sequential(*(nn.Linear(columns, rows, bias=False) for rows, columns in matrices(shape)))


def measure(shape: ModelShape, ranks: Sequence[int], *, timeout: float = 300) -> dict[int, tuple[int, int]]:
    """ranks -> elements on (the first, the last) of them, by FSDP2 in a process of its own."""
    arguments = map(str, (shape.layers, shape.model, *ranks))
    command = [sys.executable, "-m", "refimpl.parallel.fake_group", *arguments]
    made = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if made.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} ended with {made.returncode}:\n{made.stderr.strip()[-2000:]}")
    return {int(n): tuple(found) for n, found in json.loads(made.stdout.splitlines()[-1]).items()}


def main(arguments: Sequence[str]) -> None:
    layers, model, *ranks = map(int, arguments)
    shape = ModelShape(layers=layers, model=model, heads=1)  # how the width is cut into heads does not matter here
    print(json.dumps({n: [shard_elements(shape, n, rank) for rank in (0, n - 1)] for n in ranks}))


if __name__ == "__main__":
    main(sys.argv[1:])
