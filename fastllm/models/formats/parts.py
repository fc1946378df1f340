"""Tensors of ours of which another format stores the parts, as queries, keys and values: what each is made of.

A layout has, by the name of a tensor of ours, the other format's names and the shapes of what it is, row after row.
"""

import torch
from torch import Tensor

Parts = list[tuple[str, tuple[int, ...]]]
Layout = dict[str, Parts]


def check_shapes(layout: Layout, shapes: dict[str, tuple[int, ...]], names: dict[str, str], model: str) -> None:
    """Raise ValueError unless tensors of these shapes, and no others, are there.

    Args:
        layout: what should be.
        shapes: what there is, by the file's names.
        names: what the file calls the tensors of the layout.
        model: whose they are, for a message: "a Llama".
    """
    wanted = {names[theirs]: shape for parts in layout.values() for theirs, shape in parts}
    for name, shape in wanted.items():
        if name not in shapes:
            raise ValueError(f"the weights lack '{name}'")
        if shapes[name] != shape:
            raise ValueError(f"'{name}' must have the shape {shape}, got {shapes[name]}")
    if unknown := [name for name in shapes if name not in wanted]:
        raise ValueError(f"{model} of these settings has no '{unknown[0]}', which is among the weights")


def join(layout: Layout, weights: dict[str, Tensor], names: dict[str, str], model: str) -> dict[str, Tensor]:
    """Return our tensors made of another format's.

    Args:
        layout: of ours.
        weights: theirs; what is used is taken out of this dict, so that memory does not hold all of it twice.
        names: what they are called there, by the layout's names without a prefix; each is used.
        model: for a message.

    Raises:
        ValueError: one is missing, left over or of another shape; the message names the first.
    """
    spelled = {theirs: names.get(theirs, theirs) for parts in layout.values() for theirs, _ in parts}
    check_shapes(layout, {name: tuple(weights[name].shape) for name in names.values()}, spelled, model)
    result = {}
    for ours, parts in layout.items():
        tensors = [weights.pop(spelled[theirs]) for theirs, _ in parts]
        result[ours] = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
    return result


def take_apart(layout: Layout, state: dict[str, Tensor], model: str) -> dict[str, Tensor]:
    """Return another format's tensors made of ours, on the CPU, where they share memory with them.

    Raises:
        ValueError: one is missing, unknown or of another shape.
    """
    for ours in [*layout, *state]:
        if ours not in state:
            raise ValueError(f"weights_to: 'state' must have '{ours}'")
        if ours not in layout:
            raise ValueError(f"weights_to: 'state' must be of {model} of these settings, which has no '{ours}'")
    result: dict[str, Tensor] = {}
    for ours, parts in layout.items():
        tensor = state[ours].detach().cpu()
        shape = (sum(shape[0] for _, shape in parts), *parts[0][1][1:])
        if tuple(tensor.shape) != shape:
            raise ValueError(f"weights_to: '{ours}' must have the shape {shape}, got {tuple(tensor.shape)}")
        pieces = tensor.split([shape[0] for _, shape in parts])
        result |= {theirs: piece.contiguous() for (theirs, _), piece in zip(parts, pieces, strict=True)}
    return result
