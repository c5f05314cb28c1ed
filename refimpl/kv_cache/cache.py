"""Keys and values of tokens already read, kept so that no token is read twice.

`KVCache` reserves room for the longest text, for every sequence. `PagedKVCache` cuts one pool into blocks and hands
them out as sequences grow, as an operating system hands out pages: sequences of any length share it.
Either way one token costs 2 * layers * kv_heads * dim * itemsize bytes: 46,080 for SmolLM2-135M in float32.

Source: Shazeer 2019 (decoding with stored keys and values); Kwon et al. 2023 (PagedAttention).
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch

from refimpl.shapes import Float, Int, Tensor

__all__ = ["Attend", "Cache", "KVCache", "PagedBatch", "PagedKVCache"]

Attend = Callable[..., Tensor]  # attend(q, k, v, causal=True) -> out


@runtime_checkable
class Cache(Protocol):
    """What `Llama` asks of a cache: where new tokens stand, and what they see."""

    length: int  # tokens read so far, of the longest sequence

    def positions(self, new: int) -> Tensor:
        """Positions of the next `new` tokens, (new,), or (batch, 1, new) where sequences differ in length."""
        ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        """Store the new tokens' keys and values of one layer; attention of their queries over what the layer holds."""
        ...

    def advance(self, new: int) -> None:
        """Called once per pass, after the last layer."""
        ...


class KVCache:
    """Two buffers (layers, batch, kv_heads, capacity, dim), filled from the left. All sequences are equally long.

    2 * layers * batch * kv_heads * capacity * dim * itemsize bytes from the start, however few tokens it holds.
    To take tokens back, set `length` to a smaller number: what lies behind it is overwritten.
    """

    def __init__(self, model, capacity: int, *, batch: int = 1):
        config, weight = model.config, model.embed_tokens.weight
        shape = (config.layers, batch, config.kv_heads, capacity, config.dim)
        self.keys, self.values = weight.new_empty(shape), weight.new_empty(shape)
        self.length = 0  # tokens held; the model advances it after its last layer

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def positions(self, new: int) -> Int[Tensor, "{new}"]:
        return torch.arange(self.length, self.length + new, device=self.keys.device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        return attend(q, *self.append(layer, k, v), causal=True)

    def append(
        self, layer: int, k: Float[Tensor, "batch kv_heads new dim"], v: Float[Tensor, "batch kv_heads new dim"]
    ):
        """Write one layer's new keys and values; return all that layer holds, (batch, kv_heads, length + new, dim)."""
        end = self.length + k.shape[2]
        if end > self.keys.shape[3]:
            raise ValueError(
                f"KVCache: {end} tokens in a cache for {self.keys.shape[3]}; make it with a larger capacity"
            )
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, new: int) -> None:
        self.length += new


