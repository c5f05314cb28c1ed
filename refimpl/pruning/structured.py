"""Whole parts removed: layers, heads, FFN channels, features of the residual stream. What is left is a smaller Llama.

A gate of 1 keeps a part, 0 removes it, and values between are what `refimpl.pruning.shearing` trains. `gated` puts them
into a model from outside:

    layers  (layers,)            on what attention and FFN of a layer add to the residual stream
    heads   (layers, kv_heads)   on the outputs of a key/value head's query heads: they stay or go together
    ffn     (layers, ffn)        on the channels inside the FFN
    model   (model,)             on every write to a feature of the residual stream, the embedding's included

`cut` then builds the model without the parts, small matrices in place of zeros, with the same logits. That is why
structured pruning makes any hardware faster, and n:m only the hardware that knows it.

Sources: Michel et al. 2019 (heads, importance by the gate's gradient); Men et al. 2024 (ShortGPT, layers); Xia et al.
2023 (LLM-Shearing, all four).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from refimpl.language_modelling import next_token_loss
from refimpl.models.llama import Llama, LlamaConfig
from refimpl.shapes import Float, Int, Tensor

__all__ = ["Gates", "channel_norms", "cut", "gate_gradients", "gated", "head_norms", "layer_influence", "open_gates"]


@dataclass(frozen=True)
class Gates:
    """One number per part; None leaves a kind of part alone."""

    layers: Tensor | None = None  # (layers,)
    heads: Tensor | None = None  # (layers, kv_heads)
    ffn: Tensor | None = None  # (layers, ffn)
    model: Tensor | None = None  # (model,)

    def complete(self, config: LlamaConfig) -> "Gates":
        """1 in place of None."""
        given = {kind: gate for kind, gate in vars(self).items() if gate is not None}
        return replace(open_gates(config), **given)


def open_gates(config: LlamaConfig) -> Gates:
    """Every gate 1."""
    return Gates(*(torch.ones(*shape) for shape in gate_shapes(config).values()))


def gate_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Kind of part -> shape of its gates."""
    layers = config.layers
    return {
        "layers": (layers,), "heads": (layers, config.kv_heads), "ffn": (layers, config.ffn), "model": (config.model,),
    }  # fmt: skip


@contextmanager
def gated(model: Llama, gates: Gates) -> Iterator[None]:
    """Within the `with`, every part's output is multiplied by its gate; gradients reach the gates."""
    _check(model.config, gates)
    per_head = model.config.heads // model.config.kv_heads * model.config.dim
    with ExitStack() as hooks:
        for i, block in enumerate(model.layers):
            if gates.heads is not None:
                hooks.enter_context(_on_input(block.self_attn.o_proj, gates.heads[i].repeat_interleave(per_head)))
            if gates.ffn is not None:
                hooks.enter_context(_on_input(block.mlp.down_proj, gates.ffn[i]))
            if gates.layers is not None:
                for part in (block.self_attn, block.mlp):
                    hooks.enter_context(_on_output(part, gates.layers[i]))
        if gates.model is not None:
            writes = [part for block in model.layers for part in (block.self_attn, block.mlp)]
            for part in (model.embed_tokens, *writes):
                hooks.enter_context(_on_output(part, gates.model))
        yield


def _on_input(layer: nn.Module, gate: Tensor):
    return layer.register_forward_pre_hook(lambda _, inputs: (inputs[0] * gate.to(inputs[0].dtype),))


def _on_output(layer: nn.Module, gate: Tensor):
    return layer.register_forward_hook(lambda _, inputs, out: out * gate.to(out.dtype))


def _check(config: LlamaConfig, gates: Gates) -> None:
    for kind, shape in gate_shapes(config).items():
        given = getattr(gates, kind)
        if given is not None and tuple(given.shape) != shape:
            raise ValueError(f"gates: {kind} of this model have the shape {shape}, given {tuple(given.shape)}")


# --- which parts -----------------------------------------------------------------------------------------------------


def gate_gradients(model: Llama, ids: Int[Tensor, "batch seq"]) -> Gates:
    """|dL/dgate| at open gates, summed over the texts: to first order, what the loss changes when the part goes."""
    total = {kind: torch.zeros(*shape) for kind, shape in gate_shapes(model.config).items()}
    for text in ids[:, None]:
        asked = Gates(**{kind: torch.ones_like(x).requires_grad_() for kind, x in total.items()})
        with gated(model, asked):
            found = torch.autograd.grad(next_token_loss(model(text), text), list(vars(asked).values()))
        for kind, gradient in zip(total, found, strict=True):
            total[kind] += gradient.abs()
    return Gates(**total)


@torch.no_grad()
def head_norms(model: Llama, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "layers kv_heads"]:
    """Root mean square, over tokens, of the norm of what a key/value head's queries add to the residual stream."""
    config, found = model.config, []

    def watch(layer, inputs):
        x = inputs[0].unflatten(-1, (config.kv_heads, -1))
        parts = layer.weight.unflatten(1, (config.kv_heads, -1))
        found.append(torch.einsum("btkd,mkd->btkm", x, parts).square().sum(-1).mean((0, 1)).sqrt())

    _watched(model, [block.self_attn.o_proj for block in model.layers], watch, ids)
    return torch.stack(found).float()


