"""What a transformer costs before it runs: parameters, matmuls, FLOPs and bytes from its sizes alone.

FLOPs count multiplications and additions of matmuls: a product of (rows, inner) by (inner, cols) takes
2 rows inner cols. Bytes count what a matmul must move through main memory: each factor read once, the product written
once; the softmax between the two products of attention is counted, norms, activations and residual additions are not.
`refimpl.meter` counts the same on running code, and tests hold the two equal. What has to be kept in memory is in
`refimpl.memory_model`, how fast a machine does the work in `refimpl.roofline`.
Sources: Vaswani et al. 2017; Kaplan et al. 2020 for 6 N D.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = [
    "GPT2_XL",
    "OPT",
    "Cost",
    "ModelShape",
    "backward",
    "block_matmuls",
    "forward",
    "matmul",
    "message_bytes",
    "parameters",
    "rule_of_six",
    "score_elements",
    "total",
    "training_step",
]


@dataclass(frozen=True)
class Cost:
    """FLOPs done and bytes moved."""

    flops: int
    bytes: int

    @property
    def intensity(self) -> float:
        """FLOP per byte: what decides on which side of a roofline's ridge the work lies."""
        return self.flops / self.bytes

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: int) -> "Cost":
        return Cost(self.flops * times, self.bytes * times)


