"""Ops on DTensors (torch.distributed.tensor): each process computes on its own shards, with the ops' own autograd.

A call stays sharded along the dimensions whose elements the op treats apart; a shard of another dimension, or a partial
sum, is gathered first. Kernels see plain tensors alone, so what they keep for backward is each process's own. This
module is imported when the first DTensor comes: torch.distributed.tensor takes its time.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

Arguments = dict[str, Any]


def _all(given: Arguments) -> set[int]:
    return set(range(given["input"].dim()))


def _all_but_last(given: Arguments) -> set[int]:
    return _all(given) - {given["input"].dim() - 1}


def _all_but_normalized(given: Arguments) -> set[int]:
    return set(range(given["input"].dim() - len(given["normalized_shape"])))


# Of each op, the dimensions of its input that may be sharded. `up` is sharded as input, a bias (C,) of bias_gelu and
# bias_relu where C is; other parameters are replicated.
_FREE: dict[str, Callable[[Arguments], set[int]]] = {
    "bias_gelu": _all,
    "bias_relu": _all,
    "gelu": _all,
    "layer_norm": _all_but_normalized,
    "rms_norm": _all_but_normalized,
    "softmax": lambda given: _all(given) - {given["dim"] % given["input"].dim()},
    "swiglu": lambda given: _all_but_last(given) if given["up"] is None else _all(given),
}


def run_sharded(function: Callable, args: tuple, kwargs: dict) -> DTensor:
    """Return an op's result for DTensors, sharded as its input is.

    Raises:
        TypeError: the op has no rule here, or a tensor among the arguments is no DTensor, or is one of another mesh.
        ValueError: dropout, whose mask is a function of an element's place in the whole tensor.
    """
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    given, op = bound.arguments, function.__name__
    tensors: dict[str, Any] = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    _check(op, given, tensors)
    input: DTensor = given["input"]
    free, last = _FREE[op](given), input.dim() - 1
    kept: list[Placement] = [p if type(p) is Shard and p.dim in free else Replicate() for p in input.placements]
    for name, tensor in tensors.items():
        if name in ("input", "up"):
            placements = gradients = kept
        else:
            placements, gradients = _of_parameter(kept, last, is_bias=op.startswith("bias_"))
        given[name] = tensor.redistribute(placements=placements).to_local(grad_placements=gradients)
    shape = input.shape if op != "swiglu" or given["up"] is not None else (*input.shape[:-1], input.shape[-1] // 2)
    whole = torch.empty(shape, device="meta")  # shards may be of unequal sizes
    output = function(*bound.args, **bound.kwargs)
    return DTensor.from_local(
        output, input.device_mesh, kept, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def _of_parameter(kept: Sequence[Placement], last: int, is_bias: bool) -> tuple[list[Placement], list[Placement]]:
    """Return how a parameter of input's last dimensions lies where input is `kept`, and its gradient."""
    placements: list[Placement] = []
    gradients: list[Placement] = []
    for placement in kept:
        along = is_bias and placement == Shard(last)
        placements.append(Shard(0) if along else Replicate())
        # Each process sums over its own rows.
        gradients.append(Shard(0) if along else Partial() if placement.is_shard() else Replicate())
    return placements, gradients


def _check(op: str, given: Arguments, tensors: dict[str, Any]) -> None:
    first = next(name for name, tensor in tensors.items() if isinstance(tensor, DTensor))
    if op not in _FREE:
        raise TypeError(
            f"{op}: '{first}' must be a plain torch.Tensor, got a DTensor: call it on to_local() of shards that it "
            f"treats apart, or take torch.nn.functional's (of DTensors, ops take {', '.join(sorted(_FREE))})"
        )
    mesh = tensors[first].device_mesh
    for name, tensor in tensors.items():
        if not isinstance(tensor, DTensor):
            raise TypeError(f"{op}: '{name}' must be a DTensor as '{first}' is, got a {type(tensor).__name__}")
        if tensor.device_mesh != mesh:
            raise TypeError(f"{op}: '{name}' must be on the mesh of '{first}' ({mesh}), got {tensor.device_mesh}")
    if given.get("p") and given["training"]:
        raise ValueError(f"{op}: 'p' must be 0 for DTensors, got {given['p']}: drop out with torch.nn.functional")
