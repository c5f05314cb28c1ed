"""Row 33, ZeRO (S1, S0): the table of model states, the shards behind it, and the bytes that each stage sends.

The table is arithmetic. Its stage 3 is held against FSDP2, which shards the three models on up to 1,024 ranks of a fake
process group; bytes kept and sent are counted on real ranks, on a model of a few thousand parameters.
Source: Rajbhandari et al. 2020, table 1 and section 7.
"""

from functools import partial

import torch
import torch.distributed as dist
from torch import nn

from refimpl.cost_model import ModelShape, parameters
from refimpl.experiments.harness import Claim
from refimpl.parallel import fake_group, launch
from refimpl.parallel.accounting import Account
from refimpl.parallel.data import DataParallel
from refimpl.parallel.plan_memory import state_bytes
from refimpl.parallel.plan_tables import ZERO, zero_cell, zero_table
from refimpl.parallel.zero import Zero

TITLE = "ZeRO: 54 cells of model states, FSDP2's real shards, and 2Ψ or 3Ψ (N-1)/N sent"
RANKS = (2, 4)
WIDTH, BLOCKS, ROWS = 16, 3, 8
METHODS = ("data", "1", "2", "3")
RULES = {"half up": "ROUND_HALF_UP", "cut off": "ROUND_DOWN", "half up for 7.5B, cut off for 128B and 1T": None}


def run(ranks=RANKS, shapes=None, table_ranks=tuple(ZERO), start=launch) -> dict:
    """`start(fn, n, …)` runs fn on n ranks: real processes, or threads in a test."""
    shapes = shapes or fake_group.SHAPES
    return {
        "cells": [cell._asdict() for cell in zero_table()],
        "agreeing": {name: sum(c.rounded == c.printed for c in zero_table(rule)) for name, rule in RULES.items()},
        "left_of_32_gb": {"7.5B on 4": 32 - zero_cell("7.5B", 4, 3), "128B on 64": 32 - zero_cell("128B", 64, 3)},
        "fsdp2": [row for name, shape in shapes.items() for row in shards(name, shape, table_ranks)],
        "counted": [row for n in ranks for row in counted(n, start(one_rank, n, backend="gloo", timeout=300))],
    }


# --- FSDP2 under a fake process group --------------------------------------------------------------------------------


def shards(name: str, shape: ModelShape, ranks: tuple[int, ...]) -> list[dict]:
    """Per number of ranks: elements on the first and last rank, what cutting rows foretells, and Ψ/N; 16 bytes each."""
    count, found = sum(parameters(shape).values()), fake_group.measure(shape, ranks)
    return [
        {
            "size": name, "ranks": n, "parameters": count, "first": first, "last": last,
            "foretold": [fake_group.predicted(shape, n, rank) for rank in (0, n - 1)],
            "gigabytes": 16 * first / 1e9, "formula": 16 * count / n / 1e9,
        }
        for n, (first, last) in found.items()
    ]  # fmt: skip


# --- bytes counted on real ranks -------------------------------------------------------------------------------------


def one_rank() -> dict:
    """On a rank: for each method what one step sends, and what the rank keeps of the states."""
    return {method: one_step(method) for method in METHODS}


def one_step(method: str) -> dict:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)) for _ in range(BLOCKS)]
    model, adam = nn.Sequential(*blocks), partial(torch.optim.AdamW, lr=1e-3)
    x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(dist.get_rank()))
    if method == "data":
        data, optimizer, held = DataParallel(model), adam(model.parameters()), None
        with Account() as account:
            model(x).square().mean().backward()
            data.finish()
            optimizer.step()
    else:
        zero = Zero(model, adam, stage=int(method), units=blocks, dtype=torch.bfloat16)
        for _ in range(2):  # optimizer states appear in the first step
            with Account() as account:
                model(x.bfloat16()).square().mean().backward()
                held = zero.state_bytes()
                zero.step()
    return {"sent": dict(account.sent), "held": held}


