"""The weights of attention, for those who want to look at them: attention itself never forms them."""

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
    never = float("-inf")
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, never) if attn_mask.dtype == torch.bool else scores + attn_mask
    positions = torch.arange(keys, device=query.device)
    if is_causal:
        scores = scores.masked_fill(positions > torch.arange(queries, device=query.device)[:, None], never)
    if key_lengths is not None:
        scores = scores.masked_fill(positions >= key_lengths.view(-1, 1, 1, 1), never)
    # Softmax of a row that is -inf throughout would be NaN, and so would its gradient.
    nothing = scores.detach().amax(-1, keepdim=True) == never if keys else torch.zeros((), dtype=torch.bool)
    return ops.softmax(scores.masked_fill(nothing, 0.0), -1).masked_fill(nothing, 0.0).to(query.dtype)
