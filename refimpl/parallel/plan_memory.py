"""The bytes of one device in a training step, at each of the three moments that can be the fullest.

    loss       all activations are kept, the logits are there, gradients are not (unless micro-batches add them up)
    backward   the last layer is at work: all activations, and the gradients in the making
    update     the first layer is at work: its activations, and all gradients

Weights and optimizer states are there always. Ψ parameters in mixed precision take 2Ψ + 2Ψ + KΨ bytes, and ZeRO shards
the last, the last two or all three of these among N ranks. A layer keeps `kept_per_token` elements, of which tensor
parallelism shares what lies inside the matrices; checkpointing keeps d per token and makes the rest again, layer by
layer; FPDT does each layer's work in chunks. Not counted: the allocator's gaps, buffers of communication libraries.
Sources: Rajbhandari et al. 2020 (ZeRO), sections 3 and 5; Korthikanti et al. 2023, equations 1 to 4, without dropout
and with fused attention; Lv et al. 2023 (LOMO); Yao et al. 2024 (FPDT).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from refimpl.cost_model import ModelShape, parameters
from refimpl.memory_model import training_memory
from refimpl.parallel import fpdt
from refimpl.parallel.hardware import Methods

__all__ = ["Share", "host_bytes", "kept_per_token", "largest_matrix", "moments", "share", "state_bytes"]

HALF, SINGLE = 2, 4  # bytes per element


# --- states ----------------------------------------------------------------------------------------------------------


def state_bytes(
    count: int, *, ranks: int = 1, stage: int = 0, optimizer: str = "adam", largest: int = 0
) -> dict[str, int]:
    """Bytes of the states of `count` parameters on one of `ranks`, by name; shards are rounded up.

    stage 0   2Ψ + 2Ψ + KΨ      1   2Ψ + 2Ψ + KΨ/N      2   2Ψ + (2 + K)Ψ/N      3   (4 + K)Ψ/N
    LOMO updates as soon as a gradient is there: 2Ψ of weights and one gradient, of the `largest` parameter at most.
    """
    shard = ceil_div(count, ranks)
    weights, gradients = (shard if stage >= first else count for first in (3, 2))
    if optimizer == "lomo":
        each = training_memory(1, optimizer="sgd")
        return {"weights": each["weights"] * weights, "gradients": each["gradients"] * largest}
    held = {"weights": weights, "gradients": gradients}
    states = shard if stage >= 1 else count
    return {name: size * held.get(name, states) for name, size in training_memory(1, optimizer=optimizer).items()}


def largest_matrix(model: ModelShape) -> int:
    """Parameters of the largest matrix: the embeddings in most models, a feed-forward matrix in others."""
    return model.model * max(model.vocab, model.hidden, model.q_width)


# --- what a device has of the model and of a micro-batch -------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """One device's part, rounded up; pipeline stages count as equal."""

    parameters: int
    layer: int  # parameters of one layer
    head: int  # parameters of the output matrix
    layers: int
    tokens: int  # of a micro-batch
    working: int  # of these, at work at a time: fewer than `tokens` with FPDT
    micro_batches: int


def share(model: ModelShape, methods: Methods, *, tokens: int, batch: int) -> Share:
    """The part of `batch` sequences of `tokens` tokens per copy of the model. Refuses what cannot be shared so."""
    _check(model, methods, tokens, batch)
    sizes = parameters(model)
    at_once = min(methods.chunk or tokens, tokens)
    return Share(
        parameters=ceil_div(sum(sizes.values()), methods.tensor * methods.pipeline),
        layer=ceil_div(sizes["attention"] + sizes["ffn"], model.layers * methods.tensor),
        head=ceil_div(model.vocab * model.model, methods.tensor),
        layers=ceil_div(model.layers, methods.pipeline),
        tokens=ceil_div(tokens, methods.context) * methods.micro_batch,
        working=ceil_div(at_once, methods.context) * methods.micro_batch,
        micro_batches=batch // methods.micro_batch,
    )


