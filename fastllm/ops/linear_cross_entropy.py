"""A linear layer and the cross-entropy of its outputs in one, without the logits of all rows."""

import torch
from torch import Tensor

from fastllm.ops._fake import register_fake
from fastllm.ops._only_default import only_default
from fastllm.ops.cross_entropy import loss_dtype, loss_like


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: None = None,
) -> Tensor:
    """Return the cross-entropy of linear(input, linear_weight, linear_bias), as torch.nn.functional's, in less memory.

    The (N, V) logits and their gradient never exist as a whole.

    Logits exist for a chunk of rows at a time. For "mean" and "sum" the gradients are made in the same pass as the loss
    (the idea of Liger Kernel's fused linear cross-entropy, Hsu et al., 2024), so a forward under autograd costs what
    forward and backward would, and backward nearly nothing. What is frozen costs no gradient.

    Args:
        input: (N, C); float32, float64, or bfloat16 and float16, which are computed in float32 on the CPU. On CUDA
            their logits have the input's dtype, as torch's, and sums are float32.
        linear_weight: (V, C), of input's dtype.
        target: (N,) class indices int64.
        linear_bias: (V,), of input's dtype, or None.
        weight: None: classes have no weights here.
        reduction: "mean" (over the targets that count; NaN if none does), "sum" or "none".
        ignore_index: the target value to leave out; None is -100.
        label_smoothing: in [0, 1]; spread over all V classes as torch does.
        options: None: chunks are chosen here.

    Returns:
        A scalar, or (N,) for "none"; input's dtype. Under autocast input, linear_weight and linear_bias are taken to
        its dtype, and the loss is float32.

    Raises:
        ValueError: shapes do not fit, a target is out of range (the message names it), reduction or label_smoothing is,
            or weight or options is given.
            On CUDA, where looking at targets would stall, such a target makes its row's loss NaN instead, and with it
            the mean and the row's gradient.
        TypeError: input is not of a supported floating dtype, others differ from it, or target is not int64.

    Example:
        >>> linear_cross_entropy(torch.zeros(3, 2), torch.zeros(4, 2), torch.tensor([0, 1, 2]))
        tensor(1.3863)
    """
    only_default(
        "linear_cross_entropy", "weight", weight, None, "for weights of classes take cross_entropy(linear(..), ..)"
    )
    only_default("linear_cross_entropy", "options", options, None, "chunks are chosen here")
    return torch.ops.fastllm.linear_cross_entropy.default(
        input, linear_weight, target, linear_bias, -100 if ignore_index is None else ignore_index, reduction,
        label_smoothing,
    )  # fmt: skip


@register_fake("linear_cross_entropy")
def _(
    input, linear_weight, target, linear_bias=None, ignore_index=-100, reduction="mean", label_smoothing=0.0,
    wide_loss=False,
):  # fmt: skip
    return loss_like(input, target, reduction, wide_loss)


@register_fake("linear_cross_entropy_with_gradients")
def _(input, linear_weight, target, linear_bias, ignore_index, reduction, label_smoothing, wide_loss, *need):
    kept = torch.float32 if input.dtype == torch.float16 else loss_dtype(input, wide_loss)
    gradients = _gradients((input, linear_weight, linear_bias), need, kept)
    return (loss_like(input, target, reduction, wide_loss), *gradients)


@register_fake("linear_cross_entropy_backward")
def _(grad_output, input, linear_weight, target, linear_bias, ignore_index, label_smoothing, *need):
    return _gradients((input, linear_weight, linear_bias), need, input.dtype)


def _gradients(
    tensors: tuple[Tensor | None, ...], need: tuple[bool, ...], dtype: torch.dtype
) -> tuple[Tensor | None, ...]:
    """Return an empty gradient for each tensor that is there and needs one, else None."""
    return tuple(
        t.new_empty(t.shape, dtype=dtype) if t is not None and wanted else None
        for t, wanted in zip(tensors, need, strict=True)
    )
