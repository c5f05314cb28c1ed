"""FlashAttention-2 in plain PyTorch: tiles of Q and of K, V, and never the whole score matrix.

The forward keeps one query tile and streams the key tiles past it, with the running (m, l, O) of online softmax.
It stores lse = m + log l, one number per query. The backward needs nothing else: exp(S - lse) is the finished
softmax of a tile, recomputed instead of remembered.

Letters are the papers': B_r = block_q rows and B_c = block_k keys per tile, S scores, P probabilities, O output.
Source: Dao et al. 2022 (FlashAttention); Dao 2023 (FlashAttention-2, algorithms 1 and 2).
"""

import torch

from refimpl.attention import check_qkv
from refimpl.online_softmax.eager import nonzero, pivot
from refimpl.shapes import Float, Tensor

# Measured on CPU cores: smaller tiles pay for more Python steps, larger ones fall out of the cache.
BLOCK_Q, BLOCK_K = 256, 512


def flash_attention(
    q: Float[Tensor, "batch heads q_len dim"],
    k: Float[Tensor, "batch kv_heads k_len dim"],
    v: Float[Tensor, "batch kv_heads k_len dim"],
    *,
    causal: bool = False,
    scale: float | None = None,
    block_q: int | None = None,
    block_k: int | None = None,
    return_lse: bool = False,
):
    """softmax(scale Q K^T) V with gradients, in O(q_len) extra memory; conventions as in `refimpl.attention`.

    FLOPs forward 4 q_len k_len dim per head, backward 10 (five matmuls of a tile; the forward has two). Causal: half.
    Half-precision inputs are computed in float32, tile by tile, as tensor cores accumulate.
    """
    out, lse = _FlashAttention.apply(q, k, v, causal, scale, block_q, block_k)
    return (out, lse) if return_lse else out


class _FlashAttention(torch.autograd.Function):
    """Ties `flash_forward` and `flash_backward` together; saves q, k, v, out and lse, all linear in length."""

    @staticmethod
    def forward(ctx, q, k, v, causal, scale, block_q, block_k):
        ctx.options = {"causal": causal, "scale": scale, "block_q": block_q, "block_k": block_k}
        out, lse = flash_forward(q, k, v, **ctx.options)
        ctx.save_for_backward(q, k, v, out, lse)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out, d_lse):
        return *flash_backward(*ctx.saved_tensors, d_out, d_lse=d_lse, **ctx.options), None, None, None, None


def flash_forward(
    q: Float[Tensor, "batch heads q_len dim"],
    k: Float[Tensor, "batch kv_heads k_len dim"],
    v: Float[Tensor, "batch kv_heads k_len dim"],
    *,
    causal: bool = False,
    scale: float | None = None,
    block_q: int | None = None,
    block_k: int | None = None,
) -> tuple[Float[Tensor, "batch heads q_len dim"], Float[Tensor, "batch heads q_len"]]:
    """The tiled forward: out, and lse for the backward."""
    scale = check_qkv(q, k, v, scale, where="flash_forward")
    tiles = Tiles(q, k, causal, block_q, block_k)
    Q_all, K_all, V_all = tiles.group(q), tiles.group(k), tiles.group(v)
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=tiles.dtype)
    for rows in tiles.row_tiles():
        Q = tiles.load(Q_all, rows) * scale  # scaled once here, not once per score
        m = Q.new_full(Q.shape[:-1], -torch.inf)
        l, O = torch.zeros_like(m), torch.zeros_like(Q)
        for cols in tiles.col_tiles(rows):
            S = tiles.mask_(Q @ tiles.load(K_all, cols).mT, rows, cols)
            m = attend_(m, l, O, S, tiles.load(V_all, cols))
        tiles.group(out)[..., rows, :] = O / nonzero(l)[..., None]  # the only division, after the last key
        tiles.group(lse[..., None])[..., rows, 0] = m + torch.log(l)
    return out, lse


def attend_(m, l, O, S, V):
    """One step of online softmax, in place: take in the scores S and values V of one more key tile.

    Returns the new m. l and O are kept in units of exp(m), so a larger maximum converts them before anything is added.
    """
    m_new = torch.maximum(m, S.amax(dim=-1))
    unit = pivot(m_new)
    P = S.sub_(unit[..., None]).exp_()
    convert = torch.exp(m - unit)
    l.mul_(convert).add_(P.sum(dim=-1))
    O.mul_(convert[..., None]).add_(P @ V)
    return m_new


