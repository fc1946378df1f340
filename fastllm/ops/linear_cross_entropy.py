"""A linear layer and the cross-entropy of its outputs in one, without the logits of all rows."""

import torch
from torch import Tensor

from fastllm.ops._fake import register_fake
from fastllm.ops._only_default import only_default
from fastllm.ops.cross_entropy import cross_entropy, is_wide, loss_dtype, loss_like
from fastllm.ops.linear import linear


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the cross-entropy of linear(input, linear_weight, linear_bias), as torch.nn.functional's, in less memory.

    The (N, V) logits and their gradient never exist as a whole.

    Logits exist for a chunk of rows at a time. For "mean" and "sum" the gradients are made in the same pass as the loss
    (the idea of Liger Kernel's fused linear cross-entropy, Hsu et al., 2024), so a forward under autograd costs what
    forward and backward would, and backward nearly nothing. What is frozen costs no gradient.

    Weights of classes and targets that are probabilities have no such pass: with either, the logits of all rows are
    formed, as cross_entropy(linear(input, linear_weight, linear_bias), ..) does.

    Args:
        input: (N, C); float32, float64, or bfloat16 and float16, which are computed in float32 on the CPU. On CUDA
            their logits have the input's dtype, as torch's, and sums are float32.
        linear_weight: (V, C), of input's dtype.
        target: (N,) class indices int64, or (N, V) probabilities of any floating dtype.
        linear_bias: (V,), of input's dtype, or None.
        weight: (V,) weight of each class, or None; a constant.
        reduction: "mean" (over the targets that count; NaN if none does), "sum" or "none".
        ignore_index: the target value to leave out; None is -100.
        label_smoothing: in [0, 1]; spread over all V classes as torch does.
        options: None: chunks are chosen here.
        dtype: the loss's, as for :func:`cross_entropy`: float32 of bfloat16 or float16 input; None gives input's.

    Returns:
        A scalar, or (N,) for "none"; input's dtype unless `dtype` says another. Under autocast input, linear_weight and
        linear_bias are taken to its dtype, and the loss is float32.

    Raises:
        ValueError: shapes do not fit, a target is out of range (the message names it), reduction or label_smoothing is,
            weight requires a gradient, dtype is neither input's nor float32, or options is given.
            On CUDA, where looking at targets would stall, such a target makes its row's loss NaN instead, and with it
            the mean and the row's gradient.
        TypeError: input is not of a supported floating dtype, others differ from it, or target is neither int64 nor
            floating.

    Example:
        >>> linear_cross_entropy(torch.zeros(3, 2), torch.zeros(4, 2), torch.tensor([0, 1, 2]))
        tensor(1.3863)
    """
    only_default("linear_cross_entropy", "options", options, None, "chunks are chosen here")
    ignore_index = -100 if ignore_index is None else ignore_index
    if weight is not None or target.is_floating_point():
        return cross_entropy(
            _logits(input, linear_weight, linear_bias), target, weight, ignore_index=ignore_index, reduction=reduction,
            label_smoothing=label_smoothing, dtype=dtype,
        )  # fmt: skip
    wide = dtype is not None and is_wide("linear_cross_entropy", input, dtype)
    return torch.ops.fastllm.linear_cross_entropy.default(
        input, linear_weight, target, linear_bias, ignore_index, reduction, label_smoothing, wide
    )


def _logits(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> Tensor:
    """Return (N, V), after the checks that the op makes of these arguments."""

    def check(error: type[Exception], holds: bool, name: str, expected: str, got: object) -> None:
        if not holds:
            raise error(f"linear_cross_entropy: '{name}' must {expected}, got {got}")

    check(ValueError, input.dim() == 2, "input", "have shape (rows, channels)", list(input.shape))
    fits = linear_weight.dim() == 2 and linear_weight.shape[1] == input.shape[1]
    expected = f"have shape (classes, {input.shape[1]})"
    check(ValueError, fits, "linear_weight", expected, list(linear_weight.shape))
    if linear_bias is not None:
        fits = linear_bias.shape == linear_weight.shape[:1]
        check(ValueError, fits, "linear_bias", f"have shape [{linear_weight.shape[0]}]", list(linear_bias.shape))
    for name, tensor in (("linear_weight", linear_weight), ("linear_bias", linear_bias)):
        if tensor is not None:
            where = f"be on the device of 'input' ({input.device})"
            check(TypeError, tensor.device == input.device, name, where, tensor.device)
            same = tensor.dtype == input.dtype or torch.is_autocast_enabled(input.device.type)
            check(TypeError, same, name, f"have the dtype of 'input' ({input.dtype})", tensor.dtype)
    return linear(input, linear_weight, linear_bias)


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
