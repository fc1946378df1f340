"""torch.jit.script, which would compile our Python and cannot: it is refused in a sentence that says what to do.

torch.jit is deprecated. What follows it, torch.compile and torch.export, takes every op; so does torch.jit.trace.
"""

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch

Function = TypeVar("Function", bound=Callable)

_INSTEAD = "torch.jit.script does not take it: use torch.export or torch.compile (torch.jit is deprecated)"


def unscriptable(function: Function) -> Function:
    """Return the op, marked with what torch.jit.script raises for it, called by itself or from a scripted function."""
    setattr(function, "__script_unsupported", f"fastllm.ops.{function.__name__}: {_INSTEAD}")
    return function


def refuse_to_script(layers: dict[str, Any]) -> None:
    """Let torch.jit.script raise for those of a module's names that are layers, wherever in a model they stand."""
    for layer in layers.values():
        if isinstance(layer, type) and issubclass(layer, torch.nn.Module):
            layer.__prepare_scriptable__ = _refuse  # type: ignore[attr-defined]


def _refuse(layer: torch.nn.Module) -> NoReturn:
    raise RuntimeError(f"TorchScript error: {torch.typename(layer)}: {_INSTEAD}")
