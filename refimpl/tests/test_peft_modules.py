"""Modules composed and found, tasks to learn, and LongLoRA's shifted attention."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from refimpl.attention import attention, naive_attention
from refimpl.language_modelling import response_only_loss
from refimpl.meter import Meter
from refimpl.models import SmolLM, generate
from refimpl.models.llama import LlamaConfig
from refimpl.models.tokenizer import ByteTokenizer
from refimpl.models.toy import toy_llama
from refimpl.peft import (
    LoRA,
    ModuleIndex,
    averaged,
    grouped_attention,
    routed,
    shifted_sparse_attention,
    summed,
)
from refimpl.peft.composition import Combined
from refimpl.peft.longlora import group_mask
from refimpl.peft.tasks import TASKS, batch, fit, loss, score, split
from refimpl.tests.test_peft import normal, stirred

CONFIG = LlamaConfig(2, 32, 4, 2, 8, 48, 256, 64, 100.0, 1e-5)


@pytest.fixture
def lm():
    return SmolLM(toy_llama(CONFIG), ByteTokenizer(), CONFIG, True, "toy")


@pytest.fixture
def ids():
    return torch.randint(97, (3, 11), generator=torch.Generator().manual_seed(1))


# --- composition -----------------------------------------------------------------------------------------------------


def modules(model):
    """Three of different ranks, so that a mistaken place of a rank shows."""
    made = [LoRA(model, rank=rank, alpha=3, seed=rank) for rank in (1, 2, 4)]
    for seed, module in enumerate(made):
        for i, b in enumerate(module.b):
            b.data.copy_(normal(*b.shape, seed=10 * seed + i) * 0.1)
    return made


def merged_weights(model, deltas, weights):
    """W + sum w_i scale_i B_i A_i for every layer, the definition."""
    for n, name in enumerate(deltas[0].names):
        W = model.get_submodule(name).weight.clone()
        yield name, W + sum(w * d.scale * d.b[n] @ d.a[n] for w, d in zip(weights, deltas, strict=True))


@pytest.mark.parametrize(("combine", "weights"), [(summed, (1, 1, 1)), (averaged, (1 / 3, 1 / 3, 1 / 3))])
def test_a_combination_is_one_module_with_the_sum_of_the_products(combine, weights, lm, ids):
    """Attached and merged: the weights of the definition."""
    deltas, plain = modules(lm.model), lm.model(ids)
    combined = combine(deltas)
    with combined.merged(lm.model):
        got = {name: lm.model.get_submodule(name).weight for name in combined.names}
        inside = lm.model(ids)
    for name, want in merged_weights(lm.model, deltas, weights):
        assert_close(got[name], want, rtol=0, atol=1e-6)
    with combined.attached(lm.model):
        assert_close(lm.model(ids), inside, rtol=1e-4, atol=1e-4)
    assert torch.equal(lm.model(ids), plain)


def test_averaging_the_factors_is_not_averaging_the_modules(lm):
    """mean(B) mean(A) has products of every B with every A; equal modules are the only case where both agree."""
    one, other = (stirred(LoRA(lm.model, seed=seed), seed) for seed in (1, 2))
    right = averaged([one, other]).merged_weight(0, torch.zeros(32, 32))
    wrong = one.scale * ((one.b[0] + other.b[0]) / 2) @ ((one.a[0] + other.a[0]) / 2)
    assert (right - wrong).norm() > 0.3 * right.norm()
    assert_close(averaged([one, one]).merged_weight(0, torch.zeros(32, 32)), one.merged_weight(0, torch.zeros(32, 32)))


def test_each_text_of_a_batch_has_its_own_module(lm, ids):
    """Routed by unit rows: row i is what module i alone says of text i. Such a mixture cannot be merged."""
    deltas = modules(lm.model)
    mixed = routed(deltas, torch.eye(3))
    with mixed.attached(lm.model):
        got = lm.model(ids)
    for i, delta in enumerate(deltas):
        with delta.attached(lm.model):
            assert_close(got[i], lm.model(ids[i : i + 1])[0], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="no one matrix"):
        mixed.merged(lm.model)


def test_weights_of_a_combination_can_be_learned(lm, ids):
    """Three numbers with gradients, the modules' own among them or not."""
    weights = torch.ones(3, requires_grad=True)
    with Combined(modules(lm.model), weights).attached(lm.model):
        lm.model(ids).square().mean().backward()
    assert weights.grad.shape == (3,) and weights.grad.all()


def test_modules_that_do_not_fit_are_refused(lm):
    """Other layers, no module, or weights for another number."""
    deltas = modules(lm.model)
    with pytest.raises(ValueError, match="different layers"):
        summed([deltas[0], LoRA(lm.model, targets=("k_proj",))])
    with pytest.raises(ValueError, match="0 modules"):
        summed([])
    with pytest.raises(ValueError, match=r"3 modules and weights \(2,\)"):
        Combined(deltas, torch.ones(2))


