"""patch(model): the modules of a model that fastllm has drop-ins for become those, where they are.

A drop-in derives from the class that it stands for and keeps no other state, so a module changes its class and nothing
else: parameters stay the same objects, and hooks, dtype, device, mode, parametrizations and ties what they were.
"""

import inspect
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fastllm._extension import extension
from fastllm.nn import Linear, MultiheadAttention
from fastllm.nn._drop_in import base_with_drop_in, become, class_of, drop_in
from fastllm.ops._subclasses import is_plain

# What a module was before stands in the module itself, so that a copy, or what a pickle gives, can be unpatched too.
_CLASS, _CONFIG = "_fastllm_class_before", "_fastllm_config_before"
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_CONTAINERS = (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict)
_ROUNDS = 7

Selector = type[torch.nn.Module] | str


@dataclass(frozen=True)
class Patched:
    """A module, as a report names it.

    Args:
        name: where it is in the model; "" is the model itself.
        before: its class.
        after: what it became; "" if it was left.
        reason: why it was left; "" if it was swapped.
    """

    name: str
    before: str
    after: str = ""
    reason: str = ""


@dataclass
class PatchReport:
    """What patch did. Printed, it is a table.

    Args:
        swapped: the modules that became fastllm's.
        left: those that did not, and why; what is only made of other modules is not listed.
        difference: the largest difference of an output's element from what it was before; None if not verified.
        speedup: time before / time after, medians of calls in turns; None if not verified.
    """

    swapped: list[Patched] = field(default_factory=list)
    left: list[Patched] = field(default_factory=list)
    difference: float | None = None
    speedup: float | None = None

    def __str__(self) -> str:
        lines = [f"{len(self.swapped)} swapped, {len(self.left)} left"]
        groups: dict[str, list[str]] = {}
        for one in (*self.swapped, *self.left):
            groups.setdefault(f"{one.before} -> {one.after or f'left: {one.reason}'}", []).append(one.name or "(model)")
        for what, names in groups.items():
            lines.append(f"{len(names):>5} x {what}  [{', '.join(names[:2])}{', ...' if len(names) > 2 else ''}]")
        if self.difference is not None:
            lines.append(f"largest difference {self.difference:.1e}, {self.speedup:.2f} times as fast")
        return "\n".join(lines)


def patch(
    model: torch.nn.Module,
    *,
    only: Selector | Iterable[Selector] | None = None,
    verbose: bool = False,
    verify: Any = None,
) -> PatchReport:
    """Make the modules of a model fastllm's, in place, where those compute the same.

    Modules of torch.nn and of transformers' models are swapped where they are of the very class that fastllm knows. One
    of a class derived from it may do something else: it is left and named. The attention of a transformers model is
    computed by fastllm too, whatever attn_implementation it was made with. Nothing outside this model changes.

    Args:
        model: any module; one that is itself of such a class becomes fastllm's too.
        only: the classes to swap, or patterns of names in the model such as "encoder.*"; default all. The attention of
            a transformers model changes in all its layers if one of them is named.
        verbose: whether to print the report.
        verify: an input of the model's: a tensor, a tuple of arguments or a dict of named ones. The model runs on it as
            it was and as it is now, in evaluation and without gradients, and the report tells the largest difference
            and the speed-up; eight calls of each.

    Returns:
        What was swapped, what was left, and why.

    Raises:
        TypeError: model is not a torch.nn.Module, or `only` names neither classes nor patterns.
        ValueError: the model is patched already, or it has nothing of what `only` names.
        NotImplementedError: a part of it is compiled or scripted, or on a device that fastllm has no kernels for.
        RuntimeError: transformers has renamed or changed a class that fastllm knows.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())
        >>> print(patch(model))
        1 swapped, 1 left
            1 x torch.nn.Linear -> fastllm.nn.Linear  [0]
            1 x torch.nn.Tanh -> left: fastllm has no such layer  [1]
    """
    _check(model)
    report, changes = PatchReport(), _Changes()
    modules = _selected(model, only)
    for name, module in modules.items():
        before = _name_of(class_of(module))
        ours, reason = _counterpart(module)
        if ours is not None:
            changes.classes.append((module, class_of(module), ours))
            report.swapped.append(Patched(name, before, _name_of(ours)))
        elif reason:
            report.left.append(Patched(name, before, reason=reason))
    _attention(model, modules, report, changes)
    if verify is not None:
        report.difference, report.speedup = _verified(model, verify, changes)
    changes.apply()
    if verbose:
        print(report)
    return report


