"""What a checkpoint holds beside the model, taken from a running trainer's parts and given back to them, bit for bit.

One process and DDP keep the optimizer in state.pt; FSDP's processes each write their part (sharded.py). Either is read
by any number of processes, sharded or not.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastllm.train.average import MovingAverage
from fastllm.train.checkpoint import PARTS
from fastllm.train.parallel import Parallel
from fastllm.train.stepper import Stepper

_MOMENTS = ("exp_avg", "exp_avg_sq")


def tensors_of(stepper: Stepper, average: MovingAverage | None) -> dict[str, Tensor]:
    """Return the optimizer's and the average's tensors by name, made if the optimizer has not stepped yet."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in stepper.model.named_parameters():
        state = stepper.optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device if stepper.device.type == "cuda" else "cpu")
            for key in _MOMENTS:
                state[key] = torch.zeros_like(parameter, memory_format=torch.contiguous_format).detach()
        tensors |= {f"{key}.{name}": state[key] for key in (*_MOMENTS, "step")}
    if average is not None:
        tensors |= {f"ema.{name}": value for name, value in average.values.items()}
    return tensors


def random_state(device: torch.device, parallel: Parallel) -> list[dict[str, Tensor]]:
    """Return every process's generators, by rank; all must call it."""
    own = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(device)
    return parallel.gather(own)


def set_random_state(
    states: list[dict[str, Tensor]], seed: int, step: int, device: torch.device, parallel: Parallel
) -> None:
    """Give the generators back; those of another number of processes, or kind of device, start anew at this step."""
    torch.manual_seed(process_seed(seed, step, parallel.rank))
    if len(states) != parallel.world_size:
        return
    own = states[parallel.rank]
    torch.set_rng_state(own["cpu"])
    if device.type == "cuda" and "cuda" in own:
        torch.cuda.set_rng_state(own["cuda"], device)


def process_seed(seed: int, step: int, rank: int) -> int:
    """Return a seed that no other process has, nor this one at another step, whatever the run's seed is."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])


@torch.no_grad()
def restore_tensors(folder: Path, state: dict[str, Any], stepper: Stepper, average: MovingAverage | None) -> None:
    """Fill the optimizer's and the average's tensors with a checkpoint's; all processes must call it."""
    tensors = tensors_of(stepper, average)
    if (folder / PARTS).exists():
        from fastllm.train import sharded

        sharded.load(tensors, folder)
        return
    for name, tensor in tensors.items():
        _fill(tensor, state["tensors"][name])


@torch.no_grad()
def restore_weights(model: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    """Fill a model's parameters, sharded or not, with whole tensors."""
    for name, parameter in model.named_parameters():
        _fill(parameter, weights[name])


def _fill(tensor: Any, whole: Tensor) -> None:
    """Copy a whole tensor, which every process has, into one that may be sharded."""
    whole = whole.to(tensor.device)
    if hasattr(tensor, "to_local"):
        from torch.distributed.tensor import distribute_tensor

        whole = distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(whole)