def counted(ranks: int, sessions: list[dict]) -> list[dict]:
    """Per method: the bytes of every rank beside the formulas. Data parallelism sends float32, ZeRO bfloat16."""
    count = BLOCKS * (8 * WIDTH * WIDTH + 5 * WIDTH)
    rows = []
    for method in METHODS:
        stage, itemsize = (0, 4) if method == "data" else (int(method), 2)
        volume = (3 if stage == 3 else 2) * count * itemsize * (ranks - 1) // ranks
        states = sum(state_bytes(count, ranks=ranks, stage=stage).values())
        rows.append({
            "method": method, "ranks": ranks, "parameters": count, "itemsize": itemsize, "volume": volume,
            "sent": [sum(session[method]["sent"].values()) for session in sessions],
            "states": states if stage else None,
            "held": [sum(session[method]["held"].values()) for session in sessions] if stage else None,
        })  # fmt: skip
    return rows


# --- what the runs say -----------------------------------------------------------------------------------------------


def claims(result: dict) -> list[Claim]:
    return [_table(result), _fsdp2(result), *_examples(result), _kept(result), _sent(result), _half_more(result)]


def _table(result) -> Claim:
    agree = sum(cell["rounded"] == cell["printed"] for cell in result["cells"])
    text = "; ".join(f"{rule}: {count}" for rule, count in result["agreeing"].items())
    return Claim(
        "model states per rank, in GB", "S1; Rajbhandari et al. 2020, table 1", len(result["cells"]), agree,
        agree == len(result["cells"]), f"Cells that agree as printed. No single rule of rounding gives them: {text}.",
    )  # fmt: skip


def _fsdp2(result) -> Claim:
    rows = result["fsdp2"]
    exact = all([row["first"], row["last"]] == row["foretold"] for row in rows)
    worst = max(rows, key=lambda row: row["gigabytes"] / row["formula"])
    idle = [f"{row['size']} on {row['ranks']}" for row in rows if row["last"] == 0]
    return Claim(
        "stage 3 is 16 Ψ / N", "the same table, against FSDP2", "1.0",
        f"1.0 to {worst['gigabytes'] / worst['formula']:.3f} on the first rank",
        exact and all(row["last"] <= row["parameters"] / row["ranks"] <= row["first"] for row in rows),
        f"Real shards under a fake process group. FSDP2 cuts each matrix into ceil(rows / N) rows per rank, which "
        f"foretells every shard to the element: {exact}. The most padding: {worst['size']} on {worst['ranks']} ranks. "
        f"Last ranks with nothing: {', '.join(idle) or 'none'}.",
    )  # fmt: skip


def _examples(result) -> list[Claim]:
    four, sixty_four = result["left_of_32_gb"].values()
    return [
        Claim("a 7.5B model trains on 4 GPUs of 32 GB", "S1", "fits", f"{four:g} GB left", four > 0,
              "Left for activations and buffers, with all states sharded."),
        Claim("a 128B model trains on 64 GPUs of 32 GB", "S1", "fits", f"{sixty_four:g} GB left", sixty_four > 0,
              "The states alone fill the cards."),
    ]  # fmt: skip


def _kept(result) -> Claim:
    rows = [row for row in result["counted"] if row["held"]]
    last = rows[-1]
    return Claim(
        "each stage keeps what its formula says", "section 5", last["states"], last["held"][0],
        all(set(row["held"]) == {row["states"]} for row in rows),
        f"Bytes on every rank, bfloat16 work on float32 state: stage {last['method']}, {last['ranks']} ranks, "
        f"{last['parameters']:,} parameters; stages 1 to 3 alike.",
    )  # fmt: skip


def _sent(result) -> Claim:
    rows = result["counted"]
    last = next(row for row in rows[::-1] if row["method"] == "2")
    groups = " and ".join(str(n) for n in sorted({row["ranks"] for row in rows}))
    return Claim(
        "data parallelism, ZeRO-1 and ZeRO-2 send 2Ψ (N-1)/N, ZeRO-3 3Ψ (N-1)/N", "section 7", last["volume"],
        last["sent"][0], all(set(row["sent"]) == {row["volume"]} for row in rows),
        f"Bytes of every rank, counted on {groups} ranks; the figure is ZeRO-2 on {last['ranks']}.",
    )  # fmt: skip


def _half_more(result) -> Claim:
    by = {row["method"]: sum(row["sent"]) / row["itemsize"] for row in result["counted"]}  # of the last number of ranks
    return Claim(
        "ZeRO-3 has 1.5 times the communication volume of data parallelism", "S1", 1.5, by["3"] / by["data"],
        by["3"] == 1.5 * by["data"] and by["1"] == by["2"] == by["data"],
        "In numbers sent, counted; bytes differ with the precision of the work. ZeRO-1 and 2: the same as without.",
    )  # fmt: skip
