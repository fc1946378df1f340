"""Attention as GPT and the Transformer use it ("Attention is all you need", Vaswani et al., 2017, 3.2)."""

import torch
from torch import Tensor

from fastllm import ops
from fastllm.nn._attention_weights import attention_weights
from fastllm.nn.kv_cache import CacheLayer, SourceLayer
from fastllm.nn.linear import Linear

# B batch, T tokens, S tokens of the source, H heads, D head_dim, C = H D channels


class SelfAttention(torch.nn.Module):
    """Multi-head attention of tokens to each other.

    One projection gives queries, keys and values; attention reads them where they are and backward writes one packed
    gradient, so nothing is copied or transposed in between.

    Args:
        n_embd: C, channels.
        n_head: H; must divide n_embd.
        dropout: probability of an attention weight to be zeroed while training.
        bias: whether both projections have a bias.
        is_causal: whether a token sees itself and those before it only.

    Raises:
        ValueError: n_embd is not a multiple of n_head.
    """

    def __init__(
        self, n_embd: int, n_head: int, dropout: float = 0.0, bias: bool = True, *, is_causal: bool = False
    ) -> None:
        super().__init__()
        _check_heads(self, n_embd, n_head)
        self.n_head = n_head
        self.dropout = dropout
        self.is_causal = is_causal
        self.qkv = Linear(n_embd, 3 * n_embd, bias=bias)
        self.projection = Linear(n_embd, n_embd, bias=bias)

    def forward(
        self, input: Tensor, segment_ids: Tensor | None = None, cache: CacheLayer | None = None,
        *, lengths: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Attend: (B, T, C) -> (B, T, C).

        Args:
            input: (B, T, C).
            segment_ids: (B, T) int, non-decreasing along a row: tokens attend within their segment.
            cache: for inference of causal attention: the tokens join those in it, and nothing else is looked at.
            lengths: (B,) int, how many tokens of each row there are; what lies behind is not seen.
        """
        qkv = self.qkv(input).unflatten(-1, (3, self.n_head, -1))  # (B, T, 3, H, D)
        if cache is not None:
            attended = cache.attend(qkv)
        else:
            dropout = self.dropout if self.training else 0.0
            attended = ops.attention_packed(
                qkv, dropout_p=dropout, is_causal=self.is_causal, segment_ids=segment_ids, key_lengths=lengths
            )
        return self.projection(attended.flatten(-2))  # from (B, T, H, D)


class CausalSelfAttention(SelfAttention):
    """Multi-head self-attention in which a token sees itself and those before it.

    Args:
        n_embd, n_head, dropout, bias: as of SelfAttention.
    """

    def __init__(self, n_embd: int, n_head: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__(n_embd, n_head, dropout, bias, is_causal=True)


class CrossAttention(torch.nn.Module):
    """Multi-head attention of a decoder's tokens to what an encoder made of its source.

    Keys and values are one projection of the source, which generation makes once and keeps.

    Args:
        n_embd: C, channels of both.
        n_head: H; must divide n_embd.
        dropout: probability of an attention weight to be zeroed while training.
        bias: whether the projections have a bias.

    Raises:
        ValueError: n_embd is not a multiple of n_head.
    """

    def __init__(self, n_embd: int, n_head: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        _check_heads(self, n_embd, n_head)
        self.n_head = n_head
        self.dropout = dropout
        self.query = Linear(n_embd, n_embd, bias=bias)
        self.key_value = Linear(n_embd, 2 * n_embd, bias=bias)
        self.projection = Linear(n_embd, n_embd, bias=bias)

    def forward(
        self, input: Tensor, memory: Tensor | None, lengths: Tensor | None = None, cache: SourceLayer | None = None
    ) -> Tensor:
        """Attend: (B, T, C) and (B, S, C) -> (B, T, C).

        Args:
            input: (B, T, C), of the decoder.
            memory: (B, S, C), the encoder's output; None with a cache, which has its keys and values.
            lengths: (B,) int, how many tokens of each source there are; what lies behind is not seen.
            cache: for inference: the sources' keys and values, and which source each row of input belongs to.
        """
        query = self.query(input).unflatten(-1, (self.n_head, -1))  # (B, T, H, D)
        if cache is not None:
            return self.projection(cache.attend(query).flatten(-2))
        assert memory is not None
        key, value = self.keys_and_values(memory)
        dropout = self.dropout if self.training else 0.0
        attended = ops.scaled_dot_product_attention(
            query.transpose(1, 2), key, value, dropout_p=dropout, key_lengths=lengths
        )
        return self.projection(attended.transpose(1, 2).flatten(-2))

    def keys_and_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is attended to: (B, S, C) -> two (B, H, S, D)."""
        key, value = self.key_value(memory).unflatten(-1, (2, self.n_head, -1)).permute(2, 0, 3, 1, 4)
        return key, value

    def weights(self, input: Tensor, memory: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return how much each token looks at each of the source: (B, H, T, S), of which rows sum to 1."""
        query = self.query(input).unflatten(-1, (self.n_head, -1)).transpose(1, 2)
        return attention_weights(query, self.keys_and_values(memory)[0], key_lengths=lengths)


def _check_heads(layer: torch.nn.Module, n_embd: int, n_head: int) -> None:
    if n_embd % n_head:
        raise ValueError(f"{type(layer).__name__}: 'n_embd' must be a multiple of n_head ({n_head}), got {n_embd}")