def unpatch(model: torch.nn.Module) -> None:
    """Make a model what it was before patch; changes of a config since then stay.

    Raises:
        TypeError: model is not a torch.nn.Module.
        ValueError: the model is not patched.
        NotImplementedError: a patched module has been wrapped in another class since, which must go first.
    """
    _check_module("unpatch", model)
    patched = [(name, module) for name, module in model.named_modules() if {_CLASS, _CONFIG} & vars(module).keys()]
    if not patched:
        raise ValueError("unpatch: 'model' is not patched, nor is anything in it")
    for name, module in patched:
        if _CLASS in vars(module) and not _is_ours(class_of(module)):
            raise NotImplementedError(
                f"unpatch: '{name}' has become a {type(module).__name__} since it was patched: take that back first"
            )
    for _, module in patched:
        if _CLASS in vars(module):
            become(module, vars(module).pop(_CLASS))
    with_config = {module: vars(module).pop(_CONFIG) for _, module in patched if _CONFIG in vars(module)}
    if with_config:
        from fastllm.integrations.transformers import choice

        choice.restore(with_config)


@dataclass
class _Changes:
    """What patch will do, or undo.

    Args:
        classes: modules, the classes they have and those they get.
        configs: modules of transformers', the configs they have and those they get.
    """

    classes: list[tuple[torch.nn.Module, type, type]] = field(default_factory=list)
    configs: list[tuple[Any, Any, Any]] = field(default_factory=list)

    def apply(self) -> None:
        for module, before, after in self.classes:
            vars(module)[_CLASS] = before
            become(module, after)
        for module, before, after in self.configs:
            vars(module)[_CONFIG] = before
            module.config = after

    def undo(self) -> None:
        for module, before, _ in self.classes:
            vars(module).pop(_CLASS, None)
            become(module, before)
        for module, before, _ in self.configs:
            vars(module).pop(_CONFIG, None)
            module.config = before


# ---------------------------------------------------------------------------------------------------------------------
# Which modules, and what they become
# ---------------------------------------------------------------------------------------------------------------------


def _selected(model: torch.nn.Module, only: Selector | Iterable[Selector] | None) -> dict[str, torch.nn.Module]:
    """Return the modules that `only` names, by their names in the model."""
    if only is None:
        return dict(model.named_modules())
    modules = dict(model.named_modules(remove_duplicate=False))
    selectors = list(only) if isinstance(only, Iterable) and not isinstance(only, str | type) else [only]
    selected: set[str] = set()
    for selector in selectors:
        if isinstance(selector, str):
            found = {name for name in modules if fnmatchcase(name, selector)}
        elif isinstance(selector, type) and issubclass(selector, torch.nn.Module):
            found = {name for name, module in modules.items() if class_of(module) is selector}
        else:
            raise TypeError(f"patch: 'only' must be classes of modules or patterns of their names, got {selector!r}")
        if not found:
            what = f"'{selector}'" if isinstance(selector, str) else f"a {_name_of(selector)}"
            raise ValueError(f"patch: 'only' names {what}, which the model does not have")
        selected |= found
    once = {id(module): name for name, module in reversed(modules.items()) if name in selected}
    return {name: module for name, module in modules.items() if once.get(id(module)) == name}


def _counterpart(module: torch.nn.Module) -> tuple[type[torch.nn.Module] | None, str]:
    """Return the class that a module is to become, or None and why not; "" where there is nothing to tell."""
    kind = class_of(module)
    if _is_ours(kind):
        return None, ""
    ours, reason = drop_in(module)
    if ours is None and not reason and kind.__module__.startswith("transformers."):
        from fastllm.integrations.transformers import modules

        ours, reason = modules.drop_in(module)
    if ours is not None:
        reason = _foreign(module, ours)
        return (None, reason) if reason else (ours, "")
    base = base_with_drop_in(kind)
    if not reason and base is not None:
        reason = f"derived from {_name_of(base)}, it may do something else"
    if not reason and not any(module.children()) and not isinstance(module, _CONTAINERS):
        reason = "fastllm has no such layer"
    return None, reason


def _foreign(module: torch.nn.Module, ours: type[torch.nn.Module]) -> str:
    """Return what about a module is not its class's, so that a drop-in would miss it; "" if nothing is."""
    for name in vars(module):
        if inspect.isfunction(getattr(class_of(module), name, None)):
            return f"it has a {name} of its own"
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.dtype not in _DTYPES:
            return f"its {name} is {parameter.dtype}"
        if not is_plain(parameter) and ours not in (Linear, MultiheadAttention):  # those leave it to torch
            return f"its {name} is a {type(parameter).__name__}"
    return ""


