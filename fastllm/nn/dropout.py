"""Dropout (Srivastava et al., 2014), alone and fused with what follows it in a Transformer block."""

import torch
from torch import Tensor

from fastllm import ops
from fastllm.nn._drop_in import drop_in_for
from fastllm.nn.norm import LayerNorm, RMSNorm
from fastllm.ops._only_default import only_default


@drop_in_for(torch.nn.Dropout, unless=lambda module: "inplace=True" if module.inplace else "")
class Dropout(torch.nn.Dropout):
    """Drop-in for torch.nn.Dropout; its mask comes from fastllm's Philox contract, seeded by torch.manual_seed."""

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        only_default("Dropout", "inplace", inplace, False, "a new tensor is written")
        super().__init__(p)

    def forward(self, input: Tensor) -> Tensor:
        """Zero each element with probability p while training and scale the rest to keep the mean."""
        if not input.is_floating_point():  # as torch.nn's: whole numbers pass in evaluation
            return super().forward(input)
        return ops.dropout(input, self.p, self.training, self.inplace)


class DropoutAdd(torch.nn.Module):
    """residual + dropout(input) in one pass over memory.

    Args:
        p: probability of an element of input to be zeroed while training.
    """

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        self.p = p

    def forward(self, input: Tensor, residual: Tensor) -> Tensor:
        """Return residual + dropout(input); both of one shape."""
        return ops.dropout_add(input, residual, self.p, self.training)

    def extra_repr(self) -> str:
        """Show p."""
        return f"p={self.p}"


class DropoutAddLayerNorm(LayerNorm):
    """The seam between two Transformer sub-layers in one pass over memory.

    new_residual = residual + dropout(input); normed = LayerNorm(new_residual). A pre-norm block feeds normed to its
    next sub-layer and carries new_residual on; a post-norm block uses normed alone. Its state_dict is that of
    torch.nn.LayerNorm.

    Args:
        normalized_shape: C, the size of the last dimension.
        p: dropout probability.
        eps, elementwise_affine, bias, device, dtype: as in torch.nn.LayerNorm.

    Raises:
        ValueError: normalized_shape is of several dimensions.
    """

    def __init__(
        self,
        normalized_shape: int,
        p: float = 0.1,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        _check_one_dimension(self, normalized_shape)
        self.p = p

    # Not LayerNorm's signature: this layer adds before it normalises.
    def forward(self, input: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return (normed, new_residual), each (*, C); without a residual, new_residual is dropout(input)."""
        if residual is None:
            new_residual = ops.dropout(input, self.p, self.training)
            return super().forward(new_residual), new_residual
        input = input.to(residual.dtype)  # under autocast a branch is half precision; the stream keeps its own
        return ops.dropout_add_layer_norm(
            input, residual, self.weight, self.bias, self.p, self.eps, training=self.training
        )

    def extra_repr(self) -> str:
        """Show p beside LayerNorm's settings."""
        return f"{super().extra_repr()}, p={self.p}"


class DropoutAddRMSNorm(RMSNorm):
    """The same seam with an RMS norm, in one pass over memory.

    new_residual = residual + dropout(input); normed = RMSNorm(new_residual), to be used as DropoutAddLayerNorm's. Its
    state_dict is that of torch.nn.RMSNorm.

    Args:
        normalized_shape: C, the size of the last dimension.
        p: dropout probability.
        eps, elementwise_affine, device, dtype: as in torch.nn.RMSNorm.

    Raises:
        ValueError: normalized_shape is of several dimensions.
    """

    def __init__(
        self,
        normalized_shape: int,
        p: float = 0.1,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        _check_one_dimension(self, normalized_shape)
        self.p = p

    # Not RMSNorm's signature: this layer adds before it normalises.
    def forward(self, input: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return (normed, new_residual), each (*, C); without a residual, new_residual is dropout(input)."""
        if residual is None:
            new_residual = ops.dropout(input, self.p, self.training)
            return super().forward(new_residual), new_residual
        input = input.to(residual.dtype)  # under autocast a branch is half precision; the stream keeps its own
        return ops.dropout_add_rms_norm(input, residual, self.weight, self.p, self.eps, training=self.training)

    def extra_repr(self) -> str:
        """Show p beside RMSNorm's settings."""
        return f"{super().extra_repr()}, p={self.p}"


def _check_one_dimension(layer: LayerNorm | RMSNorm, normalized_shape: int) -> None:
    if len(layer.normalized_shape) != 1:
        raise ValueError(
            f"{type(layer).__name__}: 'normalized_shape' must be the last dimension's size, got {normalized_shape}"
        )
