"""An encoder-decoder that has read its sources generates targets; and the state of those that are on their way."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastllm import nn
from fastllm.errors import UserValueError
from fastllm.models.padding import padded

if TYPE_CHECKING:
    from fastllm.models.encoder_decoder import EncoderDecoder

# P sources, B sequences, S tokens of a source, T tokens, V vocabulary


class Reading:
    """P sources, read once when the first targets are begun: what generation needs of a model.

    Args:
        model: an encoder-decoder.
        sources: P sequences of ids.

    Attributes:
        sources: the same, as lists.

    Raises:
        UserValueError: one is empty, longer than the model's context_length, or has ids outside its vocabulary.
    """

    def __init__(self, model: "EncoderDecoder", sources: Sequence[Sequence[int]]) -> None:
        self.model = model
        self.sources = [[int(token) for token in source] for source in sources]
        for number, source in enumerate(self.sources):
            if not 1 <= len(source) <= model.context_length:
                raise UserValueError(
                    f"reading: 'sources' must have 1 to {model.context_length} tokens each (context_length), got "
                    f"{len(source)} in number {number}"
                )
            if min(source) < 0 or max(source) >= model.source_vocab_size:
                raise UserValueError(
                    f"reading: 'sources' must have ids in [0, {model.source_vocab_size}), got {min(source)} to "
                    f"{max(source)} in number {number}"
                )

    @property
    def training(self) -> bool:
        """Whether the model is in training mode."""
        return self.model.training

    def train(self, mode: bool = True) -> object:
        """Choose the model's mode."""
        return self.model.train(mode)

    @property
    def vocab_size(self) -> int:
        """V, of the target."""
        return self.model.vocab_size

    @property
    def context_length(self) -> int:
        """The most tokens that a target has, its start token among them."""
        return self.model.context_length

    def sequence_bytes(self, tokens: int) -> int:
        """Return the bytes of keys and values that a target of so many tokens takes, with those of its source."""
        longest = max(map(len, self.sources), default=0)
        heads, head_dim = self.model.cache_shape()
        room = min(tokens, self.context_length) + longest
        element_size = next(self.model.parameters()).element_size()
        return 2 * len(self.model.decoder) * heads * head_dim * room * element_size

    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, room: int | None = None) -> "TargetState":
        """Read the sources; return the state of targets that begin so, one for each of them.

        Args:
            prompts: P sequences of ids, from the start token on.
            max_new_tokens: how many tokens a target is given at most.
            room: the most sequences that `keep` will make; default P.

        Raises:
            UserValueError: there are not as many prompts as sources, or one has no room in the context.
        """
        if len(prompts) != len(self.sources):
            raise UserValueError(
                f"reading: 'prompts' must be one for each of the {len(self.sources)} sources, got {len(prompts)}"
            )
        longest = max(map(len, prompts))
        if longest > self.context_length:
            raise UserValueError(
                f"reading: 'prompts' must have at most {self.context_length} tokens (context_length), got {longest}"
            )
        return TargetState(self.model, self.sources, prompts, max_new_tokens, room)


class TargetState:
    """B targets over one cache of their keys and values, and one of their sources'.

    On the CPU, in float32, each target has the same logits bit for bit whatever the others are. A model has no place
    for more than context_length tokens of a target; when all are taken, a push is an error.

    Args:
        model: in eval mode.
        sources: P sequences of ids, checked.
        prompts: of each of them, how its target begins.
        max_new_tokens: how many tokens `push` will give a target at most.
        room: the most sequences that `keep` will make; default P.

    Attributes:
        logits: (B, V) of the next token of each target.
    """

    @torch.no_grad()
    def __init__(
        self, model: "EncoderDecoder", sources: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]],
        max_new_tokens: int, room: int | None,
    ) -> None:  # fmt: skip
        self.model = model
        weight = next(model.parameters())
        source, lengths = padded(sources, weight.device)
        self._sources = nn.SourceCache(model.keys_and_values(model.encode(source, lengths)), lengths)
        tokens, counts = padded(prompts, weight.device)
        heads, head_dim = model.cache_shape()
        capacity = min(model.context_length, tokens.size(1) + max_new_tokens)
        self._cache = nn.KVCache(
            len(model.decoder), max(room or 0, len(prompts)), heads, capacity, head_dim, dtype=weight.dtype,
            device=weight.device,
        )  # fmt: skip
        self._cache.reorder(range(len(prompts)))
        hidden = self._through(tokens, prefill=True)
        self._cache.set_lengths(counts)
        last = (counts - 1).to(weight.device, non_blocking=True)
        self.logits = model.output(hidden[torch.arange(len(prompts), device=weight.device), last])

    @torch.no_grad()
    def push(self, tokens: Sequence[int]) -> None:
        """Give every target its next token.

        Raises:
            ValueError: a target has context_length tokens already.
        """
        self._cache.check_room(1)
        column = torch.tensor(tokens)[:, None].to(self.logits.device, non_blocking=True)
        hidden = self._through(column)
        self._cache.advance(1)
        self.logits = self.model.output(hidden[:, -1])

    def keep(self, rows: Sequence[int]) -> None:
        """Make target i a copy of what target rows[i] was, for as many as there are rows."""
        self._cache.reorder(rows)
        self._sources.keep(rows)
        self.logits = self.logits[torch.tensor(rows, dtype=torch.int64).to(self.logits.device, non_blocking=True)]

    def _through(self, tokens: Tensor, prefill: bool = False) -> Tensor:
        caches = [
            (nn.CacheLayer(self._cache, i, prefill), nn.SourceLayer(self._sources, i))
            for i in range(len(self.model.decoder))
        ]
        return self.model.decode(tokens, caches=caches)
