"""Tensor parallelism: each layer's matrices are cut, and two sums per block put together what the ranks computed.

    split_llama(model)                          # in place, on every rank; model as it was built everywhere
    loss = next_token_loss(model, ids)          # the same ids and the same loss on every rank
    loss.backward()
    optimizer.step()                            # any optimizer over model.parameters(): a rank steps what it holds

A sublayer is two matmuls with something between that works on each hidden feature, or each head, alone. Cut the first
matrix by output features (a column layer: columns of x A), the second by input features (a row layer), and each rank
computes one term of a sum:

    relu(x A) B  =  Σ_r relu(x A_r) B_r          x → f → x A_r → relu → (·) B_r → g → y

f is the identity whose backward sums gradients over the ranks; g sums, and its backward is the identity. One f and one
g per sublayer, two sublayers per block: 2 all-reduces forward and 2 backward, each of n = batch · seq · model numbers,
so a rank sends 2 n (N-1)/N itemsize bytes for each. They stand in the middle of the computation, where nothing hides
them. Embedding and output matrix are cut by vocabulary; the loss needs three numbers per token, never all logits.

Cuts are as even as they come, the longer parts first: what travels has the full width, so N need not divide heads,
hidden features or vocabulary. The unit is a key/value head with its query heads, and every rank needs one at least.
Source: Shoeybi et al. 2019 (Megatron-LM), section 3; f and g are its names.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own convention

from refimpl.models.llama import Block, Llama
from refimpl.parallel.data import broadcast_weights
from refimpl.parallel.ring import spans
from refimpl.shapes import Float, Int, Tensor

__all__ = ["ColumnLinear", "Cut", "RowLinear", "VocabEmbedding", "clip_grad_norm", "cuts", "enter", "leave"]
__all__ += ["my_part", "next_token_loss", "split_block", "split_llama", "vocab_loss", "whole_state_dict"]

Group = dist.ProcessGroup | None


# --- f and g ---------------------------------------------------------------------------------------------------------


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return _sum(gradient, ctx.group), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        return _sum(x, group)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def _sum(x: Tensor, group: Group) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)  # x may be somebody else's
    dist.all_reduce(total, group=group)
    return total


def enter(x: Tensor, group: Group = None) -> Tensor:
    """f: x, which all ranks have; each of them finds one term of its gradient, and the backward pass adds them up."""
    return _Enter.apply(x, group)


def leave(x: Tensor, group: Group = None) -> Tensor:
    """g: the sum of the ranks' terms; each term's gradient is the gradient of the sum."""
    return _Leave.apply(x, group)


# --- layers that hold a part -----------------------------------------------------------------------------------------


class Cut(NamedTuple):
    """A parameter holds the indices `mine` along `dim` of a whole of this shape."""

    shape: tuple[int, ...]
    dim: int
    mine: range

    def of(self, whole: Tensor) -> Tensor:
        return whole.narrow(self.dim, self.mine.start, len(self.mine))


def my_part(total: int, what: str, group: Group = None) -> range:
    """The rank's indices of 0 … total - 1. Raises ValueError where some rank would have none."""
    ranks = dist.get_world_size(group)
    if total < ranks:
        raise ValueError(f"tensor: {total} {what} cannot be cut for {ranks} ranks; use at most {total} ranks")
    return spans(total, ranks)[dist.get_rank(group)]


class _Part(nn.Module):
    """Parameters cut out of a whole module's; `self.cuts` says where."""

    def __init__(self, group: Group):
        super().__init__()
        self.group = group
        self.cuts: dict[str, Cut] = {}

    def _take(self, name: str, whole: Tensor | None, dim: int, mine: range):
        if whole is not None:
            self.cuts[name] = cut = Cut(tuple(whole.shape), dim, mine)
            whole = nn.Parameter(cut.of(whole.detach()).clone())
        self.register_parameter(name, whole)


