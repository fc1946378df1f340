"""The linear map of a layer."""

import torch
from torch import Tensor

from fastllm.ops._fake import register_fake


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return input @ weight.T + bias, as torch.nn.functional.linear.

    On the CPU, float32 runs on fastllm's own matrix product (the blocking of Goto & van de Geijn, 2008); every output
    is summed in one fixed order, so results do not depend on the number of threads. bfloat16 does too where the CPU has
    AMX, summed in float32. Other dtypes use torch's product, and CUDA tensors cuBLAS.

    Args:
        input: (*, K); float32, float64, bfloat16 or float16.
        weight: (N, K), of input's dtype.
        bias: (N,), of input's dtype, or None.

    Returns:
        (*, N), of input's dtype.

    Raises:
        ValueError: shapes do not fit.
        TypeError: input is not of a supported floating dtype, or the others differ from it in dtype or device.

    Example:
        >>> linear(torch.ones(2, 3), torch.ones(4, 3)).shape
        torch.Size([2, 4])
    """
    return torch.ops.fastllm.linear.default(input, weight, bias)


@register_fake("linear")
def _(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return input.new_empty((*input.shape[:-1], weight.shape[0]))


@register_fake("linear_backward")
def _(
    grad_output: Tensor, input: Tensor | None, weight: Tensor | None, need_bias: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    *rows, out_features = grad_output.shape
    return (
        None if weight is None else grad_output.new_empty((*rows, weight.shape[1])),
        None if input is None else grad_output.new_empty((out_features, input.shape[-1])),
        grad_output.new_empty((out_features,)) if need_bias else None,
    )
