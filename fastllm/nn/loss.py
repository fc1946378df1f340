"""Losses over a vocabulary."""

import torch
from torch import Tensor

from fastllm import ops
from fastllm.nn._drop_in import drop_in_for
from fastllm.nn.linear import is_bare_linear
from fastllm.ops._only_default import only_default


@drop_in_for(torch.nn.CrossEntropyLoss)
class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """Drop-in for torch.nn.CrossEntropyLoss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compare logits (N, C) with class indices (N,), or with probabilities (N, C)."""
        return ops.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


def head_cross_entropy(
    head: torch.nn.Module,
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the cross-entropy of a model's last layer, without its logits where that layer is a linear one.

    Whatever else stands in its place (LoRA, an int8 layer, one with a hook) is called, and makes logits.

    Args:
        head: (N, C) -> (N, V).
        input: (N, C).
        target: (N,) class indices, or (N, V) probabilities.
        weight, reduction, ignore_index, label_smoothing: as of :func:`fastllm.ops.linear_cross_entropy`.

    Returns:
        A scalar, or (N,) for "none".
    """
    if is_bare_linear(head):
        return ops.linear_cross_entropy(
            input, head.weight, target, linear_bias=head.bias, weight=weight,  # type: ignore[arg-type]
            reduction=reduction, ignore_index=ignore_index, label_smoothing=label_smoothing,
        )  # fmt: skip
    return ops.cross_entropy(
        head(input), target, weight, ignore_index=-100 if ignore_index is None else ignore_index,
        reduction=reduction, label_smoothing=label_smoothing,
    )  # fmt: skip


class LinearCrossEntropyLoss(torch.nn.Module):
    """A model's last linear layer and cross-entropy in one: the logits of all tokens never exist at once.

    Drop-in for torch.nn.LinearCrossEntropyLoss, where torch has it. Class weights and targets that are probabilities
    make the logits of all rows.

    Args:
        in_features: C.
        num_classes: V.
        out_features: (): a row of input has one target.
        bias: whether the linear layer has a bias.
        device, dtype: of the linear layer.
        reduction: "mean" (over the targets that count), "sum" or "none".
        weight: (V,) weight of each class, or None; a buffer.
        ignore_index: targets of this value count for nothing; None is -100.
        label_smoothing: in [0, 1], spread over all V classes as torch does.
        options: None: chunks are chosen here.

    Raises:
        ValueError: out_features or options is given, or weight has another shape.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: None = None,
    ) -> None:
        super().__init__()
        if weight is not None and weight.shape != (num_classes,):
            raise ValueError(
                f"LinearCrossEntropyLoss: 'weight' must have shape [{num_classes}], got {list(weight.shape)}"
            )
        only_default("LinearCrossEntropyLoss", "options", options, None, "chunks are chosen here")
        self.num_classes = num_classes
        self.out_features = out_features
        self.reduction = reduction
        self.weight: Tensor | None
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.options = options
        self._check_out_features()
        self.linear = torch.nn.Linear(in_features, num_classes, bias=bias, device=device, dtype=dtype)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compare input (N, C) with class indices (N,), or with probabilities (N, V)."""
        self._check_out_features()
        only_default("LinearCrossEntropyLoss", "options", self.options, None, "chunks are chosen here")
        return head_cross_entropy(
            self.linear, input, target, weight=self.weight,
            reduction=self.reduction, ignore_index=self.ignore_index, label_smoothing=self.label_smoothing,
        )  # fmt: skip

    def _check_out_features(self) -> None:
        only_default("LinearCrossEntropyLoss", "out_features", self.out_features, (), "flatten rows instead")
