"""Losses against torch's, TinyBERT's parts by hand, and MiniLLM's gradient against every text there is."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812
from torch.testing import assert_close

from refimpl.distillation import (
    BertRecord,
    attention_loss,
    continuations,
    fit_normal,
    forward_kl,
    hidden_loss,
    importance_weights,
    kd_loss,
    minillm_loss,
    nearest_words,
    read_bert,
    replace_words,
    reverse_kl,
    tinybert_loss,
    token_log_probs,
    uniform_layers,
)
from refimpl.models.bert import Bert, BertConfig

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# --- logits ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 4), st.integers(2, 9), st.sampled_from([1.0, 2.0, 7.5]), st.sampled_from([0.0, 0.3, 1.0]))
def test_kd_and_its_gradient_equal_torchs_kl_div(batch, vocab, temperature, alpha):
    """torch's kl_div with batchmean and its cross_entropy, float64, values and gradients."""
    student, teacher = randn(batch, vocab).requires_grad_(), 3 * randn(batch, vocab, seed=1)
    labels = torch.arange(batch) % vocab
    ours = kd_loss(student, teacher, labels, temperature=temperature, alpha=alpha)
    soft = F.kl_div((student / temperature).log_softmax(-1), (teacher / temperature).softmax(-1), reduction="batchmean")
    theirs = alpha * temperature**2 * soft + (1 - alpha) * F.cross_entropy(student, labels)
    assert_close(ours, theirs)
    (mine,), (other,) = torch.autograd.grad(ours, student), torch.autograd.grad(theirs, student)
    assert_close(mine, other)


def test_at_high_temperature_the_student_matches_centred_logits():
    """Hinton et al.: with T large, the gradient tends to (z - v) / vocab, both centred."""
    student, teacher = randn(1, 6).requires_grad_(), randn(1, 6, seed=1)
    (gradient,) = torch.autograd.grad(kd_loss(student, teacher, temperature=1e6), student)
    z, v = (x - x.mean() for x in (student.detach(), teacher))
    assert_close(gradient, (z - v) / 6, rtol=1e-4, atol=1e-6)


def test_both_directions_are_zero_for_twins_and_differ_otherwise():
    """Against torch's distributions; each is the other with the arguments changed."""
    a, b = randn(3, 5), randn(3, 5, seed=1)
    p, q = (torch.distributions.Categorical(logits=x) for x in (b, a))
    assert_close(forward_kl(a, b), torch.distributions.kl_divergence(p, q))
    assert_close(reverse_kl(a, b), torch.distributions.kl_divergence(q, p))
    assert forward_kl(a, a).abs().max() < 1e-15 and (forward_kl(a, b) - reverse_kl(a, b)).abs().min() > 1e-3


def test_labels_are_needed_only_where_they_count():
    """Unannotated data: alpha = 1 asks for none."""
    assert kd_loss(randn(2, 3), randn(2, 3, seed=1)) > 0
    with pytest.raises(ValueError, match="pass them or alpha=1"):
        kd_loss(randn(2, 3), randn(2, 3, seed=1), alpha=0.5)


# --- layers ----------------------------------------------------------------------------------------------------------


def bert(layers=4, model=8, seed=0):
    torch.manual_seed(seed)
    return Bert(BertConfig(layers, model, 2, 16, 30, 12, 1e-12)).double()


IDS = torch.tensor([[1, 5, 9, 2, 0, 0], [1, 7, 8, 6, 4, 2]])
REAL = IDS != 0


def test_reading_changes_nothing_and_the_scores_are_the_models():
    """The same streams as `Bert.hidden`; scores equal Q K^T / sqrt(d) of a layer; the attention is put back."""
    model = bert()
    before = [block.attention.attend for block in model.blocks]
    found, plain = read_bert(model, IDS, REAL), model.hidden(IDS, REAL)
    assert [block.attention.attend for block in model.blocks] == before
    for ours, theirs in zip(found.streams, plain, strict=True):
        assert_close(ours, theirs)
    layer = model.blocks[1].attention
    q, k = (p(plain[1]).unflatten(-1, (2, 4)).transpose(1, 2) for p in (layer.query, layer.key))
    assert_close(found.scores[1], q @ k.transpose(-2, -1) / 2)
    assert read_bert(model, IDS).streams[-1].shape == (2, 6, 8)


def test_padding_does_not_count():
    """Both losses, as a loop over texts cut to their real length gives them."""
    a, b = randn(2, 3, 6, 6), randn(2, 3, 6, 6, seed=1)
    x, y, w = randn(2, 6, 5), randn(2, 6, 7, seed=1), randn(5, 7, seed=2)
    lengths = REAL.sum(1).tolist()
    squares = torch.cat([(a - b)[i, :, :n, :n].square().flatten() for i, n in enumerate(lengths)])
    assert_close(attention_loss(a, b, REAL), squares.mean())
    squares = torch.cat([(x[i, :n] @ w - y[i, :n]).square().flatten() for i, n in enumerate(lengths)])
    assert_close(hidden_loss(x, y, w, REAL), squares.mean())
    assert_close(attention_loss(a, b), F.mse_loss(a, b))
    assert_close(hidden_loss(x, y, w), F.mse_loss(x @ w, y))


