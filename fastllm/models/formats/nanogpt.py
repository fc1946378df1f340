"""What nanoGPT's train.py saves (out/ckpt.pt), as fastllm's GPT.

It has GPT-2's names, but linear weights are not transposed, and GELU is computed exactly.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from fastllm.errors import check_type
from fastllm.models import pretrained
from fastllm.models.config import GPTConfig
from fastllm.models.formats.gpt2 import from_gpt2


def read(path: Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Return the settings and weights that a checkpoint holds.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged or something else, or holds more than tensors and plain values.
    """
    checkpoint = pretrained.read_tensors(path)
    try:
        settings, weights = from_nanogpt(checkpoint)
        return GPTConfig(**settings), weights
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def from_nanogpt(checkpoint: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return GPTConfig's arguments and GPT's state_dict made of what nanoGPT's train.py saves.

    Raises:
        ValueError: it is something else, or of a changed nanoGPT.
        TypeError: a value is of a wrong type.
    """
    if not isinstance(checkpoint, dict) or not {"model", "model_args"} <= checkpoint.keys():
        found = ", ".join(map(str, checkpoint)) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise ValueError(f"nanoGPT checkpoint: expected 'model' and 'model_args' in it, got {found}")
    check_type("nanoGPT checkpoint", "model_args", checkpoint["model_args"], dict)
    pretrained.check_named("nanoGPT checkpoint: 'model'", checkpoint["model"])
    arguments = checkpoint["model_args"]
    names = {"block_size": "context_length", "bias": "bias", "dropout": "dropout", "vocab_size": "vocab_size",
             "n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd"}  # fmt: skip
    if arguments.keys() != names.keys():
        raise ValueError(
            f"nanoGPT checkpoint: 'model_args' must be {', '.join(sorted(names))}, "
            f"got {', '.join(sorted(map(str, arguments)))}"
        )
    compiled = "_orig_mod."  # torch.compile's prefix
    weights = {name.removeprefix(compiled): tensor for name, tensor in checkpoint["model"].items()}
    config = {ours: arguments[theirs] for theirs, ours in names.items()}
    return {**config, "activation": "gelu"}, from_gpt2(weights, transposed=False)
