"""How many elements each attention algorithm moves between HBM and SRAM, for one head: counted, and in closed form.

`simulate_*` walks the loops of the printed algorithm and counts every load and store. `*_formula` is the algebra of the
same loops. Tests hold the two equal for any length. Nothing here is a measurement: caches and partial
sectors are left out, and so is arithmetic. Units are elements; `Traffic.bytes(2)` is bytes in float16.

Source: Dao et al. 2022, algorithms 0, 1 and 4 and theorem 2; Dao 2023, algorithm 1.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

# The shape behind the published table: GPT-2 medium's attention on an A100, forward and backward, float16.
GPT2_MEDIUM = {"n": 1024, "dim": 64, "heads": 16, "batch": 64}
A100_SRAM_ELEMENTS = 192 * 1024 // 2  # 192 KiB of shared memory per multiprocessor, 2 bytes an element


@dataclass(frozen=True)
class Traffic:
    """Elements read from and written to HBM."""

    reads: float | int
    writes: float | int

    @property
    def total(self) -> float | int:
        """Elements moved in either direction."""
        return self.reads + self.writes

    def bytes(self, itemsize: int) -> float | int:
        """Bytes moved where one element takes `itemsize` of them."""
        return self.total * itemsize

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.reads + other.reads, self.writes + other.writes)


class Hbm:
    """A counter at the door of HBM: every tile that passes is noted, (rows, columns) at a time."""

    def __init__(self):
        self.reads = self.writes = 0

    def read(self, rows, cols=1):
        self.reads += rows * cols

    def write(self, rows, cols=1):
        self.writes += rows * cols

    def traffic(self) -> Traffic:
        return Traffic(self.reads, self.writes)


def tiles(n: int, block: int) -> list[range]:
    """0 … n in ceil(n / block) tiles; the last may be shorter."""
    return [range(i, min(i + block, n)) for i in range(0, n, block)]


def block_sizes(sram_elements: int, dim: int) -> tuple[int, int]:
    """(B_r, B_c): B_c = ceil(M / 4d), B_r = min(ceil(M / 4d), d): Q, K, V and O tiles of a quarter of SRAM each."""
    if sram_elements < 1 or dim < 1:
        raise ValueError(f"block_sizes: M and d must be at least 1 element, given M={sram_elements}, d={dim}")
    block_k = math.ceil(sram_elements / (4 * dim))
    return min(block_k, dim), block_k


# --- the standard algorithm ------------------------------------------------------------------------------------------

# phase, step, tensors read, tensors written, and the option without which the step does not exist. The additive mask
# needs no step of its own in the backward. `keep` is the dropout decision, one byte per score: half a float16 element.
STANDARD_STEPS = [
    ("forward", "S = Q Kᵀ", "Q K", "S", None),
    ("forward", "S = S + mask", "S", "S", "mask"),
    ("forward", "P = softmax(S)", "S", "P", None),
    ("forward", "P = dropout(P)", "P", "P keep", "dropout"),
    ("forward", "O = P V", "P V", "O", None),
    ("backward", "dV = Pᵀ dO", "P dO", "dV", None),
    ("backward", "dP = dO Vᵀ", "dO V", "dP", None),
    ("backward", "dP = dP · keep", "dP keep", "dP", "dropout"),
    ("backward", "dS = P ∘ (dP - D)", "P dP", "dS", None),
    ("backward", "dQ = dS K", "dS K", "dQ", None),
    ("backward", "dK = dSᵀ Q", "dS Q", "dK", None),
]
COLUMNS_SQUARE = {"S": 1, "P": 1, "dP": 1, "dS": 1, "keep": 0.5}  # an n x n tensor; all others are n x dim


def _standard_step(n, dim, reads, writes, block) -> Traffic:
    hbm = Hbm()
    for rows in tiles(n, block):
        for names, move in ((reads, hbm.read), (writes, hbm.write)):
            for name in names.split():
                move(len(rows), n * COLUMNS_SQUARE[name] if name in COLUMNS_SQUARE else dim)
    return hbm.traffic()


def simulate_standard(
    n: int, dim: int, *, backward: bool = False, mask: bool = False, dropout: bool = False, block: int = 128
) -> Traffic:
    """Algorithm 0, one pass after the other, every tensor moved once per step that touches it.

    That flatters the standard algorithm: a real matmul reads its operands more than once.
    """
    chosen = {None, *(["mask"] if mask else []), *(["dropout"] if dropout else [])}
    phases = {"forward", "backward"} if backward else {"forward"}
    steps = [s for s in STANDARD_STEPS if s[0] in phases and s[4] in chosen]
    return sum((_standard_step(n, dim, s[2], s[3], block) for s in steps), Traffic(0, 0))


def standard_formula(n: int, dim: int, *, backward: bool = False, mask: bool = False, dropout: bool = False) -> Traffic:
    """4 n² + 4 n d forward; mask 2 n², dropout 2.5 n² more. Backward 7 n² + 8 n d, dropout 2.5 n² more."""
    square, linear = n * n, n * dim
    reads = square * (2 + mask + dropout) + 3 * linear
    writes = square * (2 + mask + 1.5 * dropout) + linear
    if backward:
        reads += square * (5 + 1.5 * dropout) + 5 * linear
        writes += square * (2 + dropout) + 3 * linear
    return Traffic(reads, writes)


# --- FlashAttention --------------------------------------------------------------------------------------------------


def simulate_flash(
    n: int, dim: int, sram_elements: int, *, backward: bool = False, causal: bool = False, fill: bool = False
) -> Traffic:
    """FlashAttention as printed: the outer loop runs over K, V tiles, so O, l and m travel once per K, V tile.

    causal skips the tiles above the diagonal. `fill` also counts the zero-fill of O, l, m (line 2) and of dQ, dK, dV.
    Ceilings are taken, so every row is covered: with the floors of one printing the last n mod B rows would be lost.
    """
    hbm = Hbm()
    _flash_forward(hbm, n, dim, sram_elements, causal, fill)
    if backward:
        _flash_backward(hbm, n, dim, sram_elements, causal, fill)
    return hbm.traffic()


def _flash_forward(hbm, n, dim, sram_elements, causal, fill):
    block_q, block_k = block_sizes(sram_elements, dim)
    if fill:
        hbm.write(n, dim + 2)  # O, l, m
    for j in tiles(n, block_k):
        hbm.read(len(j), 2 * dim)  # K_j, V_j
        for i in tiles(n, block_q):
            if causal and i[-1] < j[0]:
                continue
            hbm.read(len(i), 2 * dim + 2)  # Q_i, O_i, l_i, m_i
            hbm.write(len(i), dim + 2)  # O_i, l_i, m_i


def _flash_backward(hbm, n, dim, sram_elements, causal, fill):
    block_q, block_k = block_sizes(sram_elements, dim)
    if fill:
        hbm.write(n, 3 * dim)  # dQ, dK, dV
    for j in tiles(n, block_k):
        hbm.read(len(j), 2 * dim)  # K_j, V_j
        for i in tiles(n, block_q):
            if causal and i[-1] < j[0]:
                continue
            hbm.read(len(i), 4 * dim + 2)  # Q_i, O_i, dO_i, dQ_i, l_i, m_i
            hbm.write(len(i), dim)  # dQ_i
        hbm.write(len(j), 2 * dim)  # dK_j, dV_j


def flash_formula(
    n: int, dim: int, sram_elements: int, *, backward: bool = False, causal: bool = False, fill: bool = False
) -> Traffic:
    """2 n d + R (3 d + 4) forward, 4 n d + R (5 d + 2) backward, R = T_c n query rows visited in all: O(n² d² / M).

    causal: R = sum over key tiles j of (n - B_r floor(j B_c / B_r)), about half.
    """
    block_q, block_k = block_sizes(sram_elements, dim)
    T_c = math.ceil(n / block_k)
    R = sum(n - j * block_k // block_q * block_q for j in range(T_c)) if causal else T_c * n
    reads = 2 * n * dim + R * (2 * dim + 2)
    writes = R * (dim + 2) + fill * n * (dim + 2)
    if backward:
        reads += 2 * n * dim + R * (4 * dim + 2)
        writes += 2 * n * dim + R * dim + fill * 3 * n * dim
    return Traffic(reads, writes)


def simulate_flash2(n: int, dim: int, block_q: int, block_k: int, *, causal: bool = False) -> Traffic:
    """FlashAttention-2's forward: the outer loop runs over Q tiles, so O and lse are written once, at the end."""
    hbm = Hbm()
    for i in tiles(n, block_q):
        hbm.read(len(i), dim)  # Q_i
        for j in tiles(n, block_k):
            if causal and j[0] > i[-1]:
                break
            hbm.read(len(j), 2 * dim)  # K_j, V_j
        hbm.write(len(i), dim + 1)  # O_i, lse_i
    return hbm.traffic()


