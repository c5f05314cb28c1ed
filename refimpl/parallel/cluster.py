"""Several nodes on this one machine: what a slow network costs, and what a lost node costs. `make cluster`.

A real SLURM of four nodes is started, each with a network of its own (course/deploy/slurm/local_cluster.sh), and every
step below is an ordinary `launch(..., engine="slurm")`. First the same training steps and the same attention at several
bandwidths: a step takes its compute plus, as gloo does not overlap here, its bytes through the wire. Then a training
run loses a node, and goes on from its sharded checkpoint on the nodes that are left.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from refimpl.parallel import LaunchError, launch
from refimpl.parallel.accounting import Account
from refimpl.parallel.checkpoint import LAST, load, of_zero, save
from refimpl.parallel.data import DataParallel, shard_batch
from refimpl.parallel.ring import ring_attention, tokens
from refimpl.parallel.ulysses import ulysses_attention
from refimpl.parallel.zero import Zero

SCRIPT = Path(__file__).resolve().parents[2] / "course" / "deploy" / "slurm" / "local_cluster.sh"
RATES = ("none", "1gbit", "200mbit", "50mbit", "10mbit")
BITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
LAYERS, WIDTH, BATCH = 4, 512, 24
ATTENTION = {"seq": 2048, "heads": 4, "dim": 32}
DEVICE = "eth0"
SAVE_EVERY = 5
PAUSE = 0.2  # seconds added to a step of the run that loses a node, so that there is a middle to lose it in
ADAMW = partial(torch.optim.AdamW, lr=1e-3)


# --- on the ranks -----------------------------------------------------------------------------------------------------


def network() -> nn.Sequential:
    """The same on every rank, from a generator of its own: ranks may be threads that share the default one."""
    net = nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(LAYERS)))
    draw, bound = torch.Generator().manual_seed(0), WIDTH**-0.5
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(-bound, bound, generator=draw)
    return net


def batch(step: int) -> torch.Tensor:
    """The whole batch of a step, whatever the number of ranks: a run that goes on elsewhere sees the same data."""
    return torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(step))


def train_step(method: str) -> Callable[[int], None]:
    """A step of data parallelism or of ZeRO, as a function of its number."""
    net, rank, ranks = network(), dist.get_rank(), dist.get_world_size()
    if method == "data":
        data, optimizer = DataParallel(net), ADAMW(net.parameters())
    else:
        zero = Zero(net, ADAMW, stage=int(method[-1]), units=net)

    def step(number: int):
        net(shard_batch(batch(number), rank, ranks)).square().mean().backward()
        if method == "data":
            data.finish()
            optimizer.step()
            optimizer.zero_grad()
        else:
            zero.step()

    return step


def attention_step(method: str) -> Callable[[int], None]:
    """Forward and backward of attention over a sequence that the ranks share."""
    rank, ranks, seq = dist.get_rank(), dist.get_world_size(), ATTENTION["seq"]
    layout = "zigzag" if method == "ring zigzag" else "contiguous"
    shape = (1, ATTENTION["heads"], tokens(seq, ranks, rank, layout), ATTENTION["dim"])
    attend = ulysses_attention if method == "Ulysses" else partial(ring_attention, layout=layout)

    def step(number: int):
        draw = torch.Generator().manual_seed(number)
        q, k, v = (torch.randn(shape, generator=draw, requires_grad=True) for _ in range(3))
        attend(q, k, v, seq=seq, causal=True).square().mean().backward()

    return step


METHODS = {
    "data": train_step, "ZeRO-2": train_step, "ZeRO-3": train_step,
    "ring": attention_step, "ring zigzag": attention_step, "Ulysses": attention_step,
}  # fmt: skip


def sent_over_wire() -> int:
    """Bytes that this node's network interface has sent, headers included; 0 where there is no such interface."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == DEVICE:
            return int(numbers.split()[8])
    return 0


