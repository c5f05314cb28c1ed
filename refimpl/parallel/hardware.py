"""What a plan is made for: the devices and the wires between them, and the methods that share a model out among them.

Rates are per device and in one direction. Numbers of a named device come from its datasheet, and say so; measure your
own with `refimpl.roofline.measure_machine`.
"""

from dataclasses import dataclass, fields

from refimpl.memory_model import OPTIMIZERS
from refimpl.roofline import A100_DATASHEET, Machine

__all__ = ["A100_80GB", "H100_80GB", "Hardware", "Methods"]


@dataclass(frozen=True)
class Hardware:
    """One kind of device, as many as a plan asks for, in nodes of `node` devices."""

    machine: Machine  # peak FLOP/s and bytes/s of its own memory
    memory_bytes: int  # of one device
    node: int  # devices in one node, which the fast link joins
    link_bytes_per_s: float | int  # between devices of a node
    network_bytes_per_s: float | int  # between nodes
    host_bytes_per_s: float | int  # between a device and the host's memory
    host_bytes: int | None = None  # a device's share of the host's memory; None: as much as is asked for

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "machine" and value is not None and value <= 0:
                raise ValueError(f"Hardware: {field.name}={value} must be positive: bytes, or bytes per second")


# Datasheets. A100: 80 GB, NVLink 3 with 600 GB/s in both directions together, PCIe 4.0 x16. H100: NVLink 4, PCIe 5.0.
# Network: InfiniBand HDR and NDR, one port per device. Host memory: 1 TiB per node of four, 2 TiB per node of eight, is
# our assumption of what such a node has.
A100_80GB = Hardware(A100_DATASHEET, 80 * 10**9, 4, 300e9, 25e9, 31.5e9, host_bytes=2**40 // 4)
H100_DATASHEET = Machine("H100 80GB SXM (datasheet)", 989e12, 3.35e12, "bfloat16")  # dense, no sparsity
H100_80GB = Hardware(H100_DATASHEET, 80 * 10**9, 8, 450e9, 50e9, 63e9, host_bytes=2**41 // 8)


@dataclass(frozen=True)
class Methods:
    """Along which axes the ranks share the work, and what is kept where. Devices: data * tensor * context * pipeline.

    Ranks of one tensor group are neighbours, then context, then pipeline, then data: so the axis that talks most is
    the one most likely to fit into a node.
    """

    data: int = 1  # copies of the model, each with its own part of the batch
    tensor: int = 1  # ranks that share each matrix
    context: int = 1  # ranks that share each sequence
    pipeline: int = 1  # ranks that share the layers
    zero: int = 0  # stage: 1 shards optimizer states, 2 gradients as well, 3 weights as well, over data * context ranks
    sequence: str = "ulysses"  # or "ring": how attention crosses the context ranks
    sequence_parallel: bool = False  # tensor ranks also share what lies between the matrices (norms, residuals)
    optimizer: str = "adam"  # of refimpl.memory_model.OPTIMIZERS, or "lomo"
    checkpoint: str = "none"  # "device": only each layer's input is kept there; "host": it waits in the host's memory
    chunk: int | None = None  # FPDT: tokens of the sequence at work at a time; None: all
    micro_batch: int = 1  # sequences that go through the model together
    loss_bytes: int = 6  # per logit: 16 bit, and a float32 copy that softmax and gradient overwrite (Megatron-LM's way)

    def __post_init__(self) -> None:
        for name in ("data", "tensor", "context", "pipeline", "micro_batch", "loss_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"Methods: {name}={getattr(self, name)} must be at least 1; 1 means: not used")
        choices = {"zero": (0, 1, 2, 3), "sequence": ("ulysses", "ring"), "checkpoint": ("none", "device", "host"),
                   "optimizer": (*OPTIMIZERS, "lomo")}  # fmt: skip
        for name, known in choices.items():
            if getattr(self, name) not in known:
                options = ", ".join(map(repr, known))
                raise ValueError(f"Methods: {name}={getattr(self, name)!r} is unknown; choose one of {options}")
        if self.chunk is not None:
            self._check_chunk(self.chunk)

    def _check_chunk(self, chunk: int) -> None:
        if chunk < 1:
            raise ValueError(f"Methods: chunk={chunk} tokens; give at least 1, or None for the whole sequence")
        if self.checkpoint != "host" or self.sequence != "ulysses":
            raise ValueError(
                "Methods: chunk is FPDT, whose sequence waits on the host and crosses the ranks by all-to-all; "
                f"set checkpoint='host' and sequence='ulysses', given {self.checkpoint!r} and {self.sequence!r}"
            )

    @property
    def devices(self) -> int:
        return self.data * self.tensor * self.context * self.pipeline

    @property
    def replicas(self) -> int:
        """Ranks that hold the same weights, and among which ZeRO shards."""
        return self.data * self.context