def total(costs: Mapping[str, Cost] | Iterable[Cost]) -> Cost:
    """The sum of all parts."""
    return sum(costs.values() if isinstance(costs, Mapping) else costs, Cost(0, 0))


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model made of equal blocks; GPT-2 XL in the comments."""

    layers: int  # 48
    model: int  # 1,600
    heads: int  # 25
    vocab: int = 0  # 50,257; 0: no embeddings, no head
    kv_heads: int | None = None  # as many as heads where None
    dim: int | None = None  # 64 = model / heads where None
    ffn: int | None = None  # 6,400 = 4 model where None
    gated: bool = False  # SwiGLU: three matrices in the feed-forward network instead of two
    positions: int = 0  # 1,024 learned position vectors; 0: sines or RoPE
    tied: bool = True  # the output head is the embedding matrix

    @classmethod
    def of(cls, config) -> "ModelShape":
        """From a `LlamaConfig` or anything with its field names."""
        names = ("layers", "model", "heads", "vocab", "kv_heads", "dim", "ffn", "tied")
        return cls(**{name: getattr(config, name) for name in names}, gated=True)

    @property
    def q_width(self) -> int:
        return self.heads * (self.dim or self.model // self.heads)

    @property
    def kv_width(self) -> int:
        return (self.kv_heads or self.heads) * self.q_width // self.heads

    @property
    def hidden(self) -> int:
        return self.ffn or 4 * self.model


GPT2_XL = ModelShape(layers=48, model=1600, heads=25, vocab=50_257, positions=1024)  # the "1.5B GPT-2"

# Size table of the lecture: name -> (layers, heads, model). Vocabulary and positions: Zhang et al. 2022 (OPT).
OPT = {
    name: ModelShape(layers=layers, heads=heads, model=model, vocab=50_272, positions=2048)
    for name, layers, heads, model in (
        ("125M", 12, 12, 768), ("350M", 24, 16, 1024), ("1.3B", 24, 32, 2048), ("2.7B", 32, 32, 2560),
        ("6.7B", 32, 32, 4096), ("13B", 40, 40, 5120), ("30B", 48, 56, 7168), ("66B", 64, 72, 9216),
        ("175B", 96, 96, 12288),
    )
}  # fmt: skip


# --- parameters, matmuls ---------------------------------------------------------------------------------------------


def parameters(shape: ModelShape) -> dict[str, int]:
    """Weights in matrices: 4 d² + 2 d ffn = 12 d² per block, and the embeddings. Norms and biases (< 1 %) left out."""
    attention = shape.model * (2 * shape.q_width + 2 * shape.kv_width)
    ffn = (3 if shape.gated else 2) * shape.model * shape.hidden
    head = 0 if shape.tied else shape.vocab * shape.model
    embeddings = (shape.vocab + shape.positions) * shape.model
    return {"attention": shape.layers * attention, "ffn": shape.layers * ffn, "embeddings": embeddings, "lm head": head}


def block_matmuls(heads: int, *, decoder: bool = False) -> dict[str, int]:
    """Matmuls of one block with every head on its own: encoder 3h + 2h + 1 + 2, decoder 2 (3h + 2h + 1) + 2.

    A decoder block has two attentions, so 10h + 2 + 2. The lecture's "10k for attention, 1 for the feed-forward
    network" leaves out both output projections and one feed-forward matmul, which its own encoder count has.
    """
    attentions = 2 if decoder else 1
    return {"projections": attentions * 3 * heads, "attention": attentions * 2 * heads, "output": attentions, "ffn": 2}


def matmul(rows: int, inner: int, cols: int, *, batch: int = 1, itemsize: int = 2) -> Cost:
    """`batch` products (rows, inner) by (inner, cols)."""
    elements = rows * inner + inner * cols + rows * cols
    return Cost(2 * batch * rows * inner * cols, batch * elements * itemsize)


# --- FLOPs and bytes -------------------------------------------------------------------------------------------------


def forward(
    shape: ModelShape, *, batch: int, tokens: int, cached: int = 0, last: int | None = None, itemsize: int = 2,
    fused: bool = False,
) -> dict[str, Cost]:  # fmt: skip
    """Every part of a forward pass over `tokens` new tokens per sequence, all layers together.

    cached  tokens whose keys and values are already there: decoding is tokens=1, cached=n
    last    the head reads only the last `last` tokens of each sequence, as a prefill does with 1; all where None
    fused   attention keeps the score matrix in fast memory (unit 04): the same FLOPs, fewer bytes
    All pairs are counted, as a kernel without causal skipping computes them.
    """
    T, d, L = batch * tokens, shape.model, shape.layers

    def linear(inner, cols, rows=T):
        return matmul(rows, inner, cols, itemsize=itemsize)

    ffn = linear(d, shape.hidden) * (2 if shape.gated else 1) + linear(shape.hidden, d)
    parts = {
        "projections": (linear(d, shape.q_width) + linear(d, shape.kv_width) * 2) * L,
        "attention": _attention(shape, batch, tokens, cached + tokens, itemsize, fused) * L,
        "output": linear(shape.q_width, d) * L,
        "ffn": ffn * L,
    }
    head = linear(d, shape.vocab, rows=batch * (last or tokens))
    return parts | ({"lm head": head} if shape.vocab else {})


def _attention(shape, batch, q_len, k_len, itemsize, fused) -> Cost:
    """4 q_len k_len dim FLOPs per head. Q, K, V read and O written; unfused, S written, read, P written, read."""
    flops = 4 * q_len * k_len * shape.q_width
    elements = 2 * q_len * shape.q_width + 2 * k_len * shape.kv_width
    if not fused:
        elements += 4 * shape.heads * q_len * k_len
    return Cost(batch * flops, batch * elements * itemsize)


def backward(shape: ModelShape, *, batch: int, tokens: int, itemsize: int = 2, fused: bool = False) -> dict[str, Cost]:
    """Gradients of the same parts: dX = dY Wᵀ and dW = Xᵀ dY are two matmuls for one, over the same three matrices.

    Attention: four products for two; unfused 7 passes over the score matrix, fused none, but one product more (S).
    """
    parts = {name: cost * 2 for name, cost in forward(shape, batch=batch, tokens=tokens, itemsize=itemsize).items()}
    flops, square = parts["attention"].flops, shape.heads * tokens * tokens
    linear = 4 * tokens * (shape.q_width + shape.kv_width)  # Q, K, V, O, dO in; dQ, dK, dV out, each once …
    per_layer = batch * (linear + (0 if fused else 7 * square)) * itemsize
    parts["attention"] = Cost(flops * 5 // 4 if fused else flops, per_layer * shape.layers)
    return parts


def training_step(
    shape: ModelShape, *, batch: int, tokens: int, itemsize: int = 2, fused: bool = False, recompute: bool = False
) -> dict[str, Cost]:
    """Forward, backward and, with `recompute`, the blocks' forward once more (activation checkpointing): 1 : 2 : 1."""
    sizes = {"batch": batch, "tokens": tokens, "itemsize": itemsize, "fused": fused}
    again = {name: cost for name, cost in forward(shape, **sizes).items() if name != "lm head"}
    phases = {"forward": total(forward(shape, **sizes)), "backward": total(backward(shape, **sizes))}
    return phases | ({"recomputation": total(again)} if recompute else {})


def rule_of_six(parameter_count: int, tokens: int) -> int:
    """Training FLOPs, 6 per parameter and token: 2 forward, 4 backward. Leaves out the score matrix."""
    return 6 * parameter_count * tokens


# --- what grows with the sequence -----------------------------------------------------------------------------------


def score_elements(shape: ModelShape, *, batch: int, tokens: int) -> int:
    """Elements of one layer's score matrix, h B N²: the quadratic wall."""
    return shape.heads * batch * tokens * tokens


def message_bytes(shape: ModelShape, *, batch: int, tokens: int, workers: int = 1, itemsize: int = 2) -> dict[str, int]:
    """Bytes of one message of each kind of parallelism: linear in the sequence length, or independent of it.

    pipeline   the residual stream between two stages, B N d
    tensor     what one all-reduce sums, B N d; two of them per layer forward, two backward
    ring       keys and values one of `workers` hands on, 2 B (N / workers) kv_heads dim
    data       gradients of all weights: the same for every N
    """
    stream = batch * tokens * shape.model
    return {
        "pipeline": stream * itemsize,
        "tensor": stream * itemsize,
        "ring": 2 * batch * math.ceil(tokens / workers) * shape.kv_width * itemsize,
        "data": sum(parameters(shape).values()) * itemsize,
    }
