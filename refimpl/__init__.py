"""The tested reference: one clear, correct answer per topic. Import the module you need; nothing is re-exported.

| topic | module |
|---|---|
| the axis vocabulary | `refimpl.shapes` |
| attention: naive, multi-head, GQA, cross, positions; the entry point `attention(…, impl=…)` | `refimpl.attention` |
| softmax in three, two and one pass; merging partial results; streaming attention | `refimpl.online_softmax` |
| FlashAttention: tiled PyTorch, Triton kernels, the simulator that counts HBM traffic | `refimpl.flash_attention` |
| a Llama that loads real pretrained weights, tokenizer, texts | `refimpl.models` |
| encoder and decoder blocks, the three kinds of transformer, greedy decoding | `refimpl.transformer` |
| FLOPs, bytes and memory by formula | `refimpl.cost_model`, `refimpl.memory_model` |
| a machine's roofline, measured; scaling laws, fitted | `refimpl.roofline`, `refimpl.scaling_law` |
| counting matmuls, FLOPs and the largest tensor while a model runs | `refimpl.meter` |
| tokens and the losses of language modelling | `refimpl.language_modelling` |
| one small experiment per claim, recorded | `python -m refimpl.experiments` |
| compile every kernel for sm_80 and sm_90 without a GPU | `python -m refimpl.aot` |
| time and memory against named peers | `python -m refimpl.bench` |

Every fast form is judged by a slow one in `refimpl/tests`. `_triton` decides where Triton kernels run.
"""

import importlib.util
import os
import sys

import torch

# Triton reads TRITON_INTERPRET once, when it is first imported, and PyTorch may import it at any time (a dispatch mode
# does). So the choice is made here, before any module of ours runs. An explicit setting is obeyed.
if importlib.util.find_spec("triton") and "triton" not in sys.modules and not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
