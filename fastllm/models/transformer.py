"""The encoder-decoder Transformer of "Attention is all you need" (Vaswani et al., 2017), and its usual variations.

As in GPT, what joins a sub-layer to the next is one pass over memory: the residual's sum with the dropout before it and
the norm behind it. In a post-norm model it stands behind each sub-layer, and its output is the stream; in a pre-norm
model it stands before, and each block hands on (branch, residual): a sub-layer's output and what it is still to be
added to.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastllm import nn, ops
from fastllm.errors import UserValueError, check_type
from fastllm.models.base import Model, PairOfVocabularies
from fastllm.models.config import TransformerConfig
from fastllm.models.padding import padded
from fastllm.models.reading import Reading

# B batch, S tokens of the source, T tokens of the target, C = n_embd channels, V vocabulary


class _Block(torch.nn.Module):
    """Sub-layers with residuals."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm_first = config.norm_first

    def _around(
        self, norm: torch.nn.Module, sub_layer: Callable[[Tensor], Tensor], branch: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if self.norm_first:
            normed, residual = norm(branch, residual)
            return sub_layer(normed), residual
        return norm(sub_layer(branch), branch)[0], None


class EncoderBlock(_Block):
    """One layer of the encoder: attention between all tokens of the source, then a feed-forward network on each."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.attention = nn.SelfAttention(config.n_embd, config.n_head, config.attention_dropout, config.bias)
        self.norm_1 = _norm(config)
        self.feed_forward = _feed_forward(config)
        self.norm_2 = _norm(config)

    def forward(self, branch: Tensor, residual: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Take and return (branch, residual), each (B, S, C); the residual is None where norms are behind."""
        state = self._around(self.norm_1, lambda x: self.attention(x, lengths=lengths), branch, residual)
        return self._around(self.norm_2, self.feed_forward, *state)


class DecoderBlock(_Block):
    """One layer of the decoder: attention to earlier tokens, then to the source, then a feed-forward network."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        sizes = config.n_embd, config.n_head, config.attention_dropout, config.bias
        self.attention = nn.CausalSelfAttention(*sizes)
        self.norm_1 = _norm(config)
        self.cross_attention = nn.CrossAttention(*sizes)
        self.norm_2 = _norm(config)
        self.feed_forward = _feed_forward(config)
        self.norm_3 = _norm(config)

    def forward(
        self, branch: Tensor, residual: Tensor | None, memory: Tensor | None, lengths: Tensor | None,
        cache: nn.CacheLayer | None = None, sources: nn.SourceLayer | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Take and return (branch, residual), each (B, T, C); memory (B, S, C), or caches instead."""
        state = self._around(self.norm_1, lambda x: self.attention(x, cache=cache), branch, residual)
        state = self._around(self.norm_2, lambda x: self.cross_attention(x, memory, lengths, sources), *state)
        return self._around(self.norm_3, self.feed_forward, *state)


def _norm(config: TransformerConfig) -> nn.DropoutAddLayerNorm:
    return nn.DropoutAddLayerNorm(config.n_embd, config.dropout, config.norm_eps, bias=config.bias)


def _feed_forward(config: TransformerConfig) -> torch.nn.Module:
    sizes = config.n_embd, config.intermediate_size
    if config.activation == "swiglu":
        return nn.GatedFeedForward(*sizes, config.bias, config.activation_dropout)
    return nn.FeedForward(*sizes, config.activation, config.bias, config.activation_dropout)


class Transformer(Model[TransformerConfig]):
    """An encoder-decoder that turns a source sequence into a target sequence.

    Attributes:
        embedding: of the target's tokens, and of the source's where they share it.
        encoder, decoder: the blocks.
        output: (*, C) -> (*, V).

    Example:
        >>> model = Transformer(TransformerConfig.preset("micro", vocab_size=50))
        >>> source, target = torch.zeros(2, 7, dtype=torch.int64), torch.zeros(2, 5, dtype=torch.int64)
        >>> model(source, target).shape
        torch.Size([2, 5, 50])
    """

    config_class = TransformerConfig
    kernels = (
        "attention_packed", "bias_gelu", "bias_relu", "decode_attention", "dropout", "dropout_add",
        "dropout_add_layer_norm", "embedding", "gelu", "layer_norm", "linear", "linear_cross_entropy",
        "linear_cross_entropy_with_gradients", "scaled_dot_product_attention", "swiglu",
    )  # fmt: skip

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        if config.sharing != "all":
            self.source_embedding = nn.Embedding(config.source_vocabulary, config.n_embd)
        if config.positions == "learned":
            self.source_positions = nn.Embedding(config.context_length, config.n_embd)
            self.positions = nn.Embedding(config.context_length, config.n_embd)
        elif config.positions != "none":
            interleaved = config.positions == "sinusoidal"
            self.sinusoids = nn.SinusoidalPositions(config.n_embd, config.context_length, interleaved=interleaved)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = torch.nn.ModuleList(EncoderBlock(config) for _ in range(config.n_encoder_layer))
        self.decoder = torch.nn.ModuleList(DecoderBlock(config) for _ in range(config.n_decoder_layer))
        if config.ends_in_norm:
            self.encoder_norm, self.decoder_norm = _norm(config), _norm(config)
        if config.sharing == "none":
            self.output: torch.nn.Module = nn.Linear(config.n_embd, config.vocab_size, bias=config.output_bias)
        else:
            self.output = nn.TiedLinear(self.embedding, config.output_bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as fairseq does: Glorot and Bengio's uniform for matrices, N(0, 1 / C) for embeddings.

        The projections of attention are one matrix each there; queries, keys and values get what one (3 C, C) matrix
        would, however they are stored here.
        """
        c = self.config.n_embd
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.zeros_(parameter)
            elif "norm" in name:
                torch.nn.init.ones_(parameter)
            elif name.endswith(("qkv.weight", "query.weight", "key_value.weight")):
                torch.nn.init.uniform_(parameter, -((1.5 / c) ** 0.5), (1.5 / c) ** 0.5)
            elif "embedding" in name or "positions" in name or name == "output.weight":
                torch.nn.init.normal_(parameter, std=c**-0.5)
            else:
                torch.nn.init.xavier_uniform_(parameter)

    @property
    def blocks(self) -> list[torch.nn.Module]:  # type: ignore[override]
        """The blocks of encoder and decoder."""
        return [*self.encoder, *self.decoder]

    @property
    def vocab_size(self) -> int:
        """V, of the logits."""
        return self.config.vocab_size

    @property
    def source_vocab_size(self) -> int:
        """The number of tokens that a source can have."""
        return self.config.source_vocabulary

    @property
    def context_length(self) -> int:
        """The most tokens that a source or a target has."""
        return self.config.context_length

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

    # --- training -----------------------------------------------------------------------------------------------------

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
        self._check("source", source)
        self._check("target", target, batch=source.size(0))
        return self.output(self._decode(target, self.encode(source, source_lengths), source_lengths))

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
        self._check("source", source)
        self._check("target", target, batch=source.size(0))
        if labels.shape != target.shape:
            got = tuple(labels.shape)
            raise ValueError(f"Transformer: 'labels' must be {tuple(target.shape)} as target, got {got}")
        hidden = self._decode(target, self.encode(source, source_lengths), source_lengths).flatten(0, -2)
        return nn.head_cross_entropy(self.output, hidden, labels.flatten(), label_smoothing=label_smoothing)

    def encode(self, source: Tensor, source_lengths: Tensor | None = None) -> Tensor:
        """Return what the encoder makes of sources: (B, S) int -> (B, S, C); behind a length it means nothing."""
        self._check_lengths(source, source_lengths)
        table = self.embedding if self.config.sharing == "all" else self.source_embedding
        branch, residual = self._embed(table(source), "source_positions", 0), None
        for block in self.encoder:
            branch, residual = block(branch, residual, source_lengths)
        return self._end("encoder_norm", branch, residual)

    def _decode(self, target: Tensor, memory: Tensor, lengths: Tensor | None) -> Tensor:
        branch, residual = self._embed(self.embedding(target), "positions", 0), None
        for block in self.decoder:
            branch, residual = block(branch, residual, memory, lengths)
        return self._end("decoder_norm", branch, residual)

    def _embed(self, embedded: Tensor, learned: str, positions: int | Tensor) -> Tensor:
        """Return what the first block gets of embedded tokens, (B, T, C)."""
        scale = self.config.n_embd**0.5 if self.config.scale_embeddings else 1.0
        if self.config.positions.startswith("sinusoidal"):
            embedded = self.sinusoids(embedded, positions, scale)
        elif self.config.positions == "learned":
            ahead = torch.arange(embedded.size(1), device=embedded.device)
            first = positions[:, None] if isinstance(positions, Tensor) else positions
            embedded = torch.add(getattr(self, learned)(first + ahead), embedded, alpha=scale)
        else:
            embedded = embedded * scale
        return embedded if self.config.norm_first else self.dropout(embedded)  # the first norm drops too

    def _end(self, norm: str, branch: Tensor, residual: Tensor | None) -> Tensor:
        if residual is None:  # the last norm stands behind the last residual; another one comes without dropout
            return nn.LayerNorm.forward(getattr(self, norm), branch) if self.config.ends_in_norm else branch
        if self.config.ends_in_norm:
            return getattr(self, norm)(branch, residual)[0]
        return ops.dropout_add(branch, residual, self.config.dropout, self.training)

    # --- translation --------------------------------------------------------------------------------------------------

    def reading(self, sources: Sequence[Sequence[int]]) -> Reading:
        """Return what generation continues targets with, given their sources: see :class:`Reading`.

        Args:
            sources: a sequence of ids for each target, as the tokenizer's encode_source gives them.

        Raises:
            UserValueError: one is empty, longer than context_length, or has ids outside the vocabulary.
        """
        return Reading(self, sources)

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
        device = self.embedding.weight.device
        source, lengths = padded(sources, device)
        target, _ = padded(targets, device)
        seen: list[Tensor] = []

        def look(module: torch.nn.Module, given: tuple) -> None:
            seen.append(module.weights(*given[:3]).float().mean(1))  # type: ignore[operator]

        was_training, watched = self.training, self.decoder[layer].cross_attention
        hook = watched.register_forward_pre_hook(look)
        try:
            self.eval()(source, target, lengths)
        finally:
            hook.remove()
            self.train(was_training)
        sizes = zip(seen[0], targets, sources, strict=True)
        return [weights[: len(ids), : len(read)].cpu() for weights, ids, read in sizes]

    # --- checks -------------------------------------------------------------------------------------------------------

    def _check(self, name: str, tokens: Tensor, batch: int | None = None) -> None:
        check_type("Transformer", name, tokens, Tensor)
        if tokens.dim() != 2 or batch not in (None, tokens.size(0)):
            expected = "(B, T)" if batch is None else f"({batch}, T), a row for each source"
            raise ValueError(f"Transformer: '{name}' must be {expected}, got shape {tuple(tokens.shape)}")
        if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
            raise TypeError(f"Transformer: '{name}' must be whole numbers, got {tokens.dtype}")
        if tokens.size(1) > self.context_length:
            raise ValueError(
                f"Transformer: '{name}' must be at most context_length ({self.context_length}) long, got "
                f"{tokens.size(1)}"
            )

    def _check_lengths(self, source: Tensor, lengths: Tensor | None) -> None:
        if lengths is not None and (not isinstance(lengths, Tensor) or lengths.shape != source.shape[:1]):
            got = tuple(lengths.shape) if isinstance(lengths, Tensor) else lengths
            raise ValueError(f"Transformer: 'source_lengths' must be ({source.size(0)},), one a source, got {got}")
