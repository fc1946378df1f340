"""Linear: torch.nn.Linear on fastllm's matrix product."""

import torch
from torch import Tensor
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fastllm import ops
from fastllm.nn._bare import is_bare
from fastllm.nn._drop_in import drop_in_for
from fastllm.ops._subclasses import is_plain


def multiply(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return input @ weight.T + bias.

    A weight of a tensor subclass, as torchao's quantized ones, goes to torch's own linear, which it implements.
    """
    if not is_plain(weight):
        return torch.nn.functional.linear(input, weight, bias)
    return ops.linear(input, weight, bias)


@drop_in_for(torch.nn.Linear, NonDynamicallyQuantizableLinear)
class Linear(torch.nn.Linear):
    """Drop-in for torch.nn.Linear: same constructor, state_dict and outputs.

    Shapes: (*, in_features) -> (*, out_features).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return input @ weight.T + bias."""
        return multiply(input, self.weight, self.bias)


class TiedLinear(Linear):
    """A linear layer with the weight of an embedding, which it has no copy of (Press & Wolf, 2017).

    It has no parameters and no state of its own but for a bias: the weight is the embedding's, also after that has been
    moved, sharded or loaded.

    Args:
        embedding: of V rows of C numbers.
        bias: whether there is one, of zeros at first.

    Shapes: (*, C) -> (*, V).

    Example:
        >>> embedding = torch.nn.Embedding(5, 3)
        >>> layer = TiedLinear(embedding)
        >>> layer(torch.zeros(2, 3)).shape, list(layer.parameters())
        (torch.Size([2, 5]), [])
    """

    def __init__(self, embedding: torch.nn.Embedding, bias: bool = False) -> None:
        torch.nn.Module.__init__(self)  # not Linear's, which would make a weight
        self.in_features, self.out_features = embedding.embedding_dim, embedding.num_embeddings
        self.register_parameter("bias", torch.nn.Parameter(torch.zeros(self.out_features)) if bias else None)
        vars(self)["_embedding"] = embedding  # past Module.__setattr__: it is a part of the model already

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The embedding's (V, C)."""
        return self._embedding.weight  # type: ignore[union-attr, return-value]


def is_bare_linear(layer: torch.nn.Module) -> bool:
    """Return whether calling a layer is the product with its weight and the sum with its bias, and nothing else."""
    return is_bare(layer, Linear, TiedLinear, torch.nn.Linear)
