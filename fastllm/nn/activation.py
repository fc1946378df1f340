"""GELU and Softmax."""

import torch
from torch import Tensor

from fastllm import ops
from fastllm.nn._drop_in import drop_in_for


@drop_in_for(torch.nn.GELU)
class GELU(torch.nn.GELU):
    """Drop-in for torch.nn.GELU (Hendrycks & Gimpel, 2016), exact or in the tanh form."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply gelu elementwise."""
        return ops.gelu(input, self.approximate)


@drop_in_for(torch.nn.Softmax, unless=lambda module: "dim=None" if module.dim is None else "")
class Softmax(torch.nn.Softmax):
    """Drop-in for torch.nn.Softmax; dim=None, which torch deprecates, is an error."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply softmax over self.dim."""
        if self.dim is None:
            raise ValueError("Softmax: 'dim' must be an int, got None")
        return ops.softmax(input, self.dim)
