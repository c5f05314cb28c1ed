"""Fewer bits per number: what is rounded, by which scale, and what is left as it is.

uniform         evenly spaced codes, per tensor, row, column or group; packing; llama.cpp's Q4_1
palettization   a codebook by k-means
int8            LLM.int8(): integer products, a scale per token and per channel, outliers apart
nf4             4-bit NormalFloat, double quantization
qlora           training beside frozen 4-bit weights
paged           an optimizer whose state leaves the device when memory is short
experts         a mixture's experts in three values (QMoE)
swap            a model's linear layers replaced, and back
kernel          int8 and NF4 products in Triton
"""

from refimpl.quantization.int8 import Int8Linear, Int8Product, int8_linear, int8_matmul, outlier_features
from refimpl.quantization.nf4 import NF4, NF4Tensor, dynamic_map, normal_float, quantize_nf4
from refimpl.quantization.paged import PagedAdamW
from refimpl.quantization.palettization import Palette, kmeans_1d, palettize, palettize_picture
from refimpl.quantization.qlora import QLoRALinear, nf4_linear
from refimpl.quantization.swap import replaced_linears, rounded
from refimpl.quantization.uniform import (
    Uniform,
    pack,
    quantize,
    quantize_q4_1,
    sqnr_db,
    twos_complement,
    unpack,
)

__all__ = [
    "NF4",
    "Int8Linear",
    "Int8Product",
    "NF4Tensor",
    "PagedAdamW",
    "Palette",
    "QLoRALinear",
    "Uniform",
    "dynamic_map",
    "int8_linear",
    "int8_matmul",
    "kmeans_1d",
    "nf4_linear",
    "normal_float",
    "outlier_features",
    "pack",
    "palettize",
    "palettize_picture",
    "quantize",
    "quantize_nf4",
    "quantize_q4_1",
    "replaced_linears",
    "rounded",
    "sqnr_db",
    "twos_complement",
    "unpack",
]
