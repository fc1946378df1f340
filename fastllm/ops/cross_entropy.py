"""Cross-entropy over classes."""

import torch
import torch.nn.functional as F
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
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Compare logits with classes or their probabilities, as torch.nn.functional.cross_entropy.

    Logits are read once in forward (an online softmax) and once in backward, which writes their gradient; two numbers a
    row are kept in between. Probabilities are for torch's own functions: their logarithms, of input's size, are formed
    in float32 (for float64 in float64) and kept for backward.

    Args:
        input: logits (N, C), (C,) or (N, C, d1, ..); float32, float64, bfloat16 or float16.
        target: class indices int64 of input's shape without C; ignore_index counts for nothing. Or probabilities of
            input's shape, of any floating dtype, which get a gradient if they require one.
        weight: (C,) weight of each class, or None; a constant.
        size_average: None, as it is deprecated: see reduction.
        ignore_index: the target value to leave out; negative for probabilities, which it does not concern.
        reduce: None, as it is deprecated: see reduction.
        reduction: "mean" (weighted, over the targets that count; NaN if none does; of probabilities over all rows),
            "sum" or "none".
        label_smoothing: in [0, 1]; spread over all C classes as torch does.
        dtype: the loss's, as if input were cast to it first: float32 of bfloat16 or float16 logits, in which a loss has
            8 or 11 bits. The logits are not copied. None gives input's, as torch.

    Returns:
        A scalar, or input's shape without C for "none"; input's dtype unless `dtype` says another, under autocast
        float32 (or float64).

    Raises:
        ValueError: shapes do not fit, a target is out of range (the message names it), reduction or label_smoothing is,
            weight requires a gradient, dtype is neither input's nor float32, or size_average or reduce is given.
            On CUDA, where looking at targets would stall, such a target makes its row's loss NaN instead, and with it
            the mean and the row's gradient.
        TypeError: input is not of a supported floating dtype, or target is neither int64 nor floating.

    Example:
        >>> cross_entropy(torch.zeros(3, 4), torch.tensor([0, 3, -100]))
        tensor(1.3863)
        >>> cross_entropy(torch.zeros(3, 4), torch.full((3, 4), 0.25))
        tensor(1.3863)
    """
    only_default("cross_entropy", "size_average", size_average, None, "use 'reduction'")
    only_default("cross_entropy", "reduce", reduce, None, "use 'reduction'")
    wide = dtype is not None and is_wide("cross_entropy", input, dtype)
    if target.is_floating_point():
        return _of_probabilities(input, target, weight, ignore_index, reduction, label_smoothing, wide)
    return torch.ops.fastllm.cross_entropy.default(
        input, target, weight, ignore_index, reduction, label_smoothing, wide
    )[0]


def is_wide(op: str, input: Tensor, dtype: torch.dtype) -> bool:
    """Return whether the loss shall be float32 and the input has 16 bits; any other dtype than input's is refused."""
    wide = dtype == torch.float32 and input.dtype in (torch.bfloat16, torch.float16)
    if not wide and dtype != input.dtype:
        allowed = f"input's dtype ({input.dtype}), or torch.float32 where that has 16 bits"
        raise ValueError(f"{op}: 'dtype' must be {allowed}, got {dtype}")
    return wide


def _of_probabilities(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    wide_loss: bool,
) -> Tensor:
    """Return torch's cross-entropy, computed in float32 at least, after the checks that the op makes for classes."""

    def check(holds: bool, name: str, expected: str, got: object) -> None:
        if not holds:
            raise ValueError(f"cross_entropy: '{name}' must {expected}, got {got}")

    for name, tensor in (("target", target), ("weight", weight)):
        if tensor is not None and tensor.device != input.device:
            raise TypeError(
                f"cross_entropy: '{name}' must be on the device of 'input' ({input.device}), got {tensor.device}"
            )
    if not input.is_floating_point():
        raise TypeError(f"cross_entropy: 'input' must be float32, float64, bfloat16 or float16, got {input.dtype}")
    shape = list(input.shape)
    check(input.dim() >= 1, "input", "have at least one dimension", "a scalar")
    check(
        target.shape == input.shape, "target", f"have input's shape {shape} where it holds probabilities",
        list(target.shape),
    )  # fmt: skip
    check(reduction in ("mean", "sum", "none"), "reduction", "be 'mean', 'sum' or 'none'", f"'{reduction}'")
    check(0 <= label_smoothing <= 1, "label_smoothing", "be in [0, 1]", label_smoothing)
    check(ignore_index < 0, "ignore_index", "be negative where target holds probabilities", ignore_index)
    computing = torch.float64 if input.dtype == torch.float64 else torch.float32
    if weight is not None:
        classes = shape[min(1, input.dim() - 1)]
        check(weight.shape == (classes,), "weight", f"have shape [{classes}]", list(weight.shape))
        constant = not (weight.requires_grad and torch.is_grad_enabled())
        check(constant, "weight", "not require a gradient: the weights of classes are constants", "one that does")
        weight = weight.to(computing)
    loss = F.cross_entropy(
        input.to(computing), target.to(computing), weight, reduction=reduction, label_smoothing=label_smoothing
    )
    return loss if wide_loss or torch.is_autocast_enabled(input.device.type) else loss.to(input.dtype)


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
