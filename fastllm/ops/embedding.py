"""Embedding of tokens, with their positions if wanted."""

import torch
from torch import Tensor

from fastllm.ops._fake import register_fake
from fastllm.ops._only_default import only_default

_INSTEAD = "use torch.nn.functional.embedding"


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
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
        padding_idx: a token whose row gets no gradient, or None; negative ones count from the end of the table.
        max_norm, norm_type, scale_grad_by_freq, sparse: torch's defaults alone.
        position_weight: (P, C) of weight's dtype, P >= position_offset + T; or None.
        position_offset: the position of the first token of each row of input.

    Returns:
        (*, T, C), of weight's dtype.

    Raises:
        ValueError: shapes do not fit, padding_idx is outside the table, one of torch's arguments is not at its default,
            or a token is outside the table (the message names it). On CUDA, where looking at tokens would stall, such
            a token gives a row of NaN instead, and its gradient goes nowhere.
        TypeError: dtypes or devices do not fit.

    Example:
        >>> embedding(torch.tensor([1, 0]), torch.tensor([[1.0], [2.0]]))
        tensor([[2.],
                [1.]])
    """
    only_default("embedding", "max_norm", max_norm, None, _INSTEAD)
    only_default("embedding", "norm_type", norm_type, 2.0, _INSTEAD)
    only_default("embedding", "scale_grad_by_freq", scale_grad_by_freq, False, _INSTEAD)
    only_default("embedding", "sparse", sparse, False, _INSTEAD)
    return torch.ops.fastllm.embedding.default(input, weight, padding_idx, position_weight, position_offset)


@register_fake("embedding")
def _(input, weight, padding_idx, position_weight, position_offset):
    return weight.new_empty((*input.shape, weight.shape[1]))


@register_fake("embedding_backward")
def _(grad_output, input, num_embeddings, padding_idx):
    return grad_output.new_empty((num_embeddings, grad_output.shape[-1]))


@register_fake("embedding_position_backward")
def _(grad_output, num_positions, position_offset):
    return grad_output.new_empty((num_positions, grad_output.shape[-1]))
