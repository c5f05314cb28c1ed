"""Less memory for the same transformer block: recompute activations, offload them, and work on a block of queries.

Activation checkpointing forgets what a function saved for its backward pass and runs the function again when the
gradients ask for it: one more forward (compute 3F becomes 4F) against all activations inside. With a `Host`, even the
inputs that it needs for that leave the device. The Blockwise Parallel Transformer checkpoints each block of queries,
attention and feed-forward network together, so that neither the scores (seq x seq) nor the hidden layer (seq x 4 model)
ever exists whole.

Source: Chen et al. 2016 (checkpointing); Rajbhandari et al. 2020, section 6.1 (offloading); Liu and Abbeel 2023,
algorithm 1 (blockwise parallel transformer).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.autograd.graph import saved_tensors_hooks

from refimpl.flash_attention.eager import flash_attention
from refimpl.shapes import Float, Tensor
from refimpl.transformer import EncoderBlock, add_and_norm

__all__ = ["Host", "blockwise_block", "checkpoint"]


@dataclass
class Host:
    """The memory of the host, with a count of what crossed over. On a CPU the copies are real and the bus is not."""

    bytes_out: int = 0  # device to host, so far
    bytes_in: int = 0  # host to device
    held_bytes: int = 0  # on the host now
    peak_bytes: int = 0

    def put(self, x: Tensor) -> Tensor:
        """A copy on the host, in pinned memory where there is a GPU, so that the transfer can overlap with compute."""
        copy = torch.empty_like(x, device="cpu", pin_memory=x.is_cuda).copy_(x, non_blocking=True)
        self.bytes_out += copy.nbytes
        self.held_bytes += copy.nbytes
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        return copy

    def take(self, copy: Tensor, device: torch.device) -> Tensor:
        """The tensor on the device again; the host's copy is given up."""
        self.bytes_in += copy.nbytes
        self.held_bytes -= copy.nbytes
        return copy.to(device, non_blocking=True, copy=True)


def checkpoint(function: Callable[..., Tensor], *inputs: Tensor, host: Host | None = None) -> Tensor:
    """function(*inputs), whose activations are forgotten now and computed again in the backward pass.

    Kept until then: the inputs alone (with `host`, on the host). Compute: forward F and backward 2F become 2F + 2F,
    that is 4/3. Gradients are those of the plain call to the last bit: the same operations run on the same numbers, and
    random ones (dropout) from the same state of PyTorch's CPU generator. Everything that needs a gradient must be among
    `inputs` or a parameter; one backward pass per call. What else `function` reads must not change before it.
    `torch.utils.checkpoint` does the same with more checks and GPU generators; this is how it works.
    """
    again = _Again(function, inputs, host)
    with saved_tensors_hooks(again.forget, again.recall):
        return function(*inputs)


class _Again:
    """Stands in for the tensors that one call of `function` would save: hands out numbers, keeps the inputs.

    Autograd calls `forget` for each tensor that an operation saves, in order, and `recall` with what that returned.
    A second run saves the same tensors in the same order, so a number is enough to find one again.
    """

    def __init__(self, function, inputs, host):
        self.function, self.host = function, host
        self.devices, self.needs_grad = [x.device for x in inputs], [x.requires_grad for x in inputs]
        self.inputs = [x.detach() if host is None else host.put(x.detach()) for x in inputs]
        self.random = torch.get_rng_state()
        self.count, self.saved = 0, {}

    def forget(self, tensor: Tensor) -> int:
        self.count += 1
        return self.count - 1

    def recall(self, number: int) -> Tensor:
        if self.inputs is not None:
            self._run_again()
        if number not in self.saved:
            raise RuntimeError(
                f"checkpoint: tensor {number} of {self.count} was asked for twice or not saved by the second run. "
                "Call the function anew for another backward pass, and let it do the same each time it is called"
            )
        return self.saved.pop(number)  # autograd reads each of them once; the sooner it is gone the better

    def _run_again(self):
        inputs, self.inputs = self.inputs, None
        if self.host is not None:
            inputs = [self.host.take(x, device) for x, device in zip(inputs, self.devices, strict=True)]
        inputs = [x.requires_grad_(needs) for x, needs in zip(inputs, self.needs_grad, strict=True)]

        def keep(tensor):
            self.saved[len(self.saved)] = tensor.detach()  # without its history: the second graph is not walked

        now = torch.get_rng_state()
        torch.set_rng_state(self.random)
        with torch.enable_grad(), saved_tensors_hooks(keep, lambda nothing: nothing):
            self.function(*inputs)
        torch.set_rng_state(now)


def blockwise_block(
    block: EncoderBlock,
    x: Float[Tensor, "batch seq model"],
    *,
    causal: bool = False,
    block_q: int = 256,
    block_k: int = 512,
) -> Float[Tensor, "batch seq model"]:
    """block(x), a block of `block_q` queries at a time: attention and feed-forward network in one loop (algorithm 1).

        for each block i of queries:
            for each block j of keys and values: attention of Q_i over them, with running statistics
            output_i = FFN(attention_i + x_i) + attention_i + x_i          (norms where the block has them)

    The source prints Q_i for x_i in the last line; the residual stream is meant, not the projected query.
    Memory beyond x, K, V and the output: block_q (model + ffn) + block_q block_k heads elements, whatever seq is;
    the plain block needs seq (model + ffn) + seq² heads. FLOPs: the same forward; the backward runs it once more.
    Raises ValueError where block_q or block_k is below 1.
    """
    if block_q < 1 or block_k < 1:
        raise ValueError(f"blockwise_block: blocks hold at least 1 token, given block_q={block_q}, block_k={block_k}")
    attention, seq = block.attention, x.shape[1]
    k, v = (checkpoint(partial(_project, block, w), x) for w in (attention.w_k, attention.w_v))
    attend = partial(flash_attention, causal=causal, block_q=block_q, block_k=block_k)
    outputs = []
    for start in range(0, seq, block_q):
        stop = min(start + block_q, seq)
        seen = stop if causal else seq  # later keys are hidden from all of these queries
        part = partial(_query_block, block, attend)
        outputs.append(checkpoint(part, x[:, start:stop], k[:, :, :seen], v[:, :, :seen]))
    return torch.cat(outputs, dim=1)


def _project(block: EncoderBlock, w: Tensor, x: Tensor) -> Tensor:
    """Keys, values or queries of x, (batch, heads, seq, dim)."""
    x = block.norm_1(x) if block.norm_first else x
    return (x @ w).unflatten(-1, (block.attention.heads, -1)).transpose(1, 2)


def _query_block(block: EncoderBlock, attend, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The whole block for the queries of x alone; k and v belong to every token that they may see."""

    def attention(x):  # x is normed already where the block norms first
        q = (x @ block.attention.w_q).unflatten(-1, (block.attention.heads, -1)).transpose(1, 2)
        return attend(q, k, v).transpose(1, 2).flatten(2) @ block.attention.w_o

    x = add_and_norm(x, attention, block.norm_1, block.norm_first)
    return add_and_norm(x, block.ffn, block.norm_2, block.norm_first)
