"""GPT: the decoder-only Transformer of GPT-2 (Radford et al., 2019), equal to transformers' GPT2LMHeadModel."""

from os import PathLike

import torch
from torch import Tensor
from typing_extensions import Self

from fastllm import nn
from fastllm.models.config import GPTConfig
from fastllm.models.decoder import Decoder, PreNormBlock

# B batch, T tokens, C = n_embd channels, V vocabulary


class Block(PreNormBlock):
    """One layer of GPT-2."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm_1 = nn.DropoutAddLayerNorm(config.n_embd, config.dropout, bias=config.bias)
        self.attention = nn.CausalSelfAttention(config.n_embd, config.n_head, config.dropout, config.bias)
        self.norm_2 = nn.DropoutAddLayerNorm(config.n_embd, config.dropout, bias=config.bias)
        self.feed_forward = nn.FeedForward(config.n_embd, activation=config.activation, bias=config.bias)


class GPT(Decoder[GPTConfig]):
    """A GPT language model; the output layer shares the token embedding's weights, as in GPT-2.

    Example:
        >>> model = GPT(GPTConfig.preset("shakespeare"))
        >>> model(torch.zeros(1, 8, dtype=torch.int64)).shape
        torch.Size([1, 8, 65])
    """

    config_class = GPTConfig
    kernels = (
        "attention_packed", "bias_gelu", "decode_attention", "dropout_add", "dropout_add_layer_norm", "embedding",
        "gelu", "layer_norm", "linear", "linear_cross_entropy", "linear_cross_entropy_with_gradients",
    )  # fmt: skip

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.embedding = nn.PositionalEmbedding(config.vocab_size, config.context_length, config.n_embd)
        self.blocks = torch.nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.DropoutAddLayerNorm(config.n_embd, config.dropout, bias=config.bias)
        self.output = nn.TiedLinear(self.embedding.token)
        self.reset_parameters()

    def embed(self, tokens: Tensor, positions: int | Tensor = 0) -> Tensor:
        """Return the sum of token and position embeddings: (B, T) int -> (B, T, C)."""
        return self.embedding(tokens, positions)

    def cache_shape(self) -> tuple[int, int]:
        """Return H and head_dim."""
        return self.config.n_head, self.config.n_embd // self.config.n_head

    @classmethod
    def from_nanogpt(cls, path: str | PathLike) -> Self:
        """Load a checkpoint of nanoGPT's train.py, such as out/ckpt.pt; its exact GELU is kept. As from_pretrained."""
        return cls.from_pretrained(path)
