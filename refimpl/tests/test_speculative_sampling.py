"""The draft changes the time and never the text: distributions by chi-square, greedy text by equality."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from refimpl.models.llama import LlamaConfig, generate
from refimpl.models.toy import toy_llama
from refimpl.speculative_sampling import (
    ModelDraft,
    PromptLookup,
    Proposal,
    acceptance,
    distribution,
    expected_tokens,
    residual,
    speculate,
    speculative_sample,
    wall_time_gain,
)

SMALL = LlamaConfig(
    layers=1, model=16, heads=2, kv_heads=1, dim=8, ffn=16, vocab=12, context=128, rope_base=100.0, norm_eps=1e-5
)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(n, vocab, seed=0, sharp=1.0):
    return torch.softmax(sharp * torch.randn(n, vocab, generator=draw(seed)), dim=-1)


def chi_square(counts, wanted):
    """Pearson's statistic over its standard deviations: (X² - dof) / sqrt(2 dof)."""
    expected = wanted * counts.sum()
    seen = expected > 0
    assert (counts[~seen] == 0).all()
    dof = int(seen.sum()) - 1
    statistic = ((counts - expected)[seen].square() / expected[seen]).sum()
    return float((statistic - dof) / (2 * dof) ** 0.5)


# --- one round ---------------------------------------------------------------------------------------------


def test_the_lectures_table():
    """dogs love chasing after cars: kept with 1, 1, 8/9, 3/8 and, if it were checked, 1."""
    p, q = torch.tensor([0.8, 0.7, 0.9, 0.8, 0.7]), torch.tensor([0.9, 0.8, 0.8, 0.3, 0.8])
    assert_close(acceptance(p, q), torch.tensor([1, 1, 8 / 9, 3 / 8, 1]))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), vocab=st.integers(2, 9))
def test_kept_and_replaced_add_up_to_the_target(seed, vocab):
    """p(x) min(1, q/p) + P(refused) residual(x) = q(x), to rounding: the whole proof in one line."""
    p, q = rows(1, vocab, seed).double(), rows(1, vocab, seed + 1).double()
    kept = p * acceptance(p, q)
    assert_close(kept + (1 - kept.sum()) * residual(p, q), q)


def test_without_anything_left_the_residual_is_the_target():
    """p = q: nothing is ever refused, and nothing divides by 0."""
    q = rows(1, 5)
    assert torch.equal(residual(q, q), q)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_first_token_of_a_round_follows_the_target(temperature):
    """Chi-square over 5,000 rounds of a draft that disagrees with the target, with and without temperature."""
    p, q = (distribution(torch.log(r), temperature) for r in (rows(3, 8, 1, 2.0), rows(4, 8, 2, 2.0)))
    generator, counts = draw(3), torch.zeros(8)
    for _ in range(5_000):
        proposed = torch.multinomial(p, 1, generator=generator)[:, 0]
        counts[speculate(proposed, p, q, generator=generator).tokens[0]] += 1
    assert chi_square(counts, q[0]) < 4


def test_chi_square_notices_a_sampler_that_is_wrong():
    """The same test refuses samples from q in place of the residual: the natural mistake, warned of on the slide."""
    p, q = rows(1, 8, 1, 2.0)[0], rows(1, 8, 2, 2.0)[0]
    generator = draw(3)
    proposed = torch.multinomial(p, 20_000, replacement=True, generator=generator)
    keep = torch.rand(20_000, generator=generator) < acceptance(p, q)[proposed]
    other = torch.multinomial(q, 20_000, replacement=True, generator=generator)
    counts = torch.bincount(torch.where(keep, proposed, other), minlength=8).float()
    assert chi_square(counts, q) > 10


def test_a_round_gives_one_to_k_plus_one_tokens():
    """A hopeless draft gives 1, a perfect one K + 1, and a refused token ends the round."""
    q = torch.eye(5)[[1, 2, 3, 4]]  # the target is certain of 1, 2, 3, 4
    for proposed, wanted in (([0, 2, 3], [1]), ([1, 2, 3], [1, 2, 3, 4]), ([1, 0, 3], [1, 2])):
        tokens = torch.tensor(proposed)
        round_ = speculate(tokens, torch.eye(5)[tokens], q)
        assert round_.tokens.tolist() == wanted and round_.accepted == len(wanted) - 1


def test_rows_that_do_not_fit_are_refused():
    """K + 1 distributions of the target for K proposals."""
    with pytest.raises(ValueError, match="2 proposed tokens need 2 rows of p and 3 of q, given 2 and 2"):
        speculate(torch.tensor([0, 1]), rows(2, 4), rows(2, 4))


def test_the_mean_length_is_the_formula():
    """Simulated: 20,000 rounds with acceptance 0.7 each, K = 4."""
    kept = (torch.rand(20_000, 4, generator=draw()) < 0.7).long().cumprod(1).sum(1) + 1
    assert float(kept.float().mean()) == pytest.approx(expected_tokens(0.7, 4), abs=0.03)
    assert expected_tokens(1, 4) == 5 and expected_tokens(0, 4) == 1


def test_the_gain_is_tokens_over_cost():
    """With a free draft and free checking it is the mean length; a check that costs K + 1 steps eats all of it."""
    assert wall_time_gain(0.8, 3, draft_cost=0) == expected_tokens(0.8, 3)
    assert wall_time_gain(1, 3, draft_cost=0, verify_cost=4) == 1


