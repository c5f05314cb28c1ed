"""FlashAttention: exact attention, tile by tile, without the score matrix.

eager      the tiled forward and backward in plain PyTorch, any device: read this first
kernel     the same in Triton, forward, dq and dkv
simulator  what each algorithm moves between HBM and SRAM, counted tile by tile and in closed form
"""

from refimpl.flash_attention.eager import flash_attention, flash_backward, flash_forward

__all__ = ["flash_attention", "flash_backward", "flash_forward"]
