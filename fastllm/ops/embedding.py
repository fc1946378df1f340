"""Embedding of tokens, with their positions if wanted."""

import torch
from torch import Tensor

from fastllm.ops._fake import register_fake

_NO_PADDING = -1


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    *,
    position_weight: Tensor | None = None,
    position_offset: int = 0,
) -> Tensor:
    """Look up rows of weight, as torch.nn.functional.embedding, and add position embeddings in the same pass.

    The gradient is deterministic: each row's is summed in the order in which its token stands in input, on CUDA in
    pieces of 32 sorted tokens.

    Args:
        input: token ids (*, T), int64 or int32.
        weight: (V, C); float32, float64, bfloat16 or float16.
        padding_idx: a token whose row gets no gradient, or None.
        position_weight: (P, C) of weight's dtype, P >= position_offset + T; or None.
        position_offset: the position of the first token of each row of input.

    Returns:
        (*, T, C), of weight's dtype.

    Raises:
        ValueError: shapes do not fit, or a token is outside the table (the message names it). On CUDA, where looking at
            tokens would stall, such a token gives a row of NaN instead, and its gradient goes nowhere.
        TypeError: dtypes or devices do not fit.

    Example:
        >>> embedding(torch.tensor([1, 0]), torch.tensor([[1.0], [2.0]]))
        tensor([[2.],
                [1.]])
    """
    padding = _NO_PADDING if padding_idx is None else padding_idx
    return torch.ops.fastllm.embedding.default(input, weight, padding, position_weight, position_offset)


@register_fake("embedding")
def _(input, weight, padding_idx, position_weight, position_offset):
    return weight.new_empty((*input.shape, weight.shape[1]))


@register_fake("embedding_backward")
def _(grad_output, input, weight, padding_idx, position_weight, position_offset):
    grad_position = None if position_weight is None else position_weight.new_empty(position_weight.shape)
    return weight.new_empty(weight.shape), grad_position
