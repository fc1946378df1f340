"""Cross-entropy over classes."""

import torch
from torch import Tensor

from fastllm.ops._fake import register_fake
from fastllm.ops._only_default import only_default


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Compare logits with class indices, as torch.nn.functional.cross_entropy.

    Logits are read once in forward (an online softmax) and once in backward, which writes their gradient; two numbers a
    row are kept in between.

    Args:
        input: logits (N, C), (C,) or (N, C, d1, ..); float32, float64, bfloat16 or float16.
        target: class indices int64 of input's shape without C; ignore_index counts for nothing.
        weight: (C,) weight of each class, or None; a constant.
        size_average: None, as it is deprecated: see reduction.
        ignore_index: the target value to leave out.
        reduce: None, as it is deprecated: see reduction.
        reduction: "mean" (weighted, over the targets that count; NaN if none does), "sum" or "none".
        label_smoothing: in [0, 1]; spread over all C classes as torch does.

    Returns:
        A scalar, or target's shape for "none"; input's dtype, under autocast float32 (or float64).

    Raises:
        ValueError: shapes do not fit, a target is out of range (the message names it), reduction or label_smoothing is,
            weight requires a gradient, or size_average or reduce is given.
            On CUDA, where looking at targets would stall, such a target makes its row's loss NaN instead, and with it
            the mean and the row's gradient.
        TypeError: input is not of a supported floating dtype, or target is not int64.

    Example:
        >>> cross_entropy(torch.zeros(3, 4), torch.tensor([0, 3, -100]))
        tensor(1.3863)
    """
    only_default("cross_entropy", "size_average", size_average, None, "use 'reduction'")
    only_default("cross_entropy", "reduce", reduce, None, "use 'reduction'")
    return torch.ops.fastllm.cross_entropy.default(input, target, weight, ignore_index, reduction, label_smoothing)[0]


def loss_dtype(input: Tensor, wide_loss: bool) -> torch.dtype:
    """Return the loss's dtype; autocast asks for wide ones."""
    return torch.float32 if wide_loss and input.dtype != torch.float64 else input.dtype


def loss_like(input: Tensor, target: Tensor, reduction: str, wide_loss: bool) -> Tensor:
    """Return an empty tensor of the loss's shape and dtype."""
    return input.new_empty(target.shape if reduction == "none" else (), dtype=loss_dtype(input, wide_loss))


@register_fake("cross_entropy")
def _(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, wide_loss=False):
    compute_dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    statistics = input.new_empty((target.numel(), 2), dtype=compute_dtype)
    return loss_like(input, target, reduction, wide_loss), statistics


@register_fake("cross_entropy_backward")
def _(grad_output, input, target, weight, statistics, ignore_index, reduction, label_smoothing):
    return input.new_empty(input.shape)
