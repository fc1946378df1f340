"""The position-wise feed-forward network of a Transformer block."""

import torch
from torch import Tensor

from fastllm import ops
from fastllm.nn.linear import Linear
from fastllm.ops._subclasses import is_plain


class FeedForward(torch.nn.Module):
    """expand -> GELU -> contract, on each token by itself ("Attention is all you need", 3.3, with GPT's activation).

    Args:
        n_embd: C, channels.
        n_hidden: channels in between; default 4 C.
        approximate: GELU's form; GPT-2's is "tanh".
        bias: whether both layers have a bias.
    """

    def __init__(self, n_embd: int, n_hidden: int | None = None, approximate: str = "tanh", bias: bool = True) -> None:
        super().__init__()
        self.approximate = approximate
        self.expand = Linear(n_embd, n_hidden or 4 * n_embd, bias=bias)
        self.contract = Linear(n_hidden or 4 * n_embd, n_embd, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """Transform each token: (*, C) -> (*, C)."""
        if self.expand.bias is None or not is_plain(self.expand.weight):
            hidden = ops.gelu(self.expand(input), self.approximate)
        else:
            hidden = ops.linear(input, self.expand.weight)
            # The bias rides on the activation's pass; under autocast it is not in the product's precision yet.
            hidden = ops.bias_gelu(hidden, self.expand.bias.to(hidden.dtype), self.approximate)
        return self.contract(hidden)
