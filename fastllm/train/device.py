"""The device and the precision of a run or a sample: choosing them, refusing what cannot work, a device's peak."""

import time
from collections.abc import Collection
from contextlib import AbstractContextManager

import torch

from fastllm import ops
from fastllm.errors import UserError, UserValueError
from fastllm.memory import total_memory
from fastllm.models import Model, model_class
from fastllm.models.config import Cost
from fastllm.train import estimate
from fastllm.train.config import CHOICES, TrainConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SIDE, _SECONDS = 512, 0.05  # of the matrix product that is timed, and of each of two timings


def choose(config: TrainConfig, local_rank: int = 0) -> torch.device:
    """Return the device of a run.

    Raises:
        UserError: CUDA was asked for and cannot serve, or the precision does not fit the device.
    """
    if not _takes_cuda("train", config.device, model_class(config.model).kernels):
        if config.precision == "float16":
            raise UserValueError("train: 'precision' float16 needs a CUDA device for its loss scaling; take bfloat16")
        return torch.device("cpu")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    if config.precision == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"train: {torch.cuda.get_device_name(device)} has no bfloat16; take --precision float16")
    return device


def for_generation(command: str, device: str, model: Model | type[Model]) -> torch.device:
    """Return the device that a command generates on; auto is cuda where it can be used.

    Raises:
        UserError: CUDA was asked for and cannot serve, or device is something else.
    """
    if device not in CHOICES["device"]:
        raise UserValueError(f"{command}: 'device' must be {' or '.join(CHOICES['device'])}, got '{device}'")
    return torch.device("cuda" if _takes_cuda(command, device, model.kernels) else "cpu")


def _takes_cuda(command: str, device: str, kernels: Collection[str]) -> bool:
    obstacle = _obstacle_to_cuda(kernels) if device != "cpu" else ""
    if device == "cuda" and obstacle:
        raise UserValueError(f"{command}: 'device' cannot be cuda: {obstacle}; take --device cpu")
    return device != "cpu" and not obstacle


def _obstacle_to_cuda(kernels: Collection[str]) -> str:
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    missing = [row["op"] for row in ops.report() if row["device"] == "cuda" and row["kernel"] == "none"]
    needed = [op for op in kernels if op in missing]
    return f"fastllm has no CUDA kernel yet for {', '.join(needed)}" if needed else ""


def wants_prefetch(device: torch.device) -> bool:
    """Return whether a thread should make batches ahead of a step on this device.

    A GPU computes while the CPU is free for it. On a CPU the thread would take the time from the kernels' own, and
    making a batch is 0.03 to 0.3 ms of a step.
    """
    return device.type == "cuda"


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Return a context in which matrix products are in that precision.

    Its cache of converted weights is off: each weight is used once a micro-batch, and the cache would keep every
    block's copy alive to the end of forward.
    """
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "float32", cache_enabled=False)


def require_memory(config: TrainConfig, cost: Cost, device: torch.device, processes: int) -> None:
    """Raise UserError if a run on the CPU cannot fit: the system would kill it without saying why.

    A GPU's allocator says itself that it has no more.

    Args:
        config: the run's settings.
        cost: of the model.
        device: of this process.
        processes: that share the run; what others on this machine take is not counted.
    """
    room = total_memory()
    needed = estimate.of_run(config, cost, processes)
    if device.type == "cpu" and room is not None and needed.total > room:
        raise UserError(
            f"train: this run needs about {estimate.size(needed.total)}, and there are {estimate.size(room)} of memory "
            f"here: {estimate.advice(config, cost, processes, room)}"
        )


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return the FLOP/s that the device could do in matrix products; None where that is unknown.

    A CPU is timed, for a tenth of a second, with torch's product and with fastllm's, and the faster counts; a GPU's
    is looked up in its data sheet.
    """
    if device.type == "cpu":
        return _measured(DTYPES[precision])
    gpu = estimate.find_gpu(torch.cuda.get_device_name(device))
    if gpu is None:
        return None
    return gpu.float32 if precision == "float32" else gpu.half


@torch.no_grad()
def _measured(dtype: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(0)  # the run's own random numbers stay where they are
    a, b = (torch.randn(_SIDE, _SIDE, generator=generator).to(dtype) for _ in range(2))
    best = float("inf")
    for product in (torch.mm, ops.linear):
        product(a, b)
        end = time.perf_counter() + _SECONDS
        while (start := time.perf_counter()) < end:
            product(a, b)
            best = min(best, time.perf_counter() - start)
    return 2 * _SIDE**3 / best
