"""What generation needs of a model, and checks of what it is given. Knows no architecture."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Protocol

import torch
from torch import Tensor

from fastllm.errors import UserValueError

# B sequences, V vocabulary


class DecoderState(Protocol):
    """B sequences that are being continued.

    Attributes:
        logits: (B, V), of the next token of each sequence.
    """

    logits: Tensor

    def push(self, tokens: Sequence[int]) -> None:
        """Give every sequence its next token; the model decides what happens when a context is full."""

    def keep(self, rows: Sequence[int]) -> None:
        """Make sequence i a copy of what sequence rows[i] was, for as many as there are rows."""


class Generator(Protocol):
    """A model that sequences can be continued with; an encoder-decoder becomes one when it is given its source."""

    training: bool

    @property
    def vocab_size(self) -> int:
        """V."""

    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, room: int | None = None) -> DecoderState:
        """Return the state of sequences that begin so, in eval mode.

        Args:
            prompts: B sequences of ids, none of them empty.
            max_new_tokens: how many tokens a sequence is given at most.
            room: the most sequences that `keep` will make; default B.
        """

    def sequence_bytes(self, tokens: int) -> int:
        """Return the bytes that a sequence of so many tokens takes while it is continued."""

    def train(self, mode: bool = True) -> object:
        """Choose training or eval mode, as torch.nn.Module's."""


@contextmanager
def in_eval_mode(model: Generator) -> Iterator[None]:
    """Put a model into eval mode, and back afterwards."""
    was_training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(was_training)


def checked_prompt(model: Generator, prompt: Sequence[int] | Tensor) -> list[int]:
    """Return a prompt's ids.

    Raises:
        UserError: there are none, or some are outside the vocabulary, or it is a text.
    """
    if isinstance(prompt, str):
        raise UserValueError(
            "generate: 'prompt' must be token ids, got a text: generate_text and stream_text take those"
        )
    try:
        ids = torch.as_tensor(prompt)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"generate: 'prompt' must be token ids, got {prompt!r}") from None
    vocabulary = model.vocab_size
    if ids.numel() == 0:
        raise UserValueError("generate: 'prompt' must have at least one token, got none")
    if ids.is_floating_point():
        raise TypeError(f"generate: 'prompt' must be whole numbers, got {ids.dtype}")
    if ids.dim() == 0 or ids.numel() != ids.size(-1):
        raise UserValueError(
            f"generate: 'prompt' must be one sequence, got {tuple(ids.shape)}: generate_batch takes several"
        )
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise UserValueError(f"generate: 'prompt' must have ids in [0, {vocabulary}), got {ids.min()} to {ids.max()}")
    return ids.flatten().tolist()


def check_count(name: str, value: int, least: int) -> None:
    """Raise UserError if a number is under least, TypeError if it is not a whole number."""
    if not isinstance(value, Integral):
        raise TypeError(f"generate: '{name}' must be a whole number, got {value!r}")
    if value < least:
        raise UserValueError(f"generate: '{name}' must be at least {least}, got {value}")


def check_vocabulary(model: Generator, vocabulary: int | None) -> None:
    """Raise UserError if a model does not have that many tokens, or none is left."""
    if vocabulary is not None and not 1 <= vocabulary <= model.vocab_size:
        raise UserValueError(f"generate: 'vocabulary' must be in [1, {model.vocab_size}], got {vocabulary}")
