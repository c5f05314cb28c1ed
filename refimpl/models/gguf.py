"""Read a Llama out of a GGUF file: sizes, tokenizer data and weights, dequantized to float32.

GGUF is the file format of llama.cpp: a header of key/value pairs, then tensors, most of them quantized in small blocks.
The package `gguf` parses the file; `dequantize_q4_1` shows what one of its formats means, byte by byte.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from refimpl.models.llama import LlamaConfig
from refimpl.shapes import Float, Tensor

__all__ = ["dequantize_q4_1", "read_gguf", "unpermute"]

# GGUF's name -> ours (Hugging Face's), for the tensors of a block and for those outside
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_NAMES = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "lm_head.weight",
}


def read_gguf(path: Path) -> tuple[LlamaConfig, dict[str, Tensor], dict[str, Any]]:
    """(config, {parameter name: float32 tensor}, {metadata key: value}) of a GGUF file that holds a Llama."""
    try:
        import gguf  # here, so that refimpl.models imports on a machine without it
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(f"{path} needs the packages that read it: pip install gguf tokenizers") from missing

    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields.get("general.architecture") != "llama":
        raise ValueError(f"{path}: architecture {fields.get('general.architecture')!r}; this loader reads 'llama' only")
    quantized = {tensor.name: tensor for tensor in reader.tensors}
    config = _config(fields, vocab=quantized["token_embd.weight"].data.shape[0], tied="output.weight" not in quantized)
    weights = {}
    for name, tensor in quantized.items():
        w = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            w = unpermute(w, config.heads if "attn_q" in name else config.kv_heads)
        weights[_our_name(name, path)] = w
    return config, weights, fields


def _config(fields: dict[str, Any], *, vocab: int, tied: bool) -> LlamaConfig:
    size = {key.removeprefix("llama."): value for key, value in fields.items() if key.startswith("llama.")}
    heads = size["attention.head_count"]
    return LlamaConfig(
        layers=size["block_count"],
        model=size["embedding_length"],
        heads=heads,
        kv_heads=size.get("attention.head_count_kv", heads),
        dim=size.get("rope.dimension_count", size["embedding_length"] // heads),
        ffn=size["feed_forward_length"],
        vocab=vocab,
        context=size["context_length"],
        rope_base=size.get("rope.freq_base", 10_000.0),
        norm_eps=size["attention.layer_norm_rms_epsilon"],
        tied=tied,
    )


def _our_name(name: str, path: Path) -> str:
    if name in OTHER_NAMES:
        return OTHER_NAMES[name]
    if name.startswith("blk."):
        _, layer, part, kind = name.split(".")
        if part in BLOCK_NAMES and kind == "weight":
            return f"layers.{layer}.{BLOCK_NAMES[part]}.weight"
    raise ValueError(f"{path}: tensor {name!r} has no place in refimpl.models.llama; this is not a plain Llama")


def unpermute(w: Float[Tensor, "rows model"], heads: int) -> Float[Tensor, "rows model"]:
    """Rows of W_q or W_k from GGUF's order, RoPE pair (2i, 2i+1), to half-split order, pair (i, i + dim/2).

    Left out, nothing crashes: the model only talks worse (perplexity 18.6 -> 216, measured on SmolLM2-135M).
    """
    return w.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def dequantize_q4_1(blocks: np.ndarray) -> np.ndarray:
    """x = d * code + m for each block of 32 weights; uint8 (..., 20 n) -> float32 (..., 32 n).

    A block is 20 bytes, 5 bits per weight: d (float16), m (float16), 16 bytes with two 4-bit codes each.
    Weight j < 16 sits in the low nibble of byte j, weight j + 16 in its high nibble.
    """
    blocks = blocks.reshape(*blocks.shape[:-1], -1, 20)
    d, m = (blocks[..., i : i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
    nibbles = blocks[..., 4:]
    codes = np.concatenate((nibbles & 0x0F, nibbles >> 4), axis=-1)
    x = d * codes.astype(np.float32) + m
    return x.reshape(*x.shape[:-2], -1)