# --- drafts ------------------------------------------------------------------------------------------------


def test_prompt_lookup_proposes_what_followed_last_time():
    """The longest match wins over a later, shorter one; the latest of equal length wins; no match, no guess."""
    lookup = PromptLookup(ngram=2)
    propose = lambda *ids: lookup.propose(torch.tensor([ids]), 3, 0, 10).tokens.tolist()  # noqa: E731
    assert propose(1, 2, 5, 6, 9, 2, 7, 1, 2) == [5, 6, 9]
    assert propose(2, 5, 0, 2, 7, 0, 2) == [7, 0, 2]
    assert propose(1, 2, 3) == []
    assert propose(4) == []


def test_prompt_lookup_is_certain_of_its_guess():
    """p = 1 for the proposed token: it is kept with probability q."""
    proposal = PromptLookup().propose(torch.tensor([[1, 2, 1]]), 2, 1.0, 4)
    assert torch.equal(proposal.p, torch.eye(4)[proposal.tokens])


def test_a_model_draft_reads_each_text_once_and_forgets_its_own_guesses():
    """Proposals with its cache equal proposals from a fresh start, also after refused ones and on another text."""
    model, ids = toy_llama(SMALL), torch.tensor([[1, 5, 3, 7, 2]])
    kept = ModelDraft(model)
    for text in (ids[:, :3], ids[:, :4], ids, ids[:, :2]):
        fresh = ModelDraft(model).propose(text, 3, 0, SMALL.vocab)
        assert torch.equal(kept.propose(text, 3, 0, SMALL.vocab).tokens, fresh.tokens)


# --- the loop ----------------------------------------------------------------------------------------------


class Constant:
    """A draft that always proposes the same tokens."""

    def __init__(self, *tokens):
        self.tokens = torch.tensor(tokens)

    def propose(self, ids, k, temperature, vocab):
        return Proposal(self.tokens[:k], torch.nn.functional.one_hot(self.tokens[:k], vocab).float())


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("draft", ["lookup", "itself", "another", "nonsense"])
def test_greedy_text_is_the_targets_own(draft, k):
    """Token for token, from every draft, at every length."""
    target, ids = toy_llama(SMALL), torch.tensor([[1, 5, 3, 1, 5]])
    drafts = {
        "lookup": PromptLookup(), "itself": ModelDraft(target), "another": ModelDraft(toy_llama(SMALL, seed=9)),
        "nonsense": Constant(11, 11, 11),
    }  # fmt: skip
    written = speculative_sample(target, drafts[draft], ids, 20, k=k)
    assert torch.equal(written.ids, generate(target, ids, 20))
    assert written.target_calls <= 20


def test_a_perfect_draft_needs_one_call_per_k_plus_one_tokens():
    """The target drafting for itself: everything is kept, 20 tokens in 5 calls of K = 3."""
    target = toy_llama(SMALL)
    written = speculative_sample(target, ModelDraft(target), torch.tensor([[1, 2]]), 20, k=3)
    assert written.target_calls == 5 and written.alpha == 1 and written.tokens_per_call == 4


def test_sampled_text_follows_the_target():
    """Pairs of tokens after a prompt, 400 texts of a draft that disagrees: chi-square against the 16 exact pairs."""
    tiny = replace(SMALL, vocab=4)
    target, draft = toy_llama(tiny), ModelDraft(toy_llama(tiny, seed=5), draw(1))
    ids, vocab, generator = torch.tensor([[3, 1]]), tiny.vocab, draw(2)
    with torch.no_grad():
        first = distribution(target(ids)[0, -1], 1.0)
        texts = torch.cat((ids.expand(vocab, -1), torch.arange(vocab)[:, None]), dim=1)
        exact = first[:, None] * distribution(target(texts)[:, -1], 1.0)
    counts = torch.zeros(vocab, vocab)
    for _ in range(400):
        a, b = speculative_sample(target, draft, ids, 2, k=2, temperature=1.0, generator=generator).ids[0, 2:]
        counts[a, b] += 1
    assert chi_square(counts.flatten(), exact.flatten()) < 4


def test_every_round_can_be_watched():
    """Accepted tokens and the target's own, in order, are the text."""
    target, seen = toy_llama(SMALL), []
    ids = torch.tensor([[1, 5, 3]])
    written = speculative_sample(target, PromptLookup(), ids, 9, k=2, watch=lambda round_: seen.append(round_.tokens))
    assert torch.equal(torch.cat(seen)[:9], written.ids[0, 3:])


@pytest.mark.parametrize("wrong", [{"k": 0}, {"new_tokens": 0}])
def test_nothing_to_do_is_refused(wrong):
    """At least one token, at least one guess."""
    given_ = {"new_tokens": 3, "k": 2} | wrong
    with pytest.raises(ValueError, match="at least 1"):
        speculative_sample(toy_llama(SMALL), PromptLookup(), torch.tensor([[1]]), given_["new_tokens"], k=given_["k"])


def test_a_negative_temperature_is_refused():
    """It would prefer the least likely token."""
    with pytest.raises(ValueError, match="not negative"):
        distribution(torch.zeros(3), -1)
