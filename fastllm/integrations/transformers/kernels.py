"""The kernels library's kernelize on fastllm: layers in the form that it takes, by the names that transformers gives.

from kernels import Mode, kernelize, use_kernel_mapping
from fastllm.integrations.transformers.kernels import kernel_mapping

with use_kernel_mapping(kernel_mapping()):
    model = kernelize(model, mode=Mode.INFERENCE, device="cpu")
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastllm import ops
from fastllm.integrations.transformers.modules import rotate

# kernelize takes stateless layers: what a forward reads of self is in the module that it is put into.


class RMSNorm(torch.nn.Module):
    """x / rms(x) * weight, with the weight and variance_epsilon of the module."""

    can_torch_compile = True

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise (*, C) over C."""
        weight: Tensor = self.weight  # type: ignore[assignment]
        epsilon: float = self.variance_epsilon  # type: ignore[assignment]
        normed = ops.rms_norm(hidden_states.to(weight.dtype), weight.shape, weight, epsilon)
        return normed.to(torch.promote_types(hidden_states.dtype, weight.dtype))


class GELU(torch.nn.Module):
    """The exact form."""

    can_torch_compile = True

    def forward(self, input: Tensor) -> Tensor:
        """Apply gelu elementwise."""
        return ops.gelu(input)


class TanhGELU(torch.nn.Module):
    """The tanh form."""

    can_torch_compile = True

    def forward(self, input: Tensor) -> Tensor:
        """Apply gelu elementwise."""
        return ops.gelu(input, "tanh")


class RotaryPositionEmbedding(torch.nn.Module):
    """transformers' apply_rotary_pos_emb."""

    can_torch_compile = True

    def forward(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        """Turn queries and keys by the angles of their positions."""
        return rotate(q, k, cos, sin, unsqueeze_dim)


@dataclass(frozen=True)
class Repository:
    """A layer where kernelize looks for a repository of them: nothing is downloaded."""

    layer_name: str
    layer: type[torch.nn.Module]

    def load(self) -> type[torch.nn.Module]:
        """Return the layer."""
        return self.layer


_LAYERS = {
    "RMSNorm": RMSNorm,
    "GeLU": GELU,
    "GeluTanh": TanhGELU,
    "NewGELU": TanhGELU,
    "FastGELU": TanhGELU,
    "rotary_pos_emb": RotaryPositionEmbedding,
}


def kernel_mapping() -> dict[str, dict[str, Repository]]:
    """Return what use_kernel_mapping and register_kernel_mapping take: layer names -> devices -> layers.

    For inference, training and torch.compile, on "cpu" and "cuda". Models built on it need no fastllm.patch; one that
    is patched needs no kernelize.

    Example:
        >>> sorted(kernel_mapping()["RMSNorm"])
        ['cpu', 'cuda']
    """
    repositories = {name: Repository(name, layer) for name, layer in _LAYERS.items()}
    return {name: {"cpu": repository, "cuda": repository} for name, repository in repositories.items()}
