"""What decoder-only models share: from tokens to logits and losses, and the cache of keys and values for generation.

A reader needs two things that are not in a paper's picture. Each block hands on (branch, residual): the output of its
last sub-layer and the sum it still has to be added to, because the addition, its dropout and the next norm are one pass
over memory. And the loss never forms the logits of all tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastllm import nn
from fastllm.errors import check_type
from fastllm.models.base import AnyConfig, Model
from fastllm.models.padding import padded

# B batch, T tokens, C channels, V vocabulary


class PreNormBlock(torch.nn.Module):
    """One layer: attention between tokens, then a feed-forward network on each, both pre-norm with residuals.

    A subclass makes the four parts in its constructor.

    Attributes:
        norm_1, norm_2: (branch, residual) -> (normed, new residual), as nn.DropoutAddLayerNorm.
        attention: takes the normed tokens, segment_ids and cache, as nn.CausalSelfAttention.
        feed_forward: (*, C) -> (*, C).
    """

    norm_1: torch.nn.Module
    attention: torch.nn.Module
    norm_2: torch.nn.Module
    feed_forward: torch.nn.Module

    def forward(
        self, branch: Tensor, residual: Tensor | None, segment_ids: Tensor | None = None,
        cache: nn.CacheLayer | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Take and return (branch, residual), each (B, T, C); the stream's value is residual + dropout(branch)."""
        normed, residual = self.norm_1(branch, residual)
        normed, residual = self.norm_2(self.attention(normed, segment_ids, cache), residual)
        return self.feed_forward(normed), residual


