"""Speculative sampling: a cheap draft proposes K tokens, the target checks all of them in one pass, none is lost.

Letters as in the lecture: p the draft's distribution, q the target's (the paper has them the other way round). A
proposed token x is kept with probability min(1, q(x) / p(x)); the first one that is not is replaced by a sample from
(q - p)+ / sum (q - p)+, and the rest is thrown away. What comes out is distributed exactly as the target alone would
write it, whatever the draft is; the draft decides only how long it takes.
Source: Leviathan et al. 2023 (algorithm 1, equations 1 and 3.8); Chen et al. 2023 (algorithm 2); prompt lookup: Saxena
2023.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from refimpl.models.llama import KVCache, Llama
from refimpl.shapes import Float, Int, Tensor

__all__ = [
    "Draft",
    "ModelDraft",
    "PromptLookup",
    "Proposal",
    "Speculation",
    "acceptance",
    "distribution",
    "expected_tokens",
    "residual",
    "speculate",
    "speculative_sample",
    "wall_time_gain",
]


# --- one round ---------------------------------------------------------------------------------------------


def acceptance(p: Float[Tensor, "*shape"], q: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """min(1, q / p): the chance that a token which the draft gave probability p > 0 is kept."""
    return (q / p).clamp(max=1.0)


def residual(p: Float[Tensor, "*rows vocab"], q: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows vocab"]:
    """(q - p)+ normalised: where the target wants more than the draft offers. q itself where p = q leaves nothing."""
    left = (q - p).clamp(min=0)
    total = left.sum(-1, keepdim=True)
    return torch.where(total > 0, left / total.clamp(min=torch.finfo(q.dtype).tiny), q)


class Speculation(NamedTuple):
    """The outcome of one round: `accepted` of the draft's tokens, then one of the target's own."""

    tokens: Int[Tensor, "new"]  # accepted + 1 of them
    accepted: int


def speculate(
    proposed: Int[Tensor, "k"],
    p: Float[Tensor, "k vocab"],
    q: Float[Tensor, "k_plus_1 vocab"],
    *,
    generator: torch.Generator | None = None,
) -> Speculation:
    """Keep a prefix of the proposed tokens and add one token of the target's: 1 to K + 1 tokens.

    p[i] is what the draft drew proposed[i] from, q[i] the target's distribution at the same place, q[K] the one after
    all of them. Raises ValueError where there are not K + 1 rows of q.
    """
    k = len(proposed)
    if len(p) != k or len(q) != k + 1:
        raise ValueError(
            f"speculate: {k} proposed tokens need {k} rows of p and {k + 1} of q, given {len(p)} and {len(q)}"
        )
    chance = acceptance(*(rows[:k].gather(1, proposed[:, None])[:, 0] for rows in (p, q)))
    refused = (torch.rand(k, generator=generator, dtype=q.dtype) >= chance).nonzero()
    accepted = int(refused[0]) if len(refused) else k
    rest = residual(p[accepted], q[accepted]) if accepted < k else q[k]  # all kept: one more for nothing
    last = torch.multinomial(rest, 1, generator=generator)
    return Speculation(torch.cat((proposed[:accepted], last)), accepted)


def expected_tokens(alpha: float | int, k: int) -> float | int:
    """(1 - alpha^(K+1)) / (1 - alpha): mean tokens of a round whose proposals are kept with chance alpha each."""
    return k + 1 if alpha == 1 else (1 - alpha ** (k + 1)) / (1 - alpha)


def wall_time_gain(alpha: float | int, k: int, *, draft_cost: float | int, verify_cost: float | int = 1.0) -> float:
    """Times faster than the target alone: expected_tokens / (K c + v), in units of one target step on one token.

    draft_cost c: one draft step; verify_cost v: one target pass over K + 1 tokens. The papers take v = 1, since a GPU
    that waits for weights checks K tokens in the time of one. On a CPU v grows with K: measure it.
    """
    return expected_tokens(alpha, k) / (k * draft_cost + verify_cost)


# --- drafts ------------------------------------------------------------------------------------------------


class Proposal(NamedTuple):
    """Up to K tokens and the distributions they were drawn from."""

    tokens: Int[Tensor, "k"]
    p: Float[Tensor, "k vocab"]


@runtime_checkable
class Draft(Protocol):
    """Whatever can guess: a smaller model, or the text itself."""

    def propose(self, ids: Int[Tensor, "1 seq"], k: int, temperature: float | int, vocab: int) -> Proposal:
        """At most k tokens that may follow ids; fewer, or none, where there is no guess."""
        ...


@dataclass
class PromptLookup:
    """Guess that the text repeats itself: find the last `ngram` tokens earlier on, propose what followed them there.

    Costs no model. Longest match first, latest occurrence first. Its distribution is certain: p = 1 for its token.
    """

    ngram: int = 3

    def propose(self, ids: Int[Tensor, "1 seq"], k: int, temperature: float | int, vocab: int) -> Proposal:
        text = ids[0]
        for n in range(min(self.ngram, len(text) - 1), 0, -1):
            windows = text[:-1].unfold(0, n, 1)  # every n-gram that has a successor
            found = (windows == text[-n:]).all(dim=1).nonzero()
            if len(found):
                start = int(found[-1]) + n
                tokens = text[start : start + k]
                return Proposal(tokens, torch.nn.functional.one_hot(tokens, vocab).float())
        return Proposal(text[:0], torch.zeros(0, vocab))


@dataclass
class ModelDraft:
    """A smaller model with a cache of its own, which forgets what the target refused."""

    model: Llama
    generator: torch.Generator | None = None
    cache: KVCache | None = field(default=None, repr=False)
    read: Tensor | None = field(default=None, repr=False)  # the ids that the cache holds

    def propose(self, ids: Int[Tensor, "1 seq"], k: int, temperature: float | int, vocab: int) -> Proposal:
        if self.cache is None or not self._continues(ids):
            self.cache = KVCache(self.model, self.model.config.context)
        unread, tokens, rows = ids[:, self.cache.length :], [], []
        for _ in range(k):
            q = distribution(self.model(unread, self.cache, last=1)[0, -1], temperature)
            tokens.append(torch.multinomial(q, 1, generator=self.generator))
            rows.append(q)
            unread = tokens[-1][None]
        self.cache.length, self.read = ids.shape[1], ids  # proposals may be refused: the kept ones are read next time
        return Proposal(torch.cat(tokens), torch.stack(rows))

    def _continues(self, ids: Tensor) -> bool:
        """Whether ids begin with what was read, and go on."""
        held = self.cache.length
        return held < ids.shape[1] and torch.equal(ids[:, :held], self.read)


def distribution(logits: Float[Tensor, "*rows vocab"], temperature: float | int) -> Float[Tensor, "*rows vocab"]:
    """softmax(logits / temperature) in float32; temperature 0 puts all on the largest, so that sampling is greedy."""
    if temperature < 0:
        raise ValueError(f"distribution: a temperature is not negative, given {temperature}")
    logits = logits.float()
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    return torch.softmax(logits / temperature, dim=-1)


# --- the whole loop ----------------------------------------------------------------------------------------


@dataclass
class Written:
    """What `speculative_sample` wrote, and how."""

    ids: Int[Tensor, "1 longer"]
    proposed: list[int] = field(default_factory=list)  # per call of the target
    accepted: list[int] = field(default_factory=list)

    @property
    def target_calls(self) -> int:
        return len(self.accepted)

    @property
    def alpha(self) -> float:
        """Share of checked proposals that were kept; those behind the first refused one were not checked."""
        checked = sum(a + (a < k) for a, k in zip(self.accepted, self.proposed, strict=True))
        return sum(self.accepted) / checked if checked else 0.0

    @property
    def tokens_per_call(self) -> float:
        return (sum(self.accepted) + self.target_calls) / self.target_calls


@torch.no_grad()
def speculative_sample(
    target: Llama,
    draft: Draft,
    ids: Int[Tensor, "1 seq"],
    new_tokens: int,
    *,
    k: int = 4,
    temperature: float | int = 0.0,
    generator: torch.Generator | None = None,
    watch: Callable[[Speculation], object] = lambda round_: None,
) -> Written:
    """Append `new_tokens` tokens, distributed as the target alone would write them; at temperature 0 the same ones.

    Each round costs one target pass over the proposals and the token before them, with the cache cut back to what was
    kept. `watch` sees every round. The last round may run over: what is too many is cut off.
    Raises ValueError for k < 1 or new_tokens < 1.
    """
    if k < 1 or new_tokens < 1:
        raise ValueError(f"speculative_sample: k and new_tokens are at least 1, given {k} and {new_tokens}")
    vocab, end = target.config.vocab, ids.shape[1] + new_tokens
    cache, written = KVCache(target, end + k), Written(ids)
    while written.ids.shape[1] < end:
        proposal = draft.propose(written.ids, k, temperature, vocab)
        unread = torch.cat((written.ids[:, cache.length :], proposal.tokens[None]), dim=1)
        q = distribution(target(unread, cache, last=len(proposal.tokens) + 1)[0], temperature)
        round_ = speculate(proposal.tokens, proposal.p, q, generator=generator)
        written.ids = torch.cat((written.ids, round_.tokens[None]), dim=1)
        written.proposed.append(len(proposal.tokens))
        written.accepted.append(round_.accepted)
        cache.length = written.ids.shape[1] - 1  # the last token is not read yet, refused ones are forgotten
        watch(round_)
    written.ids = written.ids[:, :end]
    return written
