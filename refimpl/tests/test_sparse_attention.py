"""Sparse attention: patterns as the papers describe them, and that what is not looked at is not computed."""

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812 - PyTorch's own convention
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention
from torch.testing import assert_close

from refimpl.attention import naive_attention
from refimpl.meter import Meter, saved_for_backward
from refimpl.sparse_attention import (
    UNREACHABLE,
    bigbird_blocks,
    block_layout,
    block_sparse_attention,
    both,
    by_blocks,
    causal,
    dense_mask,
    either,
    global_tokens,
    longformer,
    mixing_time,
    random_blocks,
    reach_of_window,
    reached,
    shortest_paths,
    sliding_window,
    sliding_window_attention,
    spectral_gap,
)


def qkv(q_len, k_len, heads=(2, 2), dim=4, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    shapes = ((heads[0], q_len), (heads[1], k_len), (heads[1], k_len))
    return [torch.randn(2, h, n, dim, generator=draw, dtype=dtype) for h, n in shapes]


def by_hand(q_len, k_len, window, dilation, is_causal, tokens):
    """The mask of Longformer's words, one pair at a time: no function of the package takes part."""
    mask = torch.zeros(q_len, k_len, dtype=torch.bool)
    for row in range(q_len):
        i = row + k_len - q_len
        for j in range(k_len):
            steps = (i - j) / dilation
            near = 0 <= steps < window if is_causal else abs(steps) <= window / 2
            seen = (near and steps == int(steps)) or i in tokens or j in tokens
            mask[row, j] = seen and not (is_causal and j > i)
    return mask


# --- the computation -------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    window=st.integers(1, 12).map(lambda w: 2 * w),
    dilation=st.integers(1, 4),
    is_causal=st.booleans(),
    tokens=st.lists(st.integers(0, 39), max_size=3),
    heads=st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    chunk=st.integers(1, 17),
)
def test_window_and_global_tokens_are_the_masked_attention(lengths, window, dilation, is_causal, tokens, heads, chunk):
    """Any lengths, more queries than keys among them; grouped heads; chunks that divide nothing; empty rows give 0."""
    q_len, k_len = lengths
    tokens = [t for t in tokens if t < k_len]
    q, k, v = qkv(q_len, k_len, heads)
    mask = by_hand(q_len, k_len, window, dilation, is_causal, tokens)
    got = sliding_window_attention(
        q, k, v, window=window, dilation=dilation, causal=is_causal, tokens=tokens, chunk=chunk, return_lse=True
    )
    want = naive_attention(q, k, v, mask=mask, return_lse=True)
    assert_close(got[0], want[0], rtol=0, atol=1e-12)
    assert_close(got[1], want[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [1, 3, 7])
def test_a_causal_window_may_be_odd(window):
    """It counts the query itself: a window of 1 gives back the value."""
    q, k, v = qkv(20, 20)
    got = sliding_window_attention(q, k, v, window=window, causal=True, chunk=6)
    assert_close(got, naive_attention(q, k, v, mask=by_hand(20, 20, window, 1, True, ())), rtol=0, atol=1e-12)
    if window == 1:
        assert_close(got, v)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("dilation", "tokens"), [(1, ()), (2, (0, 5))])
def test_gradients_are_right(is_causal, dilation, tokens):
    """Against finite differences, through out and lse, two query heads per key head."""
    inputs = [x[:1].requires_grad_() for x in qkv(7, 7, (2, 1), 2)]
    options = {"window": 4, "dilation": dilation, "causal": is_causal, "tokens": tokens, "chunk": 3}
    assert torch.autograd.gradcheck(lambda *x: sliding_window_attention(*x, **options, return_lse=True), inputs)


def test_gradients_through_a_layout_are_right():
    """BigBird blocks, causal, a last tile that is not full."""
    pattern = both(by_blocks(bigbird_blocks(4, window=1, random=1, first=1), 3), causal)
    layout = block_layout(pattern, 11, block=3)
    inputs = [x[:1].requires_grad_() for x in qkv(11, 11, (2, 1), 2)]
    assert torch.autograd.gradcheck(lambda *x: block_sparse_attention(*x, layout, return_lse=True), inputs)


