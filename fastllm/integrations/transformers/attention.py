"""The attention of attn_implementation="fastllm".

What a layer of transformers gives to its attention interface goes to fastllm's kernels: grouped keys are not repeated,
windows and padding are skipped where the mask function (masks.py) could say them in words, and one query without a
gradient takes the kernel for decoding. Knows nothing of any one model.
"""

# B batch, Tq queries, Tk keys, H heads, Hkv heads of keys, D head_dim

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastllm import ops
from fastllm.integrations.transformers.masks import CompactMask, logger


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attend as transformers' attention interface asks for; it keeps sdpa_attention_forward's contract.

    Args:
        module: the layer; its is_causal counts where the argument is None, and it is causal if it has none.
        query: (B, H, Tq, D).
        key: (B, Hkv, Tk, D), Hkv a divisor of H.
        value: (B, Hkv, Tk, Dv).
        attention_mask: what :func:`fastllm.integrations.transformers.masks.attention_mask` returned, or a user's mask,
            bool or additive, broadcastable to (B, H, Tq, Tk). None: all keys, or of a causal layer with more queries
            than one those up to the query's own position, counted from the first key.
        dropout: probability of a weight to be zeroed.
        scaling: of the scores; default 1 / sqrt(D).
        is_causal: see module.
        position_bias: added to the scores, broadcastable to (B, H, Tq, Tk); differentiable.
        softcap: scores become softcap * tanh(score / softcap).
        s_aux: (H,), sinks: a score more in each head's softmax, without a value.
        **kwargs: what else layers give: nothing that changes the result. Windows are in the mask.

    Returns:
        (B, Tq, H, Dv), and None: weights are not formed. A fully masked query gives zeros.

    Raises:
        ValueError: shapes do not fit, or s_aux is given with a position_bias or softcap.
    """
    if kwargs.get("output_attentions"):
        logger.warning_once(
            "`fastllm` attention does not give weights: set your attention to `eager` if you want them."
        )
    if query.shape[0] != key.shape[0]:
        query = query.expand(key.shape[0], -1, -1, -1)  # learned queries stand for every element of the batch
    options: dict[str, Any] = {"dropout_p": dropout, "scale": scaling, "softcap": softcap}
    if isinstance(attention_mask, CompactMask) and attention_mask.window is not None and s_aux is not None:
        attention_mask = attention_mask.dense()  # the sink stands outside of every window
    if isinstance(attention_mask, CompactMask):
        options |= {"is_causal": attention_mask.causal, "causal_align": "bottom-right"}
        options |= {"window": attention_mask.window, "key_lengths": attention_mask.lengths}
        attention_mask = None if attention_mask.keys is None else attention_mask.keys[:, None, None, :]  # (B, 1, 1, Tk)
    elif attention_mask is None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        # An `if`: with symbolic shapes the comparison is no bool.
        if causal and query.shape[2] > 1:
            options["is_causal"] = True
    if position_bias is not None:
        attention_mask = _add(attention_mask, position_bias)
    if s_aux is not None:
        if position_bias is not None or softcap is not None:
            raise ValueError("fastllm attention: 's_aux' must stand alone, got a position_bias or softcap with it")
        query, key, value, attention_mask = _with_sinks(query, key, value, attention_mask, s_aux, options)
    if attention_mask is None and _is_decoding(query, key, value, options):
        lengths = torch.full((key.shape[0],), key.shape[2], device=key.device)
        output = ops.decode_attention(query, key, value, lengths, scale=scaling, softcap=softcap)
    else:
        output = ops.scaled_dot_product_attention(query, key, value, attention_mask, enable_gqa=True, **options)
    return output.transpose(1, 2), None


def _add(mask: Tensor | None, position_bias: Tensor) -> Tensor:
    """Return a bias with a mask, bool or additive, on top."""
    if mask is None:
        return position_bias
    return torch.where(mask, position_bias, float("-inf")) if mask.dtype == torch.bool else position_bias + mask


def _with_sinks(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, sinks: Tensor, options: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return query, key, value and mask with a key in front, whose score is its head's sink and whose value is zero.

    The score is a channel's product. As a column of an additive mask it would make H masks of one.
    """
    (b, _, tq, d), channels = query.shape, 8  # one is enough; kernels like eights
    if options["scale"] is None:
        options["scale"] = d**-0.5
    if mask is None and options.get("is_causal") and options.get("causal_align") is None:
        key, value = key[:, :, :tq], value[:, :, :tq]  # what lies behind is not seen: the last query is at the last key
        options["causal_align"] = "bottom-right"
    if options.get("key_lengths") is not None:
        options["key_lengths"] = options["key_lengths"] + 1
    if mask is not None:
        mask = F.pad(mask.expand(-1, -1, -1, key.shape[2]), (1, 0), value=mask.dtype == torch.bool)
    sink = sinks.to(query.dtype)[None, :, None, None].expand(b, -1, tq, 1)  # (B, H, Tq, 1)
    query = torch.cat([query, F.pad(sink, (0, channels - 1))], -1)
    one = F.pad(key.new_full((1, 1, 1, 1), 1 / options["scale"]), (d, channels - 1))  # (1, 1, 1, D + channels)
    key = torch.cat([one.expand(b, key.shape[1], -1, -1), F.pad(key, (0, channels))], 2)
    return query, key, F.pad(value, (0, 0, 1, 0)), mask


def _is_decoding(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> bool:
    """Whether decode_attention does: one query that sees all keys, and no gradient."""
    wants_gradient = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    return (
        query.shape[2] == 1
        and not wants_gradient
        and options["dropout_p"] == 0
        and options.get("key_lengths") is None
        and options.get("window") is None
        and query.dtype == key.dtype == value.dtype  # autocast may have others
        and key.stride(-1) == value.stride(-1) == 1
    )