def measure(methods: Sequence[str], steps: int) -> dict[str, dict[str, float | int]]:
    """On each rank: method -> median seconds of a step, bytes that it put on the wire, and bytes of payload."""
    torch.set_num_threads(1)
    found = {}
    for name in methods:
        step = METHODS[name](name)
        with Account() as account:  # the first step, which also warms up
            step(0)
        seconds, before = [], sent_over_wire()
        for number in range(steps):
            dist.barrier()
            start = time.perf_counter()
            step(number + 1)
            seconds.append(time.perf_counter() - start)
        wire = (sent_over_wire() - before) / steps
        found[name] = {"seconds": statistics.median(seconds), "wire": wire, "payload": account.total}
    return found


def distance(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """To a target that is not reached soon: a loss near zero would be made of rounding."""
    return (net(x) - x.roll(1, dims=-1)).square().mean()


def train(folder: str, steps: int, pause: float | int = 0) -> dict[str, float | int]:
    """ZeRO-3 from the newest checkpoint in `folder`, saving every few steps; a loss over the whole batch at the end."""
    torch.set_num_threads(1)
    net, rank, ranks = network(), dist.get_rank(), dist.get_world_size()
    zero = Zero(net, ADAMW, stage=3, units=net)
    begin = load(folder, of_zero(zero)) or 0
    for number in range(begin, steps):
        mine = shard_batch(batch(number), rank, ranks)
        distance(net, mine).backward()
        zero.step()
        time.sleep(pause)
        if (number + 1) % SAVE_EVERY == 0:
            save(folder, number + 1, of_zero(zero))
    with torch.no_grad():
        loss = distance(net, batch(steps))
    return {"begin": begin, "ranks": ranks, "loss": float(loss)}


# --- here -------------------------------------------------------------------------------------------------------------


@contextmanager
def local_cluster(nodes: int) -> Iterator[Callable[..., str]]:
    """A SLURM of so many nodes; yields a function that tells the script what to do. Nothing of it stays."""
    with tempfile.TemporaryDirectory(prefix="cluster-") as folder:
        environment = {**os.environ, "CLUSTER_DIR": f"{folder}/slurm"}

        def tell(*words: str) -> str:
            made = subprocess.run([SCRIPT, *words], env=environment, capture_output=True, text=True, check=False)
            if made.returncode:
                raise RuntimeError(f"local_cluster.sh {' '.join(words)}: {made.stderr.strip()}")
            return made.stdout

        tell("start", str(nodes))
        before = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = f"{folder}/slurm/slurm.conf"
        try:
            yield tell
        finally:
            os.environ.pop("SLURM_CONF") if before is None else os.environ.update(SLURM_CONF=before)
            tell("stop")


def missing() -> str:
    """Why this machine can have no such cluster, or ""."""
    made = subprocess.run([SCRIPT, "check"], capture_output=True, text=True, check=False)
    return made.stderr.strip() if made.returncode else ""


def bits_per_second(rate: str) -> float | None:
    """Of a rate as tc writes it; None where nothing is limited."""
    if rate == "none":
        return None
    for unit, size in BITS.items():
        if rate.endswith(unit) and rate[: -len(unit)].isdigit():
            return float(rate[: -len(unit)]) * size
    raise ValueError(
        f"cluster: {rate=} is no rate; write none, or a number and one of {', '.join(BITS)}, such as 50mbit"
    )


def crossover(tell: Callable[..., str], nodes: int, rates: Sequence[str], steps: int) -> list[dict]:
    """One row per rate and method: milliseconds per step beside what its bytes take at that rate."""
    rows = []
    for rate in rates:
        tell("shape", rate)
        per_rank = launch(measure, 1, list(METHODS), steps, engine="slurm", nnodes=nodes, timeout=600)
        for name in METHODS:
            most = {key: max(rank[name][key] for rank in per_rank) for key in ("seconds", "wire", "payload")}
            bits = bits_per_second(rate)
            predicted = 1000 * 8 * most["wire"] / bits if bits else 0.0
            rows.append({"rate": rate, "method": name, "ms": 1000 * most["seconds"], "wire_ms": predicted} | most)
    tell("shape", "none")
    return rows


def table(rows: Sequence[dict]) -> str:
    """Methods across, rates down: measured ms, and after the bar what the wire alone would take."""
    rates = list(dict.fromkeys(row["rate"] for row in rows))
    cell = {(row["rate"], row["method"]): f"{row['ms']:.0f} | {row['wire_ms']:.0f}" for row in rows}
    lines = [f"{'ms | wire alone':>16}" + "".join(f"{name:>15}" for name in METHODS)]
    lines += [f"{rate:>16}" + "".join(f"{cell[rate, name]:>15}" for name in METHODS) for rate in rates]
    first = {row["method"]: row for row in rows if row["rate"] == rates[0]}
    lines.append(f"{'MB per step':>16}" + "".join(f"{first[name]['wire'] / 1e6:>15.2f}" for name in METHODS))
    lines.append(f"{'MB of payload':>16}" + "".join(f"{first[name]['payload'] / 1e6:>15.2f}" for name in METHODS))
    return "\n".join(lines)


def ratio(rows: Sequence[dict], rate: str) -> float:
    """ZeRO-3's time over data parallelism's: 1.5 where only the wire counts."""
    ms = {row["method"]: row["ms"] for row in rows if row["rate"] == rate}
    return ms["ZeRO-3"] / ms["data"]


def lose_a_node(tell: Callable[..., str], nodes: int, steps: int) -> dict[str, float | int]:
    """Pull a node's plug in the middle of training, go on with one node fewer, compare with a run that lost nothing."""
    with tempfile.TemporaryDirectory(prefix="training-", dir=Path.cwd()) as folder:
        plug = threading.Thread(target=_off_after, args=(tell, Path(folder), f"n{nodes}", 2 * SAVE_EVERY), daemon=True)
        plug.start()
        start = time.monotonic()
        try:
            launch(train, 1, folder, steps, PAUSE, engine="slurm", nnodes=nodes, timeout=600)
            raise RuntimeError("the run ended before the node was lost")
        except LaunchError as lost:
            noticed = time.monotonic() - start
            shutil.rmtree(lost.logs)
        plug.join()
        after = launch(train, 1, folder, steps, engine="slurm", nnodes=nodes - 1, timeout=600)[0]
        tell("on", f"n{nodes}")
    with tempfile.TemporaryDirectory(prefix="training-") as folder:
        whole = launch(train, 1, folder, steps)[0]
    return {
        "nodes": nodes, "left": after["ranks"], "resumed_at": after["begin"], "steps": steps, "seconds_lost": noticed,
        "loss": after["loss"], "undisturbed": whole["loss"],
    }  # fmt: skip


def _off_after(tell: Callable[..., str], folder: Path, node: str, step: int):
    """Once the checkpoint of `step` is whole."""
    while not (folder / LAST).exists() or (folder / LAST).read_text().strip() < f"step-{step:08d}":
        time.sleep(0.1)
    tell("off", node)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; exit status 1 if a figure is not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m refimpl.parallel.cluster", description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--rates", nargs="+", default=RATES, help="as tc writes them [default: %(default)s]")
    parser.add_argument("--steps", type=int, default=3, help="of each method at each rate [default: 3]")
    parser.add_argument("--json", type=Path, help="write the figures, too")
    arguments = parser.parse_args(argv)
    for rate in arguments.rates:
        bits_per_second(rate)
    if why := missing():
        print(f"skipped: {why}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster goes, too
    with local_cluster(arguments.nodes) as tell:
        rows = crossover(tell, arguments.nodes, arguments.rates, arguments.steps)
        print(table(rows))
        slowest = arguments.rates[-1]
        print(f"ZeRO-3 : data at {slowest} = {ratio(rows, slowest):.2f} (3 : 2 by bytes)")
        lost = lose_a_node(tell, arguments.nodes, 6 * SAVE_EVERY)
    print(
        f"n{lost['nodes']} lost in the middle: {lost['left']} nodes went on from step {lost['resumed_at']} of "
        f"{lost['steps']}; loss {lost['loss']:.7f}, undisturbed {lost['undisturbed']:.7f}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"crossover": rows, "lost": lost}, indent=1) + "\n", encoding="utf-8")
    return 0 if abs(lost["loss"] - lost["undisturbed"]) <= 1e-5 * abs(lost["undisturbed"]) else 1


if __name__ == "__main__":
    sys.exit(main())
