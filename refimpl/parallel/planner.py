"""What a training run needs, before it runs: bytes, FLOPs, traffic, the least time, the longest sequence that fits.

    made = plan(LLAMA3_8B, A100_80GB, Methods(context=8, zero=3, checkpoint="host"), tokens=2**19)
    made.fits, made.bytes, made.seconds, made.limit, made.longest

Bytes are in `plan_memory`. FLOPs are those of `cost_model`, with half of attention for a causal mask and once more the
forward pass for checkpointing. Traffic is the payload that one rank sends per step, by the costs of `accounting`:

    data      Ψ parameters of a rank among N: all-reduce 2Ψ (N-1)/N, in weights; ZeRO-1 the same in two halves; ZeRO-2
              reduces after every micro-batch, ZeRO-3 gathers twice and reduces once for each: 3Ψ (N-1)/N
    tensor    4 all-reduces of the residual stream per layer, 6 with checkpointing, and one each for embedding and head
              (Shoeybi et al. 2019); three numbers per token at the loss are left out
    context   per layer what `ulysses.sent_bytes` or `ring.sent_bytes` says, the forward's share twice if recomputed
    pipeline  an inner stage passes the residual stream onward and its gradient back
    host      layer inputs out and in; FPDT's chunks

The time is a lower bound: compute, each kind of wire and the host overlap perfectly, and the slowest of them decides.
A pipeline of p ranks and m micro-batches idles (p - 1)/(m + p - 1) of that time (`pipeline.predicted_bubble`).
"""

from dataclasses import dataclass

import torch

from refimpl.cost_model import Cost, ModelShape, backward, forward, message_bytes, total
from refimpl.memory_model import Fit, does_it_fit
from refimpl.parallel import ring, ulysses
from refimpl.parallel.accounting import all_reduce_bytes
from refimpl.parallel.hardware import Hardware, Methods
from refimpl.parallel.pipeline import predicted_bubble
from refimpl.parallel.plan_memory import HALF, Share, ceil_div, fpdt_cost, host_bytes, moments, peak, share

__all__ = ["Plan", "longest", "plan", "step_cost", "traffic"]


@dataclass(frozen=True)
class Plan:
    """The answer, per device and per step."""

    moment: str  # the fullest: "loss", "backward" or "update"
    bytes: dict[str, int]  # on the device at that moment, by name
    host_bytes: int
    fit: Fit  # on the device
    host_fit: Fit | None  # None where the host's memory has no bound
    flops: int  # done, recomputation and all
    useful_flops: int  # of forward and backward alone
    traffic: dict[str, int]  # axis -> bytes sent
    times: dict[str, float]  # seconds of "compute", "link", "network" and "host", each alone
    longest: int  # tokens: the longest power of two that fits; 0 where not even one token does
    peak_flop_per_s: float

    @property
    def fits(self) -> bool:
        return self.fit.fits and (self.host_fit is None or self.host_fit.fits)

    @property
    def seconds(self) -> float:
        """No run is faster than this."""
        return max(self.times.values())

    @property
    def limit(self) -> str:
        """What takes that long."""
        return max(self.times, key=self.times.__getitem__)

    @property
    def utilization(self) -> float:
        """Model FLOPs utilization at best: useful FLOPs over what the device could do in that time."""
        return self.useful_flops / (self.peak_flop_per_s * self.seconds)


def plan(model: ModelShape, hardware: Hardware, methods: Methods, *, tokens: int, batch: int = 1) -> Plan:
    """One training step of `batch` sequences of `tokens` tokens per copy of the model, on `methods.devices` devices.

    Raises ValueError where the model cannot be shared out that way.
    """
    on_device = moments(model, methods, tokens=tokens, batch=batch)
    moment, on_host = peak(on_device), host_bytes(model, methods, tokens=tokens, batch=batch)
    cost, useful = step_cost(model, methods, tokens=tokens, batch=batch)
    sent = traffic(model, methods, tokens=tokens, batch=batch)
    part = share(model, methods, tokens=tokens, batch=batch)
    bubble = predicted_bubble(methods.pipeline, part.micro_batches)
    return Plan(
        moment=moment,
        bytes=on_device[moment],
        host_bytes=on_host,
        fit=does_it_fit(on_device[moment], hardware.memory_bytes),
        host_fit=None if hardware.host_bytes is None else does_it_fit({"host": on_host}, hardware.host_bytes),
        flops=cost.flops,
        useful_flops=useful,
        traffic=sent,
        times=_times(hardware, methods, cost, sent, bubble),
        longest=longest(model, hardware, methods, batch=batch),
        peak_flop_per_s=hardware.machine.flop_per_s,
    )


def longest(model: ModelShape, hardware: Hardware, methods: Methods, *, batch: int = 1) -> int:
    """Tokens of the longest sequence, a power of two, whose step fits into device and host; 0 where none does."""
    fitting = 0
    while _fits(model, hardware, methods, tokens=max(1, 2 * fitting), batch=batch):
        fitting = max(1, 2 * fitting)
    return fitting


