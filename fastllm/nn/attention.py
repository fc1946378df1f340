"""Self-attention as GPT uses it."""

import torch
from torch import Tensor

from fastllm import ops
from fastllm.nn.kv_cache import CacheLayer
from fastllm.nn.linear import Linear

# B batch, T tokens, H heads, D head_dim, C = H D channels


class CausalSelfAttention(torch.nn.Module):
    """Multi-head self-attention in which a token sees itself and those before it ("Attention is all you need", 3.2).

    One projection gives queries, keys and values; attention reads them where they are and backward writes one packed
    gradient, so nothing is copied or transposed in between.

    Args:
        n_embd: C, channels.
        n_head: H; must divide n_embd.
        dropout: probability of an attention weight to be zeroed while training.
        bias: whether both projections have a bias.
    """

    def __init__(self, n_embd: int, n_head: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        if n_embd % n_head:
            raise ValueError(f"CausalSelfAttention: 'n_embd' must be a multiple of n_head ({n_head}), got {n_embd}")
        self.n_head = n_head
        self.dropout = dropout
        self.qkv = Linear(n_embd, 3 * n_embd, bias=bias)
        self.projection = Linear(n_embd, n_embd, bias=bias)

    def forward(self, input: Tensor, segment_ids: Tensor | None = None, cache: CacheLayer | None = None) -> Tensor:
        """Attend: (B, T, C) -> (B, T, C).

        Args:
            input: (B, T, C).
            segment_ids: (B, T) int, non-decreasing along a row: tokens attend within their segment.
            cache: for inference: the tokens join those in it, and segment_ids are not looked at.
        """
        qkv = self.qkv(input).unflatten(-1, (3, self.n_head, -1))  # (B, T, 3, H, D)
        if cache is not None:
            attended = cache.attend(qkv)
        else:
            dropout = self.dropout if self.training else 0.0
            attended = ops.attention_packed(qkv, dropout_p=dropout, is_causal=True, segment_ids=segment_ids)
        return self.projection(attended.flatten(-2))  # from (B, T, H, D)