# --- retrieval -------------------------------------------------------------------------------------------------------


def test_an_input_finds_the_module_whose_examples_point_its_way():
    """Four directions with noise: every query finds its own; length does not count."""
    centres = torch.eye(4, 16, dtype=torch.float64)
    near = {str(i): centres[i] + 0.1 * normal(5, 16, seed=i) for i in range(4)}
    index = ModuleIndex.of(near)
    query = (centres + 0.1 * normal(4, 16, seed=9)) * torch.tensor([[0.01], [1.0], [100.0], [7.0]])
    assert index.names == ("0", "1", "2", "3") and index.best(query)[:, 0].tolist() == [0, 1, 2, 3]
    assert_close(index.keys.norm(dim=1), torch.ones(4, dtype=torch.float64))
    scores = torch.stack([torch.cosine_similarity(query, key, dim=1) for key in index.keys], dim=1)
    assert_close(index.scores(query), scores)


@given(st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=15, deadline=None)
def test_weights_are_a_softmax_over_the_k_best(k, batch):
    """Rows add to one, k of them are not zero, the order of the scores kept; colder is sharper."""
    index, query = ModuleIndex.of({str(i): normal(2, 6, seed=i) for i in range(4)}), normal(batch, 6, seed=8)
    weights = index.weights(query, k)
    assert_close(weights.sum(1), torch.ones(batch, dtype=torch.float64))
    assert ((weights > 0).sum(1) == k).all()
    for row, scores in zip(weights, index.scores(query), strict=True):
        assert row.argmax() == scores.argmax()
        assert_close(row[row > 0], (scores[row > 0] / 0.1).softmax(0))
    if batch and k > 1:
        assert (index.weights(query, k, temperature=0.01).amax(1) >= weights.amax(1)).all()


def test_an_index_without_examples_or_with_too_many_wanted_is_refused():
    """No key can be made of nothing; of two modules there are no three best."""
    with pytest.raises(ValueError, match="at least one example"):
        ModuleIndex.of({"a": torch.zeros(0, 3)})
    index = ModuleIndex.of({"a": torch.ones(1, 3), "b": torch.ones(1, 3)})
    assert index.best(torch.ones(1, 3), 2).tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="between 1 and 2 modules, given 3"):
        index.best(torch.ones(1, 3), 3)


# --- tasks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_no_question_is_in_both_parts_and_the_seed_decides(task):
    """40 and 20 pairs, all different; the same again, others for another seed."""
    train, held_out = split(task, 40, 20)
    assert len({q for q, _ in train + held_out}) == 60
    assert split(task, 40, 20) == (train, held_out) != split(task, 40, 20, seed=1)
    with pytest.raises(ValueError, match=f"{task} has"):
        split(task, 10**6, 1)


def test_answers_are_what_the_docstring_shows():
    """One of each task, and an unknown task."""
    shown = {("July 4", "04-Jul"), ("84731", "84,731"), ("exit_on_error", "exitOnError")}
    pairs = {pair for make in TASKS.values() for pair in make()} | {(str(n), f"{n:,}") for n in (84_731,)}
    assert shown <= pairs and all(a == f'"{q}"' for q, a in TASKS["words"]())
    with pytest.raises(ValueError, match="'poems' is unknown; here are dates"):
        split("poems", 1, 1)


def test_the_loss_is_that_of_the_response_alone(lm):
    """Ragged pairs padded: `response_only_loss` over all logits."""
    given = batch(lm, [("a", "bcd"), ("longer", "x")])
    assert given.ids.shape == (2, len("longer -> x\n")) and given.is_answer.sum() == len(" bcd\n") + len(" x\n")
    want = response_only_loss(lm.model(given.ids), given.ids, given.is_answer)
    assert_close(loss(lm, given), want)


def test_exact_answers_are_those_that_greedy_decoding_gives(lm):
    """A module taught four answers by heart; every answer counted as exact is decoded, and the others are not."""
    pairs = [("ab", "x"), ("cd", "yy"), ("ef", "zzz"), ("gh", "w")]
    delta = LoRA(lm.model, rank=8, targets=("q_proj", "v_proj", "o_proj", "down_proj", "up_proj"))
    losses = fit(lm, delta, pairs, steps=60, size=4, lr=0.02)
    with delta.attached(lm.model):
        decoded = [generate(lm.model, lm.ids(f"{q} ->"), len(a) + 2)[0, -len(a) - 2 :].tolist() for q, a in pairs]
        right = [lm.tokenizer.decode(ids) == f" {a}\n" for ids, (_, a) in zip(decoded, pairs, strict=True)]
        found = score(lm, pairs)
        each = [score(lm, [pair])["exact"] == 1.0 for pair in pairs]
    assert losses[-1] < losses[0] / 3 and each == right and any(right) and found["exact"] == sum(right) / 4


