"""Row 31, LOMO (S1): the update fused with the backward pass, what it holds, and the memory table of LLaMA-7B.

A small Llama reads real text as bytes for some steps of SGD, of LOMO and of AdamW. Bytes are counted, not estimated:
the gradients alive whenever one arrives, the optimizer's state, the peak of everything that a step makes. The published
table is arithmetic from the number of parameters; two of its inputs, the activations, are its authors' measurements.
Source: Lv et al. 2023, table 1 and algorithm 1.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from refimpl.experiments.harness import Claim
from refimpl.meter import Memory
from refimpl.models import corpus
from refimpl.models.llama import Llama, LlamaConfig
from refimpl.models.tokenizer import ByteTokenizer
from refimpl.models.toy import toy_llama
from refimpl.parallel import launch
from refimpl.parallel.accounting import Account
from refimpl.parallel.lomo import Lomo
from refimpl.parallel.plan_tables import LLAMA_7B, LOMO, lomo_parts, lomo_table, parameters_with_norms

TITLE = "LOMO: one gradient alive, SGD's weights, and the memory table with its slip of 1.00"
CONFIG = LlamaConfig(
    layers=4, model=96, heads=6, kv_heads=6, dim=16, ffn=256, vocab=256, context=128, rope_base=1e4, norm_eps=1e-5
)
STEPS, ROWS, TOKENS, SHORT = 40, 4, 128, 5
LR = {"sgd": 0.05, "lomo": 0.05, "adamw": 1e-3}
RANKS = 2
PARTS = ("weights", "gradients", "states")


def model(config: LlamaConfig = CONFIG) -> Llama:
    """Random, with small logits at the start: the loss begins near log 256."""
    lm = toy_llama(config)
    lm.embed_tokens.weight.mul_(0.05)
    return lm.requires_grad_(True).train()


def text(steps: int) -> torch.Tensor:
    """(steps, ROWS, TOKENS + 1) bytes of prose, one after the other."""
    size = steps * ROWS * (TOKENS + 1)
    return torch.tensor(ByteTokenizer().encode(corpus("prose"))[:size]).view(steps, ROWS, TOKENS + 1)


def loss(lm: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(lm(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def trained(how: str, batches: torch.Tensor, config: LlamaConfig) -> tuple[dict, Llama]:
    """Losses and bytes of one run, and the weights it ends with."""
    lm = model(config)
    parameters = list(lm.parameters())
    step, optimizer, lomo = _stepper(how, parameters)
    losses, gradients = [], []
    for ids in batches:
        value = loss(lm, ids)
        step(value)
        losses.append(value.item())
        gradients.append(sum(p.grad.nbytes for p in parameters if p.grad is not None))
        lm.zero_grad()
    kept = sum(x.nbytes for s in optimizer.state.values() for x in s.values() if x.ndim) if optimizer else 0
    held = lomo.peak_gradient_bytes if lomo else max(gradients)
    return {"losses": losses, "gradient_bytes": held, "state_bytes": kept}, lm


def peak_bytes(how: str, ids: torch.Tensor, config: LlamaConfig) -> int:
    """All that a second step makes (the first makes the states), at its peak; few tokens, so that gradients count."""
    lm = model(config)
    step, *_ = _stepper(how, list(lm.parameters()))
    step(loss(lm, ids))
    lm.zero_grad()
    with Memory() as memory:
        step(loss(lm, ids))
    return memory.peak_bytes


def _stepper(how: str, parameters: list) -> tuple[Callable, torch.optim.Optimizer | None, Lomo | None]:
    """What to do with a loss, and who does it."""
    if how == "lomo":
        lomo = Lomo(parameters, LR[how])
        return lomo.step, None, lomo
    make = torch.optim.SGD if how == "sgd" else torch.optim.AdamW
    optimizer = make(parameters, lr=LR[how])

    def step(value):
        value.backward()
        optimizer.step()

    return step, optimizer, None


def on_ranks(steps: int, config: LlamaConfig) -> dict:
    """On each rank, half of each batch: bytes sent in the last step, the most gradients alive, the last loss."""
    lm = model(config)
    lomo = Lomo(lm.parameters(), LR["lomo"])
    for ids in text(steps):
        with Account() as account:
            value = loss(lm, ids.chunk(dist.get_world_size())[dist.get_rank()])
            lomo.step(value)
    whole = loss(lm, text(1)[0]).item()
    return {"sent": dict(account.sent), "gradient_bytes": lomo.peak_gradient_bytes, "loss": whole}


def run(steps: int = STEPS, config: LlamaConfig = CONFIG, start=launch) -> dict:
    """`start(fn, n, …)` runs fn on n ranks: real processes, or threads in a test."""
    batches, ways, ends = text(steps), {}, {}
    for how in LR:
        ways[how], ends[how] = trained(how, batches, config)
        ways[how]["peak_bytes"] = peak_bytes(how, batches[0, :1, :SHORT], config)
    rest = start(on_ranks, RANKS, steps, config)
    sizes = [p.nbytes for p in model(config).parameters()]
    pairs = zip(ends["sgd"].parameters(), ends["lomo"].parameters(), strict=True)
    return {
        "weight_bytes": sum(sizes), "largest_bytes": max(sizes), "ways": ways,
        "sgd_minus_lomo": max((a - b).abs().max().item() for a, b in pairs),
        "loss_of_lomo": loss(ends["lomo"], batches[0]).item(),
        "ranks": rest,
        "parameters_of_llama": parameters_with_norms(LLAMA_7B),
        "parts": {row.optimizer: dict(zip(PARTS, lomo_parts(row.optimizer), strict=True)) for row in LOMO},
        "printed": [row._asdict() for row in LOMO], "table": lomo_table(),
    }  # fmt: skip


def claims(result: dict) -> list[Claim]:
    ways, psi, largest = result["ways"], result["weight_bytes"], result["largest_bytes"]
    setup = f"A Llama of {psi // 4:,} float32 parameters, {len(ways['lomo']['losses'])} steps over bytes of prose."
    cells = [(row[part], result["parts"][row["optimizer"]][part]) for row in result["printed"] for part in PARTS]
    agree = sum(printed == round(ours, 2) for printed, ours in cells)
    saved = ways["sgd"]["peak_bytes"] - ways["lomo"]["peak_bytes"]
    slips = {row["slip"] for row in result["table"] if not row["checkpointing"]}
    rank = result["ranks"][0]
    return [
        Claim("fused gradient and update: the most bytes of gradients alive", "S1, LOMO; Lv et al. 2023, section 3.2",
              "one parameter's", ways["lomo"]["gradient_bytes"],
              ways["lomo"]["gradient_bytes"] == largest < ways["sgd"]["gradient_bytes"] == psi,
              f"{setup} Looked up whenever a gradient arrives: the largest parameter's {largest:,} bytes, of {psi:,}."),
        Claim("p = p - lr grad, in one step or in two: largest difference of the weights", "S1, LOMO", 0,
              result["sgd_minus_lomo"], result["sgd_minus_lomo"] < 1e-5,
              f"Against torch.optim.SGD; AdamW's loss goes from {ways['adamw']['losses'][0]:.2f} to "
              f"{ways['adamw']['losses'][-1]:.2f}, both of these to {ways['lomo']['losses'][-1]:.2f}."),
        Claim("all that a step makes, at its peak: what LOMO saves, in parts of all gradients",
              "Lv et al. 2023, figure 1", round(1 - largest / psi, 3), round(saved / psi, 3),
              0.9 * (psi - largest) <= saved <= psi,
              f"{SHORT - 1} tokens, so that gradients are what is large. Saved would be all but the largest one, "
              "were it alive at the peak; other temporaries are."),
        Claim("weights, gradients and states of LLaMA-7B: printed cells that 2Ψ, 12Ψ and 4Ψ give",
              "S1, LOMO's table", 18, agree, agree == 18,
              f"In GiB, from Ψ = {result['parameters_of_llama']:,}; LOMO's 0.24 is the 32000 x 4096 matrix in 16 bit."),
        Claim("total memory without checkpointing, printed minus the sum of the printed parts", "S1, LOMO's table", 0,
              min(slips), slips == {0.0},
              "147.02, 96.81 and 59.40 are each 1.00 above their parts; with checkpointing all three sums hold. "
              "Either the activations were 46.61, or the three totals slipped."),
        Claim("under data parallelism: bytes sent per rank and step, in weights", "S1, ZeRO",
              2 * (RANKS - 1) / RANKS, rank["sent"]["all_reduce"] / psi,
              rank["sent"]["all_reduce"] == psi * 2 * (RANKS - 1) // RANKS and rank["gradient_bytes"] == largest,
              f"{RANKS} gloo ranks, half of the batch each; still one gradient alive. Loss of the first batch "
              f"afterwards: {rank['loss']:.4f}, on one process {result['loss_of_lomo']:.4f}."),
    ]  # fmt: skip
