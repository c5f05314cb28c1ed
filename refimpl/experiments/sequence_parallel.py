"""What rows 34, 35 and 37 share, with their tests: the oracle, one rank's passes, and what they send.

The oracle is one process with the whole sequence in float64: PyTorch's own attention, grouped heads repeated.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F  # noqa: N812 - PyTorch's own convention

from refimpl.attention import repeat_kv
from refimpl.parallel.accounting import Account

DIM = 8


def inputs(seq, heads, kv_heads, *, batch=2, dim=DIM, dtype=torch.float64, size=1.0) -> list[torch.Tensor]:
    """q, k, v and the gradient of the output; the same on every rank."""
    draw = torch.Generator().manual_seed(1000 * seq + heads)
    shapes = ((batch, h, seq, dim) for h in (heads, kv_heads, kv_heads, heads))
    return [size * torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes]


def whole(q, k, v, d_out, causal: bool) -> list[torch.Tensor]:
    """out, dq, dk, dv of scaled_dot_product_attention over the whole sequence."""
    q, k, v = (x.detach().double().requires_grad_() for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, *(repeat_kv(x, q.shape[1]) for x in (k, v)), is_causal=causal)
    out.backward(d_out.double())
    return [x.detach() for x in (out, q.grad, k.grad, v.grad)]


def on_this_rank(attend: Callable, at, q, k, v, d_out) -> list[torch.Tensor]:
    """out, dq, dk, dv of the tokens `at` from attend(q, k, v) on their shards."""
    q, k, v = (x[:, :, at].clone().requires_grad_() for x in (q, k, v))
    out = attend(q, k, v)
    out.backward(d_out[:, :, at])
    return [x.detach() for x in (out, q.grad, k.grad, v.grad)]


def accounted(attend: Callable, at, q, k, v, d_out) -> tuple[int, int]:
    """Bytes that this rank sends, forward and backward."""
    q, k, v = (x[:, :, at].clone().requires_grad_() for x in (q, k, v))
    with Account() as forward:
        out = attend(q, k, v)
    with Account() as backward:
        out.backward(d_out[:, :, at])
    return forward.total, backward.total


def together(parts, where) -> list[torch.Tensor]:
    """Each rank's [out, dq, dk, dv], and the tokens that it holds -> the same of the whole sequence."""
    order = torch.cat(where).argsort()
    return [torch.cat(tensors, dim=2)[:, :, order] for tensors in zip(*parts, strict=True)]


def largest_error(parts, where, want) -> float:
    """The largest difference in any of the four tensors."""
    pairs = zip(together(parts, where), want, strict=True)
    return max(float((a.double() - b).abs().max()) for a, b in pairs)
