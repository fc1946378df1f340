"""Losses over a vocabulary."""

import torch
from torch import Tensor

from fastllm import ops


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """Drop-in for torch.nn.CrossEntropyLoss with class-index targets."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compare logits (N, C) with class indices (N,)."""
        return ops.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class LinearCrossEntropyLoss(torch.nn.Module):
    """A model's last linear layer and cross-entropy in one: the logits of all tokens never exist at once.

    Args:
        in_features: C.
        num_classes: V.
        bias: whether the linear layer has a bias.
        ignore_index: targets of this value count for nothing.
        reduction: "mean" (over the targets that count), "sum" or "none".
        label_smoothing: in [0, 1], spread over all V classes as torch does.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        bias: bool = False,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(in_features, num_classes, bias=bias)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compare input (N, C) with class indices (N,)."""
        return ops.linear_cross_entropy(
            input,
            self.linear.weight,
            target,
            self.linear.bias,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
