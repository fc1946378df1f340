"""Linear: torch.nn.Linear on fastllm's matrix product."""

import torch
from torch import Tensor

from fastllm import ops


class Linear(torch.nn.Linear):
    """Drop-in for torch.nn.Linear: same constructor, state_dict and outputs.

    Shapes: (*, in_features) -> (*, out_features).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return input @ weight.T + bias."""
        return ops.linear(input, self.weight, self.bias)
