"""Formulas run as they are printed, slips included, and their distance from attention computed directly in float64.

Inputs are sines, so every machine has the same ones. `Exp` of the formulas is `exp`; l is the sum, m the maximum.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch

ROUNDING = {"floor": math.floor, "ceil": math.ceil}


def waves(*shape: int, phase: float = 0.0, size: float = 3.0) -> torch.Tensor:
    """A float64 tensor of sines, without a pattern that would hide a slip."""
    count = math.prod(shape)
    at = torch.arange(1, count + 1, dtype=torch.float64)
    return (size * torch.sin(at * at * 0.37 + phase)).reshape(shape)


def recurrence_error(lines: str, first: str = "", keys: int = 9) -> float:
    """Largest deviation from softmax(S) V, relative to its size, after any number of keys.

    lines: assignments for one more key, in terms of S, V, O, l, m and O_old, l_old, m_old, one a line.
    first: assignments for the first key; the same `lines` from an empty state where there are none.
    """
    S, V = waves(keys), waves(keys, 4, phase=1.0)
    state: dict[str, Any] = {"O": torch.zeros(4, dtype=torch.float64), "l": torch.tensor(0.0), "m": -S.new_tensor(1e30)}
    worst = 0.0
    for j in range(keys):
        code = first if j == 0 and first else lines
        state = step(code, {**state, "S": S[j], "V": V[j]})
        right = S[: j + 1].softmax(0) @ V[: j + 1]
        worst = max(worst, distance(state["O"], right))
    return worst


def step(code: str, state: dict[str, Any]) -> dict[str, Any]:
    """One step: the state of the line before is O_old, l_old, m_old."""
    old = {f"{name}_old": state[name] for name in ("O", "l", "m")}
    names: dict[str, Any] = {**state, **old, "exp": torch.exp, "max": torch.maximum}
    exec(code, {}, names)
    return {name: names[name] for name in ("O", "l", "m")}


def distance(got: torch.Tensor, right: torch.Tensor) -> float:
    """Largest error over the largest value; infinite where something is not finite."""
    error = (got - right).abs().max() / right.abs().max()
    return float(error) if bool(torch.isfinite(error)) else math.inf


def algorithm_1(
    line_11: str, line_12: str, *, n: int = 48, dim: int = 4, sram: int = 256, rounding: str = "ceil",
    count: str = "ceil",
) -> dict[str, Any]:  # fmt: skip
    """Algorithm 1 with these two lines, as printed: error against naive attention, and rows that no block covers.

    line_11 gives l_new, line_12 gives O_new; both in terms of m, m_new, l, O, m_t, l_t, P, V, exp. `rounding` is that
    of the block sizes, `count` that of the number of blocks.
    """
    Q, K, V = (waves(n, dim, phase=p, size=1.5) for p in (0.0, 1.0, 2.0))
    block_k = max(1, ROUNDING[rounding](sram / (4 * dim)))
    block_q = min(block_k, dim)
    O, l = torch.zeros(n, dim, dtype=torch.float64), torch.zeros(n, 1, dtype=torch.float64)
    m = torch.full((n, 1), -1e30, dtype=torch.float64)
    for j in blocks(n, block_k, count):
        for i in blocks(n, block_q, count):
            S = Q[i] @ K[j].T
            m_t = S.amax(1, keepdim=True)
            P = (S - m_t).exp()
            l_t, m_new = P.sum(1, keepdim=True), torch.maximum(m[i], m_t)
            names: dict[str, Any] = {"m": m[i], "l": l[i], "O": O[i], "m_t": m_t, "l_t": l_t, "m_new": m_new}
            names |= {"P": P, "V": V[j], "exp": torch.exp}
            names["l_new"] = eval(line_11, dict(names))
            names["O_new"] = eval(line_12, dict(names))
            O[i], l[i], m[i] = names["O_new"], names["l_new"], names["m_new"]
    right = (Q @ K.T).softmax(1) @ V
    return {"error": distance(O, right), "rows without output": int((l == 0).sum())}


def blocks(n: int, block: int, count: str) -> Iterator[slice]:
    """The row ranges of `count`(n / block) blocks."""
    for i in range(ROUNDING[count](n / block)):
        yield slice(i * block, min(n, (i + 1) * block))


def residual_block_error(formula: str) -> float:
    """Distance of one block's output, as printed in terms of FFN, Attention, Q, K and V, from the transformer's.

    The transformer's residual stream carries x: y = Attention(Q, K, V) + x, output = FFN(y) + y, without norms.
    """
    x, w_q, w_k, w_v, w_1, w_2 = (waves(*s, phase=i, size=1.0) for i, s in enumerate([(9, 6)] + [(6, 6)] * 5))
    Q, K, V = x @ w_q, x @ w_k, x @ w_v

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.softmax(q @ k.T, dim=-1) @ v

    def ffn(y: torch.Tensor) -> torch.Tensor:
        return torch.relu(y @ w_1) @ w_2

    y = attention(Q, K, V) + x
    names = {"FFN": ffn, "Attention": attention, "Q": Q, "K": K, "V": V, "x": x}
    return distance(eval(formula, {}, names), ffn(y) + y)


def linformer_error(linformer: Any) -> float:
    """Distance of one Linformer head from softmax(Q (E K)^T / sqrt(d)) F V; `linformer` is the reference's module."""
    q, k, v = (waves(9, 4, phase=float(i)) for i in range(3))
    e, f = waves(3, 9, phase=3.0), waves(3, 9, phase=4.0)
    out = linformer.linformer_attention(*(x[None, None] for x in (q, k, v)), e, f)[0, 0]
    return distance(out, torch.softmax(q @ (e @ k).T / 4**0.5, dim=-1) @ (f @ v))


def linformer_saving(attention: Any, linformer: Any, meter: Any, n: int, summaries: int) -> float:
    """Bytes of the largest tensor of one head of attention over n tokens, over those with this many summaries."""
    x, e = torch.zeros(1, 1, n, 16), torch.zeros(summaries, n)
    with meter.Meter() as full:
        attention.naive_attention(x, x, x)
    with meter.Meter() as linear:
        linformer.linformer_attention(x, x, x, e, e)
    return full.largest_bytes / linear.largest_bytes
