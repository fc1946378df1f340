"""GELU (Hendrycks & Gimpel, 2016), alone and with the bias of the layer before it."""

import torch
from torch import Tensor

from fastllm.ops._fake import register_fake


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """Apply the Gaussian error linear unit: x times the standard normal distribution function of x.

    Args:
        input: any shape; float32, float64, bfloat16 or float16.
        approximate: "none" for the exact form, "tanh" for GPT-2's 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).

    Returns:
        A contiguous tensor of input's shape and dtype.

    Raises:
        ValueError: approximate is neither "none" nor "tanh".
        TypeError: input is not of a supported floating dtype.

    Example:
        >>> gelu(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-0.1587,  0.0000,  0.8413])
    """
    return torch.ops.fastllm.gelu.default(input, approximate)


def bias_gelu(input: Tensor, bias: Tensor, approximate: str = "none") -> Tensor:
    """Apply gelu(input + bias) in one pass over memory.

    Args:
        input: (*, C); float32, float64, bfloat16 or float16.
        bias: (C,), of input's dtype.
        approximate: "none" or "tanh", as for :func:`gelu`.

    Returns:
        A contiguous tensor of input's shape and dtype.

    Raises:
        ValueError: approximate is neither "none" nor "tanh", or bias has not shape (C,).
        TypeError: input is not of a supported floating dtype, or bias differs from it in dtype or device.

    Example:
        >>> bias_gelu(torch.zeros(2, 3), torch.tensor([-1.0, 0.0, 1.0]))[0]
        tensor([-0.1587,  0.0000,  0.8413])
    """
    return torch.ops.fastllm.bias_gelu.default(input, bias, approximate)


@register_fake("gelu")
def _(input: Tensor, approximate: str = "none") -> Tensor:
    return torch.empty_like(input, memory_format=torch.contiguous_format)


@register_fake("gelu_backward")
def _(grad_output: Tensor, input: Tensor, approximate: str) -> Tensor:
    return torch.empty_like(input, memory_format=torch.contiguous_format)


@register_fake("bias_gelu")
def _(input: Tensor, bias: Tensor, approximate: str = "none") -> Tensor:
    return torch.empty_like(input, memory_format=torch.contiguous_format)


@register_fake("bias_gelu_backward")
def _(grad_output: Tensor, input: Tensor, bias: Tensor, approximate: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(input, memory_format=torch.contiguous_format), torch.empty_like(bias)