def _attention(
    model: torch.nn.Module, modules: dict[str, torch.nn.Module], report: PatchReport, changes: _Changes
) -> None:
    """Add the attention of the transformers models in a model, of each in all its layers if one of them is selected."""
    kinds = {kind for part in model.modules() for kind in type(part).__mro__}
    if not any(kind.__module__.startswith("transformers.") for kind in kinds):
        return  # whichever version of it may be installed
    from fastllm.integrations.transformers import choice

    selected = {id(module) for module in modules.values()}
    for name, whole in choice.models_in(model):
        attentions = choice.attentions(whole)
        if not any(id(part) in selected for _, part in attentions):
            continue
        reason = choice.why_not(whole)
        for inner, part in attentions:
            where, before = f"{name}.{inner}".lstrip("."), f"{_name_of(class_of(part))}'s attention"
            if reason:
                report.left.append(Patched(where, before, reason=reason))
            else:
                report.swapped.append(Patched(where, before, "fastllm.ops.scaled_dot_product_attention"))
        if not reason:
            changes.configs += choice.configs_for_ours(whole)


# ---------------------------------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------------------------------


def _check_module(function: str, model: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{function}: 'model' must be a torch.nn.Module, got a {type(model).__name__}")


def _check(model: Any) -> None:
    _check_module("patch", model)
    for name, module in model.named_modules():
        where = f"'{name}' in it" if name else "'model'"
        if {_CLASS, _CONFIG} & vars(module).keys():
            raise ValueError(f"patch: {where} is patched already; unpatch the model first")
        if type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None:
            raise NotImplementedError(f"patch: {where} is compiled: patch the model first, then compile it")
        if isinstance(module, torch.jit.ScriptModule):
            raise NotImplementedError(f"patch: {where} is TorchScript, whose modules cannot be exchanged")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        served = tensor.device.type in ("cpu", "meta") or (tensor.device.type == "cuda" and extension.with_cuda)
        if not served:
            why = "this build has no CUDA kernels" if tensor.is_cuda else "there are kernels for cpu and cuda"
            raise NotImplementedError(f"patch: '{name}' in the model is on {tensor.device}: {why}")


def _verified(model: torch.nn.Module, example: Any, changes: _Changes) -> tuple[float, float]:
    """Return the largest difference between the model's outputs before and after, and how many times as fast it is."""
    args, kwargs = ((), example) if isinstance(example, dict) else (example, {})
    args = args if isinstance(args, tuple) else (args,)
    training = {module: module.training for module in model.modules()}
    times: dict[str, list[float]] = {"before": [], "after": []}

    def timed(when: str) -> list[Tensor]:
        start = time.perf_counter()
        output = model(*args, **kwargs)
        leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        if any(leaf.is_cuda for leaf in leaves):
            torch.cuda.synchronize()
        times[when].append(time.perf_counter() - start)
        return leaves

    model.eval()
    try:
        with torch.no_grad():
            for _ in range(_ROUNDS + 1):  # the first is not counted
                before = timed("before")
                changes.apply()
                try:
                    after = timed("after")
                finally:
                    changes.undo()
    finally:
        for module, mode in training.items():
            module.training = mode
    if [leaf.shape for leaf in before] != [leaf.shape for leaf in after]:
        raise ValueError(
            f"patch: 'verify': the model gave {len(before)} tensors and would give {len(after)}, or of other shapes; "
            "it is left as it was"
        )
    differences = [_difference(*pair) for pair in zip(before, after, strict=True) if pair[0].numel()]
    if not differences:
        raise ValueError("patch: 'verify' must be an input for which the model gives floating tensors, it gives none")
    medians = [statistics.median(series[1:]) for series in times.values()]
    return torch.stack(differences).max().item(), medians[0] / medians[1]


def _difference(before: Tensor, after: Tensor) -> Tensor:
    """Return the largest difference: NaN where one has it and the other not, 0 of infinities that are equal."""
    before, after = before.double(), after.double()
    same = (before == after) | (before.isnan() & after.isnan())
    return (before - after).abs().masked_fill(same, 0.0).amax()


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("fastllm.")


def _name_of(kind: type) -> str:
    """Return a class's name as users write it."""
    package = kind.__module__.split(".")[0]
    for public in (torch.nn, sys.modules.get("fastllm.nn")):
        if public is not None and getattr(public, kind.__name__, None) is kind:
            return f"{public.__name__}.{kind.__name__}"
    return f"{package}.{kind.__name__}"
