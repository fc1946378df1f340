"""Tables over positions that are computed, not learnt: no state_dict holds them."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from typing_extensions import Self


class PositionTables(torch.nn.Module, ABC):
    """A layer that owns such tables, in float32 whatever dtype the model is taken to."""

    @property
    @abstractmethod
    def table(self) -> Tensor:
        """One of the tables, a row a position."""

    @abstractmethod
    def make_tables(self, length: int, device: torch.device | None) -> None:
        """Make the tables of so many positions."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # The tables follow the model to another device, but not to another dtype; and memory that is made anew
        # (to_empty) must not be theirs, as no checkpoint fills them. So they are made again, where they go.
        device = fn(torch.empty(0, device=self.table.device)).device
        if device != self.table.device:
            self.make_tables(self.table.size(0), device)
        return self

    def grow(self, length: int) -> None:
        """Make the tables hold at least so many positions; they double, so that this is seldom."""
        if length > self.table.size(0):
            self.make_tables(max(length, 2 * self.table.size(0)), self.table.device)


class SinusoidalPositions(PositionTables):
    """Sines and cosines of positions ("Attention is all you need", 3.5), added to embeddings.

    Pair i of a position p is sin(p w) and cos(p w) with w = 10000^(-2 i / C): wavelengths from 2 pi to 20000 pi.

    Args:
        dim: C, channels; even.
        context_length: how many positions the table starts with. A longer input makes it grow.
        interleaved: True puts a pair into channels 2 i and 2 i + 1, as in the paper; False into i and i + C / 2, as
            Marian and tensor2tensor do.

    Raises:
        ValueError: dim is odd.

    Example:
        >>> SinusoidalPositions(4)(torch.zeros(1, 2, 4))[0, 0]
        tensor([0., 1., 0., 1.])
    """

    sinusoids: Tensor

    def __init__(self, dim: int, context_length: int = 2048, *, interleaved: bool = True) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"SinusoidalPositions: 'dim' must be even, got {dim}")
        self.dim, self.interleaved = dim, interleaved
        self.make_tables(context_length, None)

    @property
    def table(self) -> Tensor:
        """(context_length, C)."""
        return self.sinusoids

    def make_tables(self, length: int, device: torch.device | None) -> None:
        """Make the table of so many positions, by way of float64."""
        with torch.inference_mode(False), torch.no_grad():
            frequencies = 10000.0 ** (-torch.arange(0, self.dim, 2, dtype=torch.float64, device=device) / self.dim)
            angles = torch.arange(length, dtype=torch.float64, device=device)[:, None] * frequencies
            pairs = torch.stack((angles.sin(), angles.cos()), 2 if self.interleaved else 1)
        self.register_buffer("sinusoids", pairs.flatten(1).float(), persistent=False)

    def forward(self, input: Tensor, positions: int | Tensor = 0, scale: float = 1.0) -> Tensor:
        """Return scale * input + the positions' rows: (B, T, C) -> (B, T, C).

        The first token of a sequence is at `positions`: one number, or (B,) int64 with a number a sequence, which does
        not make the table grow.
        """
        tokens = input.size(1)
        if isinstance(positions, int):
            self.grow(positions + tokens)
            rows = self.sinusoids[positions : positions + tokens]
        else:
            rows = self.sinusoids[positions[:, None] + torch.arange(tokens, device=positions.device)]
        return torch.add(rows.to(input.dtype), input, alpha=scale)
