"""Real language models, small enough for a laptop: SmolLM2-135M and MiniLM, hand-written, and text to read.

    from refimpl.models import load_smollm2, corpus
    lm = load_smollm2()
    logits = lm.model(lm.ids(corpus("prose"), 512))

Where the weights cannot be had, `lm.is_toy` is True and figures carry `lm.mark`.
"""

from refimpl.models.data import corpus
from refimpl.models.llama import KVCache, Llama, LlamaConfig, capture_qkv, generate, perplexity, replace_attention
from refimpl.models.load import SmolLM, load_smollm2, weights_mark
from refimpl.models.minilm import MiniLM, load_minilm
from refimpl.models.samples import sample_qkv, sample_rows

__all__ = [
    "KVCache",
    "Llama",
    "LlamaConfig",
    "MiniLM",
    "SmolLM",
    "capture_qkv",
    "corpus",
    "generate",
    "load_minilm",
    "load_smollm2",
    "perplexity",
    "replace_attention",
    "sample_qkv",
    "sample_rows",
    "weights_mark",
]
