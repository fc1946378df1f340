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

# What some layers give that changes the result: keys selected for each query, and sinks that differ by token.
UNSERVED = ("indices", "block_indices", "sinks")


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
            than one those up to the query's own position.
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
        ValueError: shapes do not fit, s_aux is given with a position_bias or softcap, or a causal layer has neither a
            mask nor as many keys as queries: where these stand is not said then.
        NotImplementedError: the layer gives something more that changes the result.
    """
    for name in UNSERVED:
        if kwargs.get(name) is not None:
            layer = type(module).__name__
            raise NotImplementedError(f'fastllm attention does not know \'{name}\' of {layer}: use "sdpa" or "eager"')
    if kwargs.get("output_attentions"):
        logger.warning_once(
            "`fastllm` attention does not give weights: set your attention to `eager` if you want them."
        )
    if query.shape[0] != key.shape[0]:
        query = query.expand(key.shape[0], -1, -1, -1)  # learned queries stand for every element of the batch
    if isinstance(attention_mask, CompactMask) and attention_mask.window is not None and s_aux is not None:
        attention_mask = attention_mask.dense()  # the sink stands outside of every window
    rule: dict[str, Any] = {"is_causal": False}
    if isinstance(attention_mask, CompactMask):
        rule = {"is_causal": attention_mask.causal, "causal_align": attention_mask.causal_align}
        rule |= {"window": attention_mask.window, "key_lengths": attention_mask.lengths}
        mask = None if attention_mask.keys is None else attention_mask.keys[:, None, None, :]  # (B, 1, 1, Tk)
    else:
        mask = attention_mask
        if mask is None and query.shape[2] > 1:
            rule["is_causal"] = getattr(module, "is_causal", True) if is_causal is None else is_causal
            if rule["is_causal"] and query.shape[2] != key.shape[2]:
                raise ValueError(
                    "fastllm attention: 'attention_mask' must be given where a causal layer has not as many keys as "
                    f"queries, got None with {query.shape[2]} queries and {key.shape[2]} keys"
                )
    if position_bias is not None:
        mask = _add(mask, position_bias)
    if s_aux is not None:
        if position_bias is not None or softcap is not None:
            raise ValueError("fastllm attention: 's_aux' must stand alone, got a position_bias or softcap with it")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        query, key, value, mask, rule = _with_sinks(query, key, value, mask, rule, s_aux, scaling)
    common: dict[str, Any] = {"scale": scaling, "softcap": softcap}
    if query.shape[2] == 1 and not rule["is_causal"] and rule.get("window") is None:
        output = _attend_once(query, key, value, mask, rule.get("key_lengths"), dropout, common)
    else:
        output = ops.scaled_dot_product_attention(query, key, value, mask, dropout, enable_gqa=True, **rule, **common)
    return output.transpose(1, 2), None


def _add(mask: Tensor | None, position_bias: Tensor) -> Tensor:
    """Return a bias with a mask, bool or additive, on top."""
    if mask is None:
        return position_bias
    return torch.where(mask, position_bias, float("-inf")) if mask.dtype == torch.bool else position_bias + mask


def _with_sinks(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rule: dict[str, Any], sinks: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, dict[str, Any]]:
    """Return all of it with a key in front, whose score is its head's sink and whose value is zero.

    The score is the product of a channel more. As a column of an additive mask it would make H masks of one.
    """
    (b, _, tq, d), tk = query.shape, key.shape[2]
    lengths = rule.get("key_lengths")
    if rule["is_causal"] and rule.get("causal_align", "top-left") == "top-left" and tq < tk:
        # No query sees what lies behind. Without it the last query stands at the last key, whatever stands in front.
        key, value, tk = key[:, :, :tq], value[:, :, :tq], tq
        mask = mask if mask is None else mask[..., :tq]
        lengths = lengths if lengths is None else lengths.clamp(max=tq)
    rule = {"is_causal": rule["is_causal"], "causal_align": "bottom-right"}
    rule["key_lengths"] = None if lengths is None else lengths + 1
    if mask is not None:
        mask = F.pad(mask.expand(-1, -1, -1, tk), (1, 0), value=mask.dtype == torch.bool)
    channels = 8  # one is enough; kernels like eights
    sink = sinks.to(query.dtype)[None, :, None, None].expand(b, -1, tq, 1)  # (B, H, Tq, 1)
    query = torch.cat([query, F.pad(sink, (0, channels - 1))], -1)
    front = F.pad(key.new_full((1, 1, 1, 1), 1 / scale), (d, channels - 1))  # (1, 1, 1, D + channels)
    key = torch.cat([front.expand(b, key.shape[1], -1, -1), F.pad(key, (0, channels))], 2)
    return query, key, F.pad(value, (0, 0, 1, 0)), mask, rule


def _attend_once(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    dropout: float,
    common: dict[str, Any],
) -> Tensor:
    """Return the attention of one query, (B, H, 1, Dv): each key is read once, for all the heads that it serves."""
    (b, h, _, d), (hkv, tk) = query.shape, key.shape[1:3]
    wants_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    alike = query.dtype == key.dtype == value.dtype  # autocast may have others
    contiguous = key.stride(-1) == value.stride(-1) == 1
    if mask is None and lengths is None and dropout == 0 and alike and contiguous and not wants_gradient:
        return ops.decode_attention(query, key, value, torch.full((b,), tk, device=key.device), **common)
    if mask is None or (mask.dim() == 4 and mask.shape[1] == 1):
        query = query.reshape(b, hkv, h // hkv, d)  # heads that see the same keys, as queries
    output = ops.scaled_dot_product_attention(
        query, key, value, mask, dropout, enable_gqa=True, key_lengths=lengths, **common
    )
    return output.reshape(b, h, 1, value.shape[3])
