"""What encoder-decoders share: from a source and the target so far to logits and losses, and reading for generation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastllm import nn
from fastllm.errors import UserValueError, check_type
from fastllm.models.base import AnyConfig, Model, PairOfVocabularies
from fastllm.models.padding import padded
from fastllm.models.reading import Reading

# B batch, S tokens of the source, T tokens of the target, C channels, V vocabulary

Caches = Sequence[tuple[nn.CacheLayer, nn.SourceLayer]]


class EncoderDecoder(Model[AnyConfig]):
    """A model that predicts each token of a target from those before it and from the whole of a source.

    A subclass makes, in its constructor, `output`, the layer of logits, and `decoder`, blocks that each have a
    `cross_attention` (nn.CrossAttention); and says how a source is encoded and a target decoded.

    Attributes:
        decoder: the blocks of the decoder.
        output: (*, C) -> (*, V).
    """

    decoder: torch.nn.ModuleList
    output: torch.nn.Module

    def encode(self, source: Tensor, source_lengths: Tensor | None = None) -> Tensor:
        """Return what the encoder makes of sources: (B, S) int -> (B, S, C); behind a length it means nothing."""
        raise NotImplementedError

    def decode(
        self, target: Tensor, memory: Tensor | None = None, lengths: Tensor | None = None, caches: Caches = ()
    ) -> Tensor:
        """Return the decoder's last output, (B, T) int -> (B, T, C).

        Args:
            target: (B, T) int.
            memory: (B, S, C), what the encoder made of the sources.
            lengths: (B,) int, tokens of each source.
            caches: for inference, of each block, instead of memory and lengths: target follows what is in them.
        """
        raise NotImplementedError

    def keys_and_values(self, memory: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return what each block of the decoder attends to of the sources: (B, S, C) -> two (B, H, S, D) each."""
        raise NotImplementedError

    def cache_shape(self) -> tuple[int, int]:
        """Return the heads of keys and values of a block of the decoder, and their head_dim."""
        raise NotImplementedError

    @property
    def source_vocab_size(self) -> int:
        """The number of tokens that a source can have."""
        return self.config.source_vocabulary

    def check_tokenizer(self, tokenizer: PairOfVocabularies, where: object) -> None:  # type: ignore[override]
        """Check that a tokenizer can be this model's: as Model's, for the source's vocabulary too.

        Raises:
            UserValueError: one side has more tokens than the model, or there is one side only.
        """
        super().check_tokenizer(tokenizer, where)
        source = getattr(tokenizer, "source_vocab_size", None)
        if source is None:
            raise UserValueError(f"{where}: 'tokenizer' must be a pair, of source and target, got one of one language")
        if source > self.source_vocab_size:
            raise UserValueError(
                f"{where}: 'tokenizer' must have at most the model's {self.source_vocab_size} tokens of the source, "
                f"got {source}"
            )

    def forward(self, source: Tensor, target: Tensor, source_lengths: Tensor | None = None) -> Tensor:
        """Return logits: (B, S) and (B, T) int -> (B, T, V); those at i are of what follows target[:, i].

        Args:
            source: (B, S) int; what lies behind a row's length is not seen.
            target: (B, T) int, from the start token on.
            source_lengths: (B,) int, tokens of each source; the default is S.

        Raises:
            ValueError: a shape does not fit, or a sequence is longer than context_length.
            TypeError: source or target are not tensors of whole numbers.
        """
        return self.output(self._hidden(source, source_lengths, target))

    def loss(  # type: ignore[override]
        self, source: Tensor, source_lengths: Tensor | None, target: Tensor, labels: Tensor, *,
        label_smoothing: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """Return the mean cross-entropy of labels in nats, a scalar, without logits.

        Args:
            source, source_lengths, target: as of forward.
            labels: (B, T) int, what follows each token of target; -100 counts for nothing.
            label_smoothing: as of Model.loss; the paper's is 0.1.
        """
        if labels.shape != target.shape:
            got = tuple(labels.shape)
            raise ValueError(f"{type(self).__name__}: 'labels' must be {tuple(target.shape)} as target, got {got}")
        hidden = self._hidden(source, source_lengths, target).flatten(0, -2)
        return nn.head_cross_entropy(self.output, hidden, labels.flatten(), label_smoothing=label_smoothing)

    def _hidden(self, source: Tensor, source_lengths: Tensor | None, target: Tensor) -> Tensor:
        self._check("source", source)
        self._check("target", target, batch=source.size(0))
        self._check_lengths(source, source_lengths)
        return self.decode(target, self.encode(source, source_lengths), source_lengths)

    def _check(self, name: str, tokens: Tensor, batch: int | None = None) -> None:
        check_type(type(self).__name__, name, tokens, Tensor)
        if tokens.dim() != 2 or batch not in (None, tokens.size(0)):
            expected = "(B, T)" if batch is None else f"({batch}, T), a row for each source"
            raise ValueError(f"{type(self).__name__}: '{name}' must be {expected}, got shape {tuple(tokens.shape)}")
        if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
            raise TypeError(f"{type(self).__name__}: '{name}' must be whole numbers, got {tokens.dtype}")
        if tokens.size(1) > self.context_length:
            raise ValueError(
                f"{type(self).__name__}: '{name}' must be at most context_length ({self.context_length}) long, got "
                f"{tokens.size(1)}"
            )

    def _check_lengths(self, source: Tensor, lengths: Tensor | None) -> None:
        if lengths is not None and (not isinstance(lengths, Tensor) or lengths.shape != source.shape[:1]):
            got = tuple(lengths.shape) if isinstance(lengths, Tensor) else lengths
            raise ValueError(
                f"{type(self).__name__}: 'source_lengths' must be ({source.size(0)},), one a source, got {got}"
            )

    # --- translation --------------------------------------------------------------------------------------------------

    def reading(self, sources: Sequence[Sequence[int]]) -> Reading:
        """Return what generation continues targets with, given their sources: see :class:`Reading`.

        Args:
            sources: a sequence of ids for each target, as the tokenizer's encode_source gives them.

        Raises:
            UserValueError: one is empty, longer than context_length, or has ids outside the vocabulary.
        """
        return Reading(self, sources)

    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, room: int | None = None) -> None:
        """Refuse to continue targets without their sources.

        Raises:
            UserValueError: always; it says what does.
        """
        raise UserValueError(
            f"generate: a {type(self).__name__} translates sources, and continues nothing without them: use "
            "fastllm.translate, or give its sources first, as in generate(model.reading([source]), [start], ..)"
        )

    @torch.no_grad()
    def cross_attention(
        self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], layer: int = -1
    ) -> list[Tensor]:
        """Return where each target's tokens look in its source, the mean over the heads of a layer of the decoder.

        Args:
            sources: ids, as of reading.
            targets: ids that the decoder is given, from the start token on; row i belongs to what follows token i.
            layer: which block of the decoder; the last one looks at what it writes next.

        Returns:
            A (T, S) for each pair, float32, of which rows sum to 1.
        """
        device = next(self.parameters()).device
        source, lengths = padded(sources, device)
        target, _ = padded(targets, device)
        seen: list[Tensor] = []

        def look(module: torch.nn.Module, given: tuple) -> None:
            seen.append(module.weights(*given[:3]).float().mean(1))  # type: ignore[operator]

        was_training, watched = self.training, self.decoder[layer].get_submodule("cross_attention")
        hook = watched.register_forward_pre_hook(look)
        try:
            self.eval()(source, target, lengths)
        finally:
            hook.remove()
            self.train(was_training)
        sizes = zip(seen[0], targets, sources, strict=True)
        return [weights[: len(ids), : len(read)].cpu() for weights, ids, read in sizes]
