"""Layers that may be read instead of called: a fused op takes their weights, and nothing that a user added is lost."""

import torch

from fastllm.ops._subclasses import is_plain

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_bare(layer: torch.nn.Module, *kinds: type[torch.nn.Module]) -> bool:
    """Return whether calling a layer does what its class does to its weight, and nothing else.

    A subclass, a layer of another kind in its place (LoRA, int8), a hook, a forward of its own and a weight that is a
    tensor subclass all count as more: the caller must then call the layer.

    Args:
        layer: if it is of one of the kinds, its only parameters are a weight and what goes with it.
        kinds: the classes whose forward the caller knows.
    """
    weight = getattr(layer, "weight", None)
    return type(layer) in kinds and (weight is None or is_plain(weight)) and is_untouched(layer)


def is_untouched(layer: torch.nn.Module) -> bool:
    """Return whether calling a layer runs its class's forward and nothing else: no hook, no forward of its own."""
    return (
        "forward" not in vars(layer)
        and not any(getattr(layer, name) for name in _HOOKS)
        and not torch.nn.modules.module._has_any_global_hook()
    )