def test_layers_are_dealt_out_evenly():
    """The paper's 4 of 12: 3, 6, 9, 12. Five of twelve cannot be."""
    assert uniform_layers(4, 12) == [3, 6, 9, 12] and uniform_layers(6, 6) == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match="12 layers cannot"):
        uniform_layers(5, 12)


def test_the_sum_pairs_student_layer_m_with_teacher_layer_g():
    """Two of four: embedding with embedding, 1 with 2, 2 with 4; nothing else has an influence."""
    teacher, student = read_bert(bert(), IDS, REAL), read_bert(bert(2, 6, seed=1), IDS, REAL)
    w = randn(6, 8)
    by_hand = sum(hidden_loss(student.streams[s], teacher.streams[t], w, REAL) for s, t in ((0, 0), (1, 2), (2, 4)))
    by_hand += sum(attention_loss(student.scores[s], teacher.scores[t], REAL) for s, t in ((0, 1), (1, 3)))
    assert_close(tinybert_loss(student, teacher, w, REAL), by_hand)


def test_a_copy_of_the_teacher_has_no_loss_and_every_weight_of_a_student_learns():
    """Identity as projection. The last block's output and scores reach every parameter but unused positions."""
    teacher = read_bert(bert(), IDS, REAL)
    record = BertRecord([s.detach() for s in teacher.streams], [s.detach() for s in teacher.scores])
    assert tinybert_loss(teacher, record, torch.eye(8, dtype=F64), REAL).abs() < 1e-20
    student = bert(2, 6, seed=1)
    tinybert_loss(read_bert(student, IDS, REAL), record, randn(6, 8), REAL).backward()
    assert all(p.grad is not None for p in student.parameters())


def test_replaced_words_are_neighbours_and_fixed_places_stay():
    """Neighbours by cosine, a word is none of its own; a share of 0 changes nothing, 1 all that may change."""
    vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], [-1.0, 0.0]])
    near = nearest_words(vectors, 1)
    assert near[:4, 0].tolist() == [1, 0, 3, 2]
    ids, fixed = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[True, False, False, False]])
    assert replace_words(ids, near, fixed, 1.0).tolist() == [[0, 0, 3, 2]]
    assert torch.equal(replace_words(ids, near, fixed, 0.0), ids)


# --- texts -----------------------------------------------------------------------------------------------------------

VOCAB, NEW = 3, 3


def tables(seed):
    """A language model: logits at position t from the token at t, one table per position."""
    return randn(1 + NEW, VOCAB, VOCAB, seed=seed)


def read(table, ids):
    return table[torch.arange(ids.shape[1]), ids]


ALL = torch.tensor([[0, *rest] for rest in itertools.product(range(VOCAB), repeat=NEW)])  # every text after token 0


def exact(q_table, p_table):
    """KL(q || p) over all 27 texts, and its gradient."""
    q_table = q_table.clone().requires_grad_()
    log_q = token_log_probs(read(q_table, ALL), ALL, 1).sum(1)
    log_p = token_log_probs(read(p_table, ALL), ALL, 1).sum(1)
    kl = (log_q.exp() * (log_q - log_p)).sum()
    return kl.item(), torch.autograd.grad(kl, q_table)[0]


def expected(q_table, p_table, proposal, **options):
    """The loss's gradient, averaged over all texts by their probability under `proposal`."""
    total = torch.zeros_like(q_table)
    for text, probability in zip(ALL[:, None], proposal, strict=True):
        table = q_table.clone().requires_grad_()
        student, teacher = read(table, text), read(p_table, text)
        weights = None
        if "mix" in options:
            logs = (token_log_probs(x, text, 1) for x in (student, teacher))
            weights = importance_weights(*logs, options["mix"], whole_text=True)
        loss = minillm_loss(
            student, teacher, text, 1, single_step=options["single_step"], normalize_length=False, weights=weights
        )
        total += probability * torch.autograd.grad(loss, table)[0]
    return total


def probabilities(table):
    return token_log_probs(read(table, ALL), ALL, 1).sum(1).exp()


@pytest.mark.parametrize("single_step", [False, True])
def test_the_policy_gradient_is_the_gradient_of_the_reverse_kl(single_step):
    """Expectation by exact enumeration of 27 texts, both forms; the probabilities add up to 1."""
    q, p = tables(0), tables(1)
    assert_close(probabilities(q).sum(), torch.tensor(1.0, dtype=F64))
    kl, gradient = exact(q, p)
    assert kl > 0.1 and gradient.abs().max() > 0.01
    assert_close(expected(q, p, probabilities(q), single_step=single_step), gradient)


