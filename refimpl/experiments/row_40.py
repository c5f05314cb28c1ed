"""Row 40, recap (S1): "This is tokenizing" by a real tokenizer, and what characters, words and subwords cost a text.

Needs SmolLM2's tokenizer; with the toy's bytes the first claim does not show, and says so.
"""

from refimpl.experiments.harness import Claim
from refimpl.language_modelling import character_tokens, word_tokens
from refimpl.models import corpus, load_smollm2

TITLE = "characters, words, subwords"
SENTENCE = "This is tokenizing"
READ, TRAIN = 20_000, 100_000  # characters


def run() -> dict:
    tokenizer, text = load_smollm2().tokenizer, corpus("prose")
    known, unseen = text[:TRAIN], text[-READ:]
    vocabulary = set(known.split())
    words = word_tokens(unseen, vocabulary)
    return {
        "pieces": [tokenizer.decode([i]) for i in tokenizer.encode(SENTENCE)],
        "characters": {"vocabulary": len(set(known)), "tokens": len(character_tokens(unseen))},
        "words": {"vocabulary": len(vocabulary), "tokens": len(words), "unknown": words.count("<unk>")},
        "subwords": {"vocabulary": tokenizer.vocab, "tokens": len(tokenizer.encode(unseen))},
    }


def claims(result: dict) -> list[Claim]:
    pieces = " ".join(piece.strip() for piece in result["pieces"])
    words, subwords, characters = result["words"], result["subwords"], result["characters"]
    unknown = words["unknown"] / words["tokens"]
    return [
        Claim(SENTENCE, "S1, Tokenization", "This is token izing", pieces, pieces == "This is token izing",
              "SmolLM2's tokenizer, byte-level BPE."),
        Claim("a word vocabulary meets words it does not know", "S1, \"Why subword tokenization?\"", "asked",
              f"{100 * unknown:.1f} % unknown", unknown > 0,
              f"Last {READ:,} characters of a text, vocabulary from its first {TRAIN:,}. Subwords know all of them, in "
              f"{subwords['tokens'] / words['tokens']:.2f} tokens per word; characters take "
              f"{characters['tokens'] / words['tokens']:.2f}."),
    ]  # fmt: skip
