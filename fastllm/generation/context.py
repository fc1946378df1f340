"""The sequences that are being continued, and the model's logits after each. Knows nothing of how tokens are chosen."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral

import torch
from torch import Tensor

from fastllm.errors import UserValueError
from fastllm.models import GPT

# B sequences, V vocabulary


class Context:
    """B sequences over one KV cache. A step waits for nothing on the device: who reads `logits` does.

    On the CPU, in float32, each sequence has the same logits bit for bit whatever the others are.

    The model sees at most context_length tokens. A sequence that has so many is cut before it gets its next one: the
    last context_length // 2 stay, and stand from position 0 on again. A longer prompt starts with its last
    context_length tokens.

    Args:
        model: a GPT in eval mode.
        prompts: B sequences of ids, none of them empty.
        room: the most sequences that `keep` will make; default B.

    Attributes:
        logits: (B, V) of the next token of each sequence.
    """

    def __init__(self, model: GPT, prompts: Sequence[Sequence[int]], room: int | None = None) -> None:
        self.model = model
        self._longest = model.config.context_length
        self._cache = model.new_cache(room or len(prompts))
        self._cache.reorder(range(len(prompts)))
        self._visible = [list(prompt[-self._longest :]) for prompt in prompts]
        self.logits = self._prefill(self._visible)

    def push(self, tokens: Sequence[int]) -> None:
        """Give every sequence its next token."""
        self._cut([i for i, ids in enumerate(self._visible) if len(ids) == self._longest])
        for ids, token in zip(self._visible, tokens, strict=True):
            ids.append(token)
        with torch.no_grad():
            column = torch.tensor(tokens)[:, None].to(self.logits.device, non_blocking=True)
            self.logits = self.model(column, self._cache)[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        """Make sequence i a copy of what sequence rows[i] was, for as many as there are rows."""
        self._cache.reorder(rows)
        self._visible = [list(self._visible[row]) for row in rows]
        self.logits = self.logits[torch.tensor(rows, dtype=torch.int64).to(self.logits.device, non_blocking=True)]

    def _cut(self, rows: list[int]) -> None:
        if not rows:
            return
        kept = self._longest // 2
        for row in rows:
            self._visible[row] = self._visible[row][self._longest - kept :]
        if kept:
            self._prefill([self._visible[row] for row in rows], rows)
        else:
            self._cache.reset(rows)

    def _prefill(self, sequences: list[list[int]], rows: list[int] | None = None) -> Tensor:
        lengths = torch.tensor([len(ids) for ids in sequences])
        padded = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.int64)
        for row, ids in zip(padded, sequences, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        tokens = padded.to(self._cache.lengths.device, non_blocking=True)
        return self.model.prefill(tokens, lengths, self._cache, None if rows is None else torch.tensor(rows))


@contextmanager
def in_eval_mode(model: GPT) -> Iterator[None]:
    """Put a model into eval mode, and back afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def checked_prompt(model: GPT, prompt: Sequence[int] | Tensor) -> list[int]:
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
    vocabulary = model.config.vocab_size
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
    """Raise UserError if a number is under least, TypeError if it is no whole number."""
    if not isinstance(value, Integral):
        raise TypeError(f"generate: '{name}' must be a whole number, got {value!r}")
    if value < least:
        raise UserValueError(f"generate: '{name}' must be at least {least}, got {value}")


def check_vocabulary(model: GPT, vocabulary: int | None) -> None:
    """Raise UserError if a model has not that many tokens, or none is left."""
    if vocabulary is not None and not 1 <= vocabulary <= model.config.vocab_size:
        raise UserValueError(f"generate: 'vocabulary' must be in [1, {model.config.vocab_size}], got {vocabulary}")
