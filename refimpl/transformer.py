"""The transformer in its three shapes: encoder-only (BERT), decoder-only (GPT), encoder-decoder (the original, T5).

Every sublayer sits in LayerNorm(x + Sublayer(x)), as the paper and the lectures print it ("post-norm"). Since GPT-2
most models compute x + Sublayer(LayerNorm(x)) instead ("pre-norm"), which trains deep stacks without a warm-up and
needs one more norm at the end: `norm_first=True`. Dropout is left out, and there is no KV cache yet.
Source: Vaswani et al. 2017, sections 3.1 to 3.5; pre-norm: Xiong et al. 2020.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from refimpl.attention import naive_attention, sinusoidal_positions
from refimpl.shapes import Bool, Float, Int, Tensor

__all__ = [
    "DecoderBlock",
    "DecoderOnly",
    "EncoderBlock",
    "EncoderDecoder",
    "EncoderOnly",
    "FeedForward",
    "MultiHeadAttention",
    "Step",
    "TransformerConfig",
    "greedy_decoding",
    "head_by_head",
]

Attend = Callable[..., Tensor]  # attend(q, k, v, causal=…, mask=…) -> out; mask only where there is one
Mask = Bool[Tensor, "batch 1 _ k_len"] | None  # True = may look; the same for all heads


@dataclass(frozen=True)
class TransformerConfig:
    """The sizes of a transformer; the paper's base model in the comments."""

    vocab: int  # 37,000
    model: int  # 512, width of the residual stream
    heads: int  # 8 heads of model / heads features
    layers: int  # 6; an encoder-decoder has as many of each
    ffn: int | None = None  # 2,048: four times `model` where None
    norm_first: bool = False  # pre-norm instead of the paper's post-norm
    attend: Attend = naive_attention  # any faster form with the same arguments

    def __post_init__(self):
        if self.model % self.heads:
            raise ValueError(f"TransformerConfig: model={self.model} cannot be cut into {self.heads} heads; change one")

    @property
    def hidden(self) -> int:
        """Width inside the feed-forward network."""
        return self.ffn or 4 * self.model


class MultiHeadAttention(nn.Module):
    """Concat(head_1 … head_h) W_O with head_i = attention(x W_Q^i, c W_K^i, c W_V^i); c = x, or the encoder's output.

    The h matrices W_Q^i stand side by side in one W_Q (model, model), so that one matmul projects for all heads.
    `head_by_head` multiplies them one at a time, as the formula is written: 3h + 2h + 1 matmuls instead of 3 + 2 + 1,
    the same FLOPs and the same result.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.heads, self.attend, self.head_by_head = config.heads, config.attend, False
        self.w_q, self.w_k, self.w_v, self.w_o = (_matrix(config.model, config.model) for _ in range(4))

    def forward(
        self,
        x: Float[Tensor, "batch q_len model"],
        context: Float[Tensor, "batch k_len model"] | None = None,
        *,
        causal: bool = False,
        mask: Mask = None,
    ) -> Float[Tensor, "batch q_len model"]:
        c = x if context is None else context
        attend = partial(self.attend, causal=causal, **({} if mask is None else {"mask": mask}))
        heads = self._heads_in_turn if self.head_by_head else self._heads_at_once
        return heads(x, c, attend) @ self.w_o

    def _heads_at_once(self, x, c, attend):
        wide = (x @ self.w_q, c @ self.w_k, c @ self.w_v)  # 3 matmuls for all heads
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in wide)
        return attend(q, k, v).transpose(1, 2).flatten(2)  # heads side by side again: (batch, q_len, model)

    def _heads_in_turn(self, x, c, attend):
        outputs = []
        for w_q, w_k, w_v in zip(*(w.chunk(self.heads, dim=1) for w in (self.w_q, self.w_k, self.w_v)), strict=True):
            q, k, v = x @ w_q, c @ w_k, c @ w_v  # 3 matmuls per head
            outputs.append(attend(q[:, None], k[:, None], v[:, None])[:, 0])  # 2 per head
        return torch.cat(outputs, dim=-1)


class FeedForward(nn.Module):
    """max(0, x W_1 + b_1) W_2 + b_2, each token alone. 4 * model * ffn FLOPs per token."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.w_1, self.w_2 = _matrix(config.model, config.hidden), _matrix(config.hidden, config.model)
        self.b_1, self.b_2 = nn.Parameter(torch.zeros(config.hidden)), nn.Parameter(torch.zeros(config.model))

    def forward(self, x: Float[Tensor, "*batch model"]) -> Float[Tensor, "*batch model"]:
        return torch.relu(x @ self.w_1 + self.b_1) @ self.w_2 + self.b_2


