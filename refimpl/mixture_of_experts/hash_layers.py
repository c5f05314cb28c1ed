"""Hash layers: the expert is a fixed function of the token, so nothing is learned, nothing collapses, no loss balances.

`HASHES` names the nine of the paper's table 3. Each builds a table from training tokens and returns a function
ids (batch, seq) -> experts (batch, seq). A hash of what stands in the text already routes while generating; one of the
next token can not (the oracle), unless a model guesses it (future predicted).
Source: Roller et al. 2021, "Hash layers for large sparse models", section 3.1 and table 3.
"""

from collections.abc import Callable

import torch

from refimpl.shapes import Float, Int, Tensor

__all__ = [
    "HASHES",
    "Hash",
    "balanced",
    "bigram",
    "clusters",
    "dispersed",
    "future",
    "position",
    "previous",
    "random_fixed",
]

Hash = Callable[[Int[Tensor, "batch seq"]], Int[Tensor, "batch seq"]]


def balanced(ids: Int[Tensor, "tokens"], experts: int, *, vocab: int) -> Hash:
    """Frequent tokens first, each to the expert that has the fewest occurrences so far (greedy)."""
    counts = torch.bincount(ids, minlength=vocab)
    load, table = [0] * experts, torch.zeros(vocab, dtype=torch.long)
    for token in counts.argsort(descending=True, stable=True).tolist():
        least = min(range(experts), key=load.__getitem__)
        table[token] = least
        load[least] += int(counts[token])
    return lambda x: table[x]


def random_fixed(experts: int, *, vocab: int, seed: int = 0) -> Hash:
    """Every token to a random expert, drawn once."""
    table = torch.randint(experts, (vocab,), generator=torch.Generator().manual_seed(seed))
    return lambda x: table[x]


def clusters(embedding: Float[Tensor, "vocab model"], experts: int, *, seed: int = 0) -> Hash:
    """Similar tokens together: k-means on the embeddings of a trained model."""
    table = _k_means(embedding, experts, seed)
    return lambda x: table[x]


def dispersed(embedding: Float[Tensor, "vocab model"], experts: int, *, seed: int = 0) -> Hash:
    """Similar tokens apart: the members of each cluster are dealt out to all experts in turn."""
    cluster, table = _k_means(embedding, experts, seed), torch.zeros(len(embedding), dtype=torch.long)
    # Dealing goes on from cluster to cluster, or the first experts would get every remainder.
    table[cluster.argsort(stable=True)] = torch.arange(len(embedding)) % experts
    return lambda x: table[x]


def position(experts: int) -> Hash:
    """By the place in the text, whatever stands there."""
    return lambda x: (torch.arange(x.shape[1]) % experts).expand_as(x)


def bigram(experts: int, *, vocab: int, seed: int = 0) -> Hash:
    """By the token and the one before it: a random function of the pair."""
    draw = torch.Generator().manual_seed(seed)
    first, second = (torch.randint(1 << 31, (vocab,), generator=draw) for _ in range(2))
    return lambda x: (first[_before(x)] ^ second[x]) % experts


def previous(table: Hash) -> Hash:
    """By the token before, through another hash's table; the first token stands for its own predecessor."""
    return lambda x: table(_before(x))


def future(table: Hash, next_token: Callable[[Tensor], Tensor] | None = None) -> Hash:
    """By the token after: as a model predicts it (ids -> ids), or with None the true one, the oracle.

    The oracle tells the layer what it should predict, so its perplexity is no achievement. The last token has no
    successor here and keeps its own.
    """

    def experts(x):
        return table(torch.cat((x[:, 1:], x[:, -1:]), dim=1) if next_token is None else next_token(x))

    return experts


def _before(x: Tensor) -> Tensor:
    return torch.cat((x[:, :1], x[:, :-1]), dim=1)


def _k_means(points: Tensor, k: int, seed: int, rounds: int = 20) -> Int[Tensor, "vocab"]:
    """Lloyd's algorithm; a cluster that runs empty takes the point farthest from its own."""
    points = points.detach().float()
    centers = _spread(points, k, torch.Generator().manual_seed(seed))
    for _ in range(rounds):
        distance, nearest = torch.cdist(points, centers).min(dim=1)
        for empty in (torch.bincount(nearest, minlength=k) == 0).nonzero().flatten().tolist():
            farthest = int(distance.argmax())
            nearest[farthest], distance[farthest] = empty, 0.0
        sums = torch.zeros_like(centers).index_add_(0, nearest, points)
        centers = sums / torch.bincount(nearest, minlength=k).clamp(min=1)[:, None]
    return nearest


def _spread(points: Tensor, k: int, draw: torch.Generator) -> Float[Tensor, "clusters model"]:
    """k starting points, each drawn with a chance of its squared distance from those before (k-means++)."""
    centers = [points[int(torch.randint(len(points), (1,), generator=draw))]]
    for _ in range(k - 1):
        distance = torch.cdist(points, torch.stack(centers)).min(dim=1).values.square()
        # Where every point is a center already, any will do.
        chances = distance if distance.sum() > 0 else torch.ones_like(distance)
        centers.append(points[int(torch.multinomial(chances, 1, generator=draw))])
    return torch.stack(centers)


# The rows of table 3 that this module builds, under the names of the table.
HASHES = {
    "balanced": balanced,
    "random": random_fixed,
    "clusters": clusters,
    "dispersed": dispersed,
    "position": position,
    "bigrams": bigram,
    "previous token": previous,
    "future (predicted)": future,
    "future (oracle)": future,
}
