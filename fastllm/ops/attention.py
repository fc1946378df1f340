"""Scaled dot-product attention, in torch's layout and on a packed projection.

Tiles of keys pass under an online softmax (Dao et al., "FlashAttention", 2022), so memory grows with T, not T x T;
backward makes the scores again. Causal masks, windows, key lengths and segments skip what they can. A row that may see
nothing gives zeros and zero gradients.
"""

from typing import Any

import torch
from torch import Tensor

from fastllm.ops._attention_form import Form
from fastllm.ops._fake import register_fake
from fastllm.ops._random import rng_state_for
from fastllm.ops._subclasses import is_causal_bias, materialize

_ALIGNMENTS = ("top-left", "bottom-right", "key-lengths")


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    key_lengths: Tensor | None = None,
    segment_ids: Tensor | None = None,
    window: tuple[int, int] | None = None,
    alibi_slopes: Tensor | None = None,
    softcap: float | None = None,
    causal_align: str = "top-left",
    rng_state: Tensor | None = None,
) -> Tensor:
    """Return softmax(query @ key^T * scale + mask) @ value, as torch.nn.functional.scaled_dot_product_attention.

    Query i stands at position i of the keys, or with causal_align="bottom-right" at i + Tk - Tq: is_causal, window and
    alibi_slopes measure from there. With causal_align="key-lengths" it is i + L - Tq, where L is its batch element's of
    key_lengths: what decode_attention does, for sequences of several lengths whose newest tokens are the queries. One
    before position 0 sees nothing.

    Other dimensions than (B, H, T, D) are torch's: (T, D), (B, T, D), or more than one of batch, (.., H, T, D). Where
    heads are missing, H is 1 below; with enable_gqa three dimensions are (H, T, D). B stands for all batch dimensions,
    so that they are those of key_lengths, as before T of segment_ids.

    Args:
        query: (B, H, Tq, D), any strides; float32, float64, bfloat16 or float16. On CUDA no float64, and D is at most
            256. The three are broadcast over batch and, without enable_gqa, over heads.
        key: (B, Hkv, Tk, D).
        value: (B, Hkv, Tk, Dv).
        attn_mask: broadcastable to (B, H, Tq, Tk); bool (True takes part) or floating (added to the scores, and
            differentiable), or one of torch.nn.attention.bias (causal_upper_left, causal_lower_right), which stands for
            is_causal and causal_align. It may be combined with is_causal, which torch does not allow.
        dropout_p: probability of a weight to be zeroed, in [0, 1].
        is_causal: a query sees the keys up to its own position.
        scale: default 1 / sqrt(D).
        enable_gqa: Hkv may be a divisor of H.
        key_lengths: (B,) int64 or int32, in [0, Tk], how many keys of each batch element count; what lies behind is not
            read. On CUDA, where looking at them would stall, one out of range counts as the nearest end.
        segment_ids: (B, T) int64 or int32, for self-attention (Tq = Tk = T): token i sees token j only if their ids are
            equal, as several documents packed into one row need. Ids must be non-decreasing along a row, so that a
            segment is a run of neighbours: what lies outside it is not computed. On CUDA this is not checked, for the
            host would have to wait: there, the results of a row whose ids decrease are undefined.
        window: (left, right): a query sees no more than that many keys before and after its own position; -1 is no
            bound (Beltagy et al., "Longformer", 2020). What lies outside is not computed.
        alibi_slopes: (H,) or (B, H): slope * distance is subtracted from a score (Press et al., "Train short, test
            long", 2022); not differentiable.
        softcap: scores become softcap * tanh(score / softcap) before mask and slopes (Gemma 2, 2024).
        causal_align: "top-left", as torch, "bottom-right": the last query stands at the last key, or "key-lengths": the
            last query stands at the last of the keys that count.
        rng_state: as for :func:`fastllm.ops.dropout`; element i of the mask runs over (B, H, Tq, Tk rounded up to a
            multiple of 8).

    Returns:
        (B, H, Tq, Dv), of query's dtype, in (B, Tq, H, Dv) memory order; with the dimensions that were broadcast.

    Raises:
        ValueError: shapes do not fit, an argument is out of range, or segment_ids decrease (lengths and ids: on a CPU).
        TypeError: dtypes or devices do not fit.

    Example:
        >>> q = torch.zeros(1, 2, 3, 4)
        >>> scaled_dot_product_attention(q, q, q + 1, is_causal=True).shape
        torch.Size([1, 2, 3, 4])
    """
    if causal_align not in _ALIGNMENTS:
        raise ValueError(
            f"scaled_dot_product_attention: 'causal_align' must be one of {_ALIGNMENTS}, got '{causal_align}'"
        )
    if is_causal_bias(attn_mask):
        upper_left = _is_upper_left("scaled_dot_product_attention", attn_mask, query.shape[-2], key.shape[-2])
        align = "top-left" if upper_left else "bottom-right"
        others = is_causal or window is not None or alibi_slopes is not None  # they measure from causal_align
        square = query.shape[-2] == key.shape[-2] and causal_align != "key-lengths"
        if align == causal_align or not others or square:
            attn_mask, is_causal, causal_align = None, True, align
        else:
            attn_mask = materialize(attn_mask, query.device)
    state = rng_state_for(query, dropout_p, True, rng_state)
    left, right = split_window("scaled_dot_product_attention", window)
    form = None
    if not query.dim() == key.dim() == value.dim() == 4:
        form = Form(query, key, value, enable_gqa)
        query, key, value = (form.operand(tensor) for tensor in (query, key, value))
        attn_mask, key_lengths = form.mask(attn_mask), form.per_row("key_lengths", key_lengths)
        segment_ids = form.per_row("segment_ids", segment_ids, "T")
        alibi_slopes = form.slopes(alibi_slopes)
    output = torch.ops.fastllm.scaled_dot_product_attention.default(
        query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, key_lengths, segment_ids,
        causal_align == "bottom-right", causal_align == "key-lengths", left, right, alibi_slopes, softcap, state,
    )[0]  # fmt: skip
    return output if form is None else form.output(output)