@pytest.mark.parametrize("single_step", [False, True])
def test_texts_of_a_mixture_give_the_same_gradient_with_their_weights(single_step):
    """Drawn token by token from 0.3 p + 0.7 q, weighted by the whole text's ratio: the same expectation."""
    q, p = tables(0), tables(1)
    logs = (token_log_probs(read(t, ALL), ALL, 1).exp() for t in (p, q))
    mixture = sum(w * x for w, x in zip((0.3, 0.7), logs, strict=True)).prod(1)
    found = expected(q, p, mixture, single_step=single_step, mix=0.3)
    assert_close(found, exact(q, p)[1])


def test_the_single_step_form_has_less_noise():
    """Variance of the gradient over the 27 texts, both forms have the same mean."""
    q, p = tables(0), tables(1)
    noise = {}
    for single_step in (False, True):
        each = []
        for text in ALL[:, None]:
            table = q.clone().requires_grad_()
            loss = minillm_loss(
                read(table, text), read(p, text), text, 1, single_step=single_step, normalize_length=False
            )
            each.append(torch.autograd.grad(loss, table)[0])
        gradients, share = torch.stack(each), probabilities(q)[:, None, None, None]
        noise[single_step] = (share * (gradients - (share * gradients).sum(0)).square()).sum()
    assert noise[True] < 0.8 * noise[False]


def test_length_normalisation_divides_the_reward_to_come():
    """By hand for a text of three tokens: R_2 / 2 for the first, r_3 for the second, nothing for the last."""
    q, p, text = tables(0).requires_grad_(), tables(1), torch.tensor([[0, 2, 1, 1]])
    student, teacher = read(q, text), read(p, text)
    log_q, log_p = (token_log_probs(x, text, 1)[0] for x in (student, teacher))
    r = (log_p - log_q).detach()
    by_hand = reverse_kl(student[0, :3], teacher[0, :3]).sum() - (r[1] + r[2]) / 2 * log_q[0] - r[2] * log_q[1]
    assert_close(minillm_loss(student, teacher, text, 1), by_hand)


def test_importance_weights_are_the_ratio_of_the_densities():
    """One without a mixture; the published form looks at a token alone, whole_text at the product."""
    q, p = (randn(2, 3, seed=s).abs().neg() for s in (0, 1))
    assert_close(importance_weights(q, p, 0.0), torch.ones(2, 3, dtype=F64))
    ratio = q.exp() / (0.2 * p.exp() + 0.8 * q.exp())
    assert_close(importance_weights(q, p, 0.2), ratio)
    assert_close(importance_weights(q, p, 0.2, whole_text=True)[:, 1], ratio.prod(1))


def test_texts_come_from_the_models_distribution():
    """30,000 sampled continuations against the 27 probabilities, chi-square; greedy takes the best token each time."""
    table = tables(0)
    found = continuations(lambda ids: read(table, ids), torch.zeros(30_000, 1, dtype=torch.long), NEW,
                          torch.Generator().manual_seed(0))  # fmt: skip
    index = (found[:, 1:] * torch.tensor([9, 3, 1])).sum(1)
    counts, share = torch.bincount(index, minlength=27), 30_000 * probabilities(table)
    assert ((counts - share).square() / share).sum() < 54.1  # 99.9 % of chi-square with 26 degrees of freedom
    greedy = continuations(lambda ids: read(table, ids), torch.zeros(1, 1, dtype=torch.long), NEW)
    for t in range(NEW):
        assert greedy[0, t + 1] == table[t, greedy[0, t]].argmax()


# --- the picture -----------------------------------------------------------------------------------------------------

X = torch.linspace(-14, 14, 1401, dtype=F64)
MODES = 0.6 * torch.exp(-((X + 2.5) ** 2) / 2 / 0.6**2) + 0.4 * torch.exp(-((X - 3) ** 2) / 2)


def test_forward_covers_it_has_the_mean_and_the_deviation_of_the_density():
    """The closed form of the optimum, from two different starts."""
    p = MODES / MODES.sum()
    mean = (p * X).sum()
    std = (p * (X - mean) ** 2).sum().sqrt()
    for start in ((-2.0, 1.0), (3.0, 2.0)):
        found = fit_normal(MODES, X, "forward", start=start)
        assert found.mean == pytest.approx(mean.item(), abs=1e-3) and found.std == pytest.approx(std.item(), abs=1e-3)


def test_reverse_seeks_it_settles_on_the_mode_next_to_its_start():
    """Mean and width of one mode; cheaper in its own direction than the fit that covers."""
    left, right = (fit_normal(MODES, X, "reverse", start=(m, 1.0)) for m in (-2.0, 3.0))
    assert (left.mean, left.std) == pytest.approx((-2.5, 0.6), abs=0.05)
    assert (right.mean, right.std) == pytest.approx((3.0, 1.0), abs=0.05)
    covering = fit_normal(MODES, X, "forward")
    log_q = -((X - covering.mean) / covering.std).square() / 2
    assert right.kl < reverse_kl(log_q, MODES.log()).item()


def test_an_unknown_direction_is_refused():
    """The message names the two."""
    with pytest.raises(ValueError, match="'forward' or 'reverse'"):
        fit_normal(MODES, X, "sideways")
