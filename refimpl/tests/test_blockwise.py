"""Recomputing, offloading and blocking change what a block needs, never what it returns."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from refimpl.blockwise import Host, blockwise_block, checkpoint
from refimpl.meter import Meter, saved_for_backward
from refimpl.transformer import EncoderBlock, TransformerConfig


def encoder_block(seed=0, model=32, heads=4, norm_first=False, dtype=torch.float64) -> EncoderBlock:
    torch.manual_seed(seed)
    return EncoderBlock(TransformerConfig(vocab=1, model=model, heads=heads, layers=1, norm_first=norm_first)).to(dtype)


def tokens(batch, seq, model=32, dtype=torch.float64, seed=1):
    return torch.randn(batch, seq, model, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def value_and_gradients(call, x, block):
    """The output, and the gradients of a random weighted sum of it for the input and every parameter."""
    out = call(x)
    weights = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(2))
    return out, torch.autograd.grad((out * weights).sum(), [x, *block.parameters()])


# --- checkpointing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [False, True])
def test_a_checkpointed_block_is_the_block_to_the_last_bit(host):
    """Output and every gradient, with the inputs kept on the device or on the host."""
    block, x = encoder_block(dtype=torch.float32), tokens(2, 17, dtype=torch.float32)
    plain, wanted = value_and_gradients(block, x, block)
    out, got = value_and_gradients(lambda x: checkpoint(block, x, host=Host() if host else None), x, block)
    assert torch.equal(out, plain)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_a_checkpoint_inside_a_checkpoint_works():
    """The second run of the outer function checkpoints once more."""
    block, x = encoder_block(), tokens(1, 9)
    _, wanted = value_and_gradients(block, x, block)
    _, got = value_and_gradients(lambda x: checkpoint(lambda x: checkpoint(block, x), x), x, block)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_dropout_drops_the_same_numbers_the_second_time():
    """Gradients of a dropped-out sum are 0 exactly where the forward dropped, and the generator goes on alike."""
    x = tokens(1, 50)
    torch.manual_seed(3)
    out = checkpoint(nn.Dropout(0.5), x)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(nn.Dropout(0.5)(x), out) and torch.equal(torch.rand(1), after)
    torch.rand(7)  # others draw between forward and backward
    state = torch.get_rng_state()
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad == 0, out == 0) and torch.equal(torch.get_rng_state(), state)


def test_only_the_inputs_are_kept():
    """Saved bytes: all activations without, none inside the call with; torch's own checkpoint agrees on the result."""
    block, x = encoder_block(), tokens(2, 64)
    with saved_for_backward(x, *block.parameters()) as plain:
        block(x)
    with saved_for_backward(x, *block.parameters()) as kept:
        out = checkpoint(block, x)
    assert plain.bytes > 15 * x.nbytes and kept.bytes == 0
    theirs = torch_checkpoint(block, x, use_reentrant=False)
    ours, peers = (torch.autograd.grad(y.square().sum(), x)[0] for y in (out, theirs))
    assert torch.equal(ours, peers)


def test_the_second_forward_is_a_third_more_compute():
    """Counted matmul FLOPs of forward and backward: 3 F without, 4 F with."""
    block, x = encoder_block(), tokens(1, 32)

    def flops(call):
        with Meter() as meter:
            call(x).sum().backward()
        return meter.flops

    with Meter() as forward:
        block(x)
    assert flops(block) == 3 * forward.flops
    assert flops(lambda x: checkpoint(block, x)) == 4 * forward.flops


def test_the_host_holds_the_inputs_between_the_passes_and_nothing_after():
    """Bytes out, bytes held, bytes in: one input each way."""
    host, block, x = Host(), encoder_block(), tokens(1, 32)
    out = checkpoint(block, x, host=host)
    assert (host.bytes_out, host.held_bytes, host.bytes_in) == (x.nbytes, x.nbytes, 0)
    out.sum().backward()
    assert (host.bytes_out, host.held_bytes, host.bytes_in, host.peak_bytes) == (x.nbytes, 0, x.nbytes, x.nbytes)


