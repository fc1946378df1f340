"""Normalisation layers."""

import torch
from torch import Tensor

from fastllm import ops
from fastllm.nn._drop_in import drop_in_for


@drop_in_for(torch.nn.LayerNorm)
class LayerNorm(torch.nn.LayerNorm):
    """Drop-in for torch.nn.LayerNorm (Ba et al., 2016): same constructor, state_dict and outputs."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise over the last len(normalized_shape) dimensions, then scale and shift."""
        return ops.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


@drop_in_for(torch.nn.RMSNorm)
class RMSNorm(torch.nn.RMSNorm):
    """Drop-in for torch.nn.RMSNorm (Zhang & Sennrich, 2019): same constructor, state_dict and outputs."""

    def forward(self, x: Tensor) -> Tensor:
        """Divide by the root mean square over the last len(normalized_shape) dimensions, then scale."""
        return ops.rms_norm(x, self.normalized_shape, self.weight, self.eps)