class PagedKVCache:
    """A pool of blocks of `block_size` tokens, a free list, and for each sequence its block table.

    keys, values (layers, blocks, kv_heads, block_size, dim): token p of a sequence lies in block `table[p // size]`, at
    place p % size. A sequence wastes less than one block, where a static cache wastes capacity - length.
    `add` starts a sequence, `batch` lets the model read some of them together, `release` gives their blocks back.
    """

    def __init__(self, model, blocks: int, *, block_size: int = 16):
        config, weight = model.config, model.embed_tokens.weight
        shape = (config.layers, blocks, config.kv_heads, block_size, config.dim)
        self.keys, self.values = weight.new_empty(shape), weight.new_empty(shape)
        self.block_size = block_size
        self.free = list(range(blocks - 1, -1, -1))  # a stack: block 0 goes out first
        self.tables: dict[int, list[int]] = {}
        self.lengths: dict[int, int] = {}
        self._next = 0

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    @property
    def block_bytes(self) -> int:
        """Bytes of one block through all layers: what a sequence takes from the pool at a time."""
        return self.nbytes // self.keys.shape[1]

    def add(self) -> int:
        """A new, empty sequence; it takes its first block with its first token."""
        sequence, self._next = self._next, self._next + 1
        self.tables[sequence], self.lengths[sequence] = [], 0
        return sequence

    def release(self, sequence: int) -> None:
        """End a sequence; its blocks are free at once, in any order."""
        self.free += reversed(self.tables.pop(sequence))
        del self.lengths[sequence]

    def batch(self, *sequences: int) -> "PagedBatch":
        """These sequences as the rows of one batch, lengths as they are."""
        return PagedBatch(self, sequences)

    def reserve(self, sequence: int, tokens: int) -> None:
        """Make the table long enough for `tokens` tokens, from the free list."""
        table = self.tables[sequence]
        missing = -(-tokens // self.block_size) - len(table)
        if missing > len(self.free):
            raise ValueError(
                f"PagedKVCache: sequence {sequence} needs {missing} more blocks, {len(self.free)} of "
                f"{self.keys.shape[1]} are free; release a sequence, or make the cache with more blocks"
            )
        table += [self.free.pop() for _ in range(missing)]

    def read(self, layer: int, sequence: int, tokens: int):
        """Keys and values of the first `tokens` tokens as if they had never been cut, (1, kv_heads, tokens, dim)."""
        table = self.tables[sequence][: -(-tokens // self.block_size)]
        k, v = (pool[layer, table].transpose(0, 1).flatten(1, 2) for pool in (self.keys, self.values))
        return k[None, :, :tokens], v[None, :, :tokens]


class PagedBatch:
    """Some sequences of a `PagedKVCache`, read by the model as one batch: a ragged one, each at its own length."""

    def __init__(self, cache: PagedKVCache, sequences: tuple[int, ...]):
        self.cache, self.sequences = cache, sequences

    @property
    def lengths(self) -> list[int]:
        return [self.cache.lengths[s] for s in self.sequences]

    @property
    def length(self) -> int:
        return max(self.lengths)

    def positions(self, new: int) -> Int[Tensor, "batch 1 {new}"]:
        device = self.cache.keys.device
        return torch.tensor(self.lengths, device=device)[:, None, None] + torch.arange(new, device=device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        """Write through the block tables, then let each sequence look at its own tokens."""
        new = q.shape[2]
        blocks, places = self._slots(new)
        # index arrays on both sides of a slice: the result is (batch, new, kv_heads, dim)
        self.cache.keys[layer][blocks, :, places] = k.transpose(1, 2)
        self.cache.values[layer][blocks, :, places] = v.transpose(1, 2)
        rows = zip(q.split(1), self.sequences, self.lengths, strict=True)
        return torch.cat([attend(one, *self.cache.read(layer, s, n + new), causal=True) for one, s, n in rows])

    def _slots(self, new: int) -> tuple[Int[Tensor, "batch {new}"], Int[Tensor, "batch {new}"]]:
        """(block, place inside it) of every new token; takes blocks from the free list where tables are too short."""
        for sequence, length in zip(self.sequences, self.lengths, strict=True):
            self.cache.reserve(sequence, length + new)
        table, _ = self.table()
        positions = self.positions(new)[:, 0]
        return table.gather(1, positions // self.cache.block_size), positions % self.cache.block_size

    def table(self) -> tuple[Int[Tensor, "batch longest"], Int[Tensor, "batch"]]:
        """(block tables, short ones filled up with block 0; lengths), as the decoding kernel reads them."""
        tables = [torch.tensor(self.cache.tables[s], dtype=torch.long) for s in self.sequences]
        padded = torch.nn.utils.rnn.pad_sequence(tables, batch_first=True)
        device = self.cache.keys.device
        return padded.to(device), torch.tensor(self.lengths, device=device)

    def advance(self, new: int) -> None:
        for sequence in self.sequences:
            self.cache.lengths[sequence] += new
