"""Decoding for models that put a space in front of every text, which is not part of it."""

from collections.abc import Sequence

import numpy as np

from fastllm.tokenizers.base import EncodedBatch, StreamingDecoder, Tokenizer


class FirstSpaceTokenizer(Tokenizer):
    """A tokenizer that may be of such a model.

    Attributes:
        drops_first_space: whether decoding leaves out a space that a text begins with.
    """

    drops_first_space = False

    def _decode(self, ids: Sequence[int] | np.ndarray) -> str:
        text = super()._decode(ids)
        return text.removeprefix(" ") if self.drops_first_space else text

    def _decode_batch(self, batch: EncodedBatch) -> list[str]:
        texts = super()._decode_batch(batch)
        return [text.removeprefix(" ") for text in texts] if self.drops_first_space else texts

    def streaming_decoder(self) -> StreamingDecoder:
        """Return a decoder of ids that come one at a time."""
        return _FirstSpaceDropped(self) if self.drops_first_space else StreamingDecoder(self)


class _FirstSpaceDropped(StreamingDecoder):
    """Leaves out the space that the model put in front."""

    _started = False

    def push(self, id: int) -> str:
        text = super().push(id)
        if text and not self._started:
            self._started = True
            return text.removeprefix(" ")
        return text
