"""Where a sequence ends: stop sequences of ids or of characters, told as they come."""

from collections.abc import Sequence
from typing import Generic, TypeVar

from fastllm.errors import UserValueError

Piece = TypeVar("Piece", str, list)


class StopMatcher(Generic[Piece]):
    """Takes a sequence piece by piece and gives it out up to the first stop; the stop itself is never given out.

    What may be the beginning of a stop is held back until it is known.

    Args:
        stops: what ends the sequence: strings, or lists of ids.
        empty: an empty sequence of their type.

    Raises:
        UserError: a stop is empty.
    """

    def __init__(self, stops: Sequence[Piece], empty: Piece) -> None:
        if not all(stops):
            raise UserValueError("generate: 'stop' must not have an empty string or sequence")
        self._stops: Sequence[Piece] = stops
        self._empty: Piece = empty
        self._held: Piece = empty
        self.stopped = False

    def push(self, piece: Piece) -> Piece:
        """Return what is now known to stand before any stop."""
        text = self._held + piece
        found = [index for index in (_find(text, stop) for stop in self._stops) if index >= 0]
        if found:
            self.stopped, self._held = True, self._empty
            return text[: min(found)]
        known = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[known:]
        return text[:known]

    def finish(self) -> Piece:
        """Return what was held back: the sequence ended otherwise."""
        held, self._held = self._held, self._empty
        return held


def _find(text: Piece, stop: Piece) -> int:
    """Return where stop first stands in text, or -1."""
    return next((i for i in range(len(text) - len(stop) + 1) if text[i : i + len(stop)] == stop), -1)


def _overlap(text: Piece, stop: Piece) -> int:
    """Return the length of the longest end of text that a stop begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text[-n:] == stop[:n]), 0)
