"""A Llama written out: RMSNorm, RoPE, grouped-query attention, SwiGLU, tied embeddings, KV cache, greedy decoding.

It reads every size from `LlamaConfig`, so the same 200 lines are SmolLM2-135M, its larger sisters and the toy of the
tests. Parameters carry the names of Hugging Face checkpoints, so that a `model.safetensors` loads without a table.
Attention can be watched (`capture_qkv`) or replaced (`replace_attention`) without touching the model's code.
Source: Touvron et al. 2023 (LLaMA); SmolLM2: Ben Allal et al. 2025.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone uses
from torch import nn

from refimpl.attention import causal_mask, rope
from refimpl.kv_cache.cache import Attend, Cache, KVCache
from refimpl.shapes import Float, Int, Tensor

__all__ = [
    "KVCache",
    "Llama",
    "LlamaConfig",
    "capture_qkv",
    "fast_attention",
    "generate",
    "perplexity",
    "replace_attention",
]


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of a Llama; SmolLM2-135M in the comments."""

    layers: int  # 30
    model: int  # 576, width of the residual stream
    heads: int  # 9 query heads
    kv_heads: int  # 3 key/value heads: three query heads read each of them
    dim: int  # 64 features per head
    ffn: int  # 1,536, width inside the feed-forward block
    vocab: int  # 49,152
    context: int  # 8,192 tokens seen in training; RoPE is not trusted beyond
    rope_base: float  # 100,000
    norm_eps: float  # 1e-5
    tied: bool = True  # the output head is the embedding matrix

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ValueError(
                f"LlamaConfig: heads must be a multiple of kv_heads, given {self.heads} and {self.kv_heads}"
            )


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) * weight along the last axis: LayerNorm without mean, without bias.

    Source: Zhang & Sennrich 2019.
    """

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Float[Tensor, "*batch model"]) -> Float[Tensor, "*batch model"]:
        wide = x.float()  # SmolLM2 holds features near 24,000 at token 0; their squares end float16
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention, kv_heads <= heads. Weights: model * dim * (2 heads + 2 kv_heads) numbers."""

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.layer, self.dim, self.rope_base = layer, config.dim, config.rope_base
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.q_proj = nn.Linear(config.model, config.heads * config.dim, bias=False)
        self.k_proj = nn.Linear(config.model, config.kv_heads * config.dim, bias=False)
        self.v_proj = nn.Linear(config.model, config.kv_heads * config.dim, bias=False)
        self.o_proj = nn.Linear(config.heads * config.dim, config.model, bias=False)
        self.attend: Attend = fast_attention  # `replace_attention` swaps this

    def forward(
        self, x: Float[Tensor, "batch seq model"], positions: Int[Tensor, "*any seq"], cache: Cache | None = None
    ):
        # Queries and keys turn by the same angles: side by side, in one call. They turn before they enter the cache,
        # since a key's position never changes.
        qk = self._split_heads(torch.cat((self.q_proj(x), self.k_proj(x)), dim=-1))
        q, k = rope(qk, positions, base=self.rope_base).split((self.heads, self.kv_heads), dim=1)
        v = self._split_heads(self.v_proj(x))
        out = self.attend(q, k, v, causal=True) if cache is None else cache.attend(self.layer, q, k, v, self.attend)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def _split_heads(self, x):
        return x.unflatten(-1, (-1, self.dim)).transpose(1, 2)  # (batch, heads or kv_heads, seq, dim)


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)): the SwiGLU block (Shazeer 2020). 6 * model * ffn FLOPs per token."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.model, config.ffn, bias=False)
        self.up_proj = nn.Linear(config.model, config.ffn, bias=False)
        self.down_proj = nn.Linear(config.ffn, config.model, bias=False)

    def forward(self, x: Float[Tensor, "*batch model"]) -> Float[Tensor, "*batch model"]:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): two additions to the residual stream."""

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.model, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.model, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, positions, cache=None):
        x = x + self.self_attn(self.input_layernorm(x), positions, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Token ids in, next-token logits out. About 2 FLOPs per weight and token, and 4 k_len heads dim per layer."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab, config.model)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.model, config.norm_eps)
        self.lm_head = None if config.tied else nn.Linear(config.model, config.vocab, bias=False)

    def forward(
        self, ids: Int[Tensor, "batch seq"], cache: Cache | None = None, *, last: int | None = None
    ) -> Float[Tensor, "batch out_seq vocab"]:
        """Logits of every position, or of the last `last` ones: the head is 21 % of SmolLM2's weights."""
        x = self.residual(ids, cache)
        return self.head(x if last is None else x[:, -last:])

    def residual(
        self, ids: Int[Tensor, "batch seq"], cache: Cache | None = None, *, depth: int | None = None
    ) -> Float[Tensor, "batch seq model"]:
        """The residual stream after the first `depth` blocks (all of them by default), before the final norm."""
        new = ids.shape[1]
        self._check(ids, 0 if cache is None else cache.length)
        positions = torch.arange(new, device=ids.device) if cache is None else cache.positions(new)
        x = self.embed_tokens(ids)
        for block in self.layers[:depth]:
            x = block(x, positions, cache)
        if cache is not None:
            cache.advance(new)
        return x

    def head(self, x: Float[Tensor, "batch seq model"]) -> Float[Tensor, "batch seq vocab"]:
        """Final norm and output matrix; on the residual stream of an early layer this is the logit lens."""
        return F.linear(self.norm(x), (self.embed_tokens if self.lm_head is None else self.lm_head).weight)

    def _check(self, ids, start):
        if start + ids.shape[1] > self.config.context:
            raise ValueError(
                f"Llama: {start + ids.shape[1]:,} tokens, but this model was trained on {self.config.context:,}; "
                "give it fewer, or a config with a larger context"
            )


