"""Keys and values of the tokens a model has seen, so that the next token costs one token's work."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastllm import ops

# L layers, B sequences, Hkv heads of keys and values, H of queries, S capacity, T tokens, D head_dim


class KVCache:
    """Keys and values of B sequences in every layer, in buffers that are made once.

    A model fills it (prompts) or appends to it (next tokens) layer by layer, then calls `advance`; only that makes the
    tokens count. What lies past a sequence's length is never read.

    Args:
        n_layer: L.
        batch: B.
        n_head: Hkv, heads of keys and values.
        capacity: S, how many tokens a sequence can have.
        head_dim: D.
        dtype, device: of the buffers; torch's defaults if None.

    Attributes:
        lengths: (B,) int64, how many tokens each sequence has.

    Raises:
        ValueError: a size is not positive.

    Example:
        >>> cache = KVCache(n_layer=2, batch=3, n_head=4, capacity=16, head_dim=8)
        >>> cache.lengths
        tensor([0, 0, 0])
    """

    def __init__(
        self,
        n_layer: int,
        batch: int,
        n_head: int,
        capacity: int,
        head_dim: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        sizes = {"n_layer": n_layer, "batch": batch, "n_head": n_head, "capacity": capacity, "head_dim": head_dim}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"KVCache: '{name}' must be at least 1, got {size}")
        shape = (n_layer, batch, n_head, capacity, head_dim)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)

    @property
    def batch(self) -> int:
        """B, the number of sequences; reorder changes it."""
        return self.lengths.numel()

    @property
    def capacity(self) -> int:
        """S, how many tokens a sequence can have."""
        return self._keys.size(3)

    @property
    def keys(self) -> Tensor:
        """(L, B, Hkv, S, D): a head's keys follow each other in memory, as decode_attention reads them fastest."""
        return self._keys[:, : self.batch]

    @property
    def values(self) -> Tensor:
        """(L, B, Hkv, S, D)."""
        return self._values[:, : self.batch]

    def fill(self, layer: int, key: Tensor, value: Tensor, rows: Tensor | None = None) -> None:
        """Write the first T tokens of some sequences: key and value (b, Hkv, T, D), rows (b,) int64 or None for all.

        Raises:
            ValueError: T is over the capacity.
        """
        tokens = key.size(2)
        if tokens > self.capacity:
            raise ValueError(f"KVCache: its capacity is {self.capacity} tokens, and {tokens} were given")
        chosen = slice(None) if rows is None else rows
        self.keys[layer, chosen, :, :tokens] = key.to(self.keys.dtype)
        self.values[layer, chosen, :, :tokens] = value.to(self.values.dtype)

    def append(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Write T tokens more of every sequence, behind those it has: key and value (B, Hkv, T, D).

        Raises:
            ValueError: a sequence has no room for them.
        """
        tokens = key.size(2)
        self.check_room(tokens)
        key, value = key.to(self._keys.dtype), value.to(self._values.dtype)
        starts = self.lengths.tolist()
        if len(set(starts)) == 1:  # a plain copy takes a tenth of the time of an indexed one
            end = starts[0] + tokens
            self.keys[layer, :, :, starts[0] : end] = key
            self.values[layer, :, :, starts[0] : end] = value
            return
        positions = self.lengths[:, None] + torch.arange(tokens, device=self.lengths.device)  # (B, T)
        rows = torch.arange(self.batch, device=self.lengths.device)[:, None]
        # Indices around a slice put the indexed dimensions first: (B, T, Hkv, D).
        self.keys[layer][rows, :, positions] = key.transpose(1, 2)
        self.values[layer][rows, :, positions] = value.transpose(1, 2)

    def check_room(self, tokens: int) -> None:
        """Raise ValueError if a sequence has no room for so many tokens more."""
        longest = int(self.lengths.max()) if self.batch else 0
        if longest + tokens > self.capacity:
            raise ValueError(
                f"KVCache: it is full: its capacity is {self.capacity} tokens, a sequence has {longest}, "
                f"and {tokens} more were given"
            )

    def advance(self, tokens: int) -> None:
        """Count the `tokens` that were appended to every sequence."""
        self.lengths += tokens

    def set_lengths(self, lengths: Tensor | int, rows: Tensor | None = None) -> None:
        """Say how many tokens some sequences have: after `fill`, or to forget their ends."""
        self.lengths[slice(None) if rows is None else rows] = lengths

    def reset(self, rows: Tensor | None = None) -> None:
        """Empty some sequences, or all."""
        self.set_lengths(0, rows)

    def reorder(self, rows: Tensor | Sequence[int]) -> None:
        """Make sequence i a copy of what sequence rows[i] was, for as many as there are rows: no buffer is made anew.

        Raises:
            ValueError: there are more rows than the buffers were made for, or one is not a sequence.
        """
        rows = torch.as_tensor(rows, dtype=torch.int64, device=self.lengths.device)
        count, most = rows.numel(), self._keys.size(1)
        if count > most or (count and not 0 <= int(rows.min()) <= int(rows.max()) < self.batch):
            raise ValueError(
                f"KVCache: 'rows' must be at most {most} numbers in [0, {self.batch}), got {rows.tolist()}"
            )
        moved = torch.arange(count, device=rows.device) != rows
        to, source = moved.nonzero()[:, 0], rows[moved]
        self.lengths = self.lengths[rows]
        longest = int(self.lengths.max()) if count else 0
        for buffer in (self._keys, self._values):
            buffer[:, to, :, :longest] = buffer[:, source, :, :longest]


@dataclass
class CacheLayer:
    """One layer's part in a step: what attention needs of a cache.

    Args:
        cache: the cache.
        layer: which layer's keys and values.
        prefill: whether the tokens are the first ones of their sequences, else they follow those in the cache.
        rows: with prefill, which sequences; None is all.
    """

    cache: KVCache
    layer: int
    prefill: bool = False
    rows: Tensor | None = None

    def attend(self, qkv: Tensor) -> Tensor:
        """Store keys and values of new tokens and attend: (B, T, 3, H, D) -> (B, T, H, D)."""
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        if self.prefill:
            self.cache.fill(self.layer, key, value, self.rows)
            return ops.attention_packed(qkv, is_causal=True)
        self.cache.append(self.layer, key, value)
        keys, values = self.cache.keys[self.layer], self.cache.values[self.layer]
        lengths = self.cache.lengths + query.size(2)
        attended = ops.decode_attention(query.to(keys.dtype), keys, values, lengths)
        return attended.transpose(1, 2).to(qkv.dtype)