class ColumnLinear(_Part):
    """y_r = x W_rᵀ + b_r: the output features `mine` of a linear layer. W_r is (out / N, in).

    entered: x has been through `enter` already, once for all the layers that read it.
    """

    def __init__(self, whole: nn.Linear, mine: range, group: Group = None, *, entered: bool = False):
        super().__init__(group)
        self._take("weight", whole.weight, 0, mine)
        self._take("bias", whole.bias, 0, mine)
        self.entered = entered

    def forward(self, x: Float[Tensor, "*rows inner"]) -> Float[Tensor, "*rows part"]:
        return F.linear(x if self.entered else enter(x, self.group), self.weight, self.bias)


class RowLinear(_Part):
    """y = Σ_r x_r W_rᵀ + b, from the input features `mine`. W_r is (out, in / N); b is added once, after the sum."""

    def __init__(self, whole: nn.Linear, mine: range, group: Group = None):
        super().__init__(group)
        self._take("weight", whole.weight, 1, mine)
        self.bias = None if whole.bias is None else nn.Parameter(whole.bias.detach().clone())

    def forward(self, x: Float[Tensor, "*rows part"]) -> Float[Tensor, "*rows outer"]:
        y = leave(F.linear(x, self.weight), self.group)
        return y if self.bias is None else y + self.bias


class VocabEmbedding(_Part):
    """Rows `mine` of an embedding; other ids give zero here, and the sum over the ranks is the lookup."""

    def __init__(self, whole: nn.Embedding, group: Group = None):
        super().__init__(group)
        self.mine = my_part(whole.num_embeddings, "vocabulary entries", group)
        self._take("weight", whole.weight, 0, self.mine)

    def forward(self, ids: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows model"]:
        place, here = _place(ids, self.mine)
        return leave(F.embedding(place, self.weight).masked_fill(~here[..., None], 0), self.group)


def _place(ids: Tensor, mine: range) -> tuple[Tensor, Tensor]:
    """Where ids stand among `mine`, and whether they do; 0 for the others."""
    place = ids - mine.start
    here = (place >= 0) & (place < len(mine))
    return place.masked_fill(~here, 0), here


# --- a whole model ---------------------------------------------------------------------------------------------------


def split_block(block: Block, group: Group = None) -> Block:
    """Cut a block in place: attention by heads, the feed-forward network by hidden features. Norms stay whole."""
    attention, mlp = block.self_attn, block.mlp
    per_kv = attention.heads // attention.kv_heads  # query heads that read one key/value head go where it goes
    kv = my_part(attention.kv_heads, "key/value heads", group)
    heads = _times(kv, per_kv)
    attention.heads, attention.kv_heads = len(heads), len(kv)
    for name, unit in (("q_proj", heads), ("k_proj", kv), ("v_proj", kv)):
        _replace(attention, name, ColumnLinear, _times(unit, attention.dim), group, entered=True)
    _replace(attention, "o_proj", RowLinear, _times(heads, attention.dim), group)
    hidden = my_part(mlp.gate_proj.out_features, "hidden features", group)
    for name in ("gate_proj", "up_proj"):
        _replace(mlp, name, ColumnLinear, hidden, group, entered=True)
    _replace(mlp, "down_proj", RowLinear, hidden, group)
    for sublayer in (attention, mlp):  # one f for the two or three layers that read the same x
        sublayer.register_forward_pre_hook(lambda _, args: (enter(args[0], group), *args[1:]))
    return block


def _times(units: range, width: int) -> range:
    return range(units.start * width, units.stop * width)


def _replace(parent: nn.Module, name: str, kind: type[_Part], mine: range, group: Group, **options):
    setattr(parent, name, kind(getattr(parent, name), mine, group, **options))


def split_llama(model: Llama, group: Group = None) -> Llama:
    """Cut the whole model in place; rank 0's weights win. Its output becomes the logits of this rank's vocabulary."""
    broadcast_weights(model, group)
    for block in model.layers:
        split_block(block, group)
    model.embed_tokens = VocabEmbedding(model.embed_tokens, group)
    model.norm.register_forward_hook(lambda _, args, x: enter(x, group))  # into the output matrix, a column layer
    if model.lm_head is not None:
        _replace(model, "lm_head", ColumnLinear, model.embed_tokens.mine, group, entered=True)
    return model


def next_token_loss(model: Llama, ids: Int[Tensor, "batch seq"], group: Group = None) -> Float[Tensor, ""]:
    """-mean log p(ids[t + 1] | ids[0 … t]) of a split model, as `refimpl.language_modelling.next_token_loss`."""
    return vocab_loss(model(ids)[:, :-1], ids[:, 1:], model.config.vocab, group).mean()


def vocab_loss(
    logits: Float[Tensor, "*rows part"], targets: Int[Tensor, "*rows"], vocab: int, group: Group = None
) -> Float[Tensor, "*rows"]:
    """-log softmax(logits)[target] per token, with logits cut over the ranks as `my_part` cuts `vocab`.

    lse = m + log Σ_r Σ_j exp(logit_j - m), m the largest logit on any rank. Two all-reduces, 1 + 2 numbers per token;
    the backward pass, softmax - onehot, needs none. Half precision is summed in float32.
    """
    mine = my_part(vocab, "vocabulary entries", group)
    if logits.shape[-1] != len(mine):
        raise ValueError(
            f"vocab_loss: this rank has ids {mine.start} … {mine.stop - 1} of {vocab}, given {logits.shape[-1]} logits "
            "per token; cut the output matrix with ColumnLinear(head, my_part(vocab, ...))"
        )
    return _VocabLoss.apply(logits, targets, mine, group)


class _VocabLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets, mine, group):
        x = logits.to(torch.promote_types(logits.dtype, torch.float32))
        largest = x.amax(-1)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
        x = x - largest[..., None]
        place, here = _place(targets, mine)
        at_target = x.gather(-1, place[..., None])[..., 0].masked_fill(~here, 0)  # one rank has it, the others 0
        sums = torch.stack((x.exp().sum(-1), at_target))
        dist.all_reduce(sums, group=group)
        ctx.save_for_backward(x.exp_().div_(sums[0, ..., None]).to(logits.dtype), place, here)
        return sums[0].log() - sums[1]

    @staticmethod
    def backward(ctx, gradient):
        softmax, place, here = ctx.saved_tensors
        onehot = here[..., None].to(softmax.dtype)
        d_logits = softmax.scatter_add(-1, place[..., None], -onehot)
        return d_logits * gradient[..., None].to(softmax.dtype), None, None, None


