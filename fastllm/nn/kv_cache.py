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

    The lengths are kept twice, on the buffers' device for the kernels and on the host, so that a step on CUDA waits for
    nothing. Numbers that are given as a CUDA tensor are waited for; given as a list or a CPU tensor they are not.

    Args:
        n_layer: L.
        batch: B.
        n_head: Hkv, heads of keys and values.
        capacity: S, how many tokens a sequence can have.
        head_dim: D.
        dtype, device: of the buffers; torch's defaults if None.

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
        self._count([0] * batch)

    def _count(self, lengths: list[int]) -> None:
        """Say how many tokens each sequence has."""
        self._counts = lengths
        self._lengths = torch.tensor(lengths, dtype=torch.int64).to(self._keys.device, non_blocking=True)

    @property
    def lengths(self) -> Tensor:
        """(B,) int64, how many tokens each sequence has; advance, set_lengths, reset and reorder change it."""
        return self._lengths

    @property
    def batch(self) -> int:
        """B, the number of sequences; reorder changes it."""
        return len(self._counts)

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
        if len(set(self._counts)) == 1:  # a plain copy takes a tenth of the time of an indexed one
            start, end = self._counts[0], self._counts[0] + tokens
            self.keys[layer, :, :, start:end] = key
            self.values[layer, :, :, start:end] = value
            return
        positions = self.lengths[:, None] + torch.arange(tokens, device=self.lengths.device)  # (B, T)
        rows = torch.arange(self.batch, device=self.lengths.device)[:, None]
        # Indices around a slice put the indexed dimensions first: (B, T, Hkv, D).
        self.keys[layer][rows, :, positions] = key.transpose(1, 2)
        self.values[layer][rows, :, positions] = value.transpose(1, 2)

    def check_room(self, tokens: int) -> None:
        """Raise ValueError if a sequence has no room for so many tokens more."""
        longest = max(self._counts, default=0)
        if longest + tokens > self.capacity:
            raise ValueError(
                f"KVCache: it is full: its capacity is {self.capacity} tokens, a sequence has {longest}, "
                f"and {tokens} more were given"
            )

    def advance(self, tokens: int) -> None:
        """Count the `tokens` that were appended to every sequence."""
        self._counts = [count + tokens for count in self._counts]
        self._lengths += tokens

    def set_lengths(self, lengths: Tensor | Sequence[int] | int, rows: Tensor | Sequence[int] | None = None) -> None:
        """Say how many tokens some sequences have: after `fill`, or to forget their ends."""
        chosen = range(self.batch) if rows is None else _numbers(rows)
        numbers = torch.as_tensor(lengths, dtype=torch.int64).expand(len(chosen)).tolist()
        counts = dict(zip(chosen, numbers, strict=True))
        self._count([counts.get(row, count) for row, count in enumerate(self._counts)])

    def reset(self, rows: Tensor | Sequence[int] | None = None) -> None:
        """Empty some sequences, or all."""
        self.set_lengths(0, rows)

    def reorder(self, rows: Tensor | Sequence[int]) -> None:
        """Make sequence i a copy of what sequence rows[i] was, for as many as there are rows: no buffer is made anew.

        Raises:
            ValueError: there are more rows than the buffers were made for, or one is not a sequence.
        """
        sources, most = _numbers(rows), self._keys.size(1)
        if len(sources) > most or not all(0 <= source < self.batch for source in sources):
            raise ValueError(f"KVCache: 'rows' must be at most {most} numbers in [0, {self.batch}), got {sources}")
        self._count([self._counts[source] for source in sources])
        moves = [[row, source] for row, source in enumerate(sources) if row != source]
        if not moves:
            return
        to, source = torch.tensor(moves).t().to(self._keys.device, non_blocking=True)
        longest = max(self._counts)
        for buffer in (self._keys, self._values):
            buffer[:, to, :, :longest] = buffer[:, source, :, :longest]


