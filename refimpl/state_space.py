"""A selective state-space layer: a recurrence that decides, token by token, what to keep and what to forget.

    H_t = a_t H_{t-1} + dt_t B_t x_t^T        a_t = exp(-dt_t exp(log_a))
    y_t = C_t^T H_t + d x_t

dt, B and C are computed from the token, which is what "selective" means: a small dt passes a token by, a large one
forgets the past for it. With a_t = 1 this is linear attention with C, B, dt x for q, k, v and no denominator, and
the same three forms agree: `recurrent`, `parallel` (a masked matrix of decays) and `chunked`.
Source: Gu and Dao 2023 (Mamba); Dao and Gu 2024 (Mamba-2: one decay per head, the matrix form).
"""

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone uses
from torch import nn

from refimpl.shapes import Float, Tensor

__all__ = ["FORMS", "SelectiveStateSpace", "selective_scan"]

FORMS = ("recurrent", "parallel", "chunked")
Inputs = Float[Tensor, "batch heads seq dim"]
Steps = Float[Tensor, "batch heads seq"]
Mixers = Float[Tensor, "batch heads seq state"]


def selective_scan(
    x: Inputs,
    dt: Steps,
    log_a: Float[Tensor, "heads"],
    b: Mixers,
    c: Mixers,
    *,
    form: str = "chunked",
    chunk: int = 64,
) -> Inputs:
    """y_t = C_t^T sum_{s <= t} exp(-(dt_{s+1} + … + dt_t) exp(log_a)) dt_s B_s x_s^T.

    FLOPs per head: recurrent 4 N state dim; parallel 2 N² (state + dim); chunked 2 N (C (state + dim) + 2 state dim).
    Memory beyond the output: state * dim for the recurrent form, N² for the parallel one.
    """
    if form not in FORMS or chunk < 1:
        raise ValueError(f"selective_scan: form is one of {FORMS} and chunk at least 1, given {form!r}, chunk={chunk}")
    log_decay = -dt * torch.exp(log_a)[:, None]  # log a_t, never positive
    x = dt[..., None] * x
    scan = {"recurrent": _recurrent, "parallel": _parallel, "chunked": _chunked}[form]
    return scan(x, log_decay, b, c, chunk)


def _recurrent(x, log_decay, b, c, chunk):
    state = x.new_zeros(*x.shape[:2], b.shape[-1], x.shape[-1])
    out = []
    for x_t, l_t, b_t, c_t in zip(*(y.unbind(2) for y in (x, log_decay, b, c)), strict=True):
        state = torch.exp(l_t)[..., None, None] * state + b_t[..., :, None] @ x_t[..., None, :]
        out.append((c_t[..., None, :] @ state)[..., 0, :])
    return torch.stack(out, dim=2)


def _decay_matrix(log_decay):
    """L[t, s] = a_{s+1} … a_t for s <= t, else 0. Sums are subtracted before exp: nothing underflows to 0 / 0."""
    sums = log_decay.cumsum(-1)
    later = torch.ones(sums.shape[-1], sums.shape[-1], dtype=torch.bool, device=sums.device).triu(1)
    return torch.exp((sums[..., :, None] - sums[..., None, :]).masked_fill(later, -torch.inf))


def _parallel(x, log_decay, b, c, chunk):
    return (_decay_matrix(log_decay) * (c @ b.mT)) @ x


def _chunked(x, log_decay, b, c, chunk):
    """Inside a chunk the matrix form; the chunks before it come as one state, faded by the time since."""
    state = x.new_zeros(*x.shape[:2], b.shape[-1], x.shape[-1])
    out = []
    for X, L, B, C in zip(*(y.split(chunk, dim=2) for y in (x, log_decay, b, c)), strict=True):
        sums = L.cumsum(-1)
        since_start, to_end = torch.exp(sums)[..., None], torch.exp(sums[..., -1:] - sums)[..., None]
        out.append(_parallel(X, L, B, C, chunk) + (C * since_start) @ state)
        state = torch.exp(sums[..., -1])[..., None, None] * state + (B * to_end).mT @ X
    return torch.cat(out, dim=2)


class SelectiveStateSpace(nn.Module):
    """x (batch, seq, model) -> the same shape: project, mix four neighbours, scan, gate, project back.

    Parameters: model (2 inner + 2 state + heads) + 4 inner + 3 heads + inner model, with inner = heads * dim.
    B and C are shared by all heads, as keys and values are in multi-query attention.
    """

    def __init__(self, model: int, *, heads: int, dim: int = 64, state: int = 16, form: str = "chunked"):
        super().__init__()
        self.heads, self.inner, self.state, self.form = heads, heads * dim, state, form
        self.project_in = nn.Linear(model, 2 * self.inner + 2 * state + heads, bias=False)
        self.near = nn.Parameter(torch.randn(self.inner, 4) / 2)  # weights of the last four tokens, per feature
        self.log_a = nn.Parameter(torch.zeros(heads))
        # softplus of the bias spreads the first steps from 0.001 to 0.1: some heads begin with a long memory.
        steps = torch.logspace(-3, -1, heads)
        self.dt_bias = nn.Parameter(steps + torch.log(-torch.expm1(-steps)))
        self.skip = nn.Parameter(torch.ones(heads))
        self.project_out = nn.Linear(self.inner, model, bias=False)

    def forward(self, x: Float[Tensor, "batch seq model"]) -> Float[Tensor, "batch seq model"]:
        sizes = (self.inner, self.inner, self.state, self.state, self.heads)
        x, gate, b, c, dt = self.project_in(x).split(sizes, dim=-1)
        x = F.silu(F.conv1d(F.pad(x.mT, (3, 0)), self.near[:, None], groups=self.inner).mT)  # no token sees a later one
        x = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        dt = F.softplus(dt + self.dt_bias).transpose(1, 2)
        b, c = (y[:, None].expand(-1, self.heads, -1, -1) for y in (b, c))
        y = selective_scan(x, dt, self.log_a, b, c, form=self.form) + self.skip[:, None, None] * x
        return self.project_out(y.transpose(1, 2).flatten(2) * F.silu(gate))