def flash2_formula(n: int, dim: int, block_q: int, block_k: int, *, causal: bool = False) -> Traffic:
    """Reads n d + 2 d C, writes n (d + 1), C = T_r n keys visited in all; causal: whole tiles up to the diagonal."""
    T_r = math.ceil(n / block_q)
    ends = [min(n, (i + 1) * block_q) if causal else n for i in range(T_r)]
    C = sum(min(n, math.ceil(end / block_k) * block_k) for end in ends)
    return Traffic(n * dim + 2 * dim * C, n * (dim + 1))


# --- the published table ---------------------------------------------------------------------------------------------


def attention_flops(n: int, dim: int, *, causal: bool = False, backward: bool = False, recompute: bool = False) -> int:
    """Matmul FLOPs of one head: forward 2 products of 2 n² d; `backward` adds 4, `recompute` one more (S again).

    causal counts the n (n + 1) / 2 pairs that are looked at. Softmax is left out: O(n²), no matmul.
    """
    pairs = n * (n + 1) // 2 if causal else n * n
    matmuls = 2 + 4 * backward + (1 if backward and recompute else 0)
    return matmuls * 2 * pairs * dim


class Pass(NamedTuple):
    """One row of the pass table: what one step moves, in elements per head."""

    algorithm: str
    phase: str
    name: str
    reads: float | int
    writes: float | int

    @property
    def elements(self) -> float | int:
        return self.reads + self.writes


