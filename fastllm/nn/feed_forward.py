"""The position-wise feed-forward networks of a Transformer block."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastllm import ops
from fastllm.nn._fused import activate, dropped, form_of
from fastllm.nn.activation import GELU
from fastllm.nn.dropout import Dropout
from fastllm.nn.linear import Linear

ACTIVATIONS: dict[str, Callable[[], torch.nn.Module]] = {
    "relu": torch.nn.ReLU,
    "gelu": GELU,
    "gelu_tanh": lambda: GELU("tanh"),
    "silu": torch.nn.SiLU,
}


class FeedForward(torch.nn.Module):
    """expand -> activation -> contract, on each token by itself ("Attention is all you need", 3.3).

    Args:
        n_embd: C, channels.
        n_hidden: channels in between; default 4 C.
        activation: "gelu_tanh" (GPT-2's form of GELU), "gelu" (the exact one), "relu" (the paper's) or "silu", which is
            torch's: its last bits may depend on the number of threads.
        bias: whether both layers have a bias.
        dropout: probability of a value in between to be zeroed while training.
    """

    def __init__(
        self, n_embd: int, n_hidden: int | None = None, activation: str = "gelu_tanh", bias: bool = True,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.expand = Linear(n_embd, n_hidden or 4 * n_embd, bias=bias)
        self.activation = ACTIVATIONS[activation]()
        self.dropout = Dropout(dropout)
        self.contract = Linear(n_hidden or 4 * n_embd, n_embd, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """Transform each token: (*, C) -> (*, C)."""
        return self.contract(activate(self.expand, self.activation, form_of(self.activation), input, self.dropout))


class GatedFeedForward(torch.nn.Module):
    """expand -> SwiGLU -> contract (Shazeer, "GLU variants improve Transformer", 2020), as in Llama.

    Gate and up are one product: expand's weight is [gate, up], (2 F, C).

    Args:
        n_embd: C, channels.
        n_hidden: F, channels in between.
        bias: whether both layers have a bias.
        dropout: probability of a value in between to be zeroed while training.
    """

    def __init__(self, n_embd: int, n_hidden: int, bias: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.expand = Linear(n_embd, 2 * n_hidden, bias=bias)
        self.contract = Linear(n_hidden, n_embd, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """Transform each token: (*, C) -> (*, C)."""
        return self.contract(dropped(self.dropout, ops.swiglu(self.expand(input))))
