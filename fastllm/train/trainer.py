"""The training loop. Knows nothing of the command line; says what it does through a Reporter."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch

from fastllm.data import Batches, TokenData
from fastllm.errors import UserError
from fastllm.models import GPT, GPTConfig
from fastllm.optim import AdamW
from fastllm.train import checkpoint
from fastllm.train.config import TrainConfig
from fastllm.train.plot import plot_loss, read_metrics
from fastllm.train.report import Reporter

_SECONDS_BETWEEN_PLOTS = 20.0


class TrainingInterrupted(Exception):  # noqa: N818
    """Training was asked to stop; everything is saved."""


class Trainer:
    """One run: model, data, optimizer and where they stand.

    Args:
        config: the run's settings; config.out is its folder.
        resume: continue config.out from this checkpoint ("last" or "best"); None starts a new run.

    Raises:
        UserError: settings, data or folder cannot work; nothing was written.
    """

    def __init__(self, config: TrainConfig, resume: str | None = None) -> None:
        config.check()
        if config.data is None or config.out is None:
            raise UserError("train: 'data' and 'out' must be given")
        self.config, self.run = config, Path(config.out)
        self.data = TokenData(config.data)
        self.data.verify()
        train, val = (self.data.split(name, config.context_length) for name in ("train", "val"))
        if resume is None:
            self._refuse_existing_run()
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        vocabulary = self.data.tokenizer.vocab_size
        self.model = GPT(
            GPTConfig(vocabulary, config.context_length, config.n_layer, config.n_head, config.n_embd,
                      config.dropout, config.bias)
        )  # fmt: skip
        self.optimizer = self._make_optimizer()
        self.batches = Batches(train, config.batch_size, config.context_length, config.seed)
        self._splits = {"train": train, "val": val}
        self.step, self.best_val = 0, math.inf
        self.stop_requested = False
        if resume is None:
            self._create_run()
        else:
            self._restore(resume)

    # --- setting up --------------------------------------------------------------------------------------------------

    def _refuse_existing_run(self) -> None:
        if self.run.exists() and (not self.run.is_dir() or any(self.run.iterdir())):
            raise UserError(
                f"train: {self.run} exists and is not empty; continue it with --resume {self.run}, or name a new --out"
            )

    def _create_run(self) -> None:
        self.config.save(self.run / "config.yaml")

    def _make_optimizer(self) -> AdamW:
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        vectors = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": self.config.weight_decay}]
        if vectors:
            groups.append({"params": vectors, "weight_decay": 0.0})
        return AdamW(
            groups, lr=self.config.learning_rate, betas=(self.config.beta1, self.config.beta2),
            max_grad_norm=self.config.grad_clip or None,
        )  # fmt: skip

    def _restore(self, name: str) -> None:
        model, tokenizer = checkpoint.load_model(self.run, name)
        if tokenizer.to_json() != self.data.tokenizer.to_json():
            raise UserError(
                f"train: the vocabulary of {self.config.data} ({self.data.tokenizer.vocab_size} tokens) is not the one "
                f"that the checkpoint in {self.run} was trained with ({tokenizer.vocab_size} tokens)"
            )
        if model.config != self.model.config:
            raise UserError(f"train: the checkpoint in {self.run} is of another model than its config.yaml describes")
        state = checkpoint.load_state(self.run, name)
        self.model.load_state_dict(model.state_dict())
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best_val = state["step"], state["best_val"]
        self.batches.position = state["batches"]
        torch.set_rng_state(state["rng"])
        self._forget_later_metrics()

    def _forget_later_metrics(self) -> None:
        kept = [row for row in read_metrics(self.run) if row["step"] <= self.step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        (self.run / "metrics.jsonl").write_text(text, encoding="utf-8")

    # --- running -----------------------------------------------------------------------------------------------------

    def request_stop(self) -> None:
        """Ask the loop to save and stop at the end of the running step; safe to call from a signal handler."""
        self.stop_requested = True

    def train(self, reporter: Reporter) -> dict[str, float]:
        """Run to max_steps; return {"val_loss", "seconds", ..} of the whole validation split.

        Raises:
            TrainingInterrupted: request_stop was called; the checkpoint "last" is saved.
            UserError: the loss is not finite, or a file could not be written; the last checkpoint is intact.
        """
        config = self.config
        started = plotted = logged = time.perf_counter()
        logged_step = self.step
        if self.step == 0:
            self._evaluate(reporter)
        while self.step < config.max_steps:
            loss = self._train_step()
            self.step += 1
            reporter.step(self.step)
            if self.step % config.log_interval == 0 or self.step == config.max_steps or self.stop_requested:
                now = time.perf_counter()
                tokens = (self.step - logged_step) * config.batch_size * config.context_length
                self._log(loss.item(), tokens / (now - logged), reporter)
                logged, logged_step = now, self.step
            if self.stop_requested:
                self._save(checkpoint.LAST)
                plot_loss(self.run)
                raise TrainingInterrupted
            if self.step % config.eval_interval == 0 or self.step == config.max_steps:
                self._evaluate(reporter)
                if time.perf_counter() - plotted > _SECONDS_BETWEEN_PLOTS:
                    plot_loss(self.run)
                    plotted = time.perf_counter()
                logged = time.perf_counter()  # tokens/s are of training alone
        summary = {"seconds": time.perf_counter() - started, **self._evaluate_all()}
        self._record({"step": self.step, **{f"final_{k}": v for k, v in summary.items()}})
        plot_loss(self.run)
        return summary

    def _train_step(self) -> torch.Tensor:
        rate = self.config.learning_rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.model.loss(*self.batches.next())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _log(self, loss: float, tokens_per_second: float, reporter: Reporter) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"train: the loss became {loss} by step {self.step}; the last checkpoint in {self.run} is intact: "
                "try a smaller learning_rate"
            )
        row = {
            "step": self.step,
            "loss": loss,
            "learning_rate": self.config.learning_rate_at(self.step - 1),
            "tokens_per_second": round(tokens_per_second, 1),
        }
        self._record(row)
        reporter.log(row)

    def _evaluate(self, reporter: Reporter) -> None:
        losses = {f"{name}_loss": self._mean_loss(name) for name in self._splits}
        row = {"step": self.step, **losses}
        self._record(row)
        improved = losses["val_loss"] < self.best_val
        self.best_val = min(self.best_val, losses["val_loss"])
        self._save(checkpoint.LAST)
        if improved:
            self._save(checkpoint.BEST)
        reporter.evaluation(row, improved)

    def _mean_loss(self, split: str) -> float:
        """Mean loss over eval_batches batches, the same ones every time."""
        config = self.config
        batches = Batches(self._splits[split], config.batch_size, config.context_length, seed=0)
        return self._without_training(batches, config.eval_batches)

    def _without_training(self, batches: Batches, count: int) -> float:
        self.model.eval()
        with torch.no_grad():
            total = sum(self.model.loss(*batches.next()).item() for _ in range(count))
        self.model.train()
        return total / count

    def _evaluate_all(self) -> dict[str, float]:
        """Loss over every token of the validation split that has a whole context's windows, once."""
        tokens, t = self._splits["val"], self.config.context_length
        windows = torch.from_numpy(tokens[: (len(tokens) - 1) // t * t + 1].astype("int64"))
        inputs, targets = windows[:-1].view(-1, t), windows[1:].view(-1, t)
        total = 0.0
        self.model.eval()
        with torch.no_grad():
            for x, y in zip(inputs.split(self.config.batch_size), targets.split(self.config.batch_size), strict=True):
                total += self.model.loss(x, y).item() * x.shape[0]
        self.model.train()
        return {"val_loss": total / len(inputs)}

    # --- writing -----------------------------------------------------------------------------------------------------

    def _save(self, name: str) -> None:
        state: dict[str, Any] = {
            "step": self.step,
            "best_val": self.best_val,
            "batches": self.batches.position,
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
        }
        checkpoint.save(self.run, name, self.model, self.data.tokenizer, state)

    def _record(self, row: dict) -> None:
        path = self.run / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; the last checkpoint is intact") from error
