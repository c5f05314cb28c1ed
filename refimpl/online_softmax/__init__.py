"""Softmax in one pass: a running maximum m, a running sum l, and partial results that merge.

`eager` holds the readable forms, `kernel` the fused Triton softmax.
"""

from refimpl.online_softmax.eager import (
    State,
    block_state,
    empty_state,
    finish,
    merge,
    running_stats,
    softmax_textbook,
    softmax_three_pass,
    softmax_two_pass,
    streaming_attention,
)

__all__ = [
    "State",
    "block_state",
    "empty_state",
    "finish",
    "fused_softmax",
    "merge",
    "running_stats",
    "softmax_textbook",
    "softmax_three_pass",
    "softmax_two_pass",
    "streaming_attention",
]


def fused_softmax(x):
    """softmax over the last axis of a matrix, by one Triton kernel: see `refimpl.online_softmax.kernel`."""
    from refimpl.online_softmax import kernel  # here, so that the package imports where Triton is absent

    return kernel.fused_softmax(x)
