"""The axis vocabulary of the course: one word per axis, the same in annotations, einsum strings and prose.

Attention tensors are `(batch, heads, seq, dim)`. Signatures carry shapes, `Float[Tensor, "batch heads q_len dim"]`, and
the tests check them at run time. On a machine without jaxtyping the annotations shrink to plain `Tensor`.
"""

from torch import Tensor

__all__ = ["AXES", "LETTERS", "Bool", "Float", "Int", "Integer", "Tensor"]

try:
    from jaxtyping import Bool, Float, Int, Integer  # Int is signed; Integer takes uint8 codes, too
except ImportError:  # a GPU machine often has torch, triton, numpy and pytest, and nothing else

    class _Unchecked:
        """`Float[Tensor, "batch seq"]` becomes `Tensor`: readable, and never checked."""

        def __class_getitem__(cls, item):
            return item[0]

    Bool = Float = Int = Integer = _Unchecked

# The name of an axis -> what one step along it is.
AXES = {
    "batch": "one independent sequence",
    "heads": "one query head",
    "kv_heads": "one key/value head; query head h reads kv head h // (heads // kv_heads)",
    "seq": "one token, where queries and keys are the same tokens",
    "q_len": "one query token",
    "k_len": "one key/value token; with causal masking the last query is aligned with the last key",
    "dim": "one feature of one head",
    "model": "one feature of the residual stream, heads * dim in most models",
    "vocab": "one token id",
    "block": "one token inside a tile",
}

# The letters of the papers -> the course's words.
LETTERS = {
    "N": "seq (q_len or k_len where they differ)",
    "d": "dim",
    "M": "SRAM in elements, not in bytes",
    "B_r": "block_q, rows of a query tile",
    "B_c": "block_k, keys of a key/value tile",
    "T_r": "number of query tiles, ceil(N / B_r)",
    "T_c": "number of key/value tiles, ceil(N / B_c)",
    "S": "scores, scale * Q K^T",
    "P": "softmax of S, or its numerator inside a tile",
    "m": "largest score of a row so far",
    "l": "sum of exp(score - m) of a row so far",
    "lse": "log of the sum of exp(score) of a row, m + log(l); natural logarithm",
    "D": "rowsum(dO * O), the row constant of the softmax gradient",
}
