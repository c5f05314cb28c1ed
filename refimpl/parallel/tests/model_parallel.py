"""What tests of cut models share: two small Llamas, a training run in one process, and the same run on ranks."""

from functools import cache, partial

import torch
import torch.distributed as dist

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
STEPS, ROWS, SEQ = 5, 7, 9
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
    optimizer, losses = ADAMW(model.parameters()), []
    for ids in batches(config):
        optimizer.zero_grad()
        losses.append(next_token_loss(model(ids), ids))
        losses[-1].backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return {"losses": [float(loss.detach()) for loss in losses], "weights": model.state_dict()}


def with_tensors(config: LlamaConfig, clip: float | None = None) -> dict:
    """A rank of tensor parallelism: losses, whole weights, own weights, and bytes of the first step, both ways."""
    model = tensor.split_llama(llama(config))
    optimizer, losses, sent = ADAMW(model.parameters()), [], {}
    for ids in batches(config):
        optimizer.zero_grad()
        with Account() as forward:
            loss = tensor.next_token_loss(model, ids)
        with Account() as backward:
            loss.backward()
        sent = sent or {"forward": dict(forward.sent), "backward": dict(backward.sent)}
        sent["calls"] = forward.calls["all_reduce"], backward.calls["all_reduce"]
        if clip:
            tensor.clip_grad_norm(model, clip)
        optimizer.step()
        losses.append(float(loss.detach()))
    return {
        "losses": losses, "sent": sent, "weights": tensor.whole_state_dict(model),
        "everywhere": {name: p.detach().clone() for name, p, cut in tensor.cuts(model) if cut is None},
        "numbers": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip


def with_pipeline(config: LlamaConfig, schedule, micros: int = 4) -> dict:
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