def test_an_offloaded_input_leaves_the_device():
    """Nothing of the call refers to the original any more, so its memory can be given out again."""
    import weakref

    block = encoder_block()
    x = tokens(1, 32)
    middle = x * 2
    storage = weakref.ref(middle.untyped_storage())
    out = checkpoint(block, middle, host=Host())
    del middle
    assert storage() is None
    out.sum().backward()
    assert x.grad is not None


def test_a_second_backward_is_refused_with_the_way_out():
    """What was recomputed is gone; the message says to call again."""
    x = tokens(1, 5)
    out = checkpoint(lambda x: x.exp().exp(), x)
    out.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="Call the function anew"):
        out.sum().backward()


# --- the blockwise parallel transformer -----------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    seq=st.integers(1, 60), block_q=st.integers(1, 70), block_k=st.integers(1, 70),
    causal=st.booleans(), norm_first=st.booleans(),
)  # fmt: skip
def test_blockwise_equals_the_unblocked_block(seq, block_q, block_k, causal, norm_first):
    """Output and all gradients in float64, at lengths and blocks that do not fit together."""
    block, x = encoder_block(norm_first=norm_first), tokens(2, seq)
    plain, wanted = value_and_gradients(lambda x: block(x, causal=causal), x, block)
    call = lambda x: blockwise_block(block, x, causal=causal, block_q=block_q, block_k=block_k)  # noqa: E731
    out, got = value_and_gradients(call, x, block)
    torch.testing.assert_close(out, plain, rtol=0, atol=1e-13)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_no_tensor_is_as_large_as_the_scores_or_the_hidden_layer():
    """Nor do all blocks together: the largest tensor of forward and backward is linear in seq, without the factor 4."""
    block, seq = encoder_block(), 512
    x = tokens(1, seq)
    with Meter() as meter:
        blockwise_block(block, x, block_q=32, block_k=32).sum().backward()
    assert meter.largest_bytes <= x.nbytes
    with Meter() as plain:
        block(x).sum().backward()
    assert plain.largest_bytes == 8 * 4 * seq * seq
    assert meter.peak_bytes < plain.peak_bytes / 15


def test_more_blocks_need_less_memory():
    """Peak bytes of forward and backward fall with every doubling of the number of blocks."""
    block, x = encoder_block(), tokens(1, 256)

    def peak(blocks):
        with Meter() as meter:
            blockwise_block(block, x, block_q=256 // blocks, block_k=256 // blocks).sum().backward()
        return meter.peak_bytes

    peaks = [peak(blocks) for blocks in (1, 2, 4, 8, 16)]
    assert peaks == sorted(peaks, reverse=True) and peaks[0] > 4 * peaks[-1]


def test_the_forward_costs_the_same_compute():
    """FLOPs are those of the plain block: blocking moves work, it adds none."""
    block, x = encoder_block(), tokens(2, 64)
    with Meter() as plain:
        block(x)
    with Meter() as blocked:
        blockwise_block(block, x, block_q=16, block_k=16)
    assert blocked.flops == plain.flops


def test_causal_blocks_skip_the_keys_after_them():
    """Changing later tokens changes nothing before them, and skipped tiles cost nothing."""
    block, x = encoder_block(), tokens(1, 64)
    changed = torch.cat((x[:, :40], x[:, 40:] + 1), dim=1)
    a, b = (blockwise_block(block, y, causal=True, block_q=8, block_k=8) for y in (x, changed))
    assert torch.equal(a[:, :40], b[:, :40]) and not torch.equal(a[:, 40:], b[:, 40:])
    with Meter() as full, torch.no_grad():
        blockwise_block(block, x, block_q=8, block_k=8)
    with Meter() as half, torch.no_grad():
        blockwise_block(block, x, causal=True, block_q=8, block_k=8)
    pairs, seen = 8 * 8, sum(range(1, 9))  # tiles of the square, and of the triangle with its diagonal
    scores = 4 * 64 * 64 * 32
    assert full.flops - half.flops == scores * (pairs - seen) // pairs


def test_an_empty_block_is_refused():
    """With both sizes in the message."""
    with pytest.raises(ValueError, match="given block_q=0, block_k=512"):
        blockwise_block(encoder_block(), tokens(1, 4), block_q=0)
