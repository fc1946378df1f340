"""Arguments of a wrong type, named: torch's own messages name the schema's or none, and are of several exceptions.

Types are looked at only when a call has failed, so one that works pays for a `try` alone: 0.1 us. Only whether a tensor
subclass is among them is asked before, by torch's own check in C.
"""

import functools
import inspect
import types
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

import torch
from torch import SymBool, SymFloat, SymInt, Tensor
from torch.overrides import has_torch_function

from fastllm.ops._subclasses import distributed, find_nested, find_unserved, refuse_unseen

P = ParamSpec("P")
R = TypeVar("R")


def _number(*kinds: type) -> Callable[[Any], bool]:
    """Return whether torch takes a value for a number of these kinds; a tensor with one element is one."""
    return lambda value: isinstance(value, kinds) or (isinstance(value, Tensor) and value.numel() == 1)


def _is_shape(value: Any) -> bool:
    return isinstance(value, Sequence) and all(isinstance(size, Integral | SymInt) for size in value)


# What each annotation is called in a message, and whether a value will do for it.
_KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    Tensor: ("a Tensor", lambda value: isinstance(value, Tensor)),
    bool: ("a bool", _number(Real, SymBool, types.NoneType)),
    int: ("an int", _number(Integral, SymInt)),
    float: ("a float", _number(Real, SymInt, SymFloat)),
    str: ("a str", lambda value: isinstance(value, str)),
    torch.dtype: ("a torch.dtype", lambda value: isinstance(value, torch.dtype)),
    Sequence[int]: ("a sequence of ints", _is_shape),
    types.NoneType: ("None", lambda value: value is None),
}


def naming_wrong_types(function: Callable[P, R]) -> Callable[P, R]:
    """Return an op that, given an argument of a wrong type, names it in a TypeError, with what fits and what it was."""

    @functools.wraps(function)
    def op(*args: P.args, **kwargs: P.kwargs) -> R:
        if has_torch_function((*args, *kwargs.values())):
            sentence = find_nested(function, args, kwargs)
            if sentence:
                raise TypeError(sentence)
            refuse_unseen(function, args, kwargs)
        if distributed.seen and distributed.is_among(args, kwargs):
            return distributed.run(op, args, kwargs)
        try:
            return function(*args, **kwargs)
        except (AttributeError, RuntimeError, TypeError) as error:
            if distributed.is_among(args, kwargs):
                return distributed.run(op, args, kwargs)
            sentence = (
                _find_wrong(function, args, kwargs)
                or find_nested(function, args, kwargs)
                or find_unserved(function, args, kwargs, error)
            )
            if sentence:
                raise TypeError(sentence) from error
            raise

    return op


def _find_wrong(function: Callable, args: tuple, kwargs: dict) -> str:
    """Return a sentence on the first argument that is not of its annotation's type; "" if all are."""
    signature = inspect.signature(function)
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError:  # too few or too many: Python has said which
        return ""
    for name, value in given.items():
        annotation = signature.parameters[name].annotation
        allowed = annotation.__args__ if isinstance(annotation, types.UnionType) else (annotation,)
        if any(kind not in _KINDS for kind in allowed):  # a pair of numbers: the op looks at it itself
            continue
        kinds = [_KINDS[kind] for kind in allowed]
        if not any(fits(value) for _, fits in kinds):
            expected = " or ".join(kind for kind, _ in kinds)
            return f"{function.__name__}: '{name}' must be {expected}, got {describe(value)}"
    return ""


def describe(value: Any) -> str:
    """Return what a message calls a value that was given: None, a tensor by its shape, another with its type."""
    if isinstance(value, Tensor):
        return f"a Tensor of shape {list(value.shape)}"
    return "None" if value is None else f"{type(value).__name__} {value!r:.60}"
