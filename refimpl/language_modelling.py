"""From text to a loss, the recap of unit 01: three ways to cut text, and three losses a language model is trained on.

Tokenization: characters, words, subwords (byte-pair encoding). Losses: next token (pretraining), response only
(instruction tuning), Bradley–Terry (reward model). Real tokenizers are in `refimpl.models.tokenizer`.
Source: Sennrich et al. 2016; Ouyang et al. 2022; Bradley & Terry 1952.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from torch.nn import functional as F  # noqa: N812 - PyTorch's own convention

from refimpl.shapes import Bool, Float, Int, Tensor

__all__ = [
    "character_tokens",
    "learn_merges",
    "next_token_loss",
    "response_only_loss",
    "reward_loss",
    "subword_tokens",
    "word_tokens",
]

UNKNOWN = "<unk>"
Merge = tuple[str, str]


def character_tokens(text: str) -> list[str]:
    """One token per character: a tiny vocabulary, long sequences, nothing is unknown."""
    return list(text)


def word_tokens(text: str, vocabulary: set[str]) -> list[str]:
    """One token per word: short sequences; a word that was not in the training text becomes <unk> and is lost."""
    return [word if word in vocabulary else UNKNOWN for word in text.split()]


def learn_merges(text: str, count: int) -> list[Merge]:
    """Byte-pair encoding: `count` times, join the most frequent pair of neighbours inside words into one symbol.

    Ties go to the pair that is first in the alphabet, so that the result does not depend on the order of the words.
    """
    words = {word: tuple(word) for word in text.split()}
    frequency = Counter(text.split())
    merges: list[Merge] = []
    for _ in range(count):
        pairs = Counter()
        for word, symbols in words.items():
            for pair in pairwise(symbols):
                pairs[pair] += frequency[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = {word: _join(symbols, best) for word, symbols in words.items()}
    return merges


def subword_tokens(text: str, merges: Sequence[Merge]) -> list[str]:
    """Each word in the largest pieces the merges build: frequent words whole, rare ones in parts, none unknown."""
    tokens: list[str] = []
    for word in text.split():
        symbols = tuple(word)
        for pair in merges:  # in the order they were learned: later merges build on earlier ones
            symbols = _join(symbols, pair)
        tokens.extend(symbols)
    return tokens


def _join(symbols: tuple[str, ...], pair: Merge) -> tuple[str, ...]:
    joined, i = [], 0
    while i < len(symbols):
        width = 2 if symbols[i : i + 2] == pair else 1
        joined.append("".join(symbols[i : i + width]))
        i += width
    return tuple(joined)


def next_token_loss(logits: Float[Tensor, "batch seq vocab"], ids: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    """-mean log p(ids[t + 1] | ids[0 … t]) in nats: logits at t are judged by the token at t + 1; the last by none."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def response_only_loss(
    logits: Float[Tensor, "batch seq vocab"], ids: Int[Tensor, "batch seq"], is_response: Bool[Tensor, "batch seq"]
) -> Float[Tensor, ""]:
    """The same mean over tokens of the response alone: instruction and input are read, not learned.

    A token is judged by the logits before it, so the mask shifts with the targets: the first token of the response
    counts, although the position that predicts it still belongs to the instruction.
    """
    judged = is_response[:, 1:]
    if not judged.any():
        raise ValueError("response_only_loss: no token after the first is marked as response, so there is no mean")
    return F.cross_entropy(logits[:, :-1][judged], ids[:, 1:][judged])


def reward_loss(winning: Float[Tensor, "pairs"], losing: Float[Tensor, "pairs"]) -> Float[Tensor, ""]:
    """-mean log sigmoid(RM(s^w) - RM(s^l)): the winner should score higher. Bradley–Terry's model of paired comparison.

    Only differences count: adding the same number to both rewards changes nothing. Equal rewards cost log 2.
    """
    return -F.logsigmoid(winning - losing).mean()
