"""Attention of the newest tokens over a cache of keys and values: what each step of generation spends its memory on.

Keys are split at fixed positions and the splits' sums are added in order (the scheme of Dao et al., "Flash-Decoding for
long-context inference", 2023), so one sequence keeps all cores busy, and its result is the same bit for bit whatever
stands beside it in the batch, whatever the caches' capacity, and whether its queries come one by one or together.
"""

import torch
from torch import Tensor

from fastllm.ops._fake import register_fake
from fastllm.ops.attention import split_window


def decode_attention(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    scale: float | None = None,
    window: tuple[int, int] | None = None,
    alibi_slopes: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Return the causal attention of the last Tq tokens of each sequence, whose keys and values are in the caches.

    Query i of sequence b stands at position lengths[b] - Tq + i and sees the keys up to itself: what
    scaled_dot_product_attention gives for that sequence alone with is_causal=True, causal_align="bottom-right". A query
    before position 0 sees nothing and gives zeros. For inference: it has no gradient.

    Args:
        query: (B, H, Tq, D), any strides; float32, float64, bfloat16 or float16. On CUDA not float64, D and Dv at
            most 256 and S at most 2^30.
        k_cache: (B, Hkv, S, D), Hkv a divisor of H; the last dimension contiguous, other strides as they are. Fastest
            is a contiguous cache: a head's keys follow each other in memory.
        v_cache: (B, Hkv, S, Dv), as k_cache.
        lengths: (B,) int64, in [0, S], how many entries of each sequence count, the Tq new ones included. What the
            caches hold past them is not read. On CUDA, where looking at them would stall, one out of range counts as
            the nearest end.
        scale: default 1 / sqrt(D).
        window: (left, right): a query sees no more than `left` keys before its own position, -1 is no bound; `right`
            changes nothing here, as no key after a query is seen.
        alibi_slopes: (H,) or (B, H): slope * distance is subtracted from a score.
        softcap: scores become softcap * tanh(score / softcap).

    Returns:
        (B, H, Tq, Dv), of query's dtype, in (B, Tq, H, Dv) memory order.

    Raises:
        ValueError: shapes do not fit, an argument is out of range, or a gradient is asked for.
        TypeError: dtypes or devices do not fit.

    Example:
        >>> cache = torch.ones(1, 2, 16, 4)
        >>> decode_attention(torch.zeros(1, 2, 1, 4), cache, cache, torch.tensor([3])).flatten()
        tensor([1., 1., 1., 1., 1., 1., 1., 1.])
    """
    left, _ = split_window("decode_attention", window)
    return torch.ops.fastllm.decode_attention.default(
        query, k_cache, v_cache, lengths, scale, left, alibi_slopes, softcap
    )


@register_fake("decode_attention")
def _(query, k_cache, v_cache, *options):
    b, h, t, _ = query.shape
    return query.new_empty((b, t, h, v_cache.shape[3])).transpose(1, 2)
