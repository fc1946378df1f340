"""Linear: torch.nn.Linear on fastllm's matrix product."""

import torch
from torch import Tensor

from fastllm import ops
from fastllm.ops._subclasses import is_plain


class Linear(torch.nn.Linear):
    """Drop-in for torch.nn.Linear: same constructor, state_dict and outputs.

    A weight of a tensor subclass, as torchao's quantized ones, goes to torch's own linear, which it implements.

    Shapes: (*, in_features) -> (*, out_features).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return input @ weight.T + bias."""
        if not is_plain(self.weight):
            return torch.nn.functional.linear(input, self.weight, self.bias)
        return ops.linear(input, self.weight, self.bias)
