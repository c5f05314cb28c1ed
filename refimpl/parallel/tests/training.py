"""A language model of a few hundred parameters, trained by one process and by every method, on the same batches."""

import copy
from functools import partial

import torch
import torch.distributed as dist
from torch import nn

from refimpl.parallel.accounting import Account
from refimpl.parallel.data import DataParallel, shard_batch
from refimpl.parallel.lomo import Lomo
from refimpl.parallel.zero import Zero

EVEN = {"vocab": 12, "model": 4, "hidden": 8}  # every unit divides by 4
ODD = {"vocab": 11, "model": 5, "hidden": 9}  # none does
STEPS, ROWS, TOKENS = 5, 8, 7
ADAMW = partial(torch.optim.AdamW, lr=1e-2)


class Block(nn.Module):
    """A feed-forward network with residual and norm."""

    def __init__(self, model, hidden):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(model), nn.Linear(model, hidden), nn.Linear(hidden, model)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class TinyLM(nn.Module):
    """Three blocks; one matrix embeds the tokens and predicts them."""

    def __init__(self, vocab, model, hidden, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm = nn.Embedding(vocab, model), nn.LayerNorm(model)
        self.layers = nn.ModuleList(Block(model, hidden) for _ in range(3))
        self.head = nn.Linear(model, vocab, bias=False)
        self.head.weight = self.embed.weight
        self.to(dtype)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def loss(model, ids):
    """Mean cross-entropy of the next token; of 16-bit logits in float32."""
    logits = model(ids[:, :-1]).flatten(0, 1)
    return nn.functional.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)), ids[:, 1:].flatten()
    )


def batches(vocab, rows=ROWS):
    return torch.randint(vocab, (STEPS, rows, TOKENS), generator=torch.Generator().manual_seed(1))


def alone(sizes, clip=None, optimizer=ADAMW, rows=ROWS):
    """The weights after STEPS steps in one process."""
    model = TinyLM(**sizes)
    optimizer = optimizer(model.parameters())
    for ids in batches(sizes["vocab"], rows):
        optimizer.zero_grad()
        loss(model, ids).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return model.state_dict()


def together(method, model, *, clip=None, micro=1, rows=ROWS, **options):
    """On each rank: the same steps by "data", "lomo" or a stage; weights, bytes sent in the last step, bytes held."""
    model, (rank, ranks) = copy.deepcopy(model), (dist.get_rank(), dist.get_world_size())
    if rank > 0:
        nn.init.zeros_(model.norm.weight)  # rank 0's weights have to win
    step = {"data": _data, "lomo": _lomo}.get(method, _zero)(method, model, clip, options)
    for ids in batches(model.embed.num_embeddings, rows):
        with Account() as account:
            state, held = step(shard_batch(ids, rank, ranks).chunk(micro))
    return {"state": state(), "sent": dict(account.sent), "calls": dict(account.calls), "held": held}


def _data(method, model, clip, options):
    data, optimizer = DataParallel(model, **options), ADAMW(model.parameters())

    def step(parts):
        optimizer.zero_grad()
        with data.no_sync():
            for ids in parts[:-1]:
                (loss(model, ids) / len(parts)).backward()
        (loss(model, parts[-1]) / len(parts)).backward()
        data.finish()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        return model.state_dict, None

    return step


def _zero(stage, model, clip, options):
    zero = Zero(model, ADAMW, stage=stage, units=model.layers, **options)

    def step(parts):
        for ids in parts:
            (loss(model, ids) / len(parts)).backward()
        if clip is not None:
            zero.clip_grad_norm(clip)
        held = zero.state_bytes()
        zero.step()
        return zero.state_dict, held

    return step


def _lomo(method, model, clip, options):
    dist.broadcast(model.norm.weight.data, 0)
    lomo = Lomo(model.parameters(), lr=0.1, clip_norm=clip, **options)

    def step(parts):
        lomo.step(loss(model, parts[0]))
        return model.state_dict, lomo.peak_gradient_bytes

    return step


def everything():
    """Every method on the odd sizes, in one start of the processes; clipping as well."""
    model = TinyLM(**ODD)
    return {
        (str(method), clip): together(method, model, clip=clip)["state"]
        for method in ("data", "lomo", 1, 2, 3)
        for clip in (None, 0.1)
    }


def difference(state, reference):
    """The largest of all weights."""
    return max((state[name] - reference[name]).abs().max().item() for name in reference)
