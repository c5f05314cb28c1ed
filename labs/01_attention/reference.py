"""Oracles of this lab that `refimpl` has in another form."""

from refimpl.attention import naive_attention, repeat_kv
from refimpl.transformer import greedy_decoding


def soft_lookup(q, K, V):
    """One query against a table; a table has one axis of keys."""
    shares = (K @ q * len(q) ** -0.5).softmax(dim=0)
    return shares, shares @ V


def multi_head(x, w_q, w_k, w_v, w_o, *, heads, kv_heads=None, context=None, causal=False):
    """`refimpl.attention.multi_head_attention`, on the naive form alone."""
    source = x if context is None else context
    q, k, v = (
        (y @ w).unflatten(-1, (n, -1)).transpose(1, 2)
        for y, w, n in ((x, w_q, heads), (source, w_k, kv_heads or heads), (source, w_v, kv_heads or heads))
    )
    out = naive_attention(q, repeat_kv(k, heads), repeat_kv(v, heads), causal=causal)
    return out.transpose(1, 2).flatten(2) @ w_o


def greedy(next_logits, ids, new_tokens, stop=None):
    """The ids after the last step of `greedy_decoding`."""
    for step in greedy_decoding(next_logits, ids, new_tokens=new_tokens, stop=stop):
        ids = step.ids
    return ids


def count_matmuls(kind, heads, model, tokens, source=0):
    """Closed formulas, where the student lists the products: 3h + 2h + 1 + 2, or 10h + 2 + 2."""
    matmuls = 5 * heads + 1 + 2
    flops = 24 * tokens * model**2 + 4 * tokens**2 * model
    if kind == "decoder":  # two projections of each side (q and output; k and v), then the products of all pairs
        matmuls += 5 * heads + 1
        flops += 4 * (tokens + source) * model**2 + 4 * tokens * source * model
    return matmuls, flops
