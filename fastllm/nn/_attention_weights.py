"""The weights of attention, for those who want to look at them: attention itself never forms them."""

import functools

import torch
from torch import Tensor

from fastllm import ops


def attention_weights(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    key_lengths: Tensor | None = None,
) -> Tensor:
    """Return softmax(query @ key^T * scale + mask), by which scaled_dot_product_attention weighs the values.

    They take B H Tq Tk numbers of memory, so select heads before where a few will do. A row that may see nothing is
    zero. They have gradients.

    Args:
        query: (B, H, Tq, D), floating.
        key: (B, H, Tk, D), of query's dtype.
        attn_mask: broadcastable to (B, H, Tq, Tk); bool (True takes part) or floating (added to the scores), or None.
        is_causal: a query sees the keys up to its own position.
        scale: default 1 / sqrt(D).
        key_lengths: (B,) int, how many keys of each batch element count, or None.

    Returns:
        (B, H, Tq, Tk), of query's dtype.

    Raises:
        RuntimeError: shapes do not fit.

    Example:
        >>> q = torch.zeros(1, 1, 2, 4)
        >>> attention_weights(q, q, is_causal=True).squeeze()
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000]])
    """
    queries, keys = query.shape[-2], key.shape[-2]
    scores = torch.matmul(query * (query.shape[-1] ** -0.5 if scale is None else scale), key.transpose(-2, -1))
    if not keys:
        return scores
    positions, never = torch.arange(keys, device=query.device), float("-inf")
    # Each broadcasts to (B, H, Tq, Tk), and is as small as what it is made of.
    conditions = []
    if is_causal:
        conditions.append(positions <= torch.arange(queries, device=query.device)[:, None])
    if key_lengths is not None:
        conditions.append(positions < key_lengths.view(-1, 1, 1, 1))
    if attn_mask is not None:
        is_added = attn_mask.dtype != torch.bool
        conditions.append(attn_mask != never if is_added else attn_mask)
        scores = scores + attn_mask.masked_fill(~conditions[-1], 0.0) if is_added else scores
    if not conditions:
        return ops.softmax(scores, -1)
    seen = functools.reduce(torch.logical_and, conditions)
    # Softmax of a row that is -inf throughout would be NaN, and so would its gradient.
    nothing = ~seen.any(-1, keepdim=True)
    weights = ops.softmax(scores.masked_fill(~(seen | nothing), never), -1)
    return weights.masked_fill(nothing, 0.0).to(query.dtype)
