"""Three ways to cut text and three losses, each against what one can compute by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from refimpl.language_modelling import (
    character_tokens,
    learn_merges,
    next_token_loss,
    response_only_loss,
    reward_loss,
    subword_tokens,
    word_tokens,
)

TEXT = "this token tokens izing token realizing tokenized sizing rising token organizing is"


def test_characters_know_everything_and_words_do_not():
    """ "This is tokenizing": 18 characters; as words the last is unknown, and what it said is lost."""
    sentence = "this is tokenizing"
    assert "".join(character_tokens(sentence)) == sentence and len(character_tokens(sentence)) == 18
    assert word_tokens(sentence, set(TEXT.split())) == ["this", "is", "<unk>"]


def test_subwords_cut_a_new_word_into_known_pieces():
    """ "tokenizing" never occurs in the text, yet it is cut into "token" and "izing", both learned from other words."""
    assert "tokenizing" not in TEXT
    merges = learn_merges(TEXT, 16)
    assert subword_tokens("this is tokenizing", merges)[-2:] == ["token", "izing"]


def test_the_first_merge_is_the_most_frequent_pair():
    """ "aab aab ab": ab occurs 3 times, aa twice; after it "aab" is a + ab, which is next."""
    assert learn_merges("aab aab ab", 1) == [("a", "b")]
    assert learn_merges("aab aab ab", 5) == [("a", "b"), ("a", "ab")]
    assert subword_tokens("aab b", [("a", "b"), ("a", "ab")]) == ["aab", "b"]


def test_no_merges_leave_characters_and_no_text_is_lost():
    """Joined again, the tokens are the words, whatever was learned."""
    assert subword_tokens("never seen", []) == list("neverseen")
    assert "".join(subword_tokens("unseen words too", learn_merges(TEXT, 10))) == "unseenwordstoo"


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_next_token_loss_judges_each_position_by_the_token_after_it():
    """-mean log softmax(logits[t])[ids[t + 1]], in a loop; the last logits are judged by nothing."""
    logits, ids = draw(2, 5, 7), torch.tensor([[1, 6, 0, 3, 2], [4, 4, 5, 0, 1]])
    terms = [-logits[b, t].log_softmax(-1)[ids[b, t + 1]] for b in range(2) for t in range(4)]
    assert_close(next_token_loss(logits, ids), torch.stack(terms).mean())
    changed = logits.clone()
    changed[:, -1] = 0
    assert next_token_loss(changed, ids) == next_token_loss(logits, ids)


def test_a_model_that_knows_nothing_pays_log_vocab():
    """Equal logits over 7 tokens: log 7 nats."""
    assert_close(next_token_loss(torch.zeros(1, 4, 7), torch.zeros(1, 4, dtype=torch.long)), torch.tensor(math.log(7)))


def test_response_only_loss_counts_response_tokens_and_no_other():
    """Tokens 3 and 4 of five are the response: judged by the logits at 2 and 3, the first of which is instruction."""
    logits, ids = draw(1, 5, 7), torch.tensor([[1, 6, 0, 3, 2]])
    response = torch.tensor([[False, False, False, True, True]])
    terms = [-logits[0, t].log_softmax(-1)[ids[0, t + 1]] for t in (2, 3)]
    assert_close(response_only_loss(logits, ids, response), torch.stack(terms).mean())
    assert_close(response_only_loss(logits, ids, torch.ones_like(response)), next_token_loss(logits, ids))


def test_the_instruction_gets_no_gradient_from_a_response_only_loss():
    """Logits that predict instruction tokens could be anything."""
    logits, ids = draw(1, 5, 7).requires_grad_(), torch.tensor([[1, 6, 0, 3, 2]])
    response_only_loss(logits, ids, torch.tensor([[False, False, False, True, True]])).backward()
    assert [bool(row.any()) for row in logits.grad[0]] == [False, False, True, True, False]


def test_a_text_without_response_has_no_loss():
    """A mean over nothing would be NaN; it is refused in words."""
    with pytest.raises(ValueError, match="no token after the first is marked as response"):
        response_only_loss(draw(1, 3, 7), torch.zeros(1, 3, dtype=torch.long), torch.tensor([[True, False, False]]))


def test_reward_loss_is_bradley_terrys_and_sees_differences_only():
    """-log sigmoid(w - l): log 2 for a tie, small where the winner scores higher, unchanged by a common shift."""
    winning, losing = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 0.0])
    want = (-math.log(1 / (1 + math.exp(-3))) + math.log(2)) / 2
    assert reward_loss(winning, losing).item() == pytest.approx(want)
    assert reward_loss(winning + 5, losing + 5).item() == pytest.approx(want)
    assert reward_loss(losing, winning) > reward_loss(winning, losing)


def test_reward_loss_survives_a_confident_mistake():
    """A difference of -200 costs 200 nats; the sigmoid alone would underflow to log 0."""
    assert reward_loss(torch.tensor([-100.0]), torch.tensor([100.0])).item() == pytest.approx(200)
