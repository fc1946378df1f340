"""Reading and writing model folders: config.json, and weights whole or in shards. Nothing but tensors is unpickled."""

import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastllm.errors import describe

CONFIG, WEIGHTS, GENERATION = "config.json", "model.safetensors", "generation_config.json"
SHARD_BYTES = 5e9  # of a file of a folder for Hugging Face
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def read_config(folder: Path) -> dict[str, Any]:
    """Return what config.json holds.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a JSON object.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {folder} is not a model's folder")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is damaged: expected an object, got {type(config).__name__}")
    return config


def write(folder: Path, config: dict[str, Any], weights: dict[str, Tensor], shard_bytes: float = math.inf) -> None:
    """Write config.json and model.safetensors into folder, which is made if missing.

    Args:
        folder: where to.
        config: what config.json is to hold.
        weights: tensors by name.
        shard_bytes: more than so many bytes go into several files and an index, as transformers write them; a file is
            larger only where one tensor is.

    Raises:
        OSError: the disk is full or not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, config)
    shards = _shards(weights, shard_bytes)
    if len(shards) == 1:
        _write_tensors(folder / WEIGHTS, weights)
        return
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_tensors(folder / file, {name: weights[name] for name in names})
        places |= dict.fromkeys(names, file)
    size = sum(tensor.nbytes for tensor in weights.values())
    write_json(folder / _INDICES[0], {"metadata": {"total_size": size}, "weight_map": places})


def _shards(weights: dict[str, Tensor], shard_bytes: float) -> list[list[str]]:
    """Return the names of the tensors of each file, in their order."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in weights.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def _write_tensors(path: Path, weights: dict[str, Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(weights, path, metadata={"format": "pt"})
    except SafetensorError as error:  # it has the system's error as a part of its text
        number = re.search(r"\(os error (\d+)\)", f"{error}")
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    shutil.copymode(path.parent / CONFIG, path)  # safetensors lets nobody but the owner read what it writes


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file of settings."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of model.safetensors or pytorch_model.bin, or of the shards that their index names.

    Raises:
        FileNotFoundError: there is none, or a shard is missing.
        ValueError: a file is damaged, or holds more than tensors.
    """
    for name in (WEIGHTS, "pytorch_model.bin"):
        if (folder / name).exists():
            return _read_named(folder / name)
    for name in _INDICES:
        if (folder / name).exists():
            return _read_shards(folder, name)
    raise FileNotFoundError(
        f"{folder} has no weights: expected {WEIGHTS} or {_INDICES[0]} with the shards that it names"
    )


def _read_shards(folder: Path, index: str) -> dict[str, Tensor]:
    try:
        places = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / index} is damaged ({error})") from error
    weights: dict[str, Tensor] = {}
    for shard in shards:
        if Path(shard).name != shard:
            raise ValueError(f"{folder / index}: a shard must be a file beside it, got '{shard}'")
        weights |= _read_named(folder / shard)
    missing = sorted(places.keys() - weights.keys())
    if missing:
        raise ValueError(f"{folder}: '{missing[0]}' is not in {places[missing[0]]}, where {index} says it is")
    return weights


def _read_named(path: Path) -> dict[str, Tensor]:
    weights = read_tensors(path)
    check_named(path, weights)
    return weights


def check_named(where: object, weights: Any) -> None:
    """Raise ValueError if something is not tensors by name."""
    if not isinstance(weights, dict):
        raise ValueError(f"{where}: expected tensors by name, got {type(weights).__name__}")
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{where}: expected tensors by name, got {describe(tensor)} as {name!r}")


def read_tensors(path: Path) -> dict[str, Any]:
    """Return what a .safetensors file or one of torch.save holds, on the CPU.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or torch would have to run code from it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        raise FileNotFoundError(f"{path} is missing")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the restricted unpickler meets garbage with whatever goes wrong first
        raise ValueError(
            f"{path} is damaged, or holds more than tensors and plain values, which is all that is loaded"
        ) from error


def check_fit(wanted: dict[str, Tensor], weights: dict[str, Tensor], source: Path) -> None:
    """Compare weights with a model's, by name and shape.

    Raises:
        ValueError: a tensor is missing, left over or of another shape; the message names the first.
    """
    for name in [*wanted, *weights]:
        if name not in weights:
            raise ValueError(f"{source}: the weights lack '{name}'")
        if name not in wanted:
            raise ValueError(f"{source}: the model has no '{name}', which is among the weights")
        if wanted[name].shape != weights[name].shape:
            shapes = f"{tuple(wanted[name].shape)}, got {tuple(weights[name].shape)}"
            raise ValueError(f"{source}: '{name}' must have the shape {shapes}")