class Decoder(Model[AnyConfig]):
    """A language model that predicts each token from those before it.

    A subclass makes, in its constructor, `blocks`, each of which takes and returns (branch, residual), a last `norm` of
    both, and `output`, the layer of logits; and says how tokens are embedded.

    Attributes:
        norm: takes (branch, residual) too.
        output: (*, C) -> (*, V).
    """

    blocks: torch.nn.ModuleList
    norm: torch.nn.Module
    output: torch.nn.Module

    def reset_parameters(self) -> None:
        """Initialise as GPT-2 at its own width, and keep the variance of every layer's output at other widths.

        GPT-2's N(0, 0.02) belongs to 768 channels; the standard deviation here is 0.02 sqrt(768 / C), and
        1/sqrt(2 n_layer) of it where a branch joins the residual stream. With 128 channels and 2000 steps on tiny
        Shakespeare this alone takes the validation loss of a GPT from 1.90 to 1.75.
        """
        cost = self.config.cost()
        std = 0.02 * (768 / cost.channels) ** 0.5
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.zeros_(parameter)
            elif "norm" in name:
                torch.nn.init.ones_(parameter)
            elif name.endswith(("projection.weight", "contract.weight")):
                torch.nn.init.normal_(parameter, std=std / (2 * cost.n_layer) ** 0.5)
            else:
                torch.nn.init.normal_(parameter, std=std)

    def embed(self, tokens: Tensor, positions: int | Tensor = 0) -> Tensor:
        """Return what the first block gets: (B, T) int -> (B, T, C); positions: of each sequence's first token."""
        raise NotImplementedError

    def cache_shape(self) -> tuple[int, int]:
        """Return the heads of keys and values of a block, and their head_dim."""
        raise NotImplementedError

    def hidden(self, tokens: Tensor, segment_ids: Tensor | None = None) -> Tensor:
        """Return the last layer's normalised output: (B, T) int -> (B, T, C).

        With segment_ids, (B, T) int, non-decreasing along a row, a token sees none of another segment: documents packed
        into a row stay apart. Positions run on over the whole row, so each of them is trained as without.
        """
        self._check_tokens(tokens)
        return self._through_blocks(self.embed(tokens), segment_ids)

    def _check_tokens(self, tokens: Tensor) -> None:
        name = type(self).__name__
        check_type(name, "tokens", tokens, Tensor)
        if tokens.dim() != 2:
            raise ValueError(f"{name}: 'tokens' must be (B, T), got shape {tuple(tokens.shape)}")
        if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
            raise TypeError(f"{name}: 'tokens' must be whole numbers, got {tokens.dtype}")
        longest = self.context_length
        if tokens.size(-1) > longest:
            raise ValueError(f"{name}: 'tokens' must be at most context_length ({longest}) long, got {tokens.size(-1)}")

    def _through_blocks(
        self, branch: Tensor, segment_ids: Tensor | None = None, cache: nn.KVCache | None = None, **cache_options
    ) -> Tensor:
        residual = None
        for i, block in enumerate(self.blocks):
            layer = None if cache is None else nn.CacheLayer(cache, i, **cache_options)
            branch, residual = block(branch, residual, segment_ids, layer)
        normed, _ = self.norm(branch, residual)
        return normed

    def forward(self, tokens: Tensor, cache: nn.KVCache | None = None) -> Tensor:
        """Return logits: (B, T) int -> (B, T, V).

        With a cache, for inference: tokens are the next T of every sequence in it, see what it holds and join it.

        Raises:
            ValueError: tokens are not (B, T), or more than context_length or than the cache has room for.
            TypeError: tokens are not a tensor of whole numbers.
        """
        if cache is None:
            return self.output(self.hidden(tokens))
        self._check_tokens(tokens)
        if tokens.size(0) != cache.batch:
            name = type(self).__name__
            raise ValueError(f"{name}: 'tokens' must have the cache's {cache.batch} sequences, got {tokens.size(0)}")
        cache.check_room(tokens.size(1))
        hidden = self._through_blocks(self.embed(tokens, cache.lengths), cache=cache)
        cache.advance(tokens.size(1))
        return self.output(hidden)

    def loss(  # type: ignore[override]
        self, tokens: Tensor, targets: Tensor, segment_ids: Tensor | None = None, *, label_smoothing: float = 0.0
    ) -> Tensor:
        """Return the mean cross-entropy of targets (B, T) in nats, a scalar; targets of -100 count for nothing.

        segment_ids, (B, T), keep packed documents apart: see :meth:`hidden`.
        """
        self._check_tokens(tokens)
        name = type(self).__name__
        check_type(name, "targets", targets, Tensor)
        if targets.shape != tokens.shape:
            raise ValueError(f"{name}: 'targets' must be {tuple(tokens.shape)} as tokens, got {tuple(targets.shape)}")
        hidden = self._through_blocks(self.embed(tokens), segment_ids).flatten(0, -2)
        return nn.head_cross_entropy(self.output, hidden, targets.flatten(), label_smoothing=label_smoothing)

    # --- generation ---------------------------------------------------------------------------------------------------

    def new_cache(self, batch: int, capacity: int | None = None) -> nn.KVCache:
        """Return an empty cache for `batch` sequences of up to `capacity` tokens, by default context_length."""
        heads, head_dim = self.cache_shape()
        weight = next(self.parameters())
        return nn.KVCache(
            len(self.blocks), batch, heads, self.context_length if capacity is None else capacity, head_dim,
            dtype=weight.dtype, device=weight.device,
        )  # fmt: skip

    @torch.no_grad()
    def prefill(self, tokens: Tensor, lengths: Tensor, cache: nn.KVCache, rows: Tensor | None = None) -> Tensor:
        """Put the first tokens of some sequences into a cache; return the logits after each one's last: (b, V).

        What a sequence gets is the same bit for bit whatever the others are, on the CPU.

        Args:
            tokens: (b, T) int; sequences shorter than T are filled up on the right with any tokens.
            lengths: (b,) int64, the tokens of each sequence that count, 1 .. T. Give them on the CPU: the host reads
                them, and would have to wait for a GPU.
            cache: what these sequences held in it is replaced.
            rows: (b,) int64, which sequences of the cache; None is all. Give them on the CPU too.

        Raises:
            ValueError: T is over context_length, or lengths are out of range.
        """
        self._check_tokens(tokens)
        name = type(self).__name__
        check_type(name, "lengths", lengths, Tensor)
        lengths = lengths.cpu()
        if lengths.shape != tokens.shape[:1] or not bool(((lengths >= 1) & (lengths <= tokens.size(1))).all()):
            raise ValueError(f"{name}: 'lengths' must be (b,) numbers in [1, {tokens.size(1)}], got {lengths.tolist()}")
        device = tokens.device
        chosen = None if rows is None else rows.to(device, non_blocking=True)
        hidden = self._through_blocks(self.embed(tokens), cache=cache, prefill=True, rows=chosen)
        cache.set_lengths(lengths, rows)
        last = (lengths - 1).to(device, non_blocking=True)
        return self.output(hidden[torch.arange(tokens.size(0), device=device), last])

    def sequence_bytes(self, tokens: int) -> int:
        """Return the bytes that a sequence of so many tokens takes while it is continued: its keys and values."""
        heads, head_dim = self.cache_shape()
        room = min(tokens, self.context_length)
        return 2 * len(self.blocks) * heads * head_dim * room * next(self.parameters()).element_size()

    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, room: int | None = None) -> "CachedContext":
        """Return the state of sequences that begin so, see :class:`CachedContext`."""
        return CachedContext(self, prompts, max_new_tokens, room)


class CachedContext:
    """B sequences over one KV cache. A step does not wait for the device; reading `logits` does.

    On the CPU, in float32, each sequence has the same logits bit for bit whatever the others are.

    The model sees at most context_length tokens. A sequence that has so many is cut before it gets its next one: the
    last context_length // 2 stay, and stand from position 0 on again. A longer prompt starts with its last
    context_length tokens.

    Args:
        model: in eval mode.
        prompts: B sequences of ids, none of them empty.
        max_new_tokens: how many tokens `push` will give a sequence at most: the cache has room for no more.
        room: the most sequences that `keep` will make; default B.

    Attributes:
        logits: (B, V) of the next token of each sequence.
    """

    def __init__(
        self, model: Decoder, prompts: Sequence[Sequence[int]], max_new_tokens: int, room: int | None = None
    ) -> None:
        self.model = model
        self._longest = model.context_length
        self._visible = [list(prompt[-self._longest :]) for prompt in prompts]
        needed = max(map(len, self._visible)) + max_new_tokens
        self._cache = model.new_cache(len(prompts) if room is None else room, min(self._longest, needed))
        self._cache.reorder(range(len(prompts)))
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
        tokens, lengths = padded(sequences, self._cache.lengths.device)
        return self.model.prefill(tokens, lengths, self._cache, None if rows is None else torch.tensor(rows))
