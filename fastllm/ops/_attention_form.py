"""Attention's tensors in any form that torch takes, as (B, H, T, D): views, but where several batch dimensions differ.

Batch dimensions are those before the heads. Sizes of 1 there and of heads are the op's own affair.
"""

import torch
from torch import Tensor

_OP = "scaled_dot_product_attention"


class Form:
    """What the dimensions of a call's query, key and value are.

    Args:
        query, key, value: (T, D), (B, T, D) or (.., H, T, D), of any forms that broadcast.
        enable_gqa: three dimensions are (H, T, D), as the heads that are shared must be there.
    """

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
        given = {"query": query, "key": key, "value": value}
        for name, tensor in given.items():
            if tensor.dim() < 2:
                raise ValueError(f"{_OP}: '{name}' must have shape (.., T, D), got {list(tensor.shape)}")
        rank = max(tensor.dim() for tensor in given.values())
        self.has_heads = rank > 3 or enable_gqa
        before = -3 if self.has_heads else -2
        shapes = [tensor.shape[:before] for tensor in given.values()]
        try:
            self.batch = torch.broadcast_shapes(*shapes)
        except RuntimeError:
            raise ValueError(
                f"{_OP}: 'query', 'key' and 'value' must have batch dimensions that broadcast, got "
                + ", ".join(str(list(shape)) for shape in shapes)
            ) from None

    def operand(self, tensor: Tensor) -> Tensor:
        """Return (.., T, D) with four dimensions."""
        return self._flat(tensor if self.has_heads else tensor.unsqueeze(-3))

    def mask(self, mask: Tensor | None) -> Tensor | None:
        """Return attn_mask, which broadcasts to the scores (.., Tq, Tk), with at most four dimensions."""
        if mask is None:
            return None
        if not self.has_heads and mask.dim() > 2:
            mask = mask.unsqueeze(-3)
        batch = mask.shape[:-3]
        if len(batch) > len(self.batch) or any(
            size not in (1, own) for size, own in zip(reversed(batch), reversed(self.batch), strict=False)
        ):
            scores = [*self.batch, "H", "Tq", "Tk"] if self.has_heads else [*self.batch, "Tq", "Tk"]
            got = list(mask.shape) if self.has_heads else list(mask.squeeze(-3).shape)
            raise ValueError(f"{_OP}: 'attn_mask' must broadcast to ({', '.join(map(str, scores))}), got {got}")
        return self._flat(mask) if mask.dim() > 3 else mask

    def per_row(self, name: str, tensor: Tensor | None, *more: str) -> Tensor | None:
        """Return an argument of the batch's dimensions, and of `more`, with one batch dimension."""
        if tensor is None:
            return None
        if tensor.dim() != len(self.batch) + len(more) or tensor.shape[: len(self.batch)] != self.batch:
            expected = [*map(str, self.batch), *more]
            raise ValueError(f"{_OP}: '{name}' must have shape ({', '.join(expected)}), got {list(tensor.shape)}")
        return tensor.reshape(self.batch.numel(), *tensor.shape[len(self.batch) :])

    def slopes(self, slopes: Tensor | None) -> Tensor | None:
        """Return alibi_slopes, (H,) or (.., H), with at most two dimensions."""
        return slopes if slopes is None or slopes.dim() == 1 else self.per_row("alibi_slopes", slopes, "H")

    def output(self, output: Tensor) -> Tensor:
        """Return what the op gave, (B, H, Tq, Dv), in this form."""
        output = output if self.has_heads else output.squeeze(1)
        return output.reshape(*self.batch, *output.shape[1:])

    def _flat(self, tensor: Tensor) -> Tensor:
        """Return (.., H, T, D) with the batch as one dimension, of 1 if it has none or all of its own are 1."""
        own = tensor.shape[:-3]
        if len(own) == 1 and len(self.batch) == 1:
            return tensor
        if own.numel() == 1:
            return tensor.reshape(1, *(1,) * (3 - tensor.dim()), *tensor.shape[-3:])
        return tensor.expand(*self.batch, *tensor.shape[-3:]).flatten(0, len(self.batch) - 1)
