"""What tests of cut models share: two small Llamas, a training run in one process, and the same run on ranks."""

import time
from functools import cache, partial

import torch
import torch.distributed as dist
from torch import nn

from refimpl.language_modelling import next_token_loss
from refimpl.models.llama import Llama, LlamaConfig
from refimpl.models.toy import toy_llama
from refimpl.parallel import tensor
from refimpl.parallel.accounting import Account
from refimpl.parallel.pipeline import LlamaStage, Pipeline

SIZES = {"context": 16, "rope_base": 100.0, "norm_eps": 1e-5}
# No number of ranks but 1 divides heads, hidden features or vocabulary; two query heads read each key/value head.
ODD = LlamaConfig(layers=5, model=20, heads=10, kv_heads=5, dim=4, ffn=13, vocab=37, **SIZES)
EVEN = LlamaConfig(layers=4, model=16, heads=4, kv_heads=4, dim=4, ffn=24, vocab=32, tied=False, **SIZES)
CONFIGS = {"odd, tied": ODD, "even, untied": EVEN}
STEPS, ROWS, SEQ, MICROS = 5, 8, 9, 5  # micro-batches of 2, 2, 2, 1 and 1 rows
CLIP = 0.5
ADAMW = partial(torch.optim.AdamW, lr=1e-3)


def llama(config: LlamaConfig) -> Llama:
    """Smaller embeddings than the toy's, so that losses start near log(vocab).

    Not much smaller: attention would be uniform, and gradients of queries of the size of rounding errors, of which
    Adam's first steps take the sign.
    """
    model = toy_llama(config).requires_grad_(True)
    with torch.no_grad():
        model.embed_tokens.weight *= 0.5
    return model


def batches(config: LlamaConfig) -> torch.Tensor:
    return torch.randint(config.vocab, (STEPS, ROWS, SEQ), generator=torch.Generator().manual_seed(1))


@cache
def alone(config: LlamaConfig, clip: float | None = None) -> dict:
    """One process: the losses and the weights after the last step."""
    model = llama(config)
    optimizer, losses, norms = ADAMW(model.parameters()), [], []
    for ids in batches(config):
        optimizer.zero_grad()
        losses.append(next_token_loss(model(ids), ids))
        losses[-1].backward()
        if clip:
            norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip)))
        optimizer.step()
    return {"losses": [float(loss.detach()) for loss in losses], "norms": norms, "weights": model.state_dict()}


def with_tensors(config: LlamaConfig, clip: float | None = None) -> dict:
    """A rank of tensor parallelism: losses, whole weights, and bytes of the last step, both ways."""
    model = tensor.split_llama(llama(config))
    optimizer, losses, norms, clipped = ADAMW(model.parameters()), [], [], []
    for ids in batches(config):
        optimizer.zero_grad()
        with Account() as forward:
            loss = tensor.next_token_loss(model, ids)
        with Account() as backward:
            loss.backward()
        if clip:
            norms.append(float(tensor.clip_grad_norm(model, clip)))
            clipped.append(float(tensor.clip_grad_norm(model, 2 * clip)))  # changes nothing; says what the first made
        optimizer.step()
        losses.append(float(loss.detach()))
    return {
        "losses": losses, "norms": norms, "clipped": clipped, "weights": tensor.whole_state_dict(model),
        "forward": (forward.sent["all_reduce"], forward.calls["all_reduce"]),
        "backward": (backward.sent["all_reduce"], backward.calls["all_reduce"]),
        "everywhere": {name: p.detach().clone() for name, p, cut in tensor.cuts(model) if cut is None},
        "numbers": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip


def with_pipeline(config: LlamaConfig, schedule, micros: int = MICROS) -> dict:
    """A rank of a pipeline: losses (last stage), its weights, bytes of one step, and what was alive."""
    stage = LlamaStage(llama(config), dist.get_rank(), dist.get_world_size())
    pipeline = Pipeline(
        stage, next_token_loss, micros=micros, schedule=schedule, between=stage.between, shared=stage.shared
    )
    optimizer, losses = ADAMW(stage.parameters()), []
    for ids in batches(config):
        optimizer.zero_grad()
        with Account() as account:
            losses.append(pipeline.step(ids, ids))
        optimizer.step()
    return {
        "losses": [None if loss is None else float(loss) for loss in losses], "weights": stage.state_dict(),
        "sent": dict(account.sent), "alive": pipeline.alive, "spans": [tuple(span) for span in pipeline.spans],
        "peak_bytes": account.peak_bytes,
    }  # fmt: skip


# --- stages of known duration ----------------------------------------------------------------------------------------


class Sleep(torch.autograd.Function):
    """Takes a known time each way and no core, so that a busy machine does not lengthen it."""

    @staticmethod
    def forward(ctx, x, seconds):
        ctx.seconds = seconds
        time.sleep(seconds)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(2 * ctx.seconds)
        return gradient, None


class Sleeper(nn.Module):
    """A stage that takes `seconds` forward and twice that backward."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        return Sleep.apply(x, self.seconds)


def asleep(schedule, micros: int, seconds: float) -> list[tuple]:
    """What this rank did when, in a step of sleeping stages; after one that warms the connections up."""
    x = torch.zeros(micros, 1, requires_grad=True)
    for pause in (0.0, seconds):
        stage = Pipeline(Sleeper(pause), lambda y, _: y.mean(), micros=micros, schedule=schedule)
        dist.barrier()
        stage.step(x, x)
    return [tuple(span) for span in stage.spans]
