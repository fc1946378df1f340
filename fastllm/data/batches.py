"""Batches of a split: random windows to train on, and every token once to evaluate on."""

from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastllm.data.dataset import Split
from fastllm.data.shuffle import Permutation
from fastllm.data.source import WHOLE, Share

# B batch, T tokens of context

IGNORED = -100  # a target that counts for nothing


class Batch(NamedTuple):
    """Input and what to predict from it, for a decoder; each (B, T) int64."""

    tokens: Tensor
    targets: Tensor  # one token ahead, -100 where nothing is to be predicted
    segment_ids: Tensor | None  # which document of its row a token belongs to, or None

    @property
    def size(self) -> int:
        """The number of rows."""
        return len(self.tokens)

    def num_targets(self) -> int:
        """Return how many targets count."""
        return int((self.targets != IGNORED).sum())

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Return what a function makes of each tensor."""
        segment_ids = None if self.segment_ids is None else function(self.segment_ids)
        return Batch(function(self.tokens), function(self.targets), segment_ids)

    def split(self, rows: int) -> list["Batch"]:
        """Cut into batches of so many rows, the last of what is left."""
        return [self.map(itemgetter(slice(first, first + rows))) for first in range(0, self.size, rows)]

    def arguments(self, device: torch.device) -> tuple[Tensor, ...]:
        """Return what a decoder's loss takes, on a device; where no target counts, any do: their mean would be NaN.

        From pinned memory this only queues the copy, behind the step that a GPU is still at. A stream of its own would
        gain nothing: 12 x 1024 tokens and targets are 200 kB, 10 us at 20 GB/s.
        """
        given = (self.tokens, self.targets if self.num_targets() else self.tokens, self.segment_ids)
        return tuple(part.to(device, non_blocking=True) for part in given if part is not None)


class Batches:
    """Random windows of a split, without end; targets are one token ahead.

    Each epoch cuts the tokens into windows of T at a fresh random offset and takes each once, in a random order. So
    nothing is drawn twice in an epoch, and the whole state is `position`: batch n is a function of (seed, n), and
    takes no memory however many windows there are.

    With document_mask, segment_ids tell a row's documents apart, for attention that stays within them, and the first
    token of a document is not predicted from the one before. The token that ends a document, where the vocabulary has
    one, belongs to it and is predicted.

    Args:
        split: the ids.
        batch_size: B.
        context_length: T.
        seed: of the order.
        position: the number of batches already taken.
        document_mask: keep documents apart.
    """

    def __init__(
        self, split: Split, batch_size: int, context_length: int, seed: int, position: int = 0,
        *, document_mask: bool = False,
    ) -> None:  # fmt: skip
        self.split, self.batch_size, self.context_length = split, batch_size, context_length
        self.seed, self.position, self.document_mask = seed, position, document_mask
        self._last: tuple[int, int, Permutation] | None = None  # the order of the epoch that was asked for last
        # One window fewer than fit leaves room for the offset, unless only one fits.
        self.windows_per_epoch = max(1, (len(split) - 1) // context_length - 1)

    @property
    def epoch(self) -> int:
        """How often every window has been taken."""
        return self.position * self.batch_size // self.windows_per_epoch

    def next(self, share: Share = WHOLE) -> Batch:
        """Return the next batch, or a share of its rows, and step on."""
        batch = self.batch(self.position, share)
        self.position += 1
        return batch

    def batch(self, position: int, share: Share = WHOLE) -> Batch:
        """Return batch number `position`, or a share of its rows."""
        windows = position * self.batch_size + np.arange(self.batch_size)[share.rows(self.batch_size)]
        return make_batch(self.split, self._starts(windows), self.context_length, self.document_mask)

    def _starts(self, windows: np.ndarray) -> np.ndarray:
        """Return where windows begin; they are counted through all epochs."""
        epochs, indices = np.divmod(windows, self.windows_per_epoch)
        starts = np.empty_like(indices)
        for epoch in np.unique(epochs).tolist():
            offset, order = self._order(epoch)
            own = epochs == epoch
            starts[own] = order(indices[own]) * self.context_length + offset
        return starts

    def _order(self, epoch: int) -> tuple[int, Permutation]:
        """Return where the first window of an epoch begins, and the order of its windows."""
        if self._last is None or self._last[0] != epoch:
            spare = len(self.split) - 1 - self.windows_per_epoch * self.context_length
            offset = np.random.Generator(np.random.PCG64((self.seed, epoch))).integers(spare + 1)
            # 1: other random numbers than the offset's
            self._last = epoch, int(offset), Permutation(self.windows_per_epoch, (self.seed, epoch, 1))
        return self._last[1:]


def windows(
    split: Split, context_length: int, batch_size: int, share: Share = WHOLE, *, document_mask: bool = False
) -> Iterator[Batch]:
    """Give all of a split in order, as windows that follow each other: every token but the first is a target once.

    The last window may be part of one; it is filled up with targets of -100. Of several processes, each takes every
    n-th batch, and all take the same number: one that would have none gets a single row of targets of -100.
    Weigh a batch's mean loss by its number of targets that count, which may be 0.

    Args:
        split: the ids, at least 2.
        context_length: T.
        batch_size: rows; the last batch has what is left.
        share: of the batches.
        document_mask: as for :class:`Batches`; the first token of each document is then not a target.
    """
    starts = np.arange(0, len(split) - 1, context_length)
    groups = [starts[first : first + batch_size] for first in range(0, len(starts), batch_size)]
    nothing = np.array([len(split) - 1])  # a window with an input, but no target
    groups += [nothing] * (-len(groups) % share.of)
    for group in groups[share.rank :: share.of]:
        yield make_batch(split, group, context_length, document_mask)


def make_batch(split: Split, starts: np.ndarray, context_length: int, document_mask: bool) -> Batch:
    """Return the windows of T tokens, and the one after, that begin at starts; past the split's end nothing counts."""
    t = context_length
    rows = np.zeros((len(starts), t + 1), dtype=np.int64)
    missing = np.ones((len(starts), t), dtype=bool)
    segments = np.zeros((len(starts), t + 1), dtype=np.int64)
    for row, start in enumerate(starts.tolist()):
        stop = min(start + t + 1, len(split))
        size = stop - start
        rows[row, :size] = split.read(start, stop)
        missing[row, : size - 1] = False
        if document_mask:
            segments[row, :size] = split.segments(start, stop)
            segments[row, size:] = segments[row, size - 1]
    if document_mask:
        missing |= segments[:, 1:] != segments[:, :-1]
    tokens, targets = rows[:, :-1].copy(), rows[:, 1:].copy()
    targets[missing] = IGNORED
    segment_ids = torch.from_numpy(segments[:, :-1].copy()) if document_mask else None
    return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), segment_ids)
