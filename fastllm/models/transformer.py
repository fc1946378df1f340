"""The encoder-decoder Transformer of "Attention is all you need" (Vaswani et al., 2017), and its usual variations.

As in GPT, what joins a sub-layer to the next is one pass over memory: the residual's sum with the dropout before it and
the norm behind it. In a post-norm model it stands behind each sub-layer, and its output is the stream; in a pre-norm
model it stands before, and each block hands on (branch, residual): a sub-layer's output and what it is still to be
added to.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastllm import nn
from fastllm.models.config import TransformerConfig
from fastllm.models.encoder_decoder import Caches, EncoderDecoder

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


def _last_norm(config: TransformerConfig) -> torch.nn.Module:
    """Return what ends a row of blocks: in a post-norm model a norm of their output alone."""
    return _norm(config) if config.norm_first else nn.LayerNorm(config.n_embd, config.norm_eps, bias=config.bias)


def _feed_forward(config: TransformerConfig) -> torch.nn.Module:
    sizes = config.n_embd, config.intermediate_size
    if config.activation == "swiglu":
        return nn.GatedFeedForward(*sizes, config.bias, config.activation_dropout)
    return nn.FeedForward(*sizes, config.activation, config.bias, config.activation_dropout)


class Transformer(EncoderDecoder[TransformerConfig]):
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
            self.encoder_norm, self.decoder_norm = _last_norm(config), _last_norm(config)
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

    def encode(self, source: Tensor, source_lengths: Tensor | None = None) -> Tensor:
        """Return what the encoder makes of sources, (B, S) int -> (B, S, C)."""
        table = self.embedding if self.config.sharing == "all" else self.source_embedding
        branch, residual = self._embed(table(source), "source_positions", 0), None
        for block in self.encoder:
            branch, residual = block(branch, residual, source_lengths)
        return self._end("encoder_norm", branch, residual)

    def decode(
        self, target: Tensor, memory: Tensor | None = None, lengths: Tensor | None = None, caches: Caches = ()
    ) -> Tensor:
        """Return the decoder's last output, (B, T) int -> (B, T, C)."""
        first = caches[0][0].positions if caches else 0
        branch, residual = self._embed(self.embedding(target), "positions", first), None
        for i, block in enumerate(self.decoder):
            branch, residual = block(branch, residual, memory, lengths, *(caches[i] if caches else ()))
        return self._end("decoder_norm", branch, residual)

    def keys_and_values(self, memory: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return what each block of the decoder attends to, (B, S, C) -> two (B, H, S, D) each."""
        crosses: list[Any] = [block.cross_attention for block in self.decoder]
        return [cross.keys_and_values(memory) for cross in crosses]

    def cache_shape(self) -> tuple[int, int]:
        """Return H and head_dim."""
        return self.config.n_head, self.config.n_embd // self.config.n_head

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
        """Return the last block's output, normalised where the model ends in a norm."""
        if residual is not None:
            return getattr(self, norm)(branch, residual)[0]
        return getattr(self, norm)(branch) if self.config.ends_in_norm else branch
