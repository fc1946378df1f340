"""What trains and measures a model, put together: model, optimizer, average of weights, evaluator."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from fastllm.models import Model
from fastllm.train.average import MovingAverage
from fastllm.train.config import TrainConfig
from fastllm.train.evaluation import Evaluator
from fastllm.train.parallel import LossModule, Parallel
from fastllm.train.stepper import Stepper
from fastllm.train.task import Task


@dataclass
class Parts:
    """A run's parts; see make_parts.

    Args:
        task: gives the batches.
        model: on the run's device, perhaps shared out over processes.
        stepper: takes optimizer steps.
        average: of the weights; None where there is none.
        evaluator: measures the model.
        parallel: the processes.
        device: of this one.
    """

    task: Task
    model: Model
    stepper: Stepper
    average: MovingAverage | None
    evaluator: Evaluator
    parallel: Parallel
    device: torch.device


def make_parts(
    config: TrainConfig, task: Task, model: Model, parallel: Parallel, device: torch.device, stop: Callable[[], bool]
) -> Parts:
    """Put a run's parts together.

    Args:
        config: the run's settings.
        task: has begun.
        model: on the CPU, the same in every process.
        parallel: the processes.
        device: of this one.
        stop: whether to end an evaluation.
    """
    model.train()  # one that was read is in eval mode
    if config.activation_checkpointing:
        checkpoint_activations(model)
    if config.compile:  # blocks: they share one graph, and it holds under DDP, FSDP and checkpointing alike
        for block in model.blocks:
            block.compile()
    loss = parallel.wrap(LossModule(model, config.label_smoothing), device, config.parallel)
    stepper = Stepper(config, model, loss, parallel, device)
    average = MovingAverage(model, config.ema_decay) if config.ema_decay else None
    evaluator = Evaluator(config, task, model, loss, average, parallel, device, stop)
    return Parts(task, model, stepper, average, evaluator, parallel, device)


def checkpoint_activations(model: Model) -> None:
    """Let each block keep its inputs only; backward computes it again, with the random numbers it had."""
    from torch.utils.checkpoint import checkpoint as compute_again

    for block in model.blocks:
        block.forward = partial(compute_again, block.forward, use_reentrant=False)