@torch.no_grad()
def channel_norms(model: Llama, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "layers ffn"]:
    """Root mean square of each FFN channel over tokens, times the norm of the column of W_down that reads it."""
    found = []

    def watch(layer, inputs):
        size = inputs[0].float().square().mean((0, 1)).sqrt()
        found.append(size * layer.weight.float().norm(dim=0))

    _watched(model, [block.mlp.down_proj for block in model.layers], watch, ids)
    return torch.stack(found)


def _watched(model, layers, watch, ids) -> None:
    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(watch))
        model.residual(ids)


@torch.no_grad()
def layer_influence(model: Llama, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "layers"]:
    """1 - mean cosine of the residual stream before and after each layer: how much a layer turns it (ShortGPT)."""
    found = []

    def watch(layer, inputs, out):
        found.append(1 - torch.cosine_similarity(inputs[0].float(), out.float(), dim=-1).mean())

    with ExitStack() as hooks:
        for layer in model.layers:
            hooks.enter_context(layer.register_forward_hook(watch))
        model.residual(ids)
    return torch.stack(found)


# --- the smaller model -----------------------------------------------------------------------------------------------


@torch.no_grad()
def cut(model: Llama, gates: Gates) -> Llama:
    """The Llama without the parts whose gate is 0; other gates' values go into its weights. Same logits as `gated`.

    Raises ValueError where layers keep different numbers of heads or channels: matrices of one size cannot hold them.
    """
    config = model.config
    _check(config, gates)
    gates = gates.complete(config)
    kept, features = _open(gates.layers), _open(gates.model)
    small = _smaller(config, gates, kept.tolist(), len(features))
    weights = model.state_dict()
    # A norm divides by the mean square over all features; dropped ones were 0 and still counted.
    widen = (config.model / len(features)) ** 0.5
    found = {"embed_tokens.weight": weights["embed_tokens.weight"][:, features] * gates.model[features]}
    found["norm.weight"] = weights["norm.weight"][features] * widen
    if config.tied:
        found["norm.weight"] /= gates.model[features]  # the embedding has its gate in it, and is the output matrix too
    else:
        found["lm_head.weight"] = weights["lm_head.weight"][:, features]
    for new, old in enumerate(kept.tolist()):
        layer = _cut_layer(model.layers[old].state_dict(), gates, old, config.heads // config.kv_heads * config.dim)
        layer |= {name: weight * widen for name, weight in layer.items() if "layernorm" in name}
        found |= {f"layers.{new}.{name}": weight for name, weight in layer.items()}
    out = Llama(small).to(model.embed_tokens.weight.dtype).eval()
    out.load_state_dict(found)
    return out


def _open(gate: Tensor) -> Tensor:
    return gate.nonzero().flatten()


def _smaller(config: LlamaConfig, gates: Gates, kept: list[int], width: int) -> LlamaConfig:
    counts = {}
    for kind in ("heads", "ffn"):
        found = (getattr(gates, kind)[kept] != 0).sum(1).unique().tolist()
        if len(found) != 1 or found[0] == 0:
            raise ValueError(f"cut: every layer must keep the same number of {kind}, at least one; they keep {found}")
        counts[kind] = found[0]
    return replace(
        config, layers=len(kept), model=width, ffn=counts["ffn"], kv_heads=counts["heads"],
        heads=counts["heads"] * (config.heads // config.kv_heads), norm_eps=config.norm_eps * config.model / width,
    )  # fmt: skip


def _cut_layer(weights: dict[str, Tensor], gates: Gates, layer: int, per_head: int) -> dict[str, Tensor]:
    """What stays of one layer's matrices; what it adds to the stream is multiplied by the layer's and features' gates.

    per_head: features that the queries of one key/value head put out.
    """
    features, channels = _open(gates.model), _open(gates.ffn[layer])
    query = gates.heads[layer].repeat_interleave(per_head)
    dim = len(weights["self_attn.k_proj.weight"]) // gates.heads.shape[1]
    keys = _open(gates.heads[layer].repeat_interleave(dim))
    rows = {
        "self_attn.q_proj": _open(query), "self_attn.k_proj": keys, "self_attn.v_proj": keys,
        "mlp.gate_proj": channels, "mlp.up_proj": channels,
    }  # fmt: skip
    found = {f"{name}.weight": weights[f"{name}.weight"][kept][:, features] for name, kept in rows.items()}
    for name in ("input_layernorm.weight", "post_attention_layernorm.weight"):
        found[name] = weights[name][features]
    adds = (gates.layers[layer] * gates.model[features])[:, None]
    for name, gate in (("self_attn.o_proj.weight", query), ("mlp.down_proj.weight", gates.ffn[layer])):
        found[name] = adds * weights[name][features][:, _open(gate)] * gate[_open(gate)]
    return found