# --- the whole again -------------------------------------------------------------------------------------------------


def cuts(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Cut | None]]:
    """Name, parameter, and where it was cut; None: every rank has all of it, and the same gradient for it."""
    where = {
        f"{path}.{name}" if path else name: cut
        for path, module in model.named_modules()
        if isinstance(module, _Part)
        for name, cut in module.cuts.items()
    }
    for name, parameter in model.named_parameters():
        yield name, parameter, where.get(name)


@torch.no_grad()
def whole_state_dict(model: nn.Module, group: Group = None) -> dict[str, Tensor]:
    """Name -> the whole parameter, on every rank; each calls it. Sums of zero-filled wholes: rare, so kept simple."""
    whole = {}
    for name, parameter, cut in cuts(model):
        whole[name] = parameter.detach().clone() if cut is None else parameter.new_zeros(cut.shape)
        if cut is not None:
            cut.of(whole[name]).copy_(parameter)
            dist.all_reduce(whole[name], group=group)
    return whole


@torch.no_grad()
def clip_grad_norm(model: nn.Module, max_norm: float | int, group: Group = None) -> Float[Tensor, ""]:
    """Scale gradients so that the norm of the whole model's is at most max_norm; returns the norm before.

    Squares of cut parameters add up over the ranks (one number travels); what every rank has counts once.
    """
    found = [(p.grad, cut) for _, p, cut in cuts(model) if p.grad is not None]
    here = everywhere = next(model.parameters()).new_zeros((), dtype=torch.float32)
    for gradient, cut in found:
        squares = gradient.to(torch.promote_types(gradient.dtype, torch.float32)).square().sum()
        here, everywhere = (here, everywhere + squares) if cut is None else (here + squares, everywhere)
    norm = (_sum(here, group) + everywhere).sqrt()
    for gradient, _ in found:
        gradient *= (max_norm / (norm + 1e-6)).clamp(max=1)
    return norm
