"""Padded sequences packed into one row: what works on tokens one by one then spends nothing on padding.

Attention keeps to each sequence by segment ids; which keys a token sees stays the same, so results do too.
"""

from torch import Tensor

# B sequences of T tokens, N of which are visible, E channels


class Packing:
    """Where the visible tokens of a padded batch stand.

    Args:
        visible: (B, T) bool, on a device whose values may be looked at.

    Attributes:
        segment_ids: (1, N), the sequence of each packed token.

    Example:
        >>> packing = Packing(torch.tensor([[True, False], [True, True]]))
        >>> packing.segment_ids
        tensor([[0, 1, 1]])
        >>> packing.unpack(packing.pack(torch.ones(2, 2, 1))).squeeze(-1)
        tensor([[1., 0.],
                [1., 1.]])
    """

    def __init__(self, visible: Tensor) -> None:
        self._shape = visible.shape
        self._positions = visible.flatten().nonzero().squeeze(1)
        self.segment_ids = (self._positions // visible.size(1))[None]

    def pack(self, input: Tensor) -> Tensor:
        """Return the visible tokens: (B, T, E) -> (1, N, E)."""
        return input.flatten(0, 1).index_select(0, self._positions)[None]

    def unpack(self, input: Tensor) -> Tensor:
        """Return them where they stood, and zeros elsewhere: (1, N, E) -> (B, T, E)."""
        padded = input.new_zeros(self._shape.numel(), input.size(-1))
        return padded.index_copy(0, self._positions, input[0]).unflatten(0, self._shape)
