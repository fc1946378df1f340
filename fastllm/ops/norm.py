"""Layer norm and RMS norm, alone and fused with the residual addition before them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastllm.ops._fake import register_fake
from fastllm.ops._random import rng_state_for


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise over the last dimensions (Ba et al., 2016), as torch.nn.functional.layer_norm.

    Args:
        input: (*, *normalized_shape); float32, float64, bfloat16 or float16.
        normalized_shape: the last dimensions of input.
        weight, bias: normalized_shape, of any floating dtype, or None.
        eps: added to the variance.

    Returns:
        A contiguous tensor of input's shape and dtype.

    Raises:
        ValueError: shapes do not fit.
        TypeError: a tensor is not of a supported floating dtype, or on another device.

    Example:
        >>> layer_norm(torch.tensor([1.0, 3.0]), (2,))
        tensor([-1.0000,  1.0000])
    """
    return torch.ops.fastllm.layer_norm.default(input, normalized_shape, weight, bias, eps)[0]


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Divide by the root mean square over the last dimensions (Zhang & Sennrich, 2019), as F.rms_norm.

    Args:
        input: (*, *normalized_shape); float32, float64, bfloat16 or float16.
        normalized_shape: the last dimensions of input.
        weight: normalized_shape, of any floating dtype, or None.
        eps: added to the mean square; None takes float32's machine epsilon, of float64 input float64's.

    Returns:
        A contiguous tensor of input's shape and dtype.

    Raises:
        ValueError: shapes do not fit.
        TypeError: a tensor is not of a supported floating dtype, or on another device.

    Example:
        >>> rms_norm(torch.tensor([1.0, 1.0]), (2,))
        tensor([1., 1.])
    """
    return torch.ops.fastllm.rms_norm.default(input, normalized_shape, weight, eps)[0]


def dropout_add_layer_norm(
    input: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    p: float = 0.1,
    eps: float = 1e-5,
    training: bool = True,
    input_bias: Tensor | None = None,
    *,
    rng_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Add and normalise in one pass: new_residual = residual + dropout(input + input_bias), and its layer norm.

    Args:
        input: (*, C); float32, float64, bfloat16 or float16.
        residual: of input's shape and dtype.
        weight, bias: (C,), of any floating dtype, or None.
        p: dropout probability, in [0, 1].
        eps: added to the variance.
        training: False adds without dropout.
        input_bias: (C,) or None.
        rng_state: as for :func:`fastllm.ops.dropout`.

    Returns:
        (normed, new_residual), contiguous, of input's shape and dtype.

    Raises:
        ValueError: p is not in [0, 1], or shapes do not fit.
        TypeError: dtypes or devices do not fit.

    Example:
        >>> dropout_add_layer_norm(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]), None, None, p=0.0)[1]
        tensor([1., 3.])
    """
    state = rng_state_for(input, p, training, rng_state)
    outputs = torch.ops.fastllm.dropout_add_layer_norm.default(input, residual, weight, bias, p, eps, input_bias, state)
    return outputs[0], outputs[1]


def dropout_add_rms_norm(
    input: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    p: float = 0.1,
    eps: float | None = None,
    training: bool = True,
    input_bias: Tensor | None = None,
    *,
    rng_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Add and normalise in one pass: new_residual = residual + dropout(input + input_bias), and its RMS norm.

    Args:
        input: (*, C); float32, float64, bfloat16 or float16.
        residual: of input's shape and dtype.
        weight: (C,), of any floating dtype, or None.
        p: dropout probability, in [0, 1].
        eps: added to the mean square; as for :func:`rms_norm`.
        training: False adds without dropout.
        input_bias: (C,) or None.
        rng_state: as for :func:`fastllm.ops.dropout`.

    Returns:
        (normed, new_residual), contiguous, of input's shape and dtype.

    Raises:
        ValueError: p is not in [0, 1], or shapes do not fit.
        TypeError: dtypes or devices do not fit.

    Example:
        >>> dropout_add_rms_norm(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 2.0]), None, p=0.0)
        (tensor([1., 1.]), tensor([2., 2.]))
    """
    state = rng_state_for(input, p, training, rng_state)
    return torch.ops.fastllm.dropout_add_rms_norm.default(input, residual, weight, p, eps, input_bias, state)[:2]


def _statistics(input: Tensor, dims: int) -> Tensor:
    rows = math.prod(input.shape[: input.dim() - dims])  # torch.Size.numel() would make a dynamic shape a constant
    return input.new_empty((rows,), dtype=torch.float64 if input.dtype == torch.float64 else torch.float32)


@register_fake("layer_norm")
def _(input, normalized_shape, weight, bias, eps):
    dims = len(normalized_shape)
    return input.new_empty(input.shape), _statistics(input, dims), _statistics(input, dims)


@register_fake("rms_norm")
def _(input, normalized_shape, weight, eps):
    return input.new_empty(input.shape), _statistics(input, len(normalized_shape))


@register_fake("dropout_add_layer_norm")
def _(input, residual, weight, bias, p, eps, input_bias, rng_state):
    return (
        input.new_empty(input.shape),
        input.new_empty(input.shape),
        _statistics(input, 1),
        _statistics(input, 1),
    )


@register_fake("dropout_add_rms_norm")
def _(input, residual, weight, p, eps, input_bias, rng_state):
    return input.new_empty(input.shape), input.new_empty(input.shape), _statistics(input, 1)


@register_fake("norm_backward")
def _(grad_output, grad_residual, normalized, mean, rstd, weight, bias, input_bias, p, rng_state):
    def like(tensor):
        return None if tensor is None else tensor.new_empty(tensor.shape)

    grad_input = None if rng_state is None else normalized.new_empty(normalized.shape)
    return normalized.new_empty(normalized.shape), like(weight), like(bias), grad_input, like(input_bias)