def pass_table(n: int = 1024, dim: int = 64, sram_elements: int = A100_SRAM_ELEMENTS) -> list[Pass]:
    """Every step behind the published 40.3 GB and 4.4 GB: elements per head, forward and backward.

    Standard: with mask and dropout. Flash: the loops of algorithms 1 and 4, then the zero-fill as rows of its own.
    Bytes of the published shape: elements * heads * batch * 2, one layer. See `table_bytes`.
    """
    rows = []
    for phase, name, reads, writes, _ in STANDARD_STEPS:
        t = _standard_step(n, dim, reads, writes, block=128)
        rows.append(Pass("standard", phase, name, t.reads, t.writes))
    for phase, walk in (("forward", _flash_forward), ("backward", _flash_backward)):
        hbm = Hbm()
        walk(hbm, n, dim, sram_elements, causal=False, fill=False)
        rows.append(Pass("flash", phase, "loops over K, V and Q tiles", hbm.reads, hbm.writes))
    rows.append(Pass("flash fill", "forward", "O, l, m = 0, 0, -inf", 0, n * (dim + 2)))
    rows.append(Pass("flash fill", "backward", "dQ, dK, dV = 0", 0, 3 * n * dim))
    return rows


def table_bytes(algorithm: str, *, phase: str | None = None, itemsize: int = 2) -> float | int:
    """Bytes of all heads and sequences of the published shape, summed over the rows of one algorithm (and phase)."""
    shape = GPT2_MEDIUM
    rows = [r for r in pass_table(shape["n"], shape["dim"]) if r.algorithm == algorithm and phase in (None, r.phase)]
    return sum(r.elements for r in rows) * shape["heads"] * shape["batch"] * itemsize


def table_flops(*, recompute: bool = False) -> int:
    """Forward + backward matmul FLOPs of the published shape: 0.82 TFLOP, or 0.96 where S is computed twice."""
    shape = GPT2_MEDIUM
    per_head = attention_flops(shape["n"], shape["dim"], backward=True, recompute=recompute)
    return per_head * shape["heads"] * shape["batch"]
