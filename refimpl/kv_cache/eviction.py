"""A cache that may hold `budget` entries per layer and head: who goes when one comes?

Each policy gives every entry a worth, and the least worth is overwritten by the newcomer:
    window          its position: the oldest goes
    sink_window     the same, but the first few tokens stay for ever (StreamingLLM)
    random          dice
    heavy_hitters   the attention it has received so far; the most recent entries are safe (H2O)
`topk_attention` evicts nothing: each query picks its own k largest scores among all keys. What it loses, no policy of
the same budget can be expected to keep, since a policy must choose before it knows the query.

Source: Zhang et al. 2023 (H2O, Algorithm 1); Xiao et al. 2024 (StreamingLLM); Gupta et al. 2021 (Top-K).
"""

from collections.abc import Callable

import torch

from refimpl.attention import causal_mask, check_qkv, repeat_kv
from refimpl.kv_cache.cache import Attend
from refimpl.shapes import Float, Int, Tensor

__all__ = ["EvictingCache", "Policy", "heavy_hitters", "random", "sink_window", "topk_attention", "window"]

# worth(positions, scores, now): where each kept entry stood in the text, how much attention it has received, and the
# position of the newcomer; (batch, kv_heads, budget) -> (batch, kv_heads, budget). The smallest is evicted.
Policy = Callable[[Tensor, Tensor, int], Tensor]


def window(positions: Tensor, scores: Tensor, now: int) -> Tensor:
    """Sliding window: the oldest goes, so each query sees the `budget` last tokens, itself among them."""
    return positions.float()


def sink_window(sinks: int = 4) -> Policy:
    """Sliding window that never gives up the first `sinks` tokens. Keys keep the positions they were rotated to."""

    def worth(positions, scores, now):
        return positions.float().masked_fill(positions < sinks, torch.inf)

    return worth


def heavy_hitters(recent: int) -> Policy:
    """H2O: keep the `recent` last tokens (the newcomer counts), and of the others those that attention liked most.

    The liking is the sum of attention weights over all queries since the entry came, over the heads of its group.
    """

    def worth(positions, scores, now):
        return scores.masked_fill(positions > now - recent, torch.inf)

    return worth


def random(seed: int = 0) -> Policy:
    """The baseline that knows nothing: every entry is equally likely to go."""
    dice: dict[torch.device, torch.Generator] = {}

    def worth(positions, scores, now):
        if positions.device not in dice:
            dice[positions.device] = torch.Generator(positions.device).manual_seed(seed)
        return torch.rand(positions.shape, generator=dice[positions.device], device=positions.device)

    return worth