def _numbers(values: Tensor | Sequence[int]) -> list[int]:
    return torch.as_tensor(values, dtype=torch.int64).tolist()


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

    @property
    def positions(self) -> int | Tensor:
        """Where the first of the new tokens stands in each sequence: 0, or (B,) int64."""
        return 0 if self.prefill else self.cache.lengths

    def attend(self, qkv: Tensor, num_heads: int | None = None, window: tuple[int, int] | None = None) -> Tensor:
        """Store keys and values of new tokens and attend.

        Args:
            qkv: (B, T, 3, H, D); or with num_heads = H (B, T, H + 2 Hkv, D), as for ops.attention_packed.
            num_heads: H, where keys and values have fewer heads.
            window: (left, right), as for ops.scaled_dot_product_attention.

        Returns:
            (B, T, H, D).
        """
        if num_heads is None:
            query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        else:
            shared = (qkv.size(2) - num_heads) // 2
            query, key, value = qkv.transpose(1, 2).split([num_heads, shared, shared], 1)
        if self.prefill:
            self.cache.fill(self.layer, key, value, self.rows)
            return ops.attention_packed(qkv, is_causal=True, window=window, num_heads=num_heads)
        self.cache.append(self.layer, key, value)
        keys, values = self.cache.keys[self.layer], self.cache.values[self.layer]
        lengths = self.cache.lengths + query.size(2)
        attended = ops.decode_attention(query.to(keys.dtype), keys, values, lengths, window=window)
        return attended.transpose(1, 2).to(qkv.dtype)


class SourceCache:
    """Keys and values of P sources in every layer of a decoder, and which of them each of B rows continues.

    They are made once. Rows of one source, as a beam search has them, read the same keys: their queries stand side by
    side as the heads of a group do, so each key is read once for all of them.

    Args:
        keys_and_values: of each layer, two (P, H, S, D).
        lengths: (P,) int64, tokens of each source.
    """

    def __init__(self, keys_and_values: Sequence[tuple[Tensor, Tensor]], lengths: Tensor) -> None:
        self._layers = [(key.contiguous(), value.contiguous()) for key, value in keys_and_values]
        self._lengths = lengths.to(self._layers[0][0].device, non_blocking=True)
        self.sources = list(range(lengths.numel()))  # of each row
        self._arrange()

    def keep(self, rows: Sequence[int]) -> None:
        """Make row i one of the source that row rows[i] was of, for as many as there are rows."""
        self.sources = [self.sources[row] for row in rows]
        used = list(dict.fromkeys(self.sources))
        if 2 * len(used) <= self._lengths.numel():  # what few rows are left of is worth a copy
            chosen = torch.tensor(used).to(self._lengths.device, non_blocking=True)
            self._layers = [(key[chosen], value[chosen]) for key, value in self._layers]
            self._lengths = self._lengths[chosen]
            self.sources = [used.index(source) for source in self.sources]
        self._arrange()

    def _arrange(self) -> None:
        """Find each row a place among its source's: G of them, as many as the source with most rows has."""
        counts = [0] * self._lengths.numel()
        places = []
        for source in self.sources:
            places.append(counts[source])
            counts[source] += 1
        self.group = max(counts, default=0)
        flat = [source * self.group + place for source, place in zip(self.sources, places, strict=True)]
        self._places: Tensor | None = None
        if flat != list(range(len(counts) * self.group)):
            self._places = torch.tensor(flat, dtype=torch.int64).to(self._lengths.device, non_blocking=True)

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """Attend to every token of the sources: (B, T, H, D) -> (B, T, H, D)."""
        _, tokens, heads, size = query.shape
        key, value = self._layers[layer]
        query = query.to(key.dtype)
        if self._places is not None:
            spread = query.new_zeros(self._lengths.numel() * self.group, tokens, heads, size)
            spread[self._places] = query
        else:
            spread = query
        grouped = spread.view(-1, self.group, tokens, heads, size)  # (P, G, T, H, D)
        together = grouped.permute(0, 3, 1, 2, 4).flatten(2, 3)  # (P, H, G T, D)
        attended = ops.scaled_dot_product_attention(together, key, value, key_lengths=self._lengths)
        result = attended.unflatten(2, (self.group, tokens)).permute(0, 2, 3, 1, 4).flatten(0, 1)  # (P G, T, H, D)
        return result if self._places is None else result[self._places]


@dataclass
class SourceLayer:
    """One layer's part in a step: what cross-attention needs of a cache."""

    cache: SourceCache
    layer: int

    def attend(self, query: Tensor) -> Tensor:
        """Attend to the sources: (B, T, H, D) -> (B, T, H, D)."""
        return self.cache.attend(self.layer, query).to(query.dtype)
