"""Embedding tables for tokens and positions."""

import torch
from torch import Tensor

from fastllm import ops
from fastllm.nn._bare import is_bare
from fastllm.nn._drop_in import drop_in_for
from fastllm.ops._only_default import only_default

_REFUSED = {"max_norm": None, "norm_type": 2.0, "scale_grad_by_freq": False, "sparse": False}


def _refused(module: torch.nn.Module) -> str:
    return ", ".join(
        f"{name}={getattr(module, name)}" for name, default in _REFUSED.items() if getattr(module, name) != default
    )


@drop_in_for(torch.nn.Embedding, unless=_refused)
class Embedding(torch.nn.Embedding):
    """Drop-in for torch.nn.Embedding; its gradient is deterministic.

    Raises ValueError for what it does not do: max_norm and its norm_type, scale_grad_by_freq, sparse.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        _freeze: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_embeddings, embedding_dim, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, _weight,
            _freeze, device, dtype,
        )  # fmt: skip
        for name, default in _REFUSED.items():
            only_default("Embedding", name, getattr(self, name), default, "use torch.nn.Embedding")

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows of the table that input names: (*,) int -> (*, embedding_dim)."""
        return ops.embedding(input, *_table(self))


def _table(layer: torch.nn.Embedding) -> tuple:
    """Return what ops.embedding takes of a layer as it stands, attributes that were set later too."""
    return (layer.weight, layer.padding_idx, *(getattr(layer, name) for name in _REFUSED))


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
        kinds = (Embedding, torch.nn.Embedding)
        if isinstance(position_offset, int) and is_bare(self.token, *kinds) and is_bare(self.position, *kinds):
            return ops.embedding(
                tokens, *_table(self.token), position_weight=self.position.weight, position_offset=position_offset
            )
        ahead = torch.arange(tokens.size(1), device=tokens.device)
        positions = position_offset[:, None] if isinstance(position_offset, Tensor) else position_offset
        return self.token(tokens) + self.position(positions + ahead)
