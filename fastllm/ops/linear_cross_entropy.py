"""A linear layer and the cross-entropy of its outputs in one, without the logits of all rows."""

import torch
from torch import Tensor

from fastllm.ops._fake import register_fake
from fastllm.ops.cross_entropy import loss_dtype, loss_like


def linear_cross_entropy(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return cross_entropy(input @ weight.T + bias, target) without ever holding the (N, V) logits or their gradient.

    Logits exist for a chunk of rows at a time. For "mean" and "sum" the gradients are made in the same pass as the loss
    (the idea of Liger Kernel's fused linear cross-entropy, Hsu et al., 2024), so a forward under autograd costs what
    forward and backward would, and backward nearly nothing.

    Args:
        input: (N, C); float32, float64, or bfloat16 and float16, which are computed in float32 on the CPU. On CUDA
            their logits have the input's dtype, as torch's, and sums are float32.
        weight: (V, C), of input's dtype.
        target: (N,) class indices int64.
        bias: (V,), of input's dtype, or None.
        ignore_index: the target value to leave out.
        reduction: "mean" (over the targets that count; NaN if none does), "sum" or "none".
        label_smoothing: in [0, 1]; spread over all V classes as torch does.

    Returns:
        A scalar, or (N,) for "none"; input's dtype. Under autocast input, weight and bias are taken to its dtype, and
        the loss is float32.

    Raises:
        ValueError: shapes do not fit, a target is out of range (the message names it), reduction or label_smoothing is.
            On CUDA, where looking at targets would stall, such a target makes its row's loss NaN instead, and with it
            the mean and the row's gradient.
        TypeError: input is not of a supported floating dtype, others differ from it, or target is not int64.

    Example:
        >>> linear_cross_entropy(torch.zeros(3, 2), torch.zeros(4, 2), torch.tensor([0, 1, 2]))
        tensor(1.3863)
    """
    return torch.ops.fastllm.linear_cross_entropy.default(
        input, weight, target, bias, ignore_index, reduction, label_smoothing
    )


@register_fake("linear_cross_entropy")
def _(input, weight, target, bias=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, wide_loss=False):
    return loss_like(input, target, reduction, wide_loss)


@register_fake("linear_cross_entropy_with_gradients")
def _(input, weight, target, bias, ignore_index, reduction, label_smoothing, wide_loss):
    kept = torch.float32 if input.dtype == torch.float16 else loss_dtype(input, wide_loss)
    return (loss_like(input, target, reduction, wide_loss), *_gradients(input, weight, bias, kept))


@register_fake("linear_cross_entropy_backward")
def _(grad_output, input, weight, target, bias, ignore_index, label_smoothing):
    return _gradients(input, weight, bias, input.dtype)


def _gradients(
    input: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    grad_bias = None if bias is None else bias.new_empty(bias.shape, dtype=dtype)
    return input.new_empty(input.shape, dtype=dtype), weight.new_empty(weight.shape, dtype=dtype), grad_bias