# --- LongLoRA --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 30), st.integers(2, 12), st.sampled_from([(1, 1), (2, 1), (4, 2), (9, 3)]), st.booleans())
@example(16, 8, (4, 2), True)
@settings(max_examples=25, deadline=None)
def test_shifted_attention_is_two_masked_ones(seq, group, heads, causal):
    """Ragged lengths, groups longer than the text, odd heads, GQA: a dense mask per half of the heads, in float64."""
    heads, kv_heads = heads
    q, k, v = normal(2, heads, seq, 4), normal(2, kv_heads, seq, 4, seed=1), normal(2, kv_heads, seq, 4, seed=2)
    first = [group if h < heads // 2 else group // 2 for h in range(heads)]
    i = torch.arange(seq)
    # every border at first, first + group, …: tokens with as many borders before them are in one group
    borders = [torch.arange(f, max(f, seq) + 1, group) for f in first]
    number = [(i[:, None] >= b).sum(1) for b in borders]
    mask = torch.stack([n[:, None] == n for n in number])
    want = naive_attention(q, k, v, causal=causal, mask=mask[None])
    got = shifted_sparse_attention(q, k, v, group=group, causal=causal, attend=naive_attention)
    assert_close(got, want, rtol=0, atol=1e-12)
    masks = torch.stack([group_mask(seq, group=group, first=f, causal=causal) for f in first])
    assert torch.equal(masks, mask.tril() if causal else mask)


def test_the_papers_roll_leaks_unless_its_last_group_is_masked():
    """Rolled by half a group, group-wise and causal: equal except the first half group, which sees the text's end."""
    q, k, v = (normal(1, 2, 16, 4, seed=s) for s in range(3))
    rolled = grouped_attention(*(x.roll(-4, 2) for x in (q, k, v)), group=8, causal=True).roll(4, 2)
    ours = grouped_attention(q, k, v, group=8, first=4, causal=True)
    assert_close(rolled[:, :, 4:], ours[:, :, 4:])
    assert not torch.allclose(rolled[:, :, :4], ours[:, :, :4], atol=1e-2)


def test_only_shifted_groups_pass_anything_on():
    """Token 0 changed: three layers carry it through two groups, half a group each; without the shift through one."""
    q, k = normal(1, 2, 24, 4), normal(1, 2, 24, 4, seed=1)

    def reach(shift):
        outs = []
        for first in (0.0, 1.0):
            v = normal(1, 2, 24, 4, seed=2)
            v[:, :, 0] += first
            for _ in range(3):  # heads are mixed between the layers, as the output projection does
                v = shifted_sparse_attention(q, k, v, group=8, shift=shift).mean(1, keepdim=True).expand(1, 2, 24, 4)
            outs.append(v)
        return (outs[0] != outs[1]).any(-1)[0, 0].nonzero().max().item()

    assert (reach(False), reach(True)) == (7, 15)


def test_work_grows_with_the_text_and_not_with_its_square():
    """Counted FLOPs: 4 seq group dim per head where the groups fit; the largest score matrix is of groups."""
    counted = {}
    for seq in (64, 128):
        q = k = v = torch.zeros(1, 2, seq, 8)
        with Meter() as full:
            naive_attention(q, k, v, causal=True)
        with Meter() as groups:
            grouped_attention(q, k, v, group=16, attend=naive_attention)
        counted[seq] = (full.flops, groups.flops)
    assert counted[64] == (4 * 64 * 64 * 8 * 2, 4 * 64 * 16 * 8 * 2)
    assert counted[128] == (4 * counted[64][0], 2 * counted[64][1])


def test_gradients_are_right_and_the_default_is_the_courses_attention():
    """gradcheck in float64 with ragged groups; the tiled form gives the same output."""
    q, k, v = (normal(1, 2, 7, 2, seed=s).requires_grad_() for s in range(3))
    assert torch.autograd.gradcheck(
        lambda *x: shifted_sparse_attention(*x, group=4, attend=naive_attention), (q, k, v), fast_mode=True
    )
    one = attention(q, k, v, causal=True)
    assert_close(shifted_sparse_attention(q, k, v, group=8, shift=False), one, rtol=0, atol=1e-12)


def test_groups_that_cannot_be_cut_are_refused():
    """A group of one has no half; a cache's keys are longer than its queries; a first group longer than the others."""
    q = torch.zeros(1, 2, 6, 4)
    with pytest.raises(ValueError, match="given group=1"):
        shifted_sparse_attention(q, q, q, group=1)
    with pytest.raises(ValueError, match="first=5"):
        grouped_attention(q, q, q, group=4, first=5)
    with pytest.raises(ValueError, match="1 queries and 6 keys"):
        grouped_attention(q[:, :, :1], q, q, group=4)
