"""Averages of weights: a moving one while training, and that of several checkpoints after it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from fastllm.models import Model, load
from fastllm.optim import local


class MovingAverage:
    """An exponential moving average of a model's weights.

    Its decay rises to the one asked for as (1 + step) / (10 + step), so that a short run is not an average of its
    random start.

    Args:
        model: its parameters may be sharded; the average then is too.
        decay: in (0, 1).
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = dict(model.named_parameters())
        self.values = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after so many steps."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        averages = [local(value) for value in self.values.values()]
        torch._foreach_lerp_(averages, [local(parameter.detach()) for parameter in self._parameters.values()], weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the average for a while, and its own weights back."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            own, average = local(parameter.detach()), local(self.values[name])
            kept = own.clone()
            own.copy_(average)
            average.copy_(kept)


def average_weights(folders: Iterable[Path]) -> Model:
    """Return a model with the mean of several checkpoints' weights, summed in float64 (Vaswani et al., 2017, 6.1).

    Raises:
        ValueError: there is no folder, or the models differ.
    """
    folders = list(folders)
    if not folders:
        raise ValueError("average_weights: 'folders' must be at least one, got none")
    model = load(folders[0])
    sums: dict[str, Tensor] = {name: value.double() for name, value in model.state_dict().items()}
    for folder in folders[1:]:
        other = load(folder)
        if other.config != model.config:
            raise ValueError(f"average_weights: 'folders' must all be of one model, {folder} differs from {folders[0]}")
        for name, value in other.state_dict().items():
            sums[name] += value
    model.load_state_dict({name: total / len(folders) for name, total in sums.items()})
    return model