def _matrix(rows: int, cols: int) -> nn.Parameter:
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(rows, cols)))


def add_and_norm(x, sublayer: Callable[[Tensor], Tensor], norm: nn.LayerNorm, norm_first: bool):
    """LayerNorm(x + Sublayer(x)); with norm_first x + Sublayer(LayerNorm(x)), where no norm stands in x's own way."""
    return x + sublayer(norm(x)) if norm_first else norm(x + sublayer(x))


class EncoderBlock(nn.Module):
    """Self-attention, then the feed-forward network. With causal=True it is the block of a decoder-only model.

    Matmuls: 3h projections + 2h attention + 1 output + 2 feed-forward.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.attention, self.ffn = MultiHeadAttention(config), FeedForward(config)
        self.norm_1, self.norm_2 = nn.LayerNorm(config.model), nn.LayerNorm(config.model)
        self.norm_first = config.norm_first

    def forward(
        self, x: Float[Tensor, "batch seq model"], *, causal: bool = False, mask: Mask = None
    ) -> Float[Tensor, "batch seq model"]:
        """mask: True where a token may be looked at; hides padding."""
        x = add_and_norm(x, partial(self.attention, causal=causal, mask=mask), self.norm_1, self.norm_first)
        return add_and_norm(x, self.ffn, self.norm_2, self.norm_first)


class DecoderBlock(nn.Module):
    """Masked self-attention, cross-attention over the encoder's output z, then the feed-forward network.

    Matmuls: twice 3h + 2h + 1 for the two attentions, + 2 feed-forward, so 10h + 2 + 2.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.self_attention, self.cross_attention = MultiHeadAttention(config), MultiHeadAttention(config)
        self.ffn = FeedForward(config)
        self.norm_1, self.norm_2, self.norm_3 = (nn.LayerNorm(config.model) for _ in range(3))
        self.norm_first = config.norm_first

    def forward(
        self, x: Float[Tensor, "batch q_len model"], z: Float[Tensor, "batch k_len model"], *, mask: Mask = None
    ) -> Float[Tensor, "batch q_len model"]:
        """Queries come from the decoder, keys and values from z; mask hides padding of the source."""
        x = add_and_norm(x, partial(self.self_attention, causal=True), self.norm_1, self.norm_first)
        x = add_and_norm(x, partial(self.cross_attention, context=z, mask=mask), self.norm_2, self.norm_first)
        return add_and_norm(x, self.ffn, self.norm_3, self.norm_first)


@contextmanager
def head_by_head(module: nn.Module) -> Iterator[None]:
    """Within the `with`, every head has its own matmuls, as on the slide: the mode in which they can be counted."""
    layers = [layer for layer in module.modules() if isinstance(layer, MultiHeadAttention)]
    try:
        for layer in layers:
            layer.head_by_head = True
        yield
    finally:
        for layer in layers:
            layer.head_by_head = False


