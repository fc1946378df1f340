"""One optimizer step: micro-batches forward and backward, clipping, AdamW. Knows nothing of data, files or time."""

import math

import torch
from torch import Tensor

from fastllm.data.source import TrainingBatch
from fastllm.errors import UserError
from fastllm.ops import build_info
from fastllm.optim import AdamW
from fastllm.train import parallel as processes
from fastllm.train.config import TrainConfig
from fastllm.train.device import autocast
from fastllm.train.parallel import Parallel


class Stepper:
    """Takes steps on the global batch, of which it is given this process's rows.

    Args:
        config: batch, optimizer and precision.
        model: whose parameters are trained.
        loss: the model's loss as Parallel.wrap returned it.
        parallel: the processes that share the batch.
        device: where the model is.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: torch.nn.Module,
        loss: torch.nn.Module,
        parallel: Parallel,
        device: torch.device,
    ) -> None:
        self.config, self.parallel, self.device = config, parallel, device
        self.model, self.loss = model, loss
        self.optimizer = self._make_optimizer()
        self.scaler = torch.amp.GradScaler("cuda", enabled=config.precision == "float16")
        self.grad_norm: float | Tensor = 0.0

    def _make_optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        vectors = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}]
        if vectors:
            groups.append({"params": vectors, "weight_decay": 0.0})
        betas = (config.beta1, config.beta2)
        kernels = self.device.type == "cpu" or build_info()["cuda"] == "yes"
        if not kernels or config.precision == "float16":  # a GradScaler unscales and clips before the step
            return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)
        return AdamW(groups, lr=config.learning_rate, betas=betas, max_grad_norm=config.grad_clip or math.inf)

    def step(self, batch: TrainingBatch, learning_rate: float) -> Tensor:
        """Update the weights; return this process's share of the mean loss: over all processes they sum to it.

        Each micro-batch's mean loss weighs as much as it has targets that count, of those in the global batch. So the
        gradient is that of one pass over all rows, however they are cut.

        Raises:
            UserError: no target of the global batch counts.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        micro_batches = batch.split(self.config.micro_batch_size or batch.size)
        counts = [micro_batch.num_targets() for micro_batch in micro_batches]
        total = self.parallel.sum([sum(counts)])[0]
        if not total:
            raise UserError("train: a batch has no target to learn from")
        shares = [
            self._accumulate(micro_batch, count / total, last=index == len(counts) - 1)
            for index, (micro_batch, count) in enumerate(zip(micro_batches, counts, strict=True))
        ]
        self._update()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack(shares).sum() if len(shares) > 1 else shares[0]

    def _accumulate(self, micro_batch: TrainingBatch, share: float, last: bool) -> Tensor:
        arguments = micro_batch.arguments(self.device)
        with processes.accumulate(self.loss, last):
            with autocast(self.device, self.config.precision):
                loss = self.loss(*arguments) * share
            # DDP and FSDP divide the summed gradients by the number of processes.
            self.scaler.scale(loss * self.parallel.world_size).backward()
        return loss.detach()

    def _update(self) -> None:
        if isinstance(self.optimizer, AdamW):
            self.optimizer.step()
            self.grad_norm = 0.0 if self.optimizer.grad_norm is None else self.optimizer.grad_norm
            return
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip or math.inf)
        self.grad_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self.scaler.step(self.optimizer)
        self.scaler.update()