def _check(model: ModelShape, methods: Methods, tokens: int, batch: int) -> None:
    if tokens < 1 or batch < 1:
        raise ValueError(f"plan: a step reads at least one token of one sequence, given tokens={tokens}, batch={batch}")
    if batch % methods.micro_batch:
        raise ValueError(
            f"plan: batch={batch} sequences do not make micro-batches of {methods.micro_batch}; choose a divisor of "
            f"{batch} as micro_batch"
        )
    if methods.pipeline > model.layers:
        raise ValueError(f"plan: {model.layers} layers are too few for pipeline={methods.pipeline}; give each rank one")
    if methods.tensor > model.heads:
        raise ValueError(f"plan: {model.heads} heads are too few for tensor={methods.tensor}; give each rank one")
    if methods.sequence == "ulysses" and methods.context * methods.tensor > model.heads:
        raise ValueError(
            f"plan: {model.heads} heads cannot be dealt to context={methods.context} times tensor={methods.tensor} "
            "ranks; use sequence='ring'"
        )


# --- activations -----------------------------------------------------------------------------------------------------

OUTSIDE = ("input of the first norm", "input of the projections", "input of the second norm", "input of the FFN")


def kept_per_token(model: ModelShape) -> dict[str, int]:
    """What autograd keeps of one pre-norm layer with fused attention, in elements per token.

    16 d for ffn = 4 d: Korthikanti's 34 bytes without 2 of dropout. Gated, the feed-forward network has 4 ffn for 2.
    Statistics (2 per norm, a log-sum-exp per head) are left out. `memory_model.saved_per_token` has the block of 2017.
    """
    d, gates = model.model, {"gate's activation": model.hidden, "up": model.hidden} if model.gated else {}
    return {
        "input of the first norm": d,
        "input of the projections": d,
        "q, k, v": model.q_width + 2 * model.kv_width,
        "output of attention": model.q_width,
        "input of the second norm": d,
        "input of the FFN": d,
        "hidden layer before the activation": model.hidden,
        **gates,
        "input of the last matrix": model.hidden,
    }


def _inside(model: ModelShape) -> int:
    """Gradients alive at once while a layer's matrices work backward: of the hidden layer, or of q, k, v and output."""
    return max((3 if model.gated else 2) * model.hidden, 2 * (model.q_width + model.kv_width))


def _per_token(methods: Methods, outside: int, inside: int) -> int:
    """Elements per token of a tensor rank: what is inside the matrices is shared, the rest with sequence_parallel."""
    return ceil_div(outside, methods.tensor if methods.sequence_parallel else 1) + ceil_div(inside, methods.tensor)


def _kept(model: ModelShape, methods: Methods) -> int:
    parts = kept_per_token(model)
    outside = sum(parts[name] for name in OUTSIDE)
    return _per_token(methods, outside, sum(parts.values()) - outside)


def _stored(model: ModelShape, methods: Methods, part: Share, in_flight: int) -> int:
    """Bytes kept for the backward pass while a layer works; two inputs are on their way if they wait on the host."""
    stream = HALF * part.tokens * _per_token(methods, model.model, 0)
    if methods.checkpoint == "host":
        return min(2, part.layers) * stream
    if methods.checkpoint == "device":
        return part.layers * in_flight * stream
    return part.layers * in_flight * HALF * part.tokens * _kept(model, methods)


def _at_work(model: ModelShape, methods: Methods, part: Share, tokens: int, *, recomputed: bool) -> int:
    """Bytes of the layer whose backward runs: gradients in and out, the layer again where it was not kept, buffers."""
    inside = part.working * _per_token(methods, 0, _inside(model))
    if recomputed:
        inside += part.working * _kept(model, methods)
    streams = 2 if methods.chunk is None else 3  # the layer's input, too, waits whole while its chunks are at work
    elements = inside + streams * part.tokens * _per_token(methods, model.model, 0)
    if methods.sequence == "ring" and methods.context > 1:  # a block arrives, with its gradient
        elements += 2 * part.tokens * _per_token(methods, 0, 2 * model.kv_width)
    return HALF * elements + (fpdt_cost(model, methods, tokens)[1].peak_bytes if methods.chunk else 0)


