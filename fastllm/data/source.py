"""What training needs of batches, whatever is in them."""

from collections.abc import Callable
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


class Source(Protocol):
    """Batches to train on, without end.

    Attributes:
        position: the number of batches already taken, from which a resumed run goes on.
    """

    position: int

    def next(self, rows: slice | None = None) -> TrainingBatch:
        """Return the next batch, or these rows of it, and step on."""

    def batch(self, position: int, rows: slice | None = None) -> TrainingBatch:
        """Return batch number `position`, or these rows of it."""
