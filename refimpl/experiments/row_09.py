"""Row 9, activation checkpointing (S0, S2): what a stack of blocks keeps for its backward pass, and the price.

Counted, not timed: bytes saved between the passes, matmul FLOPs, bytes that cross to the host. The same numbers on
every machine.
"""

import torch

from refimpl.blockwise import Host, checkpoint
from refimpl.experiments.harness import Claim
from refimpl.meter import Meter
from refimpl.transformer import EncoderBlock, TransformerConfig

TITLE = "activation checkpointing, and with offload to the host: bytes kept, FLOPs, bytes moved"
LAYERS, MODEL, HEADS, TOKENS = 8, 128, 4, 512


def stack() -> list[EncoderBlock]:
    torch.manual_seed(0)
    config = TransformerConfig(vocab=1, model=MODEL, heads=HEADS, layers=LAYERS)
    return [EncoderBlock(config) for _ in range(LAYERS)]


def forward(blocks: list[EncoderBlock], x: torch.Tensor, way: str, host: Host) -> torch.Tensor:
    """All blocks, each plain, checkpointed, or checkpointed with its input on the host."""
    for block in blocks:
        x = block(x) if way == "plain" else checkpoint(block, x, host=host if way == "offloaded" else None)
    return x


def measure(way: str) -> dict:
    """Bytes that stay on the device between the passes, FLOPs of both, bytes moved, and the gradient of the input."""
    blocks, host = stack(), Host()
    x = torch.randn(1, TOKENS, MODEL, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with Meter() as meter:
        out = forward(blocks, x, way, host)
        # The host's copies are tensors in the same memory here; on a GPU they would not be.
        kept, held = meter.alive_bytes - host.held_bytes - out.nbytes, host.held_bytes
        out.sum().backward()
    return {
        "device_bytes": kept, "host_bytes": held, "moved_bytes": host.bytes_out + host.bytes_in,
        "flops": meter.flops, "peak_bytes": meter.peak_bytes, "gradient": x.grad.flatten()[:8].tolist(),
    }  # fmt: skip


def run() -> dict:
    ways = {way: measure(way) for way in ("plain", "checkpointed", "offloaded")}
    return {"input_bytes": 4 * TOKENS * MODEL, "ways": ways}


def claims(result: dict) -> list[Claim]:
    plain, kept, moved = (result["ways"][way] for way in ("plain", "checkpointed", "offloaded"))
    setup = f"{LAYERS} blocks, model {MODEL}, {TOKENS} tokens, float32."
    same = plain["gradient"] == kept["gradient"] == moved["gradient"]
    return [
        Claim("activation checkpointing saves memory: bytes kept, before / after", "S0, memory optimizations", "> 1",
              round(plain["device_bytes"] / kept["device_bytes"], 1), plain["device_bytes"] > kept["device_bytes"],
              f"{setup} After: one input per block but the caller's. Gradients equal to the last bit: {same}."),
        Claim("the price is one more forward: FLOPs after / before", "Chen et al. 2016", 4 / 3,
              kept["flops"] / plain["flops"], kept["flops"] * 3 == plain["flops"] * 4,
              "Matmuls counted, forward and backward."),
        Claim("with CPU offload the inputs leave the device as well: device bytes kept", "S2, OC.", 0,
              moved["device_bytes"], moved["device_bytes"] == 0 and same,
              f"{moved['host_bytes'] / 2**20:.1f} MiB lie on the host between the passes, and "
              f"{moved['moved_bytes'] / 2**20:.1f} MiB crossed: each of {LAYERS} inputs once each way."),
    ]  # fmt: skip