def flash_backward(
    q: Float[Tensor, "batch heads q_len dim"],
    k: Float[Tensor, "batch kv_heads k_len dim"],
    v: Float[Tensor, "batch kv_heads k_len dim"],
    out: Float[Tensor, "batch heads q_len dim"],
    lse: Float[Tensor, "batch heads q_len"],
    d_out: Float[Tensor, "batch heads q_len dim"],
    *,
    d_lse: Float[Tensor, "batch heads q_len"] | None = None,
    causal: bool = False,
    scale: float | None = None,
    block_q: int | None = None,
    block_k: int | None = None,
) -> tuple[
    Float[Tensor, "batch heads q_len dim"],
    Float[Tensor, "batch kv_heads k_len dim"],
    Float[Tensor, "batch kv_heads k_len dim"],
]:
    """Gradients (dq, dk, dv) from the saved out and lse, tile by tile.

    P = exp(S - lse);  dV = P^T dO;  dP = dO V^T;  dS = P * (dP - D);  dQ = scale dS K;  dK = scale dS^T Q
    with D = rowsum(dO * O): the softmax gradient needs rowsum(dP * P), and that is the same number without any tile.
    """
    scale = check_qkv(q, k, v, scale, where="flash_backward")
    tiles = Tiles(q, k, causal, block_q, block_k)
    Q_all, K_all, V_all, dO_all = (tiles.group(x) for x in (q, k, v, d_out))
    D_all = (d_out.to(tiles.dtype) * out).sum(dim=-1, keepdim=True)
    if d_lse is not None:
        D_all = D_all - d_lse[..., None]  # d lse / dS = P: a gradient through lse joins the same bracket
    D_all, lse_all = tiles.group(D_all), tiles.group(lse[..., None])
    dQ_all, dK_all, dV_all = (torch.zeros_like(x, dtype=tiles.dtype) for x in (Q_all, K_all, V_all))
    for rows in tiles.row_tiles():
        Q, dO, D, L = (tiles.load(x, rows) for x in (Q_all, dO_all, D_all, pivot(lse_all)))
        Q = Q * scale
        for cols in tiles.col_tiles(rows):
            K, V = tiles.load(K_all, cols), tiles.load(V_all, cols)
            P = tiles.mask_(Q @ K.mT, rows, cols).sub_(L).exp_()
            dS = (dO @ V.mT).sub_(D).mul_(P)
            # Every query head of a group reads the same key head, so its gradients add up there.
            dV_all[..., cols, :] += (P.mT @ dO).sum(dim=2, keepdim=True)
            dK_all[..., cols, :] += (dS.mT @ Q).sum(dim=2, keepdim=True)
            dQ_all[..., rows, :] += (dS @ K).mul_(scale)
    return tuple(grad.flatten(1, 2).to(q.dtype) for grad in (dQ_all, dK_all, dV_all))


class Tiles:
    """Which tiles there are, which of them a causal mask leaves, and how a tile is read.

    Tensors are cut as (batch, kv_heads, group, seq, dim): the query heads that share a key head stand together, so one
    batched matmul serves the whole group and K, V are never repeated.
    """

    def __init__(self, q, k, causal: bool, block_q: int | None, block_k: int | None):
        self.q_len, self.k_len, self.kv_heads = q.shape[2], k.shape[2], k.shape[1]
        self.block_q, self.block_k = block_q or BLOCK_Q, block_k or BLOCK_K
        # Query i sees keys j <= i + shift: the last query is aligned with the last key.
        self.causal, self.shift = causal, self.k_len - self.q_len
        self.dtype = torch.promote_types(q.dtype, torch.float32)

    def group(self, x):
        """(batch, heads, seq, dim) -> (batch, kv_heads, heads // kv_heads, seq, dim), a view."""
        return x.unflatten(1, (self.kv_heads, -1))

    def load(self, x, part: slice):
        """One tile, in the precision we compute in."""
        return x[..., part, :].to(self.dtype)

    def row_tiles(self):
        """The query tiles, the last one ragged."""
        return [slice(i, min(i + self.block_q, self.q_len)) for i in range(0, self.q_len, self.block_q)]

    def col_tiles(self, rows: slice):
        """The key tiles that at least one query of `rows` may see; the rest is skipped, not masked."""
        visible = min(self.k_len, rows.stop + self.shift) if self.causal else self.k_len
        return [slice(j, min(j + self.block_k, visible)) for j in range(0, visible, self.block_k)]

    def mask_(self, S, rows: slice, cols: slice):
        """Put -inf, in place, where a query may not look. Only tiles on the diagonal have such places."""
        if self.causal and cols.stop - 1 > rows.start + self.shift:
            i = torch.arange(rows.start, rows.stop, device=S.device)[:, None]
            j = torch.arange(cols.start, cols.stop, device=S.device)
            S.masked_fill_(j > i + self.shift, -torch.inf)
        return S
