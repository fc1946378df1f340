"""Hugging Face's folders of GPT-2 (GPT2LMHeadModel), to and from fastllm's GPT.

Names are those of the original TensorFlow code. Linear weights are transposed, (in, out), in a layer called Conv1D.
"""

import re
from dataclasses import asdict
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastllm.errors import check_type
from fastllm.models import pretrained
from fastllm.models.config import GPTConfig

NAMES = {
    "wte.weight": "embedding.token.weight",
    "wpe.weight": "embedding.position.weight",
    "ln_f.weight": "norm.weight",
    "ln_f.bias": "norm.bias",
}
BLOCK_NAMES = {
    "ln_1": "norm_1",
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.projection",
    "ln_2": "norm_2",
    "mlp.c_fc": "feed_forward.expand",
    "mlp.c_proj": "feed_forward.contract",
}
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
SIZES = {"vocab_size": "vocab_size", "n_positions": "context_length", "n_layer": "n_layer", "n_head": "n_head",
         "n_embd": "n_embd"}  # fmt: skip
# What GPT does, and a config.json may not ask otherwise.
FIXED = {
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
_TRANSPOSED = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
_BUFFERS = re.compile(r"\.attn\.(masked_)?bias$")  # causal masks that old checkpoints carry
_BLOCK = re.compile(rf"^h\.(\d+)\.({'|'.join(map(re.escape, BLOCK_NAMES))})\.(weight|bias)$")


def read(folder: Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Return the settings and weights that a folder holds.

    Raises:
        FileNotFoundError: config.json or the weights are missing.
        ValueError: a file is damaged, or config.json asks for something that GPT does not do.
    """
    config = pretrained.read_config(folder)
    try:
        settings = GPTConfig(**config_from_gpt2(config))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder}/config.json: {error}") from error
    return settings, from_gpt2(pretrained.read_weights(folder))


def write(
    folder: Path, config: GPTConfig, weights: dict[str, Tensor], begin_of_text: int | None = None,
    end_of_text: int | None = None, vocab_size: int | None = None,
) -> None:  # fmt: skip
    """Write a folder, which is made if missing.

    Args:
        folder: where to.
        config: of the model.
        weights: its state_dict.
        begin_of_text: the id that begins a text; the default is end_of_text, as in GPT-2.
        end_of_text: the id that ends a text; None where the tokenizer has none or is not known.
        vocab_size: how many ids its tokenizer has, by default all of the model's; those beyond them are never drawn.

    Raises:
        OSError: the disk is full or not writable.
    """
    settings, dtype = asdict(config), next(iter(weights.values())).dtype
    described = config_to_gpt2(settings, end_of_text, f"{dtype}".removeprefix("torch."))
    generation = generation_config(settings, end_of_text, vocab_size or config.vocab_size)
    if begin_of_text is not None:
        described["bos_token_id"] = generation["bos_token_id"] = begin_of_text
    pretrained.write(folder, described, to_gpt2(weights), pretrained.SHARD_BYTES)
    pretrained.write_json(folder / pretrained.GENERATION, generation)


def _translate(name: str) -> str:
    block = _BLOCK.match(name)
    if block:
        return f"blocks.{block[1]}.{BLOCK_NAMES[block[2]]}.{block[3]}"
    if name in NAMES:
        return NAMES[name]
    raise ValueError(f"GPT-2 weights: unknown tensor '{name}'")


def from_gpt2(weights: dict[str, Tensor], transposed: bool = True) -> dict[str, Tensor]:
    """Return GPT's state_dict made of a GPT2LMHeadModel's or GPT2Model's.

    Args:
        weights: tensors by name, with or without the prefix "transformer.".
        transposed: whether linear weights are stored as (in, out); they are copied then.

    Raises:
        ValueError: a tensor's name is not one of GPT-2's, or the output layer has weights of its own.
    """
    weights = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    output = weights.pop("lm_head.weight", None)
    # Of a tied pair safetensors' save_model keeps one name, and it may be the output layer's.
    if output is not None and not torch.equal(output, weights.setdefault("wte.weight", output)):
        raise ValueError(
            "GPT-2 weights: 'lm_head.weight' must be equal to 'wte.weight', which GPT's output layer shares"
        )
    turn = _TRANSPOSED.search if transposed else lambda name: None
    return {
        _translate(name): tensor.t().contiguous() if turn(name) else tensor
        for name, tensor in weights.items()
        if not _BUFFERS.search(name)
    }


def to_gpt2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a GPT2LMHeadModel's weights made of GPT's state_dict; biases that it does not have are zeros, which change
    nothing."""
    state = {name: tensor.detach().cpu() for name, tensor in state.items()}
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    names = dict(NAMES)
    for layer in range(layers):
        for theirs, ours in BLOCK_NAMES.items():
            names |= {f"h.{layer}.{theirs}.{kind}": f"blocks.{layer}.{ours}.{kind}" for kind in ("weight", "bias")}
    result = {}
    for theirs, ours in names.items():
        weight = state[ours.replace(".bias", ".weight")]
        tensor = state[ours] if ours in state else weight.new_zeros(weight.shape[0])
        turned = tensor.t() if _TRANSPOSED.search(theirs) else tensor
        result[f"transformer.{theirs}"] = turned.contiguous()
    return result


def config_from_gpt2(config: dict[str, Any]) -> dict[str, Any]:
    """Return GPTConfig's arguments made of a GPT-2 config.json.

    Raises:
        ValueError: a size is missing, or the config asks for something that GPT does not do.
        TypeError: a value is of a wrong type.
    """
    config = {"n_positions": 1024, **config}
    missing = [name for name in SIZES if name not in config]
    if missing:
        raise ValueError(f"GPT-2 config: '{missing[0]}' is missing")
    for name in SIZES:
        check_type("GPT-2 config", name, config[name], Integral)
    activation = config.get("activation_function", "gelu_new")
    check_type("GPT-2 config", "activation_function", activation, str)
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"GPT-2 config: 'activation_function' must be one of {', '.join(ACTIVATIONS)}, got '{activation}'"
        )
    inner = config.get("n_inner") or 4 * config["n_embd"]
    if inner != 4 * config["n_embd"]:
        raise ValueError(f"GPT-2 config: 'n_inner' must be 4 n_embd ({4 * config['n_embd']}), got {inner}")
    for name, value in FIXED.items():
        if config.get(name, value) != value:
            raise ValueError(f"GPT-2 config: '{name}' must be {value}, got {config[name]}")
    dropouts = {name: config.get(name, 0.1) for name in _DROPOUTS}
    for name, value in dropouts.items():
        check_type("GPT-2 config", name, value, Real)
    if len(set(dropouts.values())) > 1:
        shown = ", ".join(f"{name} {value}" for name, value in dropouts.items())
        raise ValueError(
            f"GPT-2 config: the dropouts must be equal, got {shown}; set all of them in config.json to one"
        )
    return {
        **{ours: config[theirs] for theirs, ours in SIZES.items()},
        "dropout": dropouts["resid_pdrop"],
        "activation": ACTIVATIONS[activation],
    }


def config_to_gpt2(config: dict[str, Any], end_of_text: int | None, dtype: str) -> dict[str, Any]:
    """Return a GPT-2 config.json made of GPTConfig's fields.

    Args:
        config: GPTConfig's fields.
        end_of_text: the id that ends a text; None where the tokenizer has none or is not known.
        dtype: of the weights, such as "float32".
    """
    activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config["activation"])
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **{theirs: config[ours] for theirs, ours in SIZES.items()},
        **dict.fromkeys(_DROPOUTS, config["dropout"]),
        **FIXED,
        "activation_function": activation,
        "bos_token_id": end_of_text,  # null too must be said: transformers' default is 50256
        "eos_token_id": end_of_text,
        "torch_dtype": dtype,
    }


def generation_config(config: dict[str, Any], end_of_text: int | None, vocab_size: int) -> dict[str, Any]:
    """Return a generation_config.json made of GPTConfig's fields.

    It has no max_length: transformers warn of one beside the max_new_tokens that a caller gives, and theirs, of 20 new
    tokens, is kept to n_positions.

    Args:
        config: GPTConfig's fields.
        end_of_text: the id that ends a text, or None; it also fills up the shorter texts of a batch.
        vocab_size: how many tokens the tokenizer has; the model's ids beyond them are never drawn.
    """
    padding = list(range(vocab_size, config["vocab_size"]))
    return {
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "pad_token_id": end_of_text,
        **({"suppress_tokens": padding} if padding else {}),
    }
