"""The feed-forward network of a Transformer block as one op."""

import torch
from torch import Tensor


def feed_forward(
    input: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    contract_weight: Tensor,
    contract_bias: Tensor | None,
    approximate: str = "tanh",
) -> Tensor:
    """Return linear(gelu(linear(input))), "Attention is all you need", 3.3, with GPT's activation.

    On the CPU in float32 the GELU is computed on each block of the first product while that is in cache, and one
    hidden tensor is kept for backward instead of two: gelu's output is made again beside its derivative.

    Args:
        input: (*, C); float32, float64, bfloat16 or float16.
        expand_weight: (F, C), of input's dtype.
        expand_bias: (F,), of input's dtype, or None.
        contract_weight: (O, F), of input's dtype.
        contract_bias: (O,), of input's dtype, or None.
        approximate: "none", or "tanh", GPT-2's form.

    Returns:
        (*, O), of input's dtype.

    Raises:
        ValueError: shapes do not fit, or approximate is neither form.
        TypeError: input is not of a supported floating dtype, or the others differ from it in dtype or device.

    Example:
        >>> feed_forward(torch.ones(2, 3), torch.ones(12, 3), None, torch.ones(3, 12), None).shape
        torch.Size([2, 3])
    """
    return torch.ops.fastllm.feed_forward.default(
        input, expand_weight, expand_bias, contract_weight, contract_bias, approximate
    )[0]


@torch.library.register_fake("fastllm::feed_forward")
def _(input, expand_weight, expand_bias, contract_weight, contract_bias, approximate):
    lead = input.shape[:-1]
    return input.new_empty((*lead, contract_weight.shape[0])), input.new_empty((*lead, expand_weight.shape[0]))


@torch.library.register_fake("fastllm::feed_forward_backward")
def _(grad_output, input, pre, expand_weight, contract_weight, approximate, need):
    shapes = (
        input.shape, expand_weight.shape, expand_weight.shape[:1], contract_weight.shape, contract_weight.shape[:1],
    )  # fmt: skip
    return tuple(input.new_empty(shape) if wanted else None for shape, wanted in zip(shapes, need, strict=True))
