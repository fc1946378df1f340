"""Registering what an op returns under fake and meta tensors: shapes and dtypes without a kernel."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor


def register_fake(name: str) -> Callable[[Callable], Callable]:
    """Make the decorated function the fake implementation of torch.ops.fastllm.<name>.

    One meta tensor among real ones is enough for torch to choose the fake, whose outputs would then be uninitialised
    memory of a real device: a call whose tensors are on several devices raises here, as it does in a kernel's checks.
    """
    schema = getattr(torch.ops.fastllm, name).default._schema
    names = [argument.name for argument in schema.arguments]

    def register(function: Callable) -> Callable:
        @functools.wraps(function)
        def fake(*args, **kwargs):
            _check_one_device(name, {**dict(zip(names, args, strict=False)), **kwargs})
            return function(*args, **kwargs)

        torch.library.register_fake(f"fastllm::{name}", fake)
        return function

    return register


def _check_one_device(op: str, arguments: dict) -> None:
    tensors = [(name, value) for name, value in arguments.items() if isinstance(value, Tensor)]
    (first, reference), *others = tensors
    for name, tensor in others:
        if tensor.device != reference.device:
            raise TypeError(
                f"{op}: '{name}' must be on the device of '{first}' ({reference.device}), got {tensor.device}"
            )
