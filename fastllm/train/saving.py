"""A running trainer's parts into a run's checkpoints, and back out of them, bit for bit; all processes must call it."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastllm import files
from fastllm.errors import UserError, UserValueError
from fastllm.train import checkpoint, state
from fastllm.train.config import TrainConfig
from fastllm.train.parallel import is_sharded, whole_model, whole_tensors
from fastllm.train.parts import Parts
from fastllm.train.run import Run


@dataclass
class Progress:
    """Where a run stands.

    Args:
        step: optimizer steps that were taken.
        best_val: the lowest validation loss so far; where another figure says what is best, minus its highest.
        evaluations_since_best: how many evaluations did not better it.
        evaluation_due: whether one was interrupted, with which a resumed run begins.
    """

    step: int = 0
    best_val: float = math.inf
    evaluations_since_best: int = 0
    evaluation_due: bool = False

    def take(self, figure: float) -> bool:
        """Count an evaluation, of which a lower figure is better; return whether it is the best so far."""
        improved = figure < self.best_val
        self.best_val = min(self.best_val, figure)
        self.evaluations_since_best = 0 if improved else self.evaluations_since_best + 1
        return improved


class Saver:
    """Writes and reads a run's checkpoints.

    Args:
        config: the run's settings.
        run: its folder.
        parts: what a checkpoint is of.
        progress: where the run stands; restore fills it.
    """

    def __init__(self, config: TrainConfig, run: Run, parts: Parts, progress: Progress) -> None:
        self._config, self._run, self._parts, self._progress = config, run, parts, progress

    def save_evaluated(self, improved: bool) -> None:
        """Write the checkpoints of an evaluation; what is in several of them is made once, and the others link to it.

        But best and last do not share files: damage to one must leave the other to go on from. Last comes last: killed
        before it, a resumed run makes the others again.
        """
        keep, average = self._config.keep_checkpoints, self._parts.average
        kept = checkpoint.kept_name(self._progress.step) if keep else None
        first = checkpoint.BEST if improved else kept or checkpoint.LAST
        self.save(first)
        if kept and kept != first:
            self._copy(first, kept, link=True)
        if average is not None:
            self.save(checkpoint.EMA, average.values)
        if first != checkpoint.LAST:
            self._copy(first, checkpoint.LAST, link=not improved)
        if self._parts.parallel.is_main:
            checkpoint.forget_kept(self._run.folder, keep)

    def _copy(self, name: str, other: str, link: bool) -> None:
        if self._parts.parallel.is_main:
            checkpoint.copy(self._run.folder, name, other, link)

    def save(self, name: str, weights: dict[str, Tensor] | None = None) -> None:
        """Write a checkpoint, or one of other weights, which lacks what a run needs to continue."""
        parts, parallel = self._parts, self._parts.parallel
        stored: dict[str, Any] = {
            **asdict(self._progress),
            "batches": parts.task.source.position,
            "data": parts.task.identity(),
            "scaler": parts.stepper.scaler.state_dict(),
            "rng": state.random_state(parts.device, parallel),
        }
        in_parts = is_sharded(parts.model)
        tensors = state.tensors_of(parts.stepper, parts.average) if weights is None else {}
        whole = in_parts or weights is not None
        model = whole_model(parts.model, parallel, weights) if whole else parts.model
        if not in_parts:
            stored["tensors"] = whole_tensors(tensors, parallel)

        def add_part(folder: Path) -> None:
            if in_parts and tensors:
                from fastllm.train import sharded

                parallel.barrier()  # the main process has made the folder
                sharded.save(tensors, folder)

        if model is None or not parallel.is_main:
            add_part(files.unfinished(checkpoint.folder_of(self._run.folder, name)))
            return
        self._run.flush()
        checkpoint.save(self._run.folder, name, model, parts.task.tokenizer, stored, add_part)

    def restore(self, name: str) -> None:
        """Give parts and progress what a checkpoint holds.

        Raises:
            UserError: there is none, it is damaged, or of another model, tokenizer or data, or past the run's end.
        """
        run, parts, task = self._run, self._parts, self._parts.task
        parts.parallel.one_for_all(lambda: checkpoint.find(run.folder, name), parts.parallel.is_first_here)
        folder = checkpoint.locate(run.folder, name)
        model, tokenizer = checkpoint.read_model(folder)
        if tokenizer.to_json() != task.tokenizer.to_json():
            raise UserError(
                f"train: the vocabulary of {self._config.data} ({task.tokenizer.vocab_size} tokens) is not the one "
                f"that the checkpoint in {run} was trained with ({tokenizer.vocab_size} tokens)"
            )
        if model.config != parts.model.config:
            raise UserError(f"train: the checkpoint in {run} is of another model than its config.yaml describes")
        stored = checkpoint.read_state(folder)
        self._require_same_data(stored)
        if stored["step"] > self._config.max_steps:
            raise UserValueError(
                f"train: {run} is at step {stored['step']} already; to continue, 'max_steps' must be larger, got "
                f"{self._config.max_steps}"
            )
        state.restore_weights(parts.model, model.state_dict())
        state.restore_tensors(folder, stored, parts.stepper, parts.average)
        for field in asdict(self._progress):
            setattr(self._progress, field, stored.get(field, False))  # older ones do not say evaluation_due
        task.source.position = stored["batches"]
        parts.stepper.scaler.load_state_dict(stored["scaler"])
        state.set_random_state(
            stored["rng"], self._config.seed, self._progress.step, parts.device, parts.parallel
        )  # fmt: skip

    def _require_same_data(self, stored: dict[str, Any]) -> None:
        identity = self._parts.task.identity()
        expected = stored.get("data", identity)  # older checkpoints do not say
        if identity != expected:
            raise UserError(
                f"train: {self._config.data} holds other tokens (SHA-256 {identity[:12]}) than those that {self._run} "
                f"was trained on ({expected[:12]}): name their folder with --data, or start a new run from this one's "
                "weights with --init"
            )
