"""torch.nn's masks as the attention ops take them: what is hidden becomes what is seen, padding becomes lengths.

torch.nn hides where a bool mask is True; scaled_dot_product_attention sees where it is True. A mask that a key's
padding alone makes is not spread over the queries, and where every sequence is padded behind its end there is none.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

# B batch, H heads, Tq queries, Tk keys


@dataclass(frozen=True)
class Visibility:
    """Which keys each query sees, as scaled_dot_product_attention takes it.

    Args:
        attn_mask: broadcastable to (B, H, Tq, Tk); bool (True takes part) or floating (added), or None.
        key_lengths: (B,) int64, how many keys of each sequence are looked at, or None.
        is_causal: whether a query sees the keys up to its own position only.
    """

    attn_mask: Tensor | None = None
    key_lengths: Tensor | None = None
    is_causal: bool = False

    def with_more_keys(self, shape: tuple[int, int, int], more: int) -> "Visibility":
        """Return the same with keys behind the last one that every query sees.

        Args:
            shape: (B, Tq, Tk), before.
            more: how many.
        """
        batch, queries, keys = shape
        mask = self.attn_mask
        if self.key_lengths is not None:
            positions = torch.arange(keys, device=self.key_lengths.device)
            mask = _both(mask, (positions < self.key_lengths[:, None]).view(batch, 1, 1, keys))
        if self.is_causal:
            device = None if mask is None else mask.device
            mask = _both(mask, torch.ones(queries, keys, dtype=torch.bool, device=device).tril())
        if mask is None:
            return self
        seen = 1 if mask.dtype == torch.bool else 0
        return Visibility(torch.nn.functional.pad(mask.expand(*mask.shape[:-1], keys), (0, more), value=seen))


def visibility(
    layer: str,
    shape: tuple[int, int, int, int],
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    is_causal: bool,
) -> Visibility:
    """Return what torch.nn.MultiheadAttention's masks let each query see.

    Args:
        layer: whose arguments they are, for messages.
        shape: (B, H, Tq, Tk).
        attn_mask: (Tq, Tk) or (B * H, Tq, Tk), bool (True hides) or floating (added), or None.
        key_padding_mask: (B, Tk), bool (True hides) or floating (added), or None.
        is_causal: beside the masks.

    Raises:
        ValueError: a mask has another shape, or attn_mask hides all there is.
        TypeError: a mask is neither bool nor floating.
    """
    batch, heads, queries, keys = shape
    seen = Visibility(is_causal=is_causal)
    if attn_mask is not None:
        check_mask(layer, "attn_mask", attn_mask, [(queries, keys), (batch * heads, queries, keys)])
        if attn_mask.dim() == 3:
            attn_mask = attn_mask.unflatten(0, (batch, heads))
        if attn_mask.dtype == torch.bool:
            attn_mask = ~attn_mask
            if may_look_at(attn_mask) and attn_mask.numel() and not attn_mask.any():
                raise ValueError(
                    f"{layer}: 'attn_mask' hides every key from every query: in torch.nn's classes True hides, while "
                    "in scaled_dot_product_attention True takes part; pass its inverse, ~attn_mask"
                )
        seen = replace(seen, attn_mask=attn_mask)
    if key_padding_mask is not None:
        check_mask(layer, "key_padding_mask", key_padding_mask, [(batch, keys)])
        if key_padding_mask.numel():
            seen = _padded(seen, key_padding_mask)
    return seen


def is_causal_mask(mask: Tensor | None) -> bool:
    """Return whether a mask of torch.nn's is known to hide what comes after each position, and nothing else.

    False where the host may not look.
    """
    if mask is None or mask.dim() != 2 or mask.size(0) != mask.size(1) or not may_look_at(mask):
        return False
    hidden = True if mask.dtype == torch.bool else float("-inf")
    return torch.equal(mask, torch.full_like(mask, hidden).triu(1))


def may_look_at(tensor: Tensor) -> bool:
    """Return whether code may depend on a tensor's values: they are here, no device is waited for, no trace is made."""
    real = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type == "cpu" and not tensor.requires_grad
    return real and not torch.compiler.is_compiling()


def check_mask(layer: str, name: str, mask: Tensor, shapes: list[tuple[int, ...]]) -> None:
    """Raise if a mask is neither bool nor floating, or has none of these shapes."""
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f"{layer}: '{name}' must be bool or floating, got {mask.dtype}")
    if tuple(mask.shape) not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"{layer}: '{name}' must have shape {expected}, got {list(mask.shape)}")


def _padded(seen: Visibility, mask: Tensor) -> Visibility:
    """Add padding, (B, Tk): the keys behind the last visible one are not looked at, a mask hides what is before."""
    batch, keys = mask.shape
    visible = ~mask if mask.dtype == torch.bool else mask.detach() != float("-inf")
    numbers = torch.arange(1, keys + 1, device=mask.device)
    lengths = (visible * numbers).amax(1)
    if may_look_at(mask) and _is_a_beginning(visible, lengths, mask):
        return seen if bool((lengths == keys).all()) else replace(seen, key_lengths=lengths)
    own = visible if mask.dtype == torch.bool else mask
    return replace(seen, attn_mask=_both(seen.attn_mask, own.view(batch, 1, 1, keys)), key_lengths=lengths)


def _is_a_beginning(visible: Tensor, lengths: Tensor, mask: Tensor) -> bool:
    """Return whether the first keys of each sequence are visible and the others not, and the mask says no more."""
    positions = torch.arange(visible.size(1))
    says_more = mask.dtype != torch.bool and bool(mask.masked_fill(~visible, 0).any())
    return not says_more and torch.equal(visible, positions < lengths[:, None])


def _both(mask: Tensor | None, other: Tensor) -> Tensor:
    """Return what two masks of scaled_dot_product_attention's let see together."""
    if mask is None:
        return other
    if mask.dtype == torch.bool and other.dtype == torch.bool:
        return mask & other
    return _additive(mask) + _additive(other)


def _additive(mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros((), device=mask.device).masked_fill(~mask, float("-inf"))
