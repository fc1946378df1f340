"""SwiGLU (Shazeer, "GLU variants improve Transformer", 2020), the gated activation of LLaMA's feed-forward layers."""

import torch
from torch import Tensor

from fastllm.ops._fake import register_fake


def swiglu(input: Tensor, up: Tensor | None = None) -> Tensor:
    """Apply silu(gate) * up, where silu(x) = x sigmoid(x), in one pass over memory.

    Rows are read where they are: the halves of one projection's output need no copy, packed or as two views.

    Args:
        input: the gate, (*, C); or without `up` both, (*, 2C) as [gate, up] along the last dimension. float32, float64,
            bfloat16 or float16.
        up: of input's shape and dtype, or None.

    Returns:
        A contiguous tensor (*, C) of input's dtype.

    Raises:
        ValueError: input is a scalar, up has another shape, or without it input's last dimension is odd.
        TypeError: input is not of a supported floating dtype, or up differs from it in dtype or device.

    Example:
        >>> swiglu(torch.tensor([0.0, 1.0]), torch.tensor([5.0, 2.0]))
        tensor([0.0000, 1.4621])
        >>> swiglu(torch.tensor([0.0, 1.0, 5.0, 2.0]))
        tensor([0.0000, 1.4621])
    """
    return torch.ops.fastllm.swiglu.default(input, up)


@register_fake("swiglu")
def _(input, up=None):
    cols = input.shape[-1] // 2 if up is None else input.shape[-1]
    return input.new_empty((*input.shape[:-1], cols))


@register_fake("swiglu_backward")
def _(grad_output, input, up):
    return input.new_empty(input.shape), None if up is None else up.new_empty(up.shape)
