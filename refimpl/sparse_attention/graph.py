"""A pattern as a graph: how far information travels in a stack of layers, in how many steps, and how well it mixes.

An edge leads from key j to query i where i looks at j. A residual connection keeps what a token already has, so every
token also reaches itself. Source: Zaheer et al. 2020, section 2: small shortest paths, and a random walk that forgets
soon where it began.
"""

from collections.abc import Sequence

import torch

from refimpl.shapes import Bool, Float, Int, Tensor

__all__ = ["UNREACHABLE", "mixing_time", "reached", "shortest_paths", "spectral_gap"]

UNREACHABLE = -1


def reached(layers: Sequence[Bool[Tensor, "n n"]]) -> Bool[Tensor, "n n"]:
    """True at (i, j) where something of token j is in token i after these layers, the first one first: row i is the
    receptive field of token i. Layers may have different patterns."""
    seen = torch.eye(len(layers[0]), dtype=torch.bool)
    for mask in layers:
        seen = (_with_residual(mask).float() @ seen.float()) > 0
    return seen


def shortest_paths(mask: Bool[Tensor, "n n"]) -> Int[Tensor, "n n"]:
    """Layers until token j is in token i: 0 for itself, UNREACHABLE where no number of layers is enough."""
    step = _with_residual(mask).float()
    seen = torch.eye(len(mask), dtype=torch.bool)
    hops = torch.where(seen, 0, UNREACHABLE)
    for layers in range(1, len(mask)):
        more = (step @ seen.float()) > 0
        if torch.equal(more, seen):
            break
        hops[more & ~seen] = layers
        seen = more
    return hops


def spectral_gap(mask: Bool[Tensor, "n n"]) -> float:
    """1 - the second largest modulus among the eigenvalues of the random walk: 0 never mixes, 1 in one step."""
    walk, stationary = _walk(mask)
    root = stationary.sqrt()
    # Edges lead both ways, so the walk has the eigenvalues of a symmetric matrix.
    sizes = torch.linalg.eigvalsh(root[:, None] * walk / root).abs().sort(descending=True).values
    return 1.0 - sizes[1].item() if len(sizes) > 1 else 1.0


def mixing_time(mask: Bool[Tensor, "n n"], *, distance: float = 0.25, limit: int = 2**30) -> int | None:
    """Steps until the walk is within `distance` (total variation) of its stationary distribution, from any start.

    By doubling, then halving the interval: about 2 log2(steps) products of n x n matrices. None beyond `limit` steps.
    """
    walk, stationary = _walk(mask)
    powers = [walk]
    while not _mixed(powers[-1], stationary, distance):
        if 2 ** len(powers) > limit:
            return None
        powers.append(powers[-1] @ powers[-1])
    if len(powers) == 1:
        return 1
    steps, so_far = 2 ** (len(powers) - 2), powers[-2]  # not yet mixed; the walk only gets nearer, so bisect
    for k in range(len(powers) - 3, -1, -1):
        further = so_far @ powers[k]
        if not _mixed(further, stationary, distance):
            steps, so_far = steps + 2**k, further
    return steps + 1


def _with_residual(mask):
    return mask | torch.eye(len(mask), dtype=torch.bool)


def _walk(mask: Tensor) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n"]]:
    """The random walk along edges in either direction, each as likely, and where it ends up: by number of edges."""
    edges = _with_residual(mask | mask.mT).double()
    degree = edges.sum(1)
    return edges / degree[:, None], degree / degree.sum()


def _mixed(walk, stationary, distance) -> bool:
    return bool(0.5 * (walk - stationary).abs().sum(1).max() <= distance)
