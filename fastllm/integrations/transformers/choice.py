"""Which attention a model of transformers asks for: its config says, and patch has it say "fastllm".

Masks are made where attention is not, so the layers of a model change together. Two models may share a config: the one
that changes gets a copy.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch

from fastllm.integrations.transformers import register
from fastllm.integrations.transformers.library import needed
from fastllm.integrations.transformers.masks import has_interface

Part = torch.nn.Module


def models_in(model: Part) -> Iterator[tuple[str, Any]]:
    """Yield the transformers models in a model, with their names in it; of those inside each other the outermost."""
    kind, inside = needed("transformers", "PreTrainedModel"), set()
    for name, part in model.named_modules():
        if isinstance(part, kind) and id(part) not in inside:
            inside |= {id(inner) for inner in part.modules()}
            yield name, part


def attentions(whole: Part) -> list[tuple[str, Part]]:
    """Return the layers of a transformers model whose attention its config chooses, with their names."""
    return [
        (name, part)
        for name, part in whole.named_modules()
        if "Attention" in type(part).__name__ and hasattr(vars(part).get("config"), "_attn_implementation")
    ]


def why_not(whole: Any) -> str:
    """Return why the attention of a transformers model cannot be fastllm's; "" if it can."""
    config_class: Any = type(whole.config)
    if not has_interface(config_class):
        return "the model does not ask transformers' attention interface"
    if getattr(whole.config, "output_attentions", False):
        return "its config asks for attention's weights, which are not formed"
    return ""


def configs_for_ours(whole: Part) -> list[tuple[Any, Any, Any]]:
    """Return the parts of a transformers model that hold a config, that config, and the one that asks for fastllm's."""
    register()
    copies: dict[int, Any] = {}  # parts that share one go on to
    changes = []
    for part in whole.modules():
        config = vars(part).get("config")
        if config is not None and hasattr(config, "_attn_implementation"):
            own = copy.deepcopy(config, copies)
            own._attn_implementation = "fastllm"
            changes.append((part, config, own))
    return changes


def restore(before: dict[Part, Any]) -> None:
    """Give parts the configs that they had; one that was changed since stays, with the attention that was asked for."""
    decided: dict[int, Any] = {}
    for part, config in before.items():
        own: Any = part.config
        if id(own) not in decided:
            decided[id(own)] = _after(config, own)
        part.config = decided[id(own)]


def _after(before: Any, own: Any) -> Any:
    if own._attn_implementation != "fastllm":
        return own
    if own.to_dict() == before.to_dict():
        return before
    own._attn_implementation = before._attn_implementation
    return own
