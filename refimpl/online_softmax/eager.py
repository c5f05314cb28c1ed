"""From the softmax of the textbook to attention that reads every key once.

Each step removes a pass over the data: textbook (overflows), three passes, two passes, then one pass with the output
carried along. What makes the last one possible is `merge`: two partial results over disjoint keys become the result
over their union, without a second look at a key.

Source: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"; Rabe and Staats 2021.
"""

from collections.abc import Iterable

import torch

from refimpl.shapes import Float, Tensor

# (m, l, o) over the keys seen so far: the largest score, the sum of exp(score - m), and the sum of exp(score - m) * v.
# o is NOT yet divided by l. One number m and l per query, one vector o per query.
State = tuple[Float[Tensor, "*rows"], Float[Tensor, "*rows"], Float[Tensor, "*rows dim"]]


def softmax_textbook(x: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
    """exp(x) / sum exp(x), as the formula is printed. NaN once x passes 11.1 in float16 or 88.7 in float32."""
    e = torch.exp(x)
    return e / e.sum(dim=-1, keepdim=True)


def softmax_three_pass(x: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
    """exp(x - m) / sum exp(x - m) with m = max x: the same value, since exp(-m) cancels, and no exponent above 0.

    Reads x three times (max, sum, divide). A row of -inf alone gives zeros: it has nothing to share out.
    """
    m = pivot(x.amax(dim=-1, keepdim=True))  # pass 1
    l = torch.exp(x - m).sum(dim=-1, keepdim=True)  # pass 2
    return torch.exp(x - m) / nonzero(l)  # pass 3


def softmax_two_pass(x: Float[Tensor, "*rows n"], block: int = 128) -> Float[Tensor, "*rows n"]:
    """The maximum and the sum in one pass (`running_stats`), the division in the second."""
    m, l = running_stats(x, block)
    m, l = pivot(m)[..., None], nonzero(l)[..., None]
    return torch.cat([torch.exp(part - m) / l for part in x.split(block, dim=-1)], dim=-1)


def running_stats(
    x: Float[Tensor, "*rows n"], block: int = 128
) -> tuple[Float[Tensor, "*rows"], Float[Tensor, "*rows"]]:
    """max x and sum exp(x - max x) of every row, in one pass over blocks of the last axis."""
    m = x.new_full(x.shape[:-1], -torch.inf)
    l = x.new_zeros(x.shape[:-1])
    for part in x.split(block, dim=-1):
        m_new = torch.maximum(m, part.amax(dim=-1))
        # l counts in units of exp(m). A larger maximum is a new unit: convert what we have, then add.
        l = l * torch.exp(m - pivot(m_new)) + torch.exp(part - pivot(m_new)[..., None]).sum(dim=-1)
        m = m_new
    return m, l


def empty_state(q_shape: tuple[int, ...], dim: int, *, dtype=None, device=None) -> State:
    """The state of no keys at all, the neutral element of `merge`: m = -inf, l = 0, o = 0."""
    m = torch.full(tuple(q_shape), -torch.inf, dtype=dtype, device=device)
    return m, torch.zeros_like(m), torch.zeros(*q_shape, dim, dtype=dtype, device=device)


def block_state(scores: Float[Tensor, "... q_len k_len"], values: Float[Tensor, "... k_len dim"]) -> State:
    """The state of one block of keys, from its scores and values. FLOPs about 2 q_len k_len dim."""
    m = scores.amax(dim=-1)
    p = torch.exp(scores - pivot(m)[..., None])
    return m, p.sum(dim=-1), p @ values


def merge(a: State, b: State) -> State:
    """The state over the union of two disjoint sets of keys; order and grouping do not matter.

    m = max(m_a, m_b); l = l_a exp(m_a - m) + l_b exp(m_b - m); o likewise.
    """
    (m_a, l_a, o_a), (m_b, l_b, o_b) = a, b
    m = torch.maximum(m_a, m_b)
    # Both sides were counted in their own unit, exp(m_a) and exp(m_b); these factors convert to the common one.
    to_a, to_b = torch.exp(m_a - pivot(m)), torch.exp(m_b - pivot(m))
    return m, l_a * to_a + l_b * to_b, o_a * to_a[..., None] + o_b * to_b[..., None]


def finish(state: State) -> tuple[Float[Tensor, "*rows dim"], Float[Tensor, "*rows"]]:
    """out = o / l and lse = m + log l. The one division comes last; a row that saw no key gives 0 and -inf."""
    m, l, o = state
    return o / nonzero(l)[..., None], m + torch.log(l)


def streaming_attention(
    q: Float[Tensor, "... q_len dim"],
    blocks: Iterable[tuple[Float[Tensor, "... block dim"], Float[Tensor, "... block dim_v"]]],
    *,
    scale: float | None = None,
) -> tuple[Float[Tensor, "... q_len dim_v"], Float[Tensor, "... q_len"]]:
    """Attention over keys and values that arrive block by block, each read once and forgotten.

    Returns (out, lse). Memory does not grow with the number of keys.
    Raises ValueError where `blocks` is empty: without a value its width is unknown.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    state = None
    for k, v in blocks:
        new = block_state(scale * q @ k.transpose(-2, -1), v)
        state = new if state is None else merge(state, new)
    if state is None:
        raise ValueError("streaming_attention: no block arrived; give at least one (k, v) pair")
    return finish(state)


def pivot(m: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """What to subtract before exp: m itself, but 0 where m is -inf, since -inf - (-inf) is NaN."""
    return torch.where(m == -torch.inf, 0.0, m)


def nonzero(l: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """What to divide by: l itself, but 1 where l is 0 (no key seen), so that 0 / l is 0."""
    return torch.where(l == 0, 1.0, l)
