"""GELU and Softmax."""

import torch
from torch import Tensor

from fastllm import ops


class GELU(torch.nn.GELU):
    """Drop-in for torch.nn.GELU (Hendrycks & Gimpel, 2016), exact or in the tanh form."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply gelu elementwise."""
        return ops.gelu(input, self.approximate)


class Softmax(torch.nn.Softmax):
    """Drop-in for torch.nn.Softmax; dim=None, which torch deprecates, is an error."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply softmax over self.dim."""
        if self.dim is None:
            raise ValueError("Softmax: 'dim' must be an int, got None")
        return ops.softmax(input, self.dim)
