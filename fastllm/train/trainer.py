"""A run: what it needs is put together here, and the loop. Knows nothing of the command line, of texts or of models.

What it does it says through a Reporter. The folder is run.py's, checkpoints are saving.py's, data is the task's.
"""

import math
import time
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from fastllm.data import Prefetcher
from fastllm.errors import UserError
from fastllm.models import Model, ModelConfig
from fastllm.train import checkpoint, device, initial, state
from fastllm.train.config import TrainConfig
from fastllm.train.estimate import flops_per_token
from fastllm.train.evaluation import EvaluationInterrupted
from fastllm.train.metrics import tensorboard_writer
from fastllm.train.parallel import Parallel, is_sharded, whole_model
from fastllm.train.parts import make_parts
from fastllm.train.report import Reporter
from fastllm.train.run import Run
from fastllm.train.saving import Progress, Saver
from fastllm.train.schedule import learning_rate
from fastllm.train.task import Task, task_of

_SECONDS_BETWEEN_PLOTS = 20.0


class TrainingInterrupted(Exception):  # noqa: N818
    """Training was asked to stop; everything is saved."""


class Trainer:
    """One run: model, data, optimizer and where they stand. Started by torchrun, one process of it.

    Args:
        config: the run's settings; config.out is its folder.
        resume: continue config.out from this checkpoint ("last" or "best"); None starts a new run.
        given: names of settings that were asked for: config.init must agree with them, and replaces the others.

    Attributes:
        run: the folder.
        task: what is learnt.
        model: which is trained.
        progress: where the run stands.
        resumed: whether it goes on from a checkpoint.
        notes: what a person should know before training starts, a sentence each.

    Raises:
        UserError: settings, data or folder cannot work; nothing was written.
    """

    def __init__(self, config: TrainConfig, resume: str | None = None, given: Collection[str] = ()) -> None:
        config.check()
        if config.data is None or config.out is None:
            missing = [f"'{name}'" for name in ("data", "out") if getattr(config, name) is None]
            raise UserError(f"train: {' and '.join(missing)} must be given")
        self.config, self.run, self.progress = config, Run(config.out), Progress()
        self.stop_requested, self.resumed = False, False
        self.notes = config.notes()
        self.parallel = Parallel()
        self._ahead: Prefetcher | None = None
        try:
            self._set_up(resume, frozenset(given))
        except BaseException:
            self.close()
            raise

    # --- setting up --------------------------------------------------------------------------------------------------

    def _set_up(self, resume: str | None, given: Collection[str]) -> None:
        config, parallel = self.config, self.parallel
        new = resume is None
        if resume == checkpoint.LAST and checkpoint.never_saved(self.run.folder):
            resume = None
        self.device = device.choose(config, parallel.local_rank)
        if config.tensorboard:
            tensorboard_writer()  # say now that it is missing, not when there is a folder
        parallel.start(self.device)
        self.task = self._open_task()
        parallel.one_for_all(self.task.verify, parallel.is_first_here)
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        # Of a run that was stopped before it had saved anything all settings stand, those of its beginning.
        self.model = self._make_model(resume, given if new else frozenset(config.flat()))
        self.task.begin(config, parallel.world_size)
        parallel.one_for_all(lambda: self.run.take(config, new), parallel.is_main)
        self._parts = make_parts(config, self.task, self.model, parallel, self.device, lambda: self.stop_requested)
        self._pending: list[Tensor] = []  # losses since the last look at them
        if device.wants_prefetch(self.device):
            self._ahead = Prefetcher(self.task.source, parallel.share, pin=self.device.type == "cuda")
        if parallel.rank:  # rank 0 alone draws what a run of one process draws
            torch.manual_seed(state.process_seed(config.seed, 0, parallel.rank))
        self._saver = Saver(config, self.run, self._parts, self.progress)
        self._go_on(resume)
        self._peak = device.peak_flops(self.device, config.precision)

    def _open_task(self) -> Task:
        assert self.config.data is not None
        try:
            return task_of(self.config, self.config.data)
        except UserError as error:
            if self.run.has_settings:
                elsewhere = f"if the data of {self.run} is elsewhere now, name it: --data"
                raise UserError(f"train: {error}; {elsewhere}") from error
            raise

    def _make_model(self, resume: str | None, given: Collection[str]) -> Model:
        config, tokenizer = self.config, self.task.tokenizer
        if resume is None and config.init is not None:
            model = initial.trained_model(config, tokenizer, given)
            self._require_memory(model.config)
            return model
        self._require_memory(initial.settings_for(config, tokenizer))
        return initial.new_model(config, tokenizer)

    def _require_memory(self, model: ModelConfig) -> None:
        device.require_memory(self.config, model.cost(), self.device, self.parallel.world_size)

    def _go_on(self, resume: str | None) -> None:
        """Restore a checkpoint, if there is one to go on from, and open the run's files."""
        if resume is not None:
            self._saver.restore(resume)
            self.resumed = True
        step = self.step if self.resumed else None
        if self.parallel.is_main:
            self.run.open(self.config, step)
        if self.resumed and resume != checkpoint.LAST:
            self._saver.save(checkpoint.LAST)  # before later metrics go: the later last would be without them
        if self.parallel.is_main:
            self.run.take_back(self.step, self.config.keep_checkpoints)
            self.notes += self.run.save_settings(self.config, step)

    def close(self) -> None:
        """Free the run's folder and part from the other processes; the trainer cannot be used afterwards."""
        if self._ahead is not None:
            self._ahead.close()
        self.run.close()
        self.parallel.stop()

    # --- running -----------------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Optimizer steps that were taken."""
        return self.progress.step

    def request_stop(self) -> None:
        """Ask the loop to save and stop at the end of the running step; safe to call from a signal handler."""
        self.stop_requested = True

    def train(self, reporter: Reporter) -> dict[str, Any]:
        """Run to max_steps; return {"val_loss", "seconds", ..} of the whole validation split.

        Raises:
            TrainingInterrupted: request_stop was called; the checkpoint "last" is saved.
            UserError: the loss is not finite, or a file could not be written; the last checkpoint is intact.
        """
        try:
            return self._train(reporter)
        finally:
            self.close()

    def _train(self, reporter: Reporter) -> dict[str, Any]:
        config = self.config
        started = plotted = time.perf_counter()
        if not self.resumed or self.progress.evaluation_due:
            self._evaluate(reporter)
        logged, logged_step = time.perf_counter(), self.step
        while self.step < config.max_steps and not self._patience_is_over():
            self._train_step()
            reporter.step(self.step)
            stop, last = self.parallel.any(self.stop_requested), self.step == config.max_steps
            if self.step % config.log_interval == 0 or last or stop:
                loss, now = self._losses()[-1], time.perf_counter()  # in this order: losses wait for the device
                tokens = self.task.tokens(self.step) - self.task.tokens(logged_step)
                self._log(loss, tokens / (now - logged), reporter)
                logged, logged_step = now, self.step
            sample = config.sample_interval and self.step % config.sample_interval == 0
            evaluate = self.step % config.eval_interval == 0 or last
            if sample or evaluate:
                self._losses()  # nothing is made of a model after a loss that is not finite
            paused = time.perf_counter()
            if sample:
                self._require_finite_weights()
                self._sample()
            if evaluate:
                self._evaluate(reporter)
                if time.perf_counter() - plotted > _SECONDS_BETWEEN_PLOTS:
                    self._plot()
                    plotted = time.perf_counter()
            elif stop:
                self._require_finite_weights()
                self._saver.save(checkpoint.LAST)
            if stop:
                self._plot()
                raise TrainingInterrupted
            logged += time.perf_counter() - paused  # tokens/s are of training alone
        return self._finish(time.perf_counter() - started, reporter)

    def _train_step(self) -> None:
        batch = self.task.source.next(self.parallel.share) if self._ahead is None else self._ahead.next()
        self._pending.append(self._parts.stepper.step(batch, learning_rate(self.config, self.step)))
        self.progress.step += 1
        if self._parts.average is not None:
            self._parts.average.update(self.step)

    def _patience_is_over(self) -> bool:
        return 0 < self.config.patience <= self.progress.evaluations_since_best

    def _evaluate(self, reporter: Reporter) -> None:
        try:
            with reporter.evaluating():
                losses = self._parts.evaluator.losses()
        except EvaluationInterrupted:
            self._require_finite_weights()
            self.progress.evaluation_due = True  # a resumed run begins with it
            self._saver.save(checkpoint.LAST)
            self._plot()
            raise TrainingInterrupted from None
        self.progress.evaluation_due = False
        self._require_finite(losses)
        row = {"step": self.step, **losses}
        self.run.record(row)
        improved = self.progress.take(self._figure(losses))
        self._saver.save_evaluated(improved)
        reporter.evaluation(row, improved)

    def _figure(self, evaluation: Mapping[str, float]) -> float:
        """Return the figure by which checkpoints are compared, the lower the better."""
        name = self.config.best_by
        return evaluation["val_loss"] if name == "loss" else -evaluation[f"val_{name}"]

    def _finish(self, seconds: float, reporter: Reporter) -> dict[str, Any]:
        try:
            with reporter.evaluating():
                summary = self._parts.evaluator.summary()
        except EvaluationInterrupted:  # the last checkpoint has this step already
            raise TrainingInterrupted from None
        self._require_finite(summary)
        summary["seconds"] = seconds
        self.run.record({"step": self.step, **{f"final_{k}": v for k, v in summary.items()}})
        self._plot()
        return summary

    def _log(self, loss: float, tokens_per_second: float, reporter: Reporter) -> None:
        mfu = None
        if self._peak is not None:
            flops = flops_per_token(self.model.config.cost())
            mfu = round(flops * tokens_per_second / (self._peak * self.parallel.world_size), 4)
        row = {
            "step": self.step,
            "loss": loss,
            "learning_rate": learning_rate(self.config, self.step - 1),
            "tokens_per_second": round(tokens_per_second, 1),
            "grad_norm": float(self._parts.stepper.grad_norm),
            "tokens": self.task.tokens(self.step),
            "epoch": round(self.task.epoch(self.step), 4),
            "mfu": mfu,
        }
        self.run.record(row)
        reporter.log(row)

    def _sample(self) -> None:
        """Write what the model makes of the validation split to samples/<step>.txt."""
        model = whole_model(self.model, self.parallel) if is_sharded(self.model) else self.model
        if model is not None and self.parallel.is_main:
            self.run.write_sample(self.step, self.task.sample(model, self.config.seed))

    def _plot(self) -> None:
        if self.parallel.is_main:
            self.run.plot()

    # --- losses that are not finite -----------------------------------------------------------------------------------

    def _losses(self) -> list[float]:
        """Return the steps' losses since the last call, over all processes.

        Raises:
            UserError: one is not finite.
        """
        if not self._pending:
            return []
        losses = self.parallel.sum(torch.stack(self._pending).tolist())
        self._pending = []
        for step, loss in enumerate(losses, self.step - len(losses) + 1):
            if not math.isfinite(loss):
                raise UserError(
                    f"train: the loss became {loss} at step {step}, on batch {step - 1} of the data{self._advice()}"
                )
        return losses

    def _require_finite(self, losses: Mapping[str, float | None]) -> None:
        """Raise UserError if an evaluation found a loss that is not finite."""
        for name, loss in losses.items():
            if loss is not None and not math.isfinite(loss):
                why = self._advice() if self.step else ": the weights that the run starts from give no finite loss"
                raise UserError(f"train: {name} became {loss} at step {self.step}{why}")

    def _require_finite_weights(self) -> None:
        """Raise UserError if the last step left weights that are not finite: its loss is that of the ones before."""
        weights = (getattr(p, "to_local", lambda p=p: p)() for p in self.model.parameters())
        if self.parallel.any(not all(bool(part.isfinite().all()) for part in weights)):
            raise UserError(f"train: a weight is no longer finite after step {self.step}{self._advice()}")

    def _advice(self) -> str:
        return (
            f"; the last checkpoint in {self.run} is intact: start a new run from it with a smaller rate, --init "
            f"{self.run.quoted} --learning_rate {self.config.learning_rate / 3:.2g}"
        )
