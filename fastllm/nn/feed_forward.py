"""The position-wise feed-forward networks of a Transformer block."""

from functools import partial

import torch
from torch import Tensor

from fastllm import ops
from fastllm.nn._fused import activate
from fastllm.nn.linear import Linear


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
        gelu = partial(ops.gelu, approximate=self.approximate)
        return self.contract(activate(self.expand, gelu, self.approximate, input))


class GatedFeedForward(torch.nn.Module):
    """expand -> SwiGLU -> contract (Shazeer, "GLU variants improve Transformer", 2020), as in Llama.

    Gate and up are one product: expand's weight is [gate, up], (2 F, C).

    Args:
        n_embd: C, channels.
        n_hidden: F, channels in between.
        bias: whether both layers have a bias.
    """

    def __init__(self, n_embd: int, n_hidden: int, bias: bool = False) -> None:
        super().__init__()
        self.expand = Linear(n_embd, 2 * n_hidden, bias=bias)
        self.contract = Linear(n_hidden, n_embd, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """Transform each token: (*, C) -> (*, C)."""
        return self.contract(ops.swiglu(self.expand(input)))
