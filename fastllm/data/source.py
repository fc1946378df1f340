"""What training needs of batches, whatever is in them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Own = TypeVar("Own", bound="TrainingBatch")


class TrainingBatch(Protocol):
    """Rows of tensors: the first dimension of each is the rows."""

    @property
    def size(self) -> int:
        """The number of rows."""

    def num_targets(self) -> int:
        """Return how many targets count."""

    def split(self: Own, rows: int) -> list[Own]:
        """Cut into batches of so many rows, the last of what is left."""

    def map(self: Own, function: Callable[[Tensor], Tensor]) -> Own:
        """Return what a function makes of each tensor."""

    def arguments(self, device: torch.device) -> tuple[Tensor, ...]:
        """Return what a model's loss takes, on a device. Where no target counts any do: the mean over none is NaN."""


@dataclass(frozen=True)
class Share:
    """One of several processes' part of each batch.

    Args:
        rank: which.
        of: how many there are.

    Example:
        >>> Share(1, of=3).rows(7)
        slice(2, 4, None)
    """

    rank: int = 0
    of: int = 1

    def rows(self, n: int) -> slice:
        """Return which of a batch's n rows belong to it; the shares differ by one row at most."""
        return slice(n * self.rank // self.of, n * (self.rank + 1) // self.of)


WHOLE = Share()


class Source(Protocol):
    """Batches to train on, without end.

    Attributes:
        position: the number of batches already taken, from which a resumed run goes on.
    """

    position: int

    def next(self, share: Share = WHOLE) -> TrainingBatch:
        """Return the next batch, or a share of its rows, and step on."""

    def batch(self, position: int, share: Share = WHOLE) -> TrainingBatch:
        """Return batch number `position`, or a share of its rows."""
