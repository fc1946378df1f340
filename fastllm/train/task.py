"""What stands between a run and its data: the trainer knows neither texts nor tokens, and asks its task.

A task is made of a data folder, then told the run's settings by `begin`. It gives batches whose tensors are the
arguments of its models' `loss`; what else they are, the task and the model know.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from fastllm.data.source import WHOLE, Share, Source, TrainingBatch
from fastllm.models import Model
from fastllm.tokenizers import Tokenizer
from fastllm.train.config import TrainConfig

# What models' settings name, and where the classes are.
TASKS = {"language": "language.LanguageModelling", "translation": "translation.TranslationTask"}


class Task(ABC):
    """What a run learns, from which data, and how it is measured.

    Args:
        folder: of the data.

    Attributes:
        tokenizer: is stored with each checkpoint; from begin on:
        source: what is trained on.
        judges: whether there is more to measure of a model while it trains than its loss, see judge.
        splits: the names of what the data is parted into.

    Raises:
        UserError: folder holds no such data, or it is damaged.
    """

    tokenizer: Tokenizer
    source: Source
    judges: bool = False
    splits: tuple[str, ...] = ("train", "val")

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def verify(self) -> None:
        """Read all of the data; raise UserError if it is damaged."""

    @abstractmethod
    def identity(self) -> str:
        """Return a SHA-256 of what is learnt from, wherever the folder is."""

    @abstractmethod
    def begin(self, config: TrainConfig, processes: int = 1) -> None:
        """Make the batches of a run; raise UserError if data or processes do not fit them."""

    @abstractmethod
    def epoch(self, step: int) -> float:
        """Return how often all of the training data has been seen after so many steps."""

    @abstractmethod
    def tokens(self, step: int) -> int:
        """Return how many tokens have been learnt from after so many steps."""

    @abstractmethod
    def some(self, split: str, batches: int, share: Share) -> Iterator[TrainingBatch]:
        """Yield a process's share of the same few batches of a split at each call.

        As many rows come at once as in a step: what fits in memory while training fits here.
        """

    @abstractmethod
    def all(self, split: str, share: Share = WHOLE) -> Iterator[TrainingBatch]:
        """Yield a process's share of a split, every target once; all processes get equally many batches."""

    @abstractmethod
    def measures(self, split: str, loss: float) -> dict[str, float | None]:
        """Return what else follows from the loss over a whole split, by name; None for what is unknown."""

    def judge(self, model: Model, split: str, whole: bool) -> dict[str, float]:
        """Return what else is measured of a model, by name: on a whole split, or on the same few of it each time."""
        return {}

    def scores(self, model: Model, split: str, num_beams: int) -> tuple[dict[str, float], dict[str, str]]:
        """Return what is measured of what a model makes of a whole split, by name, and how each was measured."""
        return {}, {}

    @abstractmethod
    def sample(self, model: Model, seed: int) -> str:
        """Return a text that shows what a model has learnt."""


def task_of(config: TrainConfig, folder: Path) -> Task:
    """Return the task of a run's model on a data folder.

    Raises:
        UserError: folder holds no such data, or it is damaged.
    """
    module, name = TASKS[config.model.task].split(".")
    task: type[Task] = getattr(importlib.import_module(f"fastllm.train.{module}"), name)
    return task(folder)
