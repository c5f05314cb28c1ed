"""A BERT written out: learned positions, post-norm blocks, GELU, and one vector per text by averaging its tokens.

It reads every size from `BertConfig`. `load_minilm` fills it with all-MiniLM-L6-v2, 22.7 million float32 weights that
no one has quantized yet: the model for experiments on weights. Parameters have the names below; `from_checkpoint`
translates Hugging Face's.
Source: Devlin et al. 2019; MiniLM: Wang et al. 2020; averaging: Reimers and Gurevych 2019.
"""

import re
from dataclasses import dataclass

from torch import nn
from torch.nn import functional as F  # noqa: N812  the name everyone uses

from refimpl.shapes import Bool, Float, Int, Tensor

__all__ = ["Bert", "BertConfig", "from_checkpoint", "mean_of_tokens"]


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT; MiniLM-L6 in the comments."""

    layers: int  # 6
    model: int  # 384, width of the residual stream
    heads: int  # 12
    ffn: int  # 1,536
    vocab: int  # 30,522
    context: int  # 512 learned positions
    norm_eps: float  # 1e-12

    def __post_init__(self):
        if self.model % self.heads:
            raise ValueError(f"BertConfig: model={self.model} cannot be cut into {self.heads} heads; change one")


class BertAttention(nn.Module):
    """Self-attention over all real tokens, with biases. `attend(q, k, v, mask)` may be replaced from outside."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.heads, self.attend = config.heads, _attend
        self.query, self.key, self.value, self.output = (nn.Linear(config.model, config.model) for _ in range(4))

    def forward(self, x: Float[Tensor, "batch seq model"], mask: Bool[Tensor, "batch 1 1 seq"] | None):
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.query, self.key, self.value))
        return self.output(self.attend(q, k, v, mask).transpose(1, 2).flatten(2))


def _attend(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class BertBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + W_2 gelu(W_1 x)): "post-norm", as the original transformer."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.attention = BertAttention(config)
        self.norm_1, self.norm_2 = (nn.LayerNorm(config.model, eps=config.norm_eps) for _ in range(2))
        self.w_1, self.w_2 = nn.Linear(config.model, config.ffn), nn.Linear(config.ffn, config.model)

    def forward(self, x: Float[Tensor, "batch seq model"], mask: Bool[Tensor, "batch 1 1 seq"] | None):
        x = self.norm_1(x + self.attention(x, mask))
        return self.norm_2(x + self.w_2(F.gelu(self.w_1(x))))


class Bert(nn.Module):
    """ids -> one vector per token that has seen the whole text."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocab, config.model)
        self.positions = nn.Embedding(config.context, config.model)
        self.norm = nn.LayerNorm(config.model, eps=config.norm_eps)
        self.blocks = nn.ModuleList(BertBlock(config) for _ in range(config.layers))

    def forward(
        self, ids: Int[Tensor, "batch seq"], real: Bool[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch seq model"]:
        """`real` is False where ids are padding. Raises ValueError beyond the learned positions."""
        return self.hidden(ids, real)[-1]

    def hidden(
        self, ids: Int[Tensor, "batch seq"], real: Bool[Tensor, "batch seq"] | None = None
    ) -> list[Float[Tensor, "batch seq model"]]:
        """The stream after the embedding and after each block: layers + 1 tensors."""
        if ids.shape[1] > self.config.context:
            context = self.config.context
            raise ValueError(f"Bert: {ids.shape[1]} tokens, but {context} positions were learned; cut the text")
        mask = None if real is None else real[:, None, None, :]
        stream = [self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]])]
        for block in self.blocks:
            stream.append(block(stream[-1], mask))
        return stream


def mean_of_tokens(
    x: Float[Tensor, "batch seq model"], real: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch model"]:
    """The average over real tokens, scaled to length 1: texts of like meaning have a large dot product."""
    weights = real[..., None].to(x.dtype)
    return F.normalize((x * weights).sum(dim=1) / weights.sum(dim=1), dim=-1)


# Hugging Face's names -> ours.
NAMES = [
    (r"embeddings\.word_embeddings\.", "words."),
    (r"embeddings\.position_embeddings\.", "positions."),
    (r"embeddings\.LayerNorm\.", "norm."),
    (r"encoder\.layer\.(\d+)\.attention\.self\.", r"blocks.\1.attention."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attention.output."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.", r"blocks.\1.norm_1."),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.w_1."),
    (r"encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.w_2."),
    (r"encoder\.layer\.(\d+)\.output\.LayerNorm\.", r"blocks.\1.norm_2."),
]


def from_checkpoint(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A BERT checkpoint's state under our names. Texts have one segment here, so its vector joins the positions.

    The pooler, which sentence embeddings do not use, is left out. Raises ValueError on a name that is none of BERT's.
    """
    weights = {name.removeprefix("bert."): w for name, w in weights.items()}
    segment = weights.pop("embeddings.token_type_embeddings.weight")[0]
    ours = {}
    for name, weight in weights.items():
        if name.startswith("pooler.") or name == "embeddings.position_ids":
            continue
        new = next((re.sub(old, mine, name) for old, mine in NAMES if re.match(old, name)), None)
        if new is None:
            known = ", ".join(old for old, _ in NAMES)
            raise ValueError(f"from_checkpoint: no BERT has a parameter {name!r}; known patterns are {known}")
        ours[new] = weight + segment if new == "positions.weight" else weight
    return ours
