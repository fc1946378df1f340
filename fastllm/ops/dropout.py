"""Dropout (Srivastava et al., 2014) and dropout with the additions around it.

The mask is a function of (seed, offset) and an element's position alone: Philox4x32-10 (Salmon et al., 2011), with 16
bits an element, kept iff they are at least round(65536 p). So it is the same on every device, for every layout and
number of threads, and backward makes it again instead of storing it.
"""

import torch
from torch import Tensor

from fastllm.ops._fake import register_fake
from fastllm.ops._only_default import only_default
from fastllm.ops._random import rng_state_for


def dropout(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *, rng_state: Tensor | None = None
) -> Tensor:
    """Zero each element with probability p and scale the rest so that the mean stays.

    Args:
        input: any shape; float32, float64, bfloat16 or float16.
        p: in [0, 1]; rounded to a multiple of 1/65536.
        training: False returns input's values.
        inplace: False: a new tensor is written.
        rng_state: int64 (2,) of (seed, offset); drawn from torch's generator unless given.

    Returns:
        A contiguous tensor of input's shape and dtype.

    Raises:
        ValueError: p is not in [0, 1], rng_state has not shape (2,), or inplace is set.
        TypeError: input is not of a supported floating dtype or rng_state is not int64.

    Example:
        >>> dropout(torch.ones(3), training=False)
        tensor([1., 1., 1.])
    """
    only_default("dropout", "inplace", inplace, False, "a new tensor is written")
    state = rng_state_for(input, p, training, rng_state)
    return torch.ops.fastllm.dropout_add.default(input, None, None, p, state)


def dropout_add(
    input: Tensor,
    residual: Tensor,
    p: float = 0.1,
    training: bool = True,
    bias: Tensor | None = None,
    *,
    rng_state: Tensor | None = None,
) -> Tensor:
    """Return residual + dropout(input + bias) in one pass over memory.

    Args:
        input: (*, C); float32, float64, bfloat16 or float16.
        residual: of input's shape and dtype.
        p: in [0, 1].
        training: False adds without dropout.
        bias: (C,), of input's dtype, or None.
        rng_state: as for :func:`dropout`.

    Returns:
        A contiguous tensor of input's shape and dtype.

    Raises:
        ValueError: p is not in [0, 1], or shapes do not fit.
        TypeError: dtypes or devices do not fit.

    Example:
        >>> dropout_add(torch.ones(2), torch.ones(2), p=0.0)
        tensor([2., 2.])
    """
    state = rng_state_for(input, p, training, rng_state)
    return torch.ops.fastllm.dropout_add.default(input, residual, bias, p, state)


@register_fake("dropout_add")
def _(input, residual, bias, p, rng_state):
    return input.new_empty(input.shape)


@register_fake("dropout_add_backward")
def _(grad_output, p, rng_state, need_bias):
    grad_bias = grad_output.new_empty(grad_output.shape[-1:]) if need_bias else None
    return grad_output.new_empty(grad_output.shape), grad_bias