def test_float32_is_as_exact_as_the_masked_form():
    """At N = 600: no more than 4 times the error of naive float32, judged in float64."""
    q, k, v = qkv(600, 600, dim=32, dtype=torch.float32)
    mask = by_hand(600, 600, 100, 1, True, (0,))
    want = naive_attention(q.double(), k.double(), v.double(), mask=mask)
    naive = (naive_attention(q, k, v, mask=mask) - want).abs().max()
    ours = (sliding_window_attention(q, k, v, window=100, causal=True, tokens=[0]) - want).abs().max()
    assert ours <= 4 * naive + 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    """Tiles are computed in float32, so the result is the exact one in that precision, up to its last place."""
    q, k, v = qkv(200, 200, dim=16, dtype=dtype)
    want = naive_attention(q.double(), k.double(), v.double(), mask=by_hand(200, 200, 16, 1, False, (3,)))
    got = sliding_window_attention(q, k, v, window=16, tokens=[3])
    # the global row is the naive form in half precision; all others are better
    naive = naive_attention(q, k, v, mask=by_hand(200, 200, 16, 1, False, (3,)))
    assert got.dtype == dtype
    others = torch.arange(200) != 3
    assert ((got - want)[:, :, others]).abs().max() <= torch.finfo(dtype).eps * want.abs().max()
    assert (got - want).abs().max() <= 2 * (naive - want).abs().max() + 2 * torch.finfo(dtype).eps * want.abs().max()


def test_keys_outside_the_window_have_no_say():
    """Other keys and values there: the output is the same to the bit."""
    q, k, v = qkv(100, 100)
    before = sliding_window_attention(q, k, v, window=10, causal=True)
    k[:, :, :60], v[:, :, :60] = 1e6, -1e6
    after = sliding_window_attention(q, k, v, window=10, causal=True)
    assert torch.equal(before[:, :, 69:], after[:, :, 69:])
    assert not torch.equal(before[:, :, 68], after[:, :, 68])


def test_views_are_read_as_they_lie():
    """Heads and tokens change places in memory: the same numbers."""
    q, k, v = qkv(50, 50)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    options = {"window": 8, "dilation": 2, "tokens": [1]}
    assert torch.equal(sliding_window_attention(q, k, v, **options), sliding_window_attention(*turned, **options))


def test_no_query_and_no_batch_are_empty_answers():
    """Nothing in, nothing out; keys nobody asks for get no gradient."""
    q, k, v = (x.requires_grad_() for x in qkv(0, 5))
    out = sliding_window_attention(q, k, v, window=4)
    assert out.shape == (2, 2, 0, 4)
    out.sum().backward()
    assert not k.grad.any()
    layout = block_layout(causal, 5, block=2)
    assert block_sparse_attention(*(x[:0] for x in qkv(5, 5)), layout).shape == (0, 2, 5, 4)


# --- what it costs ---------------------------------------------------------------------------------------------------


def counted(n, window, chunk=32):
    q, k, v = qkv(n, n, dim=8)
    with Meter() as meter:
        sliding_window_attention(q, k, v, window=window, causal=True, chunk=chunk)
    return meter


def test_work_grows_with_the_length_and_with_the_window():
    """Counted: 4 dim (window + chunk - 1) FLOPs per query and head, but for the first chunks, whose window is cut."""
    n, window, chunk = 256, 64, 32
    keys = sum(min(start + chunk, window + chunk - 1) for start in range(0, n, chunk))
    assert counted(n, window).flops == 2 * 2 * 4 * 8 * chunk * keys
    added = counted(2 * n, window).flops - counted(n, window).flops
    assert added == 2 * 2 * 4 * 8 * n * (window + chunk - 1)


def test_memory_is_one_line_in_the_length_and_one_chunk_of_scores():
    """Peak = output and lse (9 numbers per query and head here) + a constant that one window's chunk fixes."""
    peaks = [counted(n, 64).peak_bytes for n in (256, 512, 1024)]
    assert peaks[1] - peaks[0] == 256 * 9 * 8 * 4 and peaks[2] - peaks[1] == 512 * 9 * 8 * 4
    wider = counted(1024, 128).peak_bytes - peaks[2]
    assert 0 < wider < 4 * 32 * 64 * 8 * 4  # a few copies of the 64 keys more that 32 queries look at