def _fits(model: ModelShape, hardware: Hardware, methods: Methods, *, tokens: int, batch: int) -> bool:
    on_device = moments(model, methods, tokens=tokens, batch=batch)
    if not does_it_fit(on_device[peak(on_device)], hardware.memory_bytes).fits:
        return False
    on_host = host_bytes(model, methods, tokens=tokens, batch=batch)
    return hardware.host_bytes is None or on_host <= hardware.host_bytes


# --- work ------------------------------------------------------------------------------------------------------------


def step_cost(model: ModelShape, methods: Methods, *, tokens: int, batch: int = 1) -> tuple[Cost, int]:
    """(FLOPs and bytes of one device, useful FLOPs of one device): shares of a causal step, rounded up."""
    passes = [each(model, batch=batch, tokens=tokens, fused=True) for each in (forward, backward)]
    if methods.checkpoint != "none":
        passes.append({name: cost for name, cost in passes[0].items() if name != "lm head"})
    ranks = methods.tensor * methods.context * methods.pipeline
    done = total(total(each) for each in passes)
    flops = [total(each).flops - each["attention"].flops // 2 for each in passes]  # a causal mask leaves half
    return Cost(ceil_div(sum(flops), ranks), ceil_div(done.bytes, ranks)), ceil_div(sum(flops[:2]), ranks)


# --- traffic ---------------------------------------------------------------------------------------------------------


def traffic(model: ModelShape, methods: Methods, *, tokens: int, batch: int = 1) -> dict[str, int]:
    """Payload bytes that one rank (the first) sends per step, by axis; "host" is the busier direction of its bus."""
    part = share(model, methods, tokens=tokens, batch=batch)
    again = methods.checkpoint != "none"
    stream = message_bytes(model, batch=methods.micro_batch, tokens=ceil_div(tokens, methods.context))["pipeline"]
    all_reduce = all_reduce_bytes(stream // HALF, HALF, 0, methods.tensor) if methods.tensor > 1 else 0
    forth, back = _context(model, methods, tokens)
    ends = 2 if methods.pipeline == 1 else 1  # the first of several stages has the embedding and not the head
    per_micro_batch = {
        "tensor": all_reduce * ((6 if again else 4) * part.layers + ends),
        "context": ((2 if again else 1) * forth + back) * part.layers,
        "pipeline": 2 * stream if methods.pipeline > 1 else 0,
        "host": _host(model, methods, part, tokens) * part.layers,
    }
    sent = {axis: part.micro_batches * each for axis, each in per_micro_batch.items()}
    return {"data": _data(methods, part), **sent}


def _data(methods: Methods, part: Share) -> int:
    """Gradients, and with ZeRO weights, among the ranks that hold the same ones. Shards are padded to equal size."""
    ranks = methods.replicas
    if methods.zero == 0:
        return all_reduce_bytes(part.parameters, HALF, 0, ranks)
    shard = HALF * ceil_div(part.parameters, ranks) * (ranks - 1)
    collectives = {1: 2, 2: part.micro_batches + 1, 3: 3 * part.micro_batches}
    return shard * collectives[methods.zero]


def _context(model: ModelShape, methods: Methods, tokens: int) -> tuple[int, int]:
    """(forward, backward) bytes of one layer's attention; a tensor rank has its share of the heads."""
    if methods.context == 1:
        return 0, 0
    kv_heads, dim = ceil_div(model.kv_heads or model.heads, methods.tensor), model.q_width // model.heads
    if methods.sequence == "ring":
        return ring.sent_bytes(
            tokens, methods.context, 0, kv_heads=kv_heads, dim=dim, dtype=torch.bfloat16, batch=methods.micro_batch
        )
    heads = ceil_div(model.heads, methods.tensor * kv_heads) * kv_heads  # a multiple, as grouped heads need
    return ulysses.sent_bytes(
        tokens, methods.context, 0, heads=heads, kv_heads=kv_heads, dim=dim, itemsize=HALF, batch=methods.micro_batch
    )


def _host(model: ModelShape, methods: Methods, part: Share, tokens: int) -> int:
    """Bytes of one layer and micro-batch over the bus, in the direction that carries more."""
    if methods.checkpoint != "host":
        return 0
    inputs = HALF * part.tokens * model.model // (methods.tensor if methods.sequence_parallel else 1)
    if methods.chunk is None:
        return inputs
    forth, back = fpdt_cost(model, methods, tokens)
    return inputs + max(2 * forth.bytes_in + back.bytes_in, 2 * forth.bytes_out + back.bytes_out)


def _times(hardware: Hardware, methods: Methods, cost: Cost, sent: dict[str, int], bubble: float) -> dict[str, float]:
    """Seconds of each resource alone. An axis whose group spans more than a node uses the network."""
    reach = {"tensor": methods.tensor, "context": methods.tensor * methods.context}
    reach["pipeline"] = reach["context"] * methods.pipeline
    reach["data"] = methods.devices
    over = {"link": 0, "network": 0}
    for axis, span in reach.items():
        over["link" if span <= hardware.node else "network"] += sent[axis]
    return {
        "compute": hardware.machine.seconds(cost) / (1 - bubble),
        "link": over["link"] / hardware.link_bytes_per_s,
        "network": over["network"] / hardware.network_bytes_per_s,
        "host": sent["host"] / hardware.host_bytes_per_s,
    }
