"""Softmax."""

import torch
from torch import Tensor

from fastllm.ops._fake import register_fake


def softmax(input: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Exponentiate and normalise over a dimension, as torch.nn.functional.softmax.

    torch's dim=None, which guesses a dimension and is deprecated, is an error.

    Args:
        input: any shape; float32, float64, bfloat16 or float16.
        dim: the dimension whose values sum to 1; a slice of -inf alone gives NaN, as in torch.
        dtype: input is cast to it first, if given.

    Returns:
        A contiguous tensor of input's shape.

    Raises:
        ValueError: dim is not a dimension of input.
        TypeError: input is not of a supported floating dtype.

    Example:
        >>> softmax(torch.zeros(4), -1)
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    return torch.ops.fastllm.softmax.default(input if dtype is None else input.to(dtype=dtype), dim)


@register_fake("softmax")
def _(input, dim):
    return input.new_empty(input.shape)


@register_fake("softmax_backward")
def _(grad_output, output, dim):
    return output.new_empty(output.shape)