class EvictingCache:
    """At most `budget` keys and values per layer, sequence and key/value head; each head chooses for itself.

    2 * layers * batch * kv_heads * budget * dim * itemsize bytes, however long the text. Reading many tokens at once
    gives what reading them one by one gives: every token passes the budget, also those of a prompt.
    `places` says where in the text each entry stood (-1: empty), `scores` how much attention it has received; `length`
    counts tokens read, not entries kept. The model's own `attend` is not used: eviction needs the weights.
    """

    def __init__(self, model, budget: int, policy: Policy, *, batch: int = 1):
        if budget < 1:
            raise ValueError(f"EvictingCache: budget must be at least 1 entry, given {budget}")
        config, weight = model.config, model.embed_tokens.weight
        shape = (config.layers, batch, config.kv_heads, budget)
        self.keys, self.values = (weight.new_zeros(*shape, config.dim) for _ in range(2))
        self.places = torch.full(shape, -1, device=weight.device)
        self.scores = torch.zeros(shape, device=weight.device)
        self.budget, self.policy, self.length = budget, policy, 0
        self.evicted = 0  # entries overwritten in one head of one layer

    @property
    def nbytes(self) -> int:
        """Of keys and values; places and scores come to 12 bytes per entry beside 2 * dim * itemsize."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def kept(self) -> Int[Tensor, "layers batch kv_heads"]:
        """Entries held, counted."""
        return (self.places >= 0).sum(-1)

    def positions(self, new: int) -> Int[Tensor, "{new}"]:
        return torch.arange(self.length, self.length + new, device=self.keys.device)

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "batch heads new dim"],
        k: Float[Tensor, "batch kv_heads new dim"],
        v: Float[Tensor, "batch kv_heads new dim"],
        attend: Attend,
    ) -> Float[Tensor, "batch heads new dim"]:
        """Token by token: evict, store, look."""
        q = (q * q.shape[-1] ** -0.5).unflatten(1, (k.shape[1], -1))  # (batch, kv_heads, group, new, dim)
        out = torch.empty_like(q)
        for i in range(k.shape[2]):
            self._store(layer, k[:, :, i], v[:, :, i], self.length + i)
            out[..., i, :] = self._look(layer, q[..., i, :], self.length + i)
        return out.flatten(1, 2)

    def _store(self, layer: int, k: Tensor, v: Tensor, now: int) -> None:
        """Write the token at position `now` over the entry of least worth, or into the next empty slot."""
        places, scores = self.places[layer], self.scores[layer]
        if now < self.budget:
            slot = torch.full_like(places[..., 0], now)
        else:
            worth, slot = self.policy(places, scores, now).min(-1)
            if now == self.budget and worth.isinf().any():
                raise ValueError(
                    f"EvictingCache: the policy protects all {self.budget} entries; give a larger budget, or fewer "
                    "sinks or recent tokens"
                )
        at = slot[..., None]  # (batch, kv_heads, 1)
        places.scatter_(2, at, now)
        scores.scatter_(2, at, 0.0)
        deep = at[..., None].expand(-1, -1, 1, k.shape[-1])
        self.keys[layer].scatter_(2, deep, k[:, :, None])
        self.values[layer].scatter_(2, deep, v[:, :, None])

    def _look(self, layer: int, q: Float[Tensor, "batch kv_heads group dim"], now: int) -> Tensor:
        """Attention over what is held, and the weights added to the scores."""
        held = min(now + 1, self.budget)
        p = torch.softmax(q @ self.keys[layer, :, :, :held].transpose(-2, -1), dim=-1)
        self.scores[layer, :, :, :held] += p.sum(2)
        return p @ self.values[layer, :, :, :held]

    def advance(self, new: int) -> None:
        self.evicted += max(0, self.length + new - max(self.budget, self.length))
        self.length += new


def topk_attention(
    q: Float[Tensor, "batch heads q_len dim"],
    k: Float[Tensor, "batch kv_heads k_len dim"],
    v: Float[Tensor, "batch kv_heads k_len dim"],
    *,
    keep: int,
    causal: bool = True,
    scale: float | None = None,
) -> Float[Tensor, "batch heads q_len dim"]:
    """softmax over the `keep` largest scores of each query, and 0 for all others.

    Every key is still read, for its score; of the values, keep of k_len. The cache does not shrink. FLOPs
    2 q_len (k_len + keep) dim per head where only the chosen values are fetched; here the whole product is formed.
    """
    if keep < 1:
        raise ValueError(f"topk_attention: keep must be at least 1 key, given {keep}")
    heads, scale = q.shape[1], check_qkv(q, k, v, scale, where="topk_attention")
    S = (q * scale) @ repeat_kv(k, heads).transpose(-2, -1)
    if causal:
        S = S.masked_fill(~causal_mask(*S.shape[-2:], device=q.device), -torch.inf)
    best = S.topk(min(keep, S.shape[-1]), dim=-1)
    P = torch.full_like(S, -torch.inf).scatter_(-1, best.indices, best.values).softmax(-1)
    return P.masked_fill(best.values[..., :1] == -torch.inf, 0.0) @ repeat_kv(v, heads)  # a query that sees no key: 0