class Embedding(nn.Module):
    """sqrt(model) E[id] + PE(position) on the way in, x E^T on the way out: one matrix E (vocab, model) for both."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(config.vocab, config.model) * config.model**-0.5)

    def forward(self, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq model"]:
        positions = sinusoidal_positions(ids.shape[1], self.weight.shape[1]).to(self.weight)
        # Without the factor, entries of size 1/sqrt(model) would drown in sines of size 1.
        return nn.functional.embedding(ids, self.weight) * self.weight.shape[1] ** 0.5 + positions

    def logits(self, x: Float[Tensor, "batch seq model"]) -> Float[Tensor, "batch seq vocab"]:
        return x @ self.weight.T


def _stack(block: type[nn.Module], config: TransformerConfig) -> tuple[nn.ModuleList, nn.Module]:
    """The blocks, and the norm after the last of them: pre-norm needs one, post-norm has it."""
    blocks = nn.ModuleList(block(config) for _ in range(config.layers))
    return blocks, nn.LayerNorm(config.model) if config.norm_first else nn.Identity()


class EncoderOnly(nn.Module):
    """ids -> one vector per token that has seen the whole text; `classes` scores are read off the first token (BERT).

    For tasks that need all of the text at once: classification, similarity.
    """

    def __init__(self, config: TransformerConfig, classes: int):
        super().__init__()
        self.embedding = Embedding(config)
        self.blocks, self.norm = _stack(EncoderBlock, config)
        self.w_class = _matrix(config.model, classes)

    def encode(
        self, ids: Int[Tensor, "batch seq"], real: Bool[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch seq model"]:
        """z_1 … z_n of x_1 … x_n; `real` is False where ids are padding."""
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, mask=_visible(real))
        return self.norm(x)

    def forward(self, ids: Int[Tensor, "batch seq"], real: Bool[Tensor, "batch seq"] | None = None):
        """Scores, (batch, classes)."""
        return self.encode(ids, real)[:, 0] @ self.w_class


class DecoderOnly(nn.Module):
    """ids -> logits of the token after each of them; no token sees a later one (GPT). For writing on."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.embedding = Embedding(config)
        self.blocks, self.norm = _stack(EncoderBlock, config)  # a decoder block without the sublayer for z

    def forward(self, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, causal=True)
        return self.embedding.logits(self.norm(x))


class EncoderDecoder(nn.Module):
    """Source ids and the target so far -> logits of the next target token: translation, summaries (the paper, T5)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.embedding = Embedding(config)  # one vocabulary for both sides
        self.encoder, self.encoder_norm = _stack(EncoderBlock, config)
        self.decoder, self.decoder_norm = _stack(DecoderBlock, config)

    def encode(
        self, source: Int[Tensor, "batch k_len"], real: Bool[Tensor, "batch k_len"] | None = None
    ) -> Float[Tensor, "batch k_len model"]:
        """z, computed once per source, however long the answer gets."""
        z = self.embedding(source)
        for block in self.encoder:
            z = block(z, mask=_visible(real))
        return self.encoder_norm(z)

    def decode(
        self, target: Int[Tensor, "batch q_len"], z: Float[Tensor, "batch k_len model"], real=None
    ) -> Float[Tensor, "batch q_len vocab"]:
        """Logits of the token after each target token; `real` as in `encode`."""
        y = self.embedding(target)
        for block in self.decoder:
            y = block(y, z, mask=_visible(real))
        return self.embedding.logits(self.decoder_norm(y))

    def forward(self, source: Int[Tensor, "batch k_len"], target: Int[Tensor, "batch q_len"]):
        """Logits (batch, q_len, vocab) of the token after each target token."""
        return self.decode(target, self.encode(source))


def _visible(real):
    """(batch, seq) of real tokens -> the mask (batch, 1, 1, seq) of keys that may be looked at."""
    return None if real is None else real[:, None, None, :]


class Step(NamedTuple):
    """One step of decoding: what was read, what was thought, what was chosen."""

    ids: Tensor  # (1, seq): the text so far, the chosen token included
    probabilities: Tensor  # (vocab,): of the next token
    chosen: int  # the id with the largest of them


@torch.no_grad()
def greedy_decoding(
    next_logits: Callable[[Tensor], Tensor], ids: Int[Tensor, "1 seq"], *, new_tokens: int, stop: int | None = None
) -> Iterator[Step]:
    """Append the most likely token and read everything again, `new_tokens` times or until `stop` was chosen.

    next_logits: ids (1, seq) -> logits (1, seq, vocab). A `DecoderOnly` is one; for an encoder-decoder encode once,
    z = model.encode(source), and pass lambda y: model.decode(y, z). Yields a `Step` each time, so that the partial
    outputs can be watched. Every step recomputes the whole text: work grows with its square, which a KV cache repairs.
    """
    for _ in range(new_tokens):
        probabilities = next_logits(ids)[0, -1].softmax(dim=-1)
        chosen = int(probabilities.argmax())
        ids = torch.cat((ids, ids.new_tensor([[chosen]])), dim=1)
        yield Step(ids, probabilities, chosen)
        if chosen == stop:
            return
