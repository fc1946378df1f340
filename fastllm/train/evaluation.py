"""The loss over batches that are not trained on, shared out over all processes."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from fastllm.data.source import TrainingBatch
from fastllm.models import Model
from fastllm.train.average import MovingAverage
from fastllm.train.config import TrainConfig
from fastllm.train.device import autocast
from fastllm.train.parallel import Parallel, is_sharded, whole_model
from fastllm.train.task import Task


class EvaluationInterrupted(Exception):  # noqa: N818
    """An evaluation was asked to stop; nothing of it counts, and the model is as it was."""


class Evaluator:
    """Measures a run's model while it trains; all processes must ask for the same.

    Args:
        config: the run's settings.
        task: gives the batches of "train" and "val".
        model: which is measured, perhaps shared out over the processes.
        loss: the model's, as Parallel.wrap returned it.
        average: of the weights, measured beside them.
        parallel: the processes that share the work.
        device: where the model is.
        stop: asked before each batch, by all processes: True in one of them ends the evaluation in all.
    """

    def __init__(
        self, config: TrainConfig, task: Task, model: Model, loss: torch.nn.Module, average: MovingAverage | None,
        parallel: Parallel, device: torch.device, stop: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._stop = stop
        self._config, self._task, self._model, self._loss, self._average = config, task, model, loss, average
        self._parallel, self._device = parallel, device

    def losses(self) -> dict[str, float]:
        """Return train_loss, val_loss and, with an average, ema_val_loss: over eval_batches batches of a split.

        They are the same batches each time; with eval_batches 0 it is the whole validation split. What the task
        judges beside the loss (val_..) is among them.

        Raises:
            EvaluationInterrupted: stop said so.
        """
        losses = {f"{name}_loss": self._mean(self._some(name)) for name in ("train", "val")}
        if self._average is not None:
            with self._average.in_place():
                losses["ema_val_loss"] = self._mean(self._some("val"))
        return losses | self._judged(whole=False)

    def summary(self) -> dict[str, float | None]:
        """Return val_loss, ema_val_loss and what else the task measures (val_..), over the whole validation split.

        Raises:
            EvaluationInterrupted: stop said so.
        """
        loss = self._mean(self._all("val"))
        summary: dict[str, float | None] = {"val_loss": loss}
        summary |= {f"val_{name}": value for name, value in self._task.measures("val", loss).items()}
        if self._average is not None:
            with self._average.in_place():
                summary["ema_val_loss"] = self._mean(self._all("val"))
        return summary | self._judged(whole=True)

    def _judged(self, whole: bool) -> dict[str, float]:
        """Return what the task judges of the model (val_..); the main process does it, and the others wait."""
        if not self._task.judges:
            return {}
        model = whole_model(self._model, self._parallel) if is_sharded(self._model) else self._model
        figures: dict[str, float] = {}
        if model is not None and self._parallel.is_main:
            figures = self._task.judge(model, "val", whole)
        return {f"val_{name}": value for name, value in self._parallel.gather(figures)[0].items()}

    def _some(self, split: str) -> Iterator[TrainingBatch]:
        """Yield this process's rows of the batches of an evaluation."""
        batches = self._config.eval_batches
        if not batches and split == "val":
            return self._all(split)
        return self._task.some(split, batches or 1, self._parallel.share)

    def _all(self, split: str) -> Iterator[TrainingBatch]:
        return self._task.all(split, self._parallel.share)

    def _mean(self, batches: Iterator[TrainingBatch]) -> float:
        precision = autocast(self._device, self._config.precision)
        return mean_loss(self._loss, self._until_stopped(batches), self._parallel, self._device, precision)

    def _until_stopped(self, batches: Iterator[TrainingBatch]) -> Iterator[TrainingBatch]:
        for batch in batches:
            if self._parallel.any(self._stop()):
                raise EvaluationInterrupted
            yield batch


def mean_loss(
    loss: torch.nn.Module, batches: Iterable[TrainingBatch], parallel: Parallel, device: torch.device,
    precision: AbstractContextManager,
) -> float:  # fmt: skip
    """Return the mean loss a target in nats over the batches of all processes, each target once.

    The processes must have equally many batches: FSDP's run forward together.
    """
    total, count = 0.0, 0
    with _evaluating(loss), torch.no_grad(), precision:
        for batch in batches:
            targets = batch.num_targets()
            value = loss(*batch.arguments(device)).item()
            total, count = total + value * targets, count + targets
    total, everyone = parallel.sum([total, count])
    return total / everyone if everyone else math.nan


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