def fast_attention(q, k, v, *, causal: bool = True):
    """`refimpl.attention.attention` by PyTorch's fused kernel: the same output and the same alignment, sooner.

    The default because real models run here all day: with the course's tiled form a pass over 1,024 tokens takes 1.12
    times as long on a CPU, a decoding step 1.2 to 1.4 times. `replace_attention(model, attention)` uses the course's.
    """
    q_len, k_len = q.shape[2], k.shape[2]
    if q_len == 1:
        # queries of a group as rows of one matrix: they read their keys together; 25 us in place of 41 at 512 keys
        return F.scaled_dot_product_attention(q.unflatten(1, (k.shape[1], -1)).flatten(2, 3), k, v).reshape(q.shape)
    if not causal:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    if q_len == k_len:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    # is_causal would align the FIRST query with the first key: wrong as soon as the cache holds a token
    mask = causal_mask(q_len, k_len, device=q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


@contextmanager
def replace_attention(model: Llama, attend: Attend | Mapping[int, Attend]) -> Iterator[None]:
    """Within the `with`, layers compute `attend(q, k, v, causal=True)`; one function for all, or {layer: function}.

    q (batch, heads, q_len, dim), k and v (batch, kv_heads, k_len, dim), q and k rotated. Nests, and restores on errors.
    """
    blocks = [block.self_attn for block in model.layers]
    before = [block.attend for block in blocks]
    chosen = attend if isinstance(attend, Mapping) else dict.fromkeys(range(len(blocks)), attend)
    try:
        for layer, function in chosen.items():
            blocks[layer].attend = function
        yield
    finally:
        for block, function in zip(blocks, before, strict=True):
            block.attend = function


@contextmanager
def capture_qkv(
    model: Llama, layers: Sequence[int] | None = None
) -> Iterator[dict[int, tuple[Tensor, Tensor, Tensor]]]:
    """Within the `with`, each forward pass leaves {layer: (q, k, v)} of those layers (all by default) in the dict.

    q (batch, heads, q_len, dim), k and v (batch, kv_heads, k_len, dim), as attention sees them: rotated, cache too.
    """
    seen: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def watching(layer, attend):
        def watch(q, k, v, **options):
            seen[layer] = tuple(x.detach().clone(memory_format=torch.contiguous_format) for x in (q, k, v))
            return attend(q, k, v, **options)

        return watch

    chosen = range(len(model.layers)) if layers is None else layers
    with replace_attention(model, {i: watching(i, model.layers[i].self_attn.attend) for i in chosen}):
        yield seen


@torch.no_grad()
def generate(
    model: Llama, ids: Int[Tensor, "1 seq"], new_tokens: int, *, use_cache: bool = True, stop: int | None = None
) -> Int[Tensor, "1 longer"]:
    """Append the most likely token, up to `new_tokens` times or until `stop` was produced.

    With the cache each step reads one token; without it, the whole text again: O(n) against O(n²) work per step.
    """
    cache = KVCache(model, ids.shape[1] + new_tokens) if use_cache else None
    unread = ids
    for _ in range(new_tokens):
        chosen = model(unread, cache, last=1)[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat((ids, chosen), dim=1)
        if stop is not None and chosen.item() == stop:
            break
        unread = chosen if use_cache else ids
    return ids


@torch.no_grad()
def perplexity(model: Llama, ids: Int[Tensor, "1 seq"], *, window: int = 512) -> float:
    """exp(mean negative log-likelihood) over disjoint windows; the first token of each is given, not scored."""
    windows = ids[0, : ids.shape[1] // window * window].view(-1, 1, window)
    if not len(windows):
        raise ValueError(f"perplexity: {ids.shape[1]} tokens do not fill one window of {window}")
    losses = [F.cross_entropy(model(x)[0, :-1].float(), x[0, 1:]) for x in windows]
    return torch.stack(losses).mean().exp().item()