def test_the_backward_keeps_nothing_of_the_windows():
    """Saved: q, k, v, out and lse."""
    q, k, v = (x.requires_grad_() for x in qkv(256, 256, dim=8))
    with saved_for_backward() as saved:
        sliding_window_attention(q, k, v, window=64)
    assert saved.bytes == (4 * q.numel() + 2 * 2 * 256) * 8


def test_block_sparse_work_is_that_of_its_tiles():
    """Counted FLOPs equal the layout's, whole tiles and partial ones; the score matrix has more."""
    layout = block_layout(both(sliding_window(40, causal=True), causal), 256, block=32)
    q, k, v = qkv(256, 256, dim=8)
    with Meter() as meter:
        block_sparse_attention(q, k, v, layout)
    assert meter.flops == 2 * 2 * layout.flops(8)
    assert layout.tile_density == len(layout.columns) / 64 < 0.5


# --- patterns --------------------------------------------------------------------------------------------------------


def flex(pattern):
    """The pattern as FlexAttention wants it."""
    return lambda b, h, i, j: pattern(i, j)


PATTERNS = {
    "sliding": sliding_window(10),
    "causal window": sliding_window(9, causal=True),
    "dilated": sliding_window(6, dilation=3),
    "longformer": longformer(8, [0, 30]),
    "one-sided": either(sliding_window(8), global_tokens([5], rows=False)),
    "bigbird": both(by_blocks(bigbird_blocks(7, window=1, random=1, first=1, causal=True), 10), causal),
    "random": by_blocks(random_blocks(64, 4), 1),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_flex_attention_makes_the_same_masks_and_tiles(name):
    """PyTorch's own machinery, given the pattern as mask_mod."""
    n, block, pattern = 64, 16, PATTERNS[name]
    assert torch.equal(create_mask(flex(pattern), None, None, n, n, device="cpu")[0, 0], dense_mask(pattern, n))
    theirs = create_block_mask(flex(pattern), None, None, n, n, device="cpu", BLOCK_SIZE=block)
    layout = block_layout(pattern, n, block=block)
    assert torch.equal(theirs.to_dense()[0, 0].bool(), tile_matrix(layout))
    whole = [len(row) for _, row, _, _ in layout.rows()]
    assert theirs.full_kv_num_blocks[0, 0].tolist() == whole


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_computes_the_same():
    """Uncompiled, on a CPU; the pattern as a table, since its compiler does not look through our shape checks."""
    table = dense_mask(PATTERNS["bigbird"], 64)
    theirs = create_block_mask(lambda b, h, i, j: table[i, j], None, None, 64, 64, device="cpu", BLOCK_SIZE=16)
    q, k, v = qkv(64, 64, dtype=torch.float32)
    ours = block_sparse_attention(q, k, v, block_layout(PATTERNS["bigbird"], 64, block=16))
    assert_close(ours, flex_attention(q, k, v, block_mask=theirs), rtol=0, atol=5e-6)


def tile_matrix(layout):
    kept = torch.zeros(len(layout.order), -(-layout.k_len // layout.block), dtype=torch.bool)
    for r, (_, whole, partial, _) in enumerate(layout.rows()):
        kept[r, torch.cat((whole, partial)).long()] = True
    return kept


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.tuples(st.integers(0, 40), st.integers(1, 40)),
    block=st.integers(1, 20),
    name=st.sampled_from(sorted(PATTERNS)),
)
def test_a_layout_holds_the_whole_pattern_and_nothing_else(lengths, block, name):
    """Its tiles put together are the mask; pairs and densities are counted; attention over it is the masked one."""
    q_len, k_len = lengths
    mask = dense_mask(PATTERNS[name], q_len, k_len)
    layout = block_layout(PATTERNS[name], q_len, k_len, block=block)
    built = torch.zeros(q_len, -(-k_len // block) * block, dtype=torch.bool)
    for rows, whole, partial, masks in layout.rows():
        for c in whole.tolist():
            built[rows, c * block : (c + 1) * block] = True
        for c, tile in zip(partial.tolist(), masks, strict=True):
            built[rows, c * block : (c + 1) * block] = tile[: rows.stop - rows.start]
    assert torch.equal(built[:, :k_len], mask) and not built[:, k_len:].any()
    assert layout.pairs == mask.sum() and layout.density == pytest.approx(mask.float().mean().nan_to_num().item())
    q, k, v = qkv(q_len, k_len, (4, 2))
    got = block_sparse_attention(q, k, v, layout, return_lse=True)
    want = naive_attention(q, k, v, mask=mask, return_lse=True)
    assert_close(got[0], want[0], rtol=0, atol=1e-12)
    assert_close(got[1], want[1], rtol=0, atol=1e-12)


def test_a_window_has_the_same_few_masks_at_every_length():
    """Near edge and far edge; so a layout takes memory per tile, and 4 times the length takes 4 times as much."""
    short, long = (block_layout(sliding_window(128, causal=True), n, block=32) for n in (512, 2048))
    assert len(short.tiles) == len(long.tiles) == 2
    assert long.nbytes - short.nbytes < 4 * short.nbytes
    assert long.order[0] in range(4, 64) and long.order[-1] == 0  # longest rows first; the first row is the shortest


@pytest.mark.parametrize(("blocks", "window", "first", "random"), [(16, 3, 2, 3), (20, 1, 0, 4), (12, 5, 1, 0)])
def test_bigbird_has_as_many_blocks_as_its_parts_say(blocks, window, first, random):
    """Interior rows: window + first + random, all different; global rows and columns are full; two draws differ."""
    keep = bigbird_blocks(blocks, window=window, first=first, random=random)
    half = window // 2
    assert keep[:first].all() and keep[:, :first].all()
    counts = keep[first + half : blocks - half].sum(1)
    assert (counts == window + first + random).all()
    other = bigbird_blocks(blocks, window=window, first=first, random=random, seed=1)
    assert torch.equal(keep, other) == (random == 0)


def test_causal_bigbird_looks_back_only():
    """Rows near the beginning take what there is."""
    keep = bigbird_blocks(16, window=3, first=1, random=2, causal=True)
    assert not keep.triu(1).any() and keep.diagonal().all() and keep[:, 0].all()
    assert keep.sum(1).tolist() == [1, 2, 3, 4] + [5] * 12


def test_random_attention_gives_every_query_r_keys():
    """A(i, ·) = 1 for r random keys; about as often each key; more than there are is all."""
    keep = random_blocks(200, 7)
    assert (keep.sum(1) == 7).all()
    assert keep.sum(0).double().std() < 5  # Poisson-like around 7
    assert random_blocks(3, 9).all()


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("columns", [False, True])
def test_global_attention_may_be_taken_apart(rows, columns):
    """Rows alone, columns alone; both together are symmetric."""
    mask = dense_mask(global_tokens([2, 5], rows=rows, columns=columns), 8)
    assert mask[2].all() == mask[5].all() == rows and mask[:, 2].all() == mask[:, 5].all() == columns
    assert mask.sum() == 16 * (rows + columns) - (4 if rows and columns else 0)
    assert torch.equal(mask, mask.mT) == (rows == columns)


# --- graphs ----------------------------------------------------------------------------------------------------------


def bfs(mask, start):
    """Hops from every token to `start`, by a queue: layers until its information is in `start`."""
    n, hops, queue = len(mask), {start: 0}, deque([start])
    while queue:
        i = queue.popleft()
        for j in range(n):
            if mask[i][j] and j not in hops:
                hops[j] = hops[i] + 1
                queue.append(j)
    return [hops.get(j, UNREACHABLE) for j in range(n)]


@pytest.mark.parametrize("name", PATTERNS)
def test_shortest_paths_are_those_of_a_queue(name):
    """Breadth-first search from every token; what depth layers reach is what lies within depth hops."""
    mask = dense_mask(PATTERNS[name], 40)
    hops = shortest_paths(mask)
    assert hops.tolist() == [bfs(mask.tolist(), i) for i in range(40)]
    for depth in (1, 3):
        assert torch.equal(reached([mask] * depth), (hops >= 0) & (hops <= depth))


@pytest.mark.parametrize(("window", "dilation", "depth"), [(4, 1, 3), (4, 2, 3), (8, 3, 2)])
def test_the_span_of_a_stack_is_window_times_dilation_per_layer(window, dilation, depth):
    """From the middle token, bidirectional: W D positions per layer and itself; but only every D-th of them is seen."""
    n = 201
    row = reached([dense_mask(sliding_window(window, dilation=dilation), n)] * depth)[n // 2].nonzero()[:, 0]
    assert row[-1] - row[0] == depth * window * dilation
    assert len(row) == depth * window + 1


def test_a_complete_graph_mixes_at_once_and_a_ring_slowly():
    """Gap 1 and one step; on a lazy ring the gap is that of its cosines, and time grows with the square of the size."""
    assert spectral_gap(torch.ones(8, 8, dtype=torch.bool)) == pytest.approx(1.0, abs=1e-6)
    assert mixing_time(torch.ones(8, 8, dtype=torch.bool)) == 1

    eigenvalue = (1 + 2 * torch.cos(torch.tensor(2 * torch.pi / 30, dtype=torch.float64))) / 3
    assert spectral_gap(ring_edges(30)) == pytest.approx(1 - eigenvalue.item())
    times = [mixing_time(ring_edges(n)) for n in (16, 32, 64)]
    assert times[1] / times[0] == pytest.approx(4, rel=0.1) and times[2] / times[1] == pytest.approx(4, rel=0.1)


def ring_edges(n):
    """Neighbours on a circle of n."""
    place = torch.arange(n)
    apart = (place[:, None] - place) % n
    return (apart <= 1) | (apart == n - 1)


def test_mixing_time_is_the_first_step_that_is_near_enough():
    """Against multiplying one step at a time; two parts without a bridge never mix."""
    mask = ring_edges(24)
    walk = (mask | torch.eye(24, dtype=torch.bool)).double()
    walk /= walk.sum(1, keepdim=True)
    power, steps = walk, 1
    while 0.5 * (power - 1 / 24).abs().sum(1).max() > 0.25:
        power, steps = power @ walk, steps + 1
    assert mixing_time(mask) == steps
    apart = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3)).bool()
    assert mixing_time(apart, limit=1000) is None and spectral_gap(apart) == pytest.approx(0, abs=1e-9)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_errors_name_what_was_given_and_the_way_out():
    """Odd windows in both directions, no dilation, tokens outside, chunks of nothing, another length's layout."""
    q, k, v = qkv(10, 10)
    with pytest.raises(ValueError, match=r"given window=3; .* in both directions an even number"):
        sliding_window_attention(q, k, v, window=3)
    with pytest.raises(ValueError, match="given window=0"):
        reach_of_window(0, causal=True)
    with pytest.raises(ValueError, match="dilation must be at least 1, given 0"):
        sliding_window_attention(q, k, v, window=4, dilation=0)
    with pytest.raises(ValueError, match=r"global tokens \[10\] are no positions of 10 keys"):
        sliding_window_attention(q, k, v, window=4, tokens=[10])
    with pytest.raises(ValueError, match="chunk must be at least 1, given 0"):
        sliding_window_attention(q, k, v, window=4, chunk=0)
    with pytest.raises(ValueError, match=r"of 9 queries and 10 keys, given q \(2, 2, 10, 4\).* make one with"):
        block_sparse_attention(q, k, v, block_layout(causal, 9, 10))
    with pytest.raises(ValueError, match="window must be odd, the block itself in the middle; given 2"):
        bigbird_blocks(8, window=2)
    with pytest.raises(ValueError, match="block at least 1 and lengths at least 0, given 0, 4, 4"):
        block_layout(causal, 4, block=0)


def test_the_dense_mask_gives_the_same_as_pytorchs_own_attention():
    """SDPA with the written-out mask: a third implementation, float32."""
    q, k, v = qkv(128, 128, dtype=torch.float32)
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=dense_mask(longformer(16, [0]), 128))
    assert_close(sliding_window_attention(q, k, v, window=16, tokens=[0]), want, rtol=0, atol=5e-6)
