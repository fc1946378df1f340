"""What stands between a run and its data: the trainer knows neither texts nor tokens, and asks its task.

A task is made of a data folder, then told the run's settings by `begin`. It gives batches whose tensors are the
arguments of its models' `loss`; what else they are, the task and the model know.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from fastllm.data.source import Source, TrainingBatch
from fastllm.models import Model
from fastllm.tokenizers import Tokenizer
from fastllm.train.config import TrainConfig


class Task(ABC):
    """What a run learns, from which data, and how it is measured.

    Args:
        folder: of the data.

    Attributes:
        tokenizer: is stored with each checkpoint; from begin on:
        source: what is trained on.
        step_tokens: tokens in a batch.

    Class attributes:
        kind: the name by which models' settings name it (ModelConfig.task).

    Raises:
        UserError: folder holds no such data, or it is damaged.
    """

    kind: ClassVar[str]
    tokenizer: Tokenizer
    source: Source
    step_tokens: int

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def verify(self) -> None:
        """Read all of the data; raise UserError if it is damaged."""

    @abstractmethod
    def identity(self) -> str:
        """Return a SHA-256 of what is learnt from, wherever the folder is."""

    @abstractmethod
    def begin(self, config: TrainConfig) -> None:
        """Make the batches of a run; raise UserError if the data is too little for them."""

    @abstractmethod
    def epoch(self, step: int) -> float:
        """Return how often all of the training data has been seen after so many steps."""

    @abstractmethod
    def some(self, split: str, batches: int, rows: slice, rows_at_once: int) -> Iterator[TrainingBatch]:
        """Yield the same few batches of a split at each call: only these rows of each, rows_at_once at a time."""

    @abstractmethod
    def all(self, split: str, rows_at_once: int, rank: int = 0, world_size: int = 1) -> Iterator[TrainingBatch]:
        """Yield one process's share of a split, every target once; all processes get equally many batches."""

    @abstractmethod
    def measures(self, split: str, loss: float) -> dict[str, float | None]:
        """Return what else follows from the loss over a whole split, by name; None for what is unknown."""

    @abstractmethod
    def sample(self, model: Model, seed: int) -> str:
        """Return a text that shows what a model has learnt."""


def task_of(config: TrainConfig, folder: Path) -> Task:
    """Return the task of a run's model on a data folder.

    Raises:
        UserError: folder holds no such data, or it is damaged.
    """
    from fastllm.train.language import LanguageModelling

    tasks: dict[str, type[Task]] = {task.kind: task for task in (LanguageModelling,)}
    return tasks[config.model.task](folder)
