"""The processes of a run: alone, or those that torchrun started. Everything here works the same with one.

A run with several processes is the same run: each takes its rows of the same global batch, and sums are over all of
them. Numbers that steer the loop travel through gloo on the CPU, so that no GPU waits for them.
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastllm.data.source import Share
from fastllm.errors import UserError
from fastllm.models import Model, with_weights


class LossModule(torch.nn.Module):
    """A model's loss as a forward, which is what DDP and FSDP hook into.

    Args:
        model: the model.
        label_smoothing: as of Model.loss.
    """

    def __init__(self, model: Model, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing

    def forward(self, *batch: Tensor) -> Tensor:
        """Return the model's loss; it is smoothed in training mode only."""
        return self.model.loss(*batch, label_smoothing=self.label_smoothing if self.training else 0.0)


class Parallel:
    """This process among those of the run; use it after start().

    Attributes:
        rank: this process's number.
        under_torchrun: whether torchrun started it, be it alone.
        world_size: how many there are.
        is_main: whether this one writes the run's files.
        is_first_here: whether this one is its machine's first.
    """

    def __init__(self) -> None:
        self.rank, self.local_rank, self.world_size = 0, 0, 1
        self._started = False
        self.under_torchrun = dist.is_available() and dist.is_torchelastic_launched()
        if self.under_torchrun:
            self.local_rank = dist.get_node_local_rank()

    def start(self, device: torch.device) -> None:
        """Meet the other processes, if torchrun started this one."""
        if not self.under_torchrun:
            return
        dist.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl")
        self._started = True
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def stop(self) -> None:
        """Part from the other processes."""
        if self._started:
            dist.destroy_process_group()
        self._started = False

    @property
    def is_main(self) -> bool:
        """Return whether this process writes the run's files."""
        return self.rank == 0

    @property
    def is_first_here(self) -> bool:
        """Return whether this process is the first one of its machine, whose files all of them read."""
        return self.local_rank == 0

    # --- numbers ------------------------------------------------------------------------------------------------------

    def sum(self, values: list[float]) -> list[float]:
        """Return each value summed over the processes, in float64."""
        if self.world_size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true in any process."""
        return flag if self.world_size == 1 else self.sum([float(flag)])[0] > 0

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value, by rank."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all."""
        self.any(False)

    def one_for_all(self, work: Callable[[], object], mine: bool) -> None:
        """Do work where `mine` is true, and wait for it everywhere; all processes must call it.

        Raises:
            UserError: what work raised, in every process.
        """
        own = None
        try:
            if mine:
                work()
        except UserError as error:
            own = error
        for failure in [own, *self.gather(own)]:  # its own first: it knows where it was raised
            if failure is not None:
                raise failure

    # --- batches and models -------------------------------------------------------------------------------------------

    @property
    def share(self) -> Share:
        """This process's part of each global batch."""
        return Share(self.rank, self.world_size)

    def wrap(self, loss: LossModule, device: torch.device, kind: str) -> Any:
        """Return the loss such that its backward leaves every process the gradients of the global batch.

        Args:
            loss: on the CPU, the same in every process.
            device: where to compute.
            kind: "ddp", or "fsdp", which makes the model's parameters DTensors.
        """
        if self.world_size == 1:
            return loss.to(device)
        if kind == "ddp":
            return _data_parallel(loss.to(device))
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (self.world_size,))
        for block in loss.model.blocks:
            fully_shard(block, mesh=mesh)
        # Embeddings, head and last norm. Resharded after forward, or an evaluation would leave gathered weights
        # behind that the next one uses after they have changed (the moving average's turn).
        return fully_shard(loss, mesh=mesh, reshard_after_forward=True)


def _data_parallel(loss: torch.nn.Module) -> torch.nn.Module:
    """Return DDP of a loss without sending buffers at each step: tables of angles are the same everywhere."""
    ddp: Any = torch.nn.parallel.DistributedDataParallel
    name = "forward_sync_buffers"  # from torch 2.13 on
    sending = name if name in inspect.signature(ddp).parameters else "broadcast_buffers"
    return ddp(loss, gradient_as_bucket_view=True, **{sending: False})


def accumulate(loss: Any, last: bool) -> AbstractContextManager:
    """Return a context for one micro-batch: DDP's gradients travel between processes with the last one only.

    FSDP's travel with each: kept back, they would be whole on every process, which is what it is there to avoid.
    """
    return nullcontext() if last or not hasattr(loss, "no_sync") else loss.no_sync()


def is_sharded(model: torch.nn.Module) -> bool:
    """Return whether FSDP has shared the model out."""
    return hasattr(next(model.parameters()), "full_tensor")


def whole_tensors(tensors: dict[str, Tensor], parallel: Parallel) -> dict[str, Tensor]:
    """Return plain CPU tensors in the place of sharded ones, to the main process; every process must call it."""
    whole = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        if parallel.is_main:
            whole[name] = full.detach().cpu()
    return whole


def whole_model(model: Model, parallel: Parallel, tensors: dict[str, Tensor] | None = None) -> Model | None:
    """Return a plain copy of a model on the CPU, with other weights if given; to all but the main process, None.

    Every process must call it.
    """
    weights = whole_tensors(dict(model.state_dict()) if tensors is None else tensors, parallel)
    if not parallel.is_main:
        return None
    return with_weights(model.config, weights)
