"""The training loop. Knows nothing of the command line; says what it does through a Reporter."""

import math
import shlex
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from fastllm import files
from fastllm.data import Batches, Prefetcher, TokenData
from fastllm.errors import UserError, UserValueError
from fastllm.generation import generate
from fastllm.models import GPT, GPTConfig
from fastllm.train import checkpoint, device, initial, schedule, state
from fastllm.train.average import MovingAverage
from fastllm.train.config import TrainConfig
from fastllm.train.estimate import flops_per_token
from fastllm.train.evaluation import EvaluationInterrupted, Evaluator
from fastllm.train.metrics import Metrics, tensorboard_writer
from fastllm.train.parallel import LossModule, Parallel, is_sharded, whole_model, whole_tensors
from fastllm.train.plot import can_plot, plot_loss
from fastllm.train.report import Reporter
from fastllm.train.schedule import learning_rate
from fastllm.train.stepper import Stepper

_SECONDS_BETWEEN_PLOTS = 20.0
_PROMPT_TOKENS, _SAMPLE_TOKENS = 16, 256


class TrainingInterrupted(Exception):  # noqa: N818
    """Training was asked to stop; everything is saved."""


class Trainer:
    """One run: model, data, optimizer and where they stand. Started by torchrun, one process of it.

    Args:
        config: the run's settings; config.out is its folder.
        resume: continue config.out from this checkpoint ("last" or "best"); None starts a new run.
        given: names of settings that were asked for: config.init must agree with them, and replaces the others.

    Attributes:
        notes: what a person should know before training starts, a sentence each.

    Raises:
        UserError: settings, data or folder cannot work; nothing was written.
    """

    def __init__(self, config: TrainConfig, resume: str | None = None, given: Collection[str] = ()) -> None:
        config.check()
        if config.data is None or config.out is None:
            missing = [f"'{name}'" for name in ("data", "out") if getattr(config, name) is None]
            raise UserError(f"train: {' and '.join(missing)} must be given")
        self.config, self.run, self._given = config, Path(config.out), frozenset(given)
        self.step, self.best_val, self.evaluations_since_best = 0, math.inf, 0
        self.stop_requested, self.resumed = False, False
        self.evaluation_due = False  # one that was interrupted
        self.notes = config.notes()
        self.parallel = Parallel()
        self._lock: TextIO | None = None
        self._metrics: Metrics | None = None
        self._ahead: Prefetcher | None = None
        try:
            self._set_up(resume)
        except BaseException:
            self.close()
            raise

    # --- setting up --------------------------------------------------------------------------------------------------

    def _set_up(self, resume: str | None) -> None:
        config, parallel = self.config, self.parallel
        assert config.data is not None
        new = resume is None
        if resume == checkpoint.LAST and checkpoint.never_saved(self.run):
            resume = None
        self.device = device.choose(config, parallel.local_rank)
        if config.tensorboard:
            tensorboard_writer()  # say now that it is missing, not when there is a folder
        parallel.start(self.device)
        self._rows = parallel.rows(config.batch_size)
        self.data = self._open_data(config.data)
        parallel.one_for_all(self.data.verify, parallel.is_first_here)
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        if resume is None and config.init is not None:
            self.model = initial.trained_model(config, self.data.tokenizer, self._given)
            self._require_memory(self.model.config)
        else:
            self._require_memory(initial.model_config(config, self.data.tokenizer.vocab_size))
            self.model = initial.new_model(config, self.data.tokenizer)
        self._splits = {name: self.data.split(name, config.context_length) for name in ("train", "val")}
        parallel.one_for_all(lambda: self._take_folder(new), parallel.is_main)
        self._make_parts()
        if parallel.rank:  # rank 0 alone draws what a run of one process draws
            torch.manual_seed(state.process_seed(config.seed, 0, parallel.rank))
        if resume is not None:
            self._restore(resume)
        if parallel.is_main:
            self._metrics = Metrics(self.run, self.step if self.resumed else -1, config.tensorboard)
        if self.resumed and resume != checkpoint.LAST:
            self._save(checkpoint.LAST)  # before later metrics go: the later last would be without them
        if self._metrics is not None:
            self._metrics.forget_later()
            checkpoint.forget_kept(self.run, config.keep_checkpoints, self.step)
            self._save_settings()
        self._peak = device.peak_flops(self.device, config.precision)

    def _open_data(self, folder: Path) -> TokenData:
        try:
            return TokenData(folder)
        except UserError as error:
            if (self.run / "config.yaml").exists():
                raise UserError(
                    f"train: {error}; if the data of {self.run} is elsewhere now, name it: --data"
                ) from error
            raise

    def _require_memory(self, model: GPTConfig) -> None:
        device.require_memory(self.config, model, self.device, self.parallel.world_size)

    def _save_settings(self) -> None:
        """Write config.yaml, with what a resumed run was told anew; but the place of its data stays while it is there.

        Whoever resumes from elsewhere, by another path, must not take the run from where it was.
        """
        path, config = self.run / "config.yaml", self.config
        if not self.resumed or not path.exists():
            config.save(path)
            return
        before = TrainConfig.load(path)
        rates = schedule.jump(before, config, self.step)
        if rates is not None:
            self.notes.append(self._of_jump(before.max_steps, *rates))
        stays = before.data is not None and before.data.is_absolute() and before.data.exists()
        replace(config, data=before.data if stays else config.data).save(path)

    def _of_jump(self, end: int, before: float, now: float) -> str:
        text = (
            f"with max_steps {self.config.max_steps} instead of {end} the schedule {self.config.schedule} ends "
            f"elsewhere: the learning rate of the next step is {now:.3g} instead of {before:.3g}"
        )
        if now > before:
            run = shlex.quote(str(self.run))
            text += (
                f"; to go on at the low rate instead, stop this and start a new run from these weights: fastllm train "
                f"--init {run} --schedule constant --learning_rate {before:.3g} with --data, --out and --max_steps"
            )
        return text

    def _make_parts(self) -> None:
        """Make what trains and measures the model."""
        config, parallel = self.config, self.parallel
        self.model.train()  # one that was read is in eval mode
        if config.activation_checkpointing:
            _checkpoint_activations(self.model)
        if config.compile:  # blocks: they share one graph, and it holds under DDP, FSDP and checkpointing alike
            for block in self.model.blocks:
                block.compile()
        loss = parallel.wrap(LossModule(self.model), self.device, config.parallel)
        self.stepper = Stepper(config, self.model, loss, parallel, self.device)
        self.average = MovingAverage(self.model, config.ema_decay) if config.ema_decay else None
        self.evaluator = Evaluator(
            config, self._splits, loss, self.average, parallel, self.device, lambda: self.stop_requested
        )
        self.batches = Batches(
            self._splits["train"], config.batch_size, config.context_length, config.seed,
            document_mask=config.document_mask,
        )  # fmt: skip
        if device.wants_prefetch(self.device):
            self._ahead = Prefetcher(self.batches, self._rows, pin=self.device.type == "cuda")
        self._pending: list[Tensor] = []  # losses since the last look at them

    def _take_folder(self, new: bool) -> None:
        """Lock the run's folder; a new one must be empty but for what a killed beginning left."""
        if new and self.run.exists() and not _is_empty(self.run):
            if not self.run.is_dir():
                raise UserError(f"train: 'out' must be a folder, made new, and {self.run} is a file")
            go_on = f"continue it with --resume {shlex.quote(str(self.run))}, or " * (self.run / "config.yaml").exists()
            raise UserError(f"train: {self.run} exists and is not empty; {go_on}name a new --out")
        try:
            self.run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"train: cannot make {self.run}: {error.strerror}") from error
        self._lock = files.lock(self.run)
        if new:
            self.config.save(self.run / "config.yaml")

    def _restore(self, name: str) -> None:
        parallel = self.parallel
        parallel.one_for_all(lambda: checkpoint.find(self.run, name), parallel.is_first_here)
        folder = checkpoint.locate(self.run, name)
        model, tokenizer = checkpoint.read_model(folder)
        if tokenizer.to_json() != self.data.tokenizer.to_json():
            raise UserError(
                f"train: the vocabulary of {self.config.data} ({self.data.tokenizer.vocab_size} tokens) is not the one "
                f"that the checkpoint in {self.run} was trained with ({tokenizer.vocab_size} tokens)"
            )
        if model.config != self.model.config:
            raise UserError(f"train: the checkpoint in {self.run} is of another model than its config.yaml describes")
        stored = checkpoint.read_state(folder)
        self._require_same_data(stored)
        if stored["step"] > self.config.max_steps:
            raise UserValueError(
                f"train: {self.run} is at step {stored['step']} already; to go on 'max_steps' must be more, got "
                f"{self.config.max_steps}"
            )
        state.restore_weights(self.model, model.state_dict())
        state.restore_tensors(folder, stored, self.stepper, self.average)
        self.step, self.best_val = stored["step"], stored["best_val"]
        self.evaluations_since_best = stored["evaluations_since_best"]
        self.evaluation_due = stored.get("evaluation_due", False)  # older checkpoints do not say
        self.batches.position = stored["batches"]
        self.stepper.scaler.load_state_dict(stored["scaler"])
        state.set_random_state(stored["rng"], self.config.seed, self.step, self.device, parallel)
        self.resumed = True

    def _require_same_data(self, stored: dict[str, Any]) -> None:
        identity = state.identity_of(self.data)
        expected = stored.get("data", identity)  # older checkpoints do not say
        if identity != expected:
            raise UserError(
                f"train: {self.config.data} holds other tokens (SHA-256 {identity[:12]}) than those that {self.run} "
                f"was trained on ({expected[:12]}): name their folder with --data, or start a new run from this one's "
                "weights with --init"
            )

    def close(self) -> None:
        """Free the run's folder and part from the other processes; the trainer cannot be used afterwards."""
        if self._ahead is not None:
            self._ahead.close()
        if self._metrics is not None:
            self._metrics.close()
        if self._lock is not None:
            self._lock.close()
        self.parallel.stop()

    # --- running -----------------------------------------------------------------------------------------------------

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
        if not self.resumed or self.evaluation_due:
            self._evaluate(reporter)
        logged, logged_step = time.perf_counter(), self.step
        while self.step < config.max_steps and not self._patience_is_over():
            self._train_step()
            reporter.step(self.step)
            stop, last = self.parallel.any(self.stop_requested), self.step == config.max_steps
            if self.step % config.log_interval == 0 or last or stop:
                loss, now = self._losses()[-1], time.perf_counter()  # in this order: losses wait for the device
                tokens = (self.step - logged_step) * config.batch_size * config.context_length
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
                self._save(checkpoint.LAST)
            if stop:
                self._plot()
                raise TrainingInterrupted
            logged += time.perf_counter() - paused  # tokens/s are of training alone
        return self._finish(time.perf_counter() - started, reporter)

    def _train_step(self) -> None:
        batch = self.batches.next(self._rows) if self._ahead is None else self._ahead.next()
        self._pending.append(self.stepper.step(batch, learning_rate(self.config, self.step)))
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)

    def _patience_is_over(self) -> bool:
        return 0 < self.config.patience <= self.evaluations_since_best

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
            raise UserError(f"train: a weight is not finite any more after step {self.step}{self._advice()}")

    def _advice(self) -> str:
        return (
            f"; the last checkpoint in {self.run} is intact: start a new run from it with a smaller rate, --init "
            f"{shlex.quote(str(self.run))} --learning_rate {self.config.learning_rate / 3:.2g}"
        )

    def _log(self, loss: float, tokens_per_second: float, reporter: Reporter) -> None:
        config, tokens = self.config, self.step * self.config.batch_size * self.config.context_length
        mfu = None
        if self._peak is not None:
            mfu = flops_per_token(self.model.config) * tokens_per_second / (self._peak * self.parallel.world_size)
        row = {
            "step": self.step,
            "loss": loss,
            "learning_rate": learning_rate(config, self.step - 1),
            "tokens_per_second": round(tokens_per_second, 1),
            "grad_norm": float(self.stepper.grad_norm),
            "tokens": tokens,
            "epoch": round(tokens / (len(self._splits["train"]) - 1), 4),
            "mfu": None if mfu is None else round(mfu, 4),
        }
        self._record(row)
        reporter.log(row)

    # --- evaluating --------------------------------------------------------------------------------------------------

    def _evaluate(self, reporter: Reporter) -> None:
        try:
            with reporter.evaluating():
                losses = self.evaluator.losses()
        except EvaluationInterrupted:
            self._require_finite_weights()
            self.evaluation_due = True  # a resumed run begins with it
            self._save(checkpoint.LAST)
            self._plot()
            raise TrainingInterrupted from None
        self.evaluation_due = False
        self._require_finite(losses)
        row = {"step": self.step, **losses}
        self._record(row)
        improved = losses["val_loss"] < self.best_val
        self.best_val = min(self.best_val, losses["val_loss"])
        self.evaluations_since_best = 0 if improved else self.evaluations_since_best + 1
        self._save_evaluated(improved)
        reporter.evaluation(row, improved)

    def _finish(self, seconds: float, reporter: Reporter) -> dict[str, Any]:
        try:
            with reporter.evaluating():
                summary = self.evaluator.summary()
        except EvaluationInterrupted:  # the last checkpoint has this step already
            raise TrainingInterrupted from None
        self._require_finite(summary)
        summary["seconds"] = seconds
        self._record({"step": self.step, **{f"final_{k}": v for k, v in summary.items()}})
        self._plot()
        return summary

    def _sample(self) -> None:
        """Write what the model makes of the validation split's beginning to samples/<step>.txt."""
        model = whole_model(self.model, self.parallel) if is_sharded(self.model) else self.model
        if model is None or not self.parallel.is_main:
            return
        prompt = self._splits["val"].read(0, min(_PROMPT_TOKENS, self.config.context_length)).tolist()
        vocabulary = self.data.tokenizer.vocab_size
        ids = generate(model, prompt, _SAMPLE_TOKENS, temperature=0.8, seed=self.config.seed, vocabulary=vocabulary)
        text = self.data.tokenizer.decode([*prompt, *ids])
        files.write_text(self.run / "samples" / f"{self.step}.txt", text + "\n")

    # --- writing -----------------------------------------------------------------------------------------------------

    def _save_evaluated(self, improved: bool) -> None:
        """Write the checkpoints of an evaluation; what is in several of them is made once, and the others link to it.

        But best and last do not share files: damage to one must leave the other to go on from. Last comes last: killed
        before it, a resumed run makes the others again.
        """
        kept = checkpoint.kept_name(self.step) if self.config.keep_checkpoints else None
        first = checkpoint.BEST if improved else kept or checkpoint.LAST
        self._save(first)
        if kept and kept != first:
            self._copy(first, kept, link=True)
        if self.average is not None:
            self._save(checkpoint.EMA, self.average.values)
        if first != checkpoint.LAST:
            self._copy(first, checkpoint.LAST, link=not improved)
        if self.parallel.is_main:
            checkpoint.forget_kept(self.run, self.config.keep_checkpoints)

    def _copy(self, name: str, other: str, link: bool) -> None:
        if self.parallel.is_main:
            checkpoint.copy(self.run, name, other, link)

    def _save(self, name: str, weights: dict[str, Tensor] | None = None) -> None:
        """Write a checkpoint, or one of other weights, which has not what a run needs to go on."""
        stored: dict[str, Any] = {
            "step": self.step,
            "best_val": self.best_val,
            "evaluations_since_best": self.evaluations_since_best,
            "evaluation_due": self.evaluation_due,
            "batches": self.batches.position,
            "data": state.identity_of(self.data),
            "scaler": self.stepper.scaler.state_dict(),
            "rng": state.random_state(self.device, self.parallel),
        }
        in_parts = is_sharded(self.model)
        tensors = state.tensors_of(self.stepper, self.average) if weights is None else {}
        model = whole_model(self.model, self.parallel, weights) if in_parts or weights is not None else self.model
        if not in_parts:
            stored["tensors"] = whole_tensors(tensors, self.parallel)

        def add_part(folder: Path) -> None:
            if in_parts and tensors:
                from fastllm.train import sharded

                self.parallel.barrier()  # the main process has made the folder
                sharded.save(tensors, folder)

        if model is None or self._metrics is None:  # all but the main process
            add_part(files.unfinished(checkpoint.folder_of(self.run, name)))
            return
        self._metrics.flush()
        checkpoint.save(self.run, name, model, self.data.tokenizer, stored, add_part)

    def _record(self, row: dict) -> None:
        if self._metrics is not None:
            self._metrics.record(row)

    def _plot(self) -> None:
        if self.parallel.is_main and can_plot():
            plot_loss(self.run)


def _is_empty(folder: Path) -> bool:
    """Return whether a folder has nothing but what a run that was killed at its beginning leaves."""
    return folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir())


def _checkpoint_activations(model: GPT) -> None:
    """Let each block keep its inputs only; backward computes it again, with the random numbers it had."""
    from functools import partial

    from torch.utils.checkpoint import checkpoint as compute_again

    for block in model.blocks:
        block.forward = partial(compute_again, block.forward, use_reentrant=False)
