"""Text to token ids and back: SmolLM2's byte-level BPE, and plain bytes for the toy model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["BPETokenizer", "ByteTokenizer"]

CONTROL = 3  # GGUF's token_type of special tokens such as <|im_start|>


class BPETokenizer:
    """Byte-pair encoding over bytes (Sennrich et al. 2016; bytes: GPT-2). No token is added in front of a text."""

    def __init__(self, backend: Any, eos_id: int):
        self.backend, self.eos_id = backend, eos_id  # backend: tokenizers.Tokenizer

    @property
    def vocab(self) -> int:
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=False)

    def to_json(self) -> str:
        return self.backend.to_str()

    @classmethod
    def from_json(cls, text: str, eos_id: int) -> "BPETokenizer":
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_str(text), eos_id)

    @classmethod
    def from_gguf(cls, fields: dict[str, Any], path: Path) -> "BPETokenizer":
        """Rebuild the tokenizer from GGUF metadata: vocabulary, merges, special tokens, rules for cutting text."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        kind = (fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre"))
        if kind != ("gpt2", "smollm"):
            raise ValueError(f"{path}: tokenizer {kind}; the rules known here are ('gpt2', 'smollm') only")
        tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
        merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
        backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
        digits = pre_tokenizers.Digits(individual_digits=True)  # 1981 is four tokens: numbers are read digit by digit
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
        backend.decoder = decoders.ByteLevel()
        special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        return cls(backend, fields["tokenizer.ggml.eos_token_id"])


class ByteTokenizer:
    """One token per UTF-8 byte, id = byte value: needs no file and no package."""

    vocab, eos_id = 256, 0

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """Ids beyond 255, which a toy with a wide head can produce, and broken UTF-8 become replacement characters."""
        return b"".join(bytes([i]) if i < 256 else "\ufffd".encode() for i in ids).decode(errors="replace")
