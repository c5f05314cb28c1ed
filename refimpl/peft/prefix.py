"""Prefixes and soft prompts: what comes before the text is trained, and the text's own tokens are computed as ever.

A prefix is keys and values that every layer's queries may look at; a soft prompt is a few embeddings in front of the
first layer, from which the layers make keys and values themselves.

    prefix        attention(q, [P_k; k], [P_v; v])      2 layers kv_heads dim numbers per position
    soft prompt   model([P; embeddings of the text])    model numbers per position

Both take room in the context and work in attention, so neither can be merged into weights.
Source: S1, "Prefix-Tuning", "Soft Prompt"; Li and Liang 2021 (prefix), Lester et al. 2021 (prompt).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from refimpl.attention import rope
from refimpl.kv_cache.cache import Attend
from refimpl.models.llama import Llama, capture_qkv, replace_attention
from refimpl.peft.attach import Delta
from refimpl.shapes import Float, Int, Tensor

__all__ = ["Prefix", "SoftPrompt"]


class Prefix(Delta):
    """Keys and values in front of those of the text, in every layer and for every kv head.

    They start as those of `ids`, as if the model had read these tokens just before: then the first logits are exactly
    the model's after this text. Started at random they train poorly on few examples (Li and Liang, section 7.4).
    """

    def __init__(self, model: Llama, ids: Int[Tensor, "1 length"]):
        super().__init__()
        length, base = ids.shape[1], model.config.rope_base
        with torch.no_grad(), capture_qkv(model) as seen:
            model.residual(ids)
        # The text's own positions start at 0, so the tokens before it stand at -length … -1: turn the keys back.
        back = torch.full((length,), -length, device=ids.device)
        self.keys = nn.Parameter(torch.stack([rope(k[0], back, base=base) for _, k, _ in seen.values()]))
        self.values = nn.Parameter(torch.stack([v[0] for _, _, v in seen.values()]))

    def attached(self, model: Llama) -> AbstractContextManager[None]:
        return replace_attention(model, {i: self._reading(i, b.self_attn.attend) for i, b in enumerate(model.layers)})

    def _reading(self, layer: int, attend: Attend) -> Attend:
        """`attend` over the prefix and what it is given. Causal from the right: each query sees the whole prefix."""

        def read(q, k, v, **options):
            keys, values = (p[layer].to(k.dtype).expand(len(k), -1, -1, -1) for p in (self.keys, self.values))
            return attend(q, torch.cat((keys, k), dim=2), torch.cat((values, v), dim=2), **options)

        return read


class SoftPrompt(Delta):
    """Embeddings in front of the text, one row per virtual token; they start as the embeddings of `ids`.

    Logits of the virtual tokens are left out, so that the model gives one row per token of the text. With a cache the
    prompt is read once, with the first tokens, and takes its length of the room.
    """

    def __init__(self, model: Llama, ids: Int[Tensor, "1 length"]):
        super().__init__()
        self.embeddings = nn.Parameter(model.embed_tokens(ids)[0].detach().clone())

    @contextmanager
    def attached(self, model: Llama) -> Iterator[None]:
        if "residual" in vars(model):
            raise ValueError("SoftPrompt: the model has a soft prompt already; join the two to one, in their order")
        read, length = model.residual, len(self.embeddings)

        def residual(ids: Tensor, cache=None, *, depth: int | None = None) -> Tensor:
            if cache is not None and cache.length:
                return read(ids, cache, depth=depth)  # the cache holds the prompt
            with self._in_front(model.embed_tokens):
                return read(torch.cat((ids.new_zeros(len(ids), length), ids), dim=1), cache, depth=depth)[:, length:]

        model.residual = residual  # the instance's own, before the class's
        try:
            yield
        finally:
            del model.residual

    @contextmanager
    def _in_front(self, embedding: nn.Embedding) -> Iterator[None]:
        """Within the `with`, the first embeddings of every text are the prompt's."""

        def write(_module, _inputs, x: Float[Tensor, "batch seq model"]) -> Float[Tensor, "batch seq model"]:
            prompt = self.embeddings.to(x.dtype).expand(len(x), -1, -1)
            return torch.cat((prompt, x[:, prompt.shape[1] :]), dim=1)

        handle = embedding.register_forward_hook(write)
        try:
            yield
        finally:
            handle.remove()