def attention_packed(
    qkv: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    key_lengths: Tensor | None = None,
    segment_ids: Tensor | None = None,
    window: tuple[int, int] | None = None,
    alibi_slopes: Tensor | None = None,
    softcap: float | None = None,
    rng_state: Tensor | None = None,
    num_heads: int | None = None,
) -> Tensor:
    """Attend within a fused projection: it is read where it is, and backward writes one packed gradient.

    Args:
        qkv: (B, T, 3, H, D), the last dimension contiguous; queries, keys and values in this order. With num_heads it
            is (B, T, H + 2 K, D): H heads of queries, K of keys, K of values, where K divides H and each head of keys
            serves H / K neighbouring heads of queries (Ainslie et al., "GQA", 2023).
        attn_mask, dropout_p, is_causal, scale, key_lengths, segment_ids, window, alibi_slopes, softcap, rng_state: as
            for :func:`scaled_dot_product_attention`.
        num_heads: H, where qkv has four dimensions.

    Returns:
        (B, T, H, D), contiguous.

    Raises:
        ValueError: shapes do not fit, an argument is out of range, or segment_ids decrease (lengths and ids: on a CPU).
        TypeError: dtypes or devices do not fit.

    Example:
        >>> attention_packed(torch.zeros(2, 5, 3, 4, 8)).shape
        torch.Size([2, 5, 4, 8])
        >>> attention_packed(torch.zeros(2, 5, 4 + 2 * 2, 8), num_heads=4).shape
        torch.Size([2, 5, 4, 8])
    """
    if is_causal_bias(attn_mask):
        _is_upper_left("attention_packed", attn_mask, qkv.shape[1], qkv.shape[1])
        attn_mask, is_causal = None, True
    state = rng_state_for(qkv, dropout_p, True, rng_state)
    left, right = split_window("attention_packed", window)
    return torch.ops.fastllm.attention_packed.default(
        qkv, attn_mask, dropout_p, is_causal, scale, key_lengths, segment_ids, left, right, alibi_slopes, softcap,
        state, num_heads,
    )[0]  # fmt: skip


def _is_upper_left(op: str, bias: Any, tq: int, tk: int) -> bool:
    """Return which of torch.nn.attention.bias' two it is, after a look at its shape."""
    if (bias.seq_len_q, bias.seq_len_kv) != (tq, tk):
        got = f"({bias.seq_len_q}, {bias.seq_len_kv})"
        raise ValueError(f"{op}: 'attn_mask' must be a CausalBias of (Tq, Tk) = ({tq}, {tk}), got one of {got}")
    return bias.variant.name == "UPPER_LEFT"


def split_window(op: str, window: tuple[int, int] | None) -> tuple[int | None, int | None]:
    """Return (left, right) as the ops take them, None for no bound; anything else is a ValueError."""
    if window is None:
        return None, None
    pair = isinstance(window, tuple | list) and len(window) == 2
    if not pair or not all(isinstance(side, int) and side >= -1 for side in window):
        raise ValueError(f"{op}: 'window' must be (left, right), each at least 0 or -1 for no bound, got {window}")
    left, right = (None if side == -1 else side for side in window)
    return left, right


def _statistics(like: Tensor, b: int, h: int, t: int) -> Tensor:
    return like.new_empty((b, h, t, 2), dtype=torch.float64 if like.dtype == torch.float64 else torch.float32)


def _tokens_first(tensor: Tensor, channels: int) -> Tensor:
    b, h, t, _ = tensor.shape
    return tensor.new_empty((b, t, h, channels)).transpose(1, 2)


def _grad_mask(attn_mask: Tensor | None, need_mask: bool) -> Tensor | None:
    return attn_mask.new_empty(attn_mask.shape) if need_mask and attn_mask is not None else None


@register_fake("scaled_dot_product_attention")
def _(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, *options):
    *_, h, t, _ = query.shape
    if enable_gqa:
        (b,) = torch.broadcast_shapes(query.shape[:1], key.shape[:1], value.shape[:1])
    else:
        b, h = torch.broadcast_shapes(query.shape[:2], key.shape[:2], value.shape[:2])
    query = query.new_empty((b, h, t, 0))
    return _tokens_first(query, value.shape[3]), _statistics(query, b, h, t)


@register_fake("scaled_dot_product_attention_backward")
def _(grad_output, query, key, value, output, statistics, attn_mask, *options):
    grads = (_tokens_first(tensor, tensor.shape[3]) for tensor in (query, key, value))
    return (*grads, _grad_mask(attn_mask, need_mask=options[-1]))


@register_fake("attention_packed")
def _(qkv, *options):
    b, t, *_, h, d = qkv.shape
    num_heads = options[-1]
    h = h if num_heads is None else num_heads
    return qkv.new_empty((b, t, h, d)), _statistics(qkv, b, h, t)


@register_fake("attention_packed_backward")
def _(grad_output, qkv, output, statistics, attn_mask, *options):
    return qkv.new_empty(qkv.shape), _grad_mask(attn_mask, need_mask=options[-1])
