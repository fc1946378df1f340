"""Which of torch.nn's classes each of ours stands for, and making a module of the one into the other where it is.

A drop-in derives from torch's class, overrides what it computes and keeps no state beside torch's: so to change a
module's class is all that it takes, and its parameters, hooks, dtype, device and mode are untouched.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.nn.utils import parametrize

Ours = TypeVar("Ours", bound=type[torch.nn.Module])

# torch's class -> ours, and what about a module of torch's ours cannot do ("" if it can all).
_COUNTERPARTS: dict[type[torch.nn.Module], tuple[type[torch.nn.Module], Callable[[torch.nn.Module], str]]] = {}


def drop_in_for(
    *theirs: type[torch.nn.Module], unless: Callable[[torch.nn.Module], str] = lambda module: ""
) -> Callable[[Ours], Ours]:
    """Make the decorated class the drop-in for these classes of torch.nn, and those derived from none of them.

    Args:
        theirs: exact types.
        unless: given a module of theirs, says in half a sentence what ours does not do of it; "" if it does all.
    """

    def register(ours: Ours) -> Ours:
        _COUNTERPARTS.update(dict.fromkeys(theirs, (ours, unless)))
        return ours

    return register


def drop_in(module: torch.nn.Module) -> tuple[type[torch.nn.Module] | None, str]:
    """Return the class that would do what a module of torch.nn does, or None and why not.

    The reason is "" where none of ours stands for the module's exact type.
    """
    ours, unless = _COUNTERPARTS.get(class_of(module), (None, None))
    if ours is None or unless is None:
        return None, ""
    reason = unless(module)
    return (None, reason) if reason else (ours, "")


def adopt(module: torch.nn.Module) -> None:
    """Make a module and those in it ours, each where it is, where that changes nothing of what they compute."""
    for part in module.modules():
        ours, _ = drop_in(part)
        if ours is not None:
            become(part, ours)


def class_of(module: torch.nn.Module) -> type[torch.nn.Module]:
    """Return a module's class; of one that is parametrized the class that it had before, which torch derived one of."""
    kind = type(module)
    return kind.__bases__[0] if parametrize.is_parametrized(module) else kind


def become(module: torch.nn.Module, kind: type[torch.nn.Module]) -> None:
    """Change a module's class, to one that keeps the same state; parametrizations stay."""
    if parametrize.is_parametrized(module):
        # torch's class of this very module, whose properties compute the parameters, but with another base.
        own = {name: value for name, value in vars(type(module)).items() if name not in ("__dict__", "__weakref__")}
        kind = type(f"Parametrized{kind.__name__}", (kind,), own)
    module.__class__ = kind


def base_with_drop_in(kind: type[torch.nn.Module]) -> type[torch.nn.Module] | None:
    """Return the class of torch.nn that a class is derived from, if one of ours stands for it; else None."""
    return next((base for base in kind.__mro__[1:] if base in _COUNTERPARTS), None)
