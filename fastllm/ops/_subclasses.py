"""Tensor subclasses: what kernels would read is the memory behind them, which need not hold their values.

Those of torch's own tracing, and any that implements __torch_dispatch__, see an op before its kernel does and decide
themselves. Others are refused by name: a CausalBias' memory, say, is uninitialised.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn import Parameter

_PLAIN = (Tensor, Parameter, FakeTensor, FunctionalTensor)


def is_plain(tensor: Any) -> bool:
    """Return whether a tensor's values are what its memory holds, or will hold once a trace of it runs."""
    return type(tensor) in _PLAIN


def is_causal_bias(value: Any) -> bool:
    """Return whether it is of torch.nn.attention.bias, which nobody imports in vain: it takes seconds."""
    return type(value).__name__ == "CausalBias" and type(value).__module__ == "torch.nn.attention.bias"


def materialize(causal_bias: Any, device: torch.device) -> Tensor:
    """Return the boolean mask that a CausalBias stands for, (Tq, Tk)."""
    return causal_bias._materialize(device)


class _Distributed:
    """DTensors, which no op sees as such; they are looked for in a call that failed, and in all once there was one."""

    seen = False

    def is_among(self, args: tuple, kwargs: dict) -> bool:
        """Return whether there is one; nobody imports their module in vain, which takes its time."""
        return any(
            type(value).__name__ == "DTensor" and isinstance(value, Tensor) for value in (*args, *kwargs.values())
        )

    def run(self, op: Callable, args: tuple, kwargs: dict) -> Any:
        """Return the op's result for them."""
        from fastllm.ops._sharding import run_sharded

        self.seen = True
        return run_sharded(op, args, kwargs)


distributed = _Distributed()


def refuse_unseen(function: Callable, args: tuple, kwargs: dict) -> None:
    """Raise a TypeError that names the first argument whose class would not see the op, if there is one."""
    for name, value in _tensors(function, args, kwargs):
        sees_ops = type(value).__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl
        if not is_plain(value) and not sees_ops and not (name == "attn_mask" and is_causal_bias(value)):
            raise TypeError(f"{function.__name__}: '{name}' must be a plain torch.Tensor, got a {type(value).__name__}")


def find_nested(function: Callable, args: tuple, kwargs: dict) -> str:
    """Return a sentence on the first argument that is a nested tensor, of either layout; "" if none is."""
    for name, value in _tensors(function, args, kwargs):
        if value.is_nested:
            return (
                f"{function.__name__}: '{name}' must be a plain torch.Tensor, got a nested one: give values() of a "
                "jagged layout, to attention with segment_ids, or to_padded_tensor(0), to attention with key_lengths"
            )
    return ""


def find_unserved(function: Callable, args: tuple, kwargs: dict, error: Exception) -> str:
    """Return a sentence on the first argument whose class has not implemented the op, if `error` says so; else ""."""
    if not isinstance(error, NotImplementedError) and "__torch_dispatch__" not in str(error):
        return ""
    for name, value in _tensors(function, args, kwargs):
        if not is_plain(value):
            kind = type(value).__name__
            return (
                f"{function.__name__}: '{name}' must be a plain torch.Tensor, got a {kind}, which does not implement "
                "this op"
            )
    return ""


def _tensors(function: Callable, args: tuple, kwargs: dict) -> list[tuple[str, Tensor]]:
    names = inspect.signature(function).parameters
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return [(name, value) for name, value in given.items() if isinstance(value, Tensor)]
