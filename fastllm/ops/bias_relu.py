"""ReLU (Nair & Hinton, 2010) with the bias of the layer before it and the dropout after it."""

import torch
from torch import Tensor

from fastllm.ops._fake import register_fake
from fastllm.ops._random import rng_state_for


def bias_relu(
    input: Tensor,
    bias: Tensor | None = None,
    p: float = 0.0,
    training: bool = True,
    *,
    rng_state: Tensor | None = None,
) -> Tensor:
    """Return dropout(relu(input + bias), p) in one pass over memory.

    Backward needs the output alone: it is above 0 exactly where the gradient passes, and never rounds to 0 there. What
    is NaN stays NaN and takes a gradient, as in torch; dropping an infinite or NaN element gives NaN, as in torch, and
    such an element's gradient passes, where torch's is 0.

    Args:
        input: (*, C); float32, float64, bfloat16 or float16. Any shape without a bias.
        bias: (C,), of input's dtype, or None.
        p: in [0, 1]; rounded to a multiple of 1/65536.
        training: False leaves dropout out.
        rng_state: as for :func:`dropout`, whose mask it is.

    Returns:
        A contiguous tensor of input's shape and dtype.

    Raises:
        ValueError: p is not in [0, 1], bias has not shape (C,), or rng_state not (2,).
        TypeError: input is not of a supported floating dtype, or bias differs from it in dtype or device.

    Example:
        >>> bias_relu(torch.zeros(2, 3), torch.tensor([-1.0, 0.0, 1.0]))[0]
        tensor([0., 0., 1.])
    """
    state = rng_state_for(input, p, training, rng_state)
    return torch.ops.fastllm.bias_relu.default(input, bias, p, state)


@register_fake("bias_relu")
def _(input, bias, p, rng_state):
    return input.new_empty(input.shape)


@register_fake("bias_relu_backward")
def _(grad_output, output, p, need_bias):
    grad_bias = grad_output.new_empty(grad_output.shape[-1:]) if need_bias else None
    return grad_output.new_empty(grad_output.shape), grad_bias
