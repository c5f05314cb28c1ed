"""Tensors of a real model on real text, for figures and tests: softmax rows, and q, k, v of one layer.

SmolLM2 reads the first `n` tokens of the 1981 message. Results are kept in memory and on disk under a key of weights,
text and code, so a notebook waits for the model once per machine. You get your own copy each time.
"""

import hashlib
import math
from functools import cache
from pathlib import Path

import torch

import refimpl.attention
from refimpl.attention import repeat_kv
from refimpl.models import cache as disk
from refimpl.models.data import corpus
from refimpl.models.llama import capture_qkv
from refimpl.models.load import find_weights, fingerprint, load_smollm2
from refimpl.shapes import Float, Tensor

__all__ = ["sample_qkv", "sample_rows"]

ROWS = 256  # positions whose logits are kept: 256 x 49,152 float32 numbers are 50 MB
KEEP = 32  # sample files on disk, 1 to 50 MB each; older ones go


def sample_rows(n: int = 1024) -> tuple[Float[Tensor, "rows vocab"], Float[Tensor, "layers heads {n}"]]:
    """Real rows for a softmax: (next-token logits of the last 256 positions, attention scores of the last query).

    logits (256, 49152); scores (30, 9, n) per layer and head, q·k / sqrt(dim), before the softmax. n >= 256.
    """
    if n < ROWS:
        raise ValueError(f"sample_rows: n must be at least {ROWS}, given {n}")
    logits, scores = _kept(find_weights(), "rows", n, None)
    return logits.clone(), scores.clone()


def sample_qkv(
    n: int = 1024, *, layer: int = 22
) -> tuple[Float[Tensor, "1 heads {n} dim"], Float[Tensor, "1 kv_heads {n} dim"], Float[Tensor, "1 kv_heads {n} dim"]]:
    """q (1, 9, n, 64), k and v (1, 3, n, 64) of one layer, q and k after RoPE: what attention sees.

    Layer 22 looks hard at token 0 (the attention sink), layer 0 at its neighbours.
    """
    q, k, v = _kept(find_weights(), "qkv", n, layer)
    return q.clone(), k.clone(), v.clone()


@cache
def _kept(weights: Path | None, what: str, n: int, layer: int | None) -> tuple[Tensor, ...]:
    """From disk where weights, text and code are the same as then; otherwise computed, and kept."""
    parts = (fingerprint(weights), corpus("prose"), _code(), what, n, layer)
    name = f"sample-{what}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.safetensors"
    if (found := disk.read(name)) is not None:
        return tuple(found[0][key] for key in sorted(found[0]))
    made = _rows(n) if what == "rows" else _qkv(n, layer)
    disk.write(name, {str(i): tensor for i, tensor in enumerate(made)}, {})
    disk.keep_newest("sample-*.safetensors", KEEP)
    return made


def _code() -> str:
    """The source of everything the samples depend on: a changed line makes new samples."""
    files = [*sorted(Path(__file__).parent.glob("*.py")), Path(refimpl.attention.__file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@torch.no_grad()
def _rows(n: int) -> tuple[Tensor, Tensor]:
    lm = load_smollm2()
    with capture_qkv(lm.model) as seen:
        logits = lm.model(lm.ids(corpus("prose"), n), last=ROWS)[0]
    return logits, torch.stack([_last_scores(*seen[i][:2]) for i in sorted(seen)])


def _last_scores(q: Tensor, k: Tensor) -> Tensor:
    """Scores of the last query against every key: (1, heads, n, dim) and (1, kv_heads, n, dim) -> (heads, n)."""
    k = repeat_kv(k, q.shape[1])
    return (q[0, :, -1:] @ k[0].transpose(-2, -1))[:, 0] / math.sqrt(q.shape[-1])


@torch.no_grad()
def _qkv(n: int, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    lm = load_smollm2()
    if not 0 <= layer < lm.config.layers:
        raise ValueError(f"sample_qkv: layer must be 0 to {lm.config.layers - 1}, given {layer}")
    with capture_qkv(lm.model, [layer]) as seen:
        lm.model.residual(lm.ids(corpus("prose"), n), depth=layer + 1)
    return seen[layer]
