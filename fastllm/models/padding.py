"""Sequences of several lengths as one tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor


def padded(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return sequences filled up on the right, (B, T) int64 on a device, and their lengths, (B,) on the CPU."""
    lengths = torch.tensor([len(ids) for ids in sequences])
    rows = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.int64)
    for row, ids in zip(rows, sequences, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return rows.to(device, non_blocking=True), lengths
