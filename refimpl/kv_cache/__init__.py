"""The KV cache: kept keys and values, attention over them, and what to give up when memory is short.

cache      static and paged caches, and what a model asks of any cache
decode     attention of new queries over a cache, whole and split (MHA, GQA, MQA; ragged batches)
eviction   a fixed budget of entries: window, sink + window, H2O, random; Top-K attention
kernel     split decoding in Triton, over static and paged caches
"""

from refimpl.kv_cache.cache import Cache, KVCache, PagedKVCache
from refimpl.kv_cache.decode import cached_attention, split_attention
from refimpl.kv_cache.eviction import EvictingCache, heavy_hitters, random, sink_window, topk_attention, window

__all__ = [
    "Cache",
    "EvictingCache",
    "KVCache",
    "PagedKVCache",
    "cached_attention",
    "decode_attention",
    "heavy_hitters",
    "random",
    "sink_window",
    "split_attention",
    "topk_attention",
    "window",
]


def decode_attention(q, k, v, lengths, **options):
    """A decoding step by two Triton kernels, split over the keys: see `refimpl.kv_cache.kernel`."""
    from refimpl.kv_cache import kernel  # here, so that the package imports where Triton is absent

    return kernel.decode_attention(q, k, v, lengths, **options)