def _logits(model: ModelShape, methods: Methods, part: Share) -> int:
    """Bytes at the loss: logits, the residual stream (with FPDT its gradient as well), and its norm."""
    streams = (1 if methods.chunk is None else 2) * part.tokens + part.working
    logits = part.working * ceil_div(model.vocab, methods.tensor) * methods.loss_bytes
    return logits + HALF * streams * _per_token(methods, model.model, 0)


def fpdt_cost(model: ModelShape, methods: Methods, tokens: int) -> tuple[fpdt.Cost, fpdt.Cost]:
    """`fpdt.predicted` for one layer on one rank."""
    ranks = methods.context * methods.tensor
    return fpdt.predicted(
        tokens, ceil_div(tokens, methods.chunk or tokens), heads=ceil_div(model.heads, ranks), dtype=torch.bfloat16,
        kv_heads=ceil_div(model.kv_heads or model.heads, ranks), dim=model.q_width // model.heads,
        batch=methods.micro_batch,
    )  # fmt: skip


# --- the three moments -----------------------------------------------------------------------------------------------


def moments(model: ModelShape, methods: Methods, *, tokens: int, batch: int = 1) -> dict[str, dict[str, int]]:
    """Moment -> what lies on the device, by name, in bytes. The fullest moment decides whether a run fits.

    The loss is on the last stage of a pipeline, which keeps one micro-batch; the first stage keeps `pipeline` of them.
    """
    part = share(model, methods, tokens=tokens, batch=batch)
    states = state_bytes(
        part.parameters, ranks=methods.replicas, stage=methods.zero, optimizer=methods.optimizer,
        largest=ceil_div(largest_matrix(model), methods.tensor),
    )  # fmt: skip
    gradients, lomo = states.pop("gradients"), methods.optimizer == "lomo"
    always = {"weights": states.pop("weights"), "optimizer states": sum(states.values())}
    adding_up = gradients if part.micro_batches > 1 or lomo else 0
    fresh = 0 if lomo else HALF * part.layer  # a layer's gradient before it is reduced
    gathered = 2 * HALF * part.layer if methods.zero == 3 else 0  # of the layer at work and of the next one
    recomputed = methods.checkpoint != "none"
    in_flight = min(methods.pipeline, part.micro_batches)
    on_host = methods.checkpoint == "host"  # at the loss nothing is on its way
    return {
        "loss": always | {
            "gradients": adding_up,
            "gathered weights": HALF * part.head if methods.zero == 3 else 0,
            "activations": 0 if on_host else _stored(model, methods, part, 1),
            "at work": _logits(model, methods, part),
        },
        "backward": always | {
            "gradients": adding_up + fresh,
            "gathered weights": gathered,
            "activations": _stored(model, methods, part, in_flight),
            "at work": _at_work(model, methods, part, tokens, recomputed=recomputed),
        },
        "update": always | {
            "gradients": gradients + (fresh if methods.zero >= 2 else 0),
            "gathered weights": gathered,
            "activations": 0,
            "at work": _at_work(model, methods, part, tokens, recomputed=True),
        },
    }  # fmt: skip


def host_bytes(model: ModelShape, methods: Methods, *, tokens: int, batch: int = 1) -> int:
    """Bytes of one device that wait in the host's memory: layer inputs, and with FPDT the layer's q, k, v and such."""
    if methods.checkpoint != "host":
        return 0
    part = share(model, methods, tokens=tokens, batch=batch)
    stream = HALF * part.tokens * _per_token(methods, model.model, 0)
    inputs = part.layers * min(methods.pipeline, part.micro_batches) * stream
    if methods.chunk is None:
        return inputs
    q, kv = model.q_width, 2 * model.kv_width
    half, single = (q + kv) + 2 * q + kv, q + model.heads  # q, k, v, out and its gradient, dk, dv; dq and lse
    return inputs + part.tokens * (HALF * ceil_div(half, methods.tensor) + SINGLE * ceil_div(single, methods.tensor))


def peak(of: Mapping[str, Mapping[str, int]]) -> str:
    """The fullest moment."""
    return max(of, key=lambda moment: sum(of[moment].values()))


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)
