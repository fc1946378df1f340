"""Embedding tables for tokens and positions."""

import torch
from torch import Tensor

from fastllm import ops


class Embedding(torch.nn.Embedding):
    """Drop-in for torch.nn.Embedding; its gradient is deterministic.

    Raises ValueError for what it does not do: max_norm, scale_grad_by_freq, sparse.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None, **kwargs) -> None:
        for name in ("max_norm", "scale_grad_by_freq", "sparse"):
            if kwargs.get(name):
                raise ValueError(f"Embedding: '{name}' is not supported, got {kwargs[name]}; use torch.nn.Embedding")
        super().__init__(num_embeddings, embedding_dim, padding_idx, **kwargs)

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows of the table that input names: (*,) int -> (*, embedding_dim)."""
        return ops.embedding(input, self.weight, self.padding_idx)


class PositionalEmbedding(torch.nn.Module):
    """Learned token and position embeddings, added in one pass, as in GPT-2.

    Args:
        vocab_size: V, rows of the token table.
        context_length: P, rows of the position table.
        embedding_dim: C.
    """

    def __init__(self, vocab_size: int, context_length: int, embedding_dim: int) -> None:
        super().__init__()
        self.token = Embedding(vocab_size, embedding_dim)
        self.position = Embedding(context_length, embedding_dim)

    def forward(self, tokens: Tensor, position_offset: int | Tensor = 0) -> Tensor:
        """Return token + position embeddings: (B, T) int -> (B, T, C).

        The first token of a sequence is at position_offset: one number, or (B,) int64 with a number a sequence.
        """
        if isinstance(position_offset, Tensor):
            positions = position_offset[:, None] + torch.arange(tokens.size(1), device=tokens.device)
            return self.token(tokens) + self.position(positions)
        return ops.embedding(
            tokens, self.token.weight, position_weight=self.position.weight, position_offset=position_offset
        )
