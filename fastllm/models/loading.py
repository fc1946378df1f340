"""Finding out what a path holds, and making its model: ours, a run's, Hugging Face's, a GGUF file, nanoGPT's."""

import importlib
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastllm import nn
from fastllm.errors import UserError, checked_path
from fastllm.files import find_checkpoint, is_run, verify_folder
from fastllm.models import pretrained
from fastllm.models.base import MODEL_TYPE, OURS, Model, config_of_ours
from fastllm.models.config import CONFIGS, ModelConfig

# Architectures, and where their classes are.
CLASSES = {"gpt": "gpt.GPT", "llama": "llama.Llama", "transformer": "transformer.Transformer"}
# Hugging Face's model_type, and the file of formats/ that reads it; an architecture of ours, and which writes it.
READERS = {
    "gpt2": "gpt2", "llama": "llama", "mistral": "llama", "qwen2": "llama", "qwen3": "llama", "marian": "marian",
}  # fmt: skip
WRITERS = {"gpt": "gpt2", "llama": "llama", "transformer": "marian"}


def load(path: str | PathLike, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Model:
    """Load a model of any architecture from whatever holds one.

    Args:
        path: a run's folder (its best checkpoint), a model's folder (save_pretrained's, or Hugging Face's of GPT-2,
            Llama, Mistral, Qwen2, Qwen3 or Marian), a .gguf file of the four after GPT-2, or nanoGPT's ckpt.pt.
        dtype: of the weights; None is float32.
        device: where to put them.

    Returns:
        The model in eval mode, as transformers gives it; call train() on it to train it with its dropout.

    Raises:
        FileNotFoundError: there is nothing, or config.json or the weights are missing.
        ValueError: a file is damaged, or of a model that is none of fastllm's.
        UserError: the run has no checkpoint, or it is damaged.
        TypeError: path is not a path.
    """
    path = checked_path("load", "path", path)
    if is_run(path):
        path = find_checkpoint(path, "best", "last")
        verify_folder(path)
    config, weights = _read(path)
    for name, weight in weights.items():  # copied, or a model would train in the pages of a file
        weights[name] = weight.to(device, dtype or torch.float32, copy=True)
    return with_weights(config, weights, path).eval()


def kind_of(path: Path) -> str | None:
    """Return the architecture of what load would make of a path, without reading weights; None if it cannot tell."""
    kinds = {name: kind for kind, name in WRITERS.items()}
    if path.is_file():
        return kinds[READERS["llama"]] if path.suffix.lower() == ".gguf" else kinds[READERS["gpt2"]]
    try:
        folder = find_checkpoint(path, "best", "last") if is_run(path) else path
        model_type = f"{pretrained.read_config(folder).get(MODEL_TYPE)}"
    except (OSError, ValueError, UserError):  # load says what is wrong
        return None
    return kinds[READERS[model_type]] if model_type in READERS else model_type.removeprefix(OURS)


def _read(path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: expected a model's folder or file, or a run's")
    if path.is_file():
        return _format("gguf" if path.suffix.lower() == ".gguf" else "nanogpt").read(path)
    settings = pretrained.read_config(path)
    kind = settings.pop(MODEL_TYPE, None)
    if isinstance(kind, str) and kind in READERS:
        return _format(READERS[kind]).read(path)
    try:
        config = config_of_ours(f"{kind}", settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}/{pretrained.CONFIG}: {error}") from error
    if config is None:
        known = ", ".join([*READERS, *(f"fastllm-{name}" for name in CONFIGS)])
        raise ValueError(f"{path}/{pretrained.CONFIG}: '{MODEL_TYPE}' must be one of {known}, got {kind!r}")
    return config, pretrained.read_weights(path)


def _format(name: str) -> ModuleType:
    return importlib.import_module(f"fastllm.models.formats.{name}")


def model_class(config: ModelConfig) -> type[Model]:
    """Return the class of the models with such settings."""
    module, name = CLASSES[config.kind].split(".")
    return getattr(importlib.import_module(f"fastllm.models.{module}"), name)


def with_weights(config: ModelConfig, weights: dict[str, Tensor], source: Path | str = "") -> Model:
    """Return a model that has these tensors for its weights; no random number is drawn.

    Raises:
        ValueError: a tensor is missing, left over or of another shape; the message names the first, and source.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = model_class(config)(config)
    pretrained.check_fit(model.state_dict(), weights, Path(source))
    model.load_state_dict(weights, assign=True)
    for module in model.modules():
        if isinstance(module, nn.PositionTables):  # its tables are in no file: this makes them
            module.to_empty(device=next(iter(weights.values())).device)
    return model


def save_huggingface(model: Model, folder: Path, tokenizer: Any = None) -> None:
    """Write a folder for transformers; as :meth:`Model.save_huggingface`."""
    if model.config.kind not in WRITERS:
        raise UserError(f"save_huggingface: transformers has no class for a {model.config.kind} model")
    if tokenizer is not None:
        model.check_tokenizer(tokenizer, "save_huggingface")
    told = () if tokenizer is None else (tokenizer.first_token, tokenizer.end_of_text, tokenizer.vocab_size)
    _format(WRITERS[model.config.kind]).write(folder, model.config, model.state_dict(), *told)
    if tokenizer is not None:
        tokenizer.save_huggingface(folder, model.config.context_length)
