"""Hugging Face's folders of Llama and its kin, to and from LlamaConfig and Llama's state_dict.

Read and written are LlamaForCausalLM, MistralForCausalLM (a window), Qwen2ForCausalLM (biases of queries, keys and
values) and Qwen3ForCausalLM (normalised queries and keys). Weights are only moved: they keep their bits and dtype.
"""

import math
import re
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastllm.errors import UserValueError, check_type
from fastllm.models import pretrained
from fastllm.models.config import LlamaConfig
from fastllm.models.formats.parts import Layout, join, take_apart

# C = n_embd channels, H heads, K heads of keys and values, D channels of a head, F = n_hidden, V vocabulary

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
SIZES = {
    "vocab_size": "vocab_size", "max_position_embeddings": "context_length", "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head", "num_key_value_heads": "n_kv_head", "hidden_size": "n_embd",
    "head_dim": "head_dim", "intermediate_size": "n_hidden",
}  # fmt: skip
_COMPUTED = ("num_key_value_heads", "head_dim")  # null in these means that they follow from other sizes
# What transformers takes for a setting that config.json does not have.
_QWEN = {"max_position_embeddings": 32768, "num_key_value_heads": 32, "use_sliding_window": False,
         "sliding_window": 4096, "max_window_layers": 28}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048, "num_key_value_heads": None, "head_dim": None},
    "mistral": {
        "max_position_embeddings": 131072, "num_key_value_heads": 8, "head_dim": None, "sliding_window": 4096,
    },
    "qwen2": {**_QWEN, "head_dim": None},
    "qwen3": {**_QWEN, "head_dim": 128},
}  # fmt: skip
# What Llama does, and a config.json may not ask otherwise; with the reason.
FIXED: dict[str, tuple[Any, str]] = {
    "hidden_act": ("silu", "the feed-forward network is SwiGLU"),
    "mlp_bias": (False, "the feed-forward network has no biases"),
    "attention_bias": (False, "attention's output projection has no bias"),
    "attention_dropout": (
        0.0,
        "Llama's dropout is on residual branches too; set this to 0 and choose one for training",
    ),
    "quantization_config": (None, "weights must be plain numbers"),
}
ROPE_TYPES = {"default": "none", "linear": "linear", "llama3": "llama3", "yarn": "yarn"}
_YARN = {"beta_fast": "rope_beta_fast", "beta_slow": "rope_beta_slow", "attention_factor": "rope_attention"}
_BUFFERS = re.compile(r"rotary_emb\.inv_freq$")  # that old checkpoints carry
_WHERE = "Llama config"
MODEL = "a Llama"  # in a message


def config_from(config: dict[str, Any]) -> LlamaConfig:
    """Return the settings that a config.json holds.

    Args:
        config: of model_type llama, mistral, qwen2 or qwen3, with rotary settings as in transformers 5
            (rope_parameters) or before (rope_theta and rope_scaling).

    Raises:
        ValueError: a setting is missing, or asks for something that Llama does not do.
        TypeError: a value is of a wrong type.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise ValueError(f"{_WHERE}: 'model_type' must be one of {', '.join(ARCHITECTURES)}, got {kind!r}")
    config = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 10000.0, **DEFAULTS[kind], **config}
    for name in SIZES:
        if name not in config:
            raise ValueError(f"{_WHERE}: '{name}' is missing")
        if config[name] is not None or name not in _COMPUTED:
            check_type(_WHERE, name, config[name], Integral)
    for name, (value, reason) in FIXED.items():
        ignored = name == "attention_bias" and kind == "qwen2"  # it has its biases always, and none on the output
        if not ignored and (config.get(name) or value) != value:
            raise ValueError(f"{_WHERE}: '{name}' must be {value}, as {reason}, got {config[name]}")
    check_type(_WHERE, "rms_norm_eps", config["rms_norm_eps"], Real)
    check_type(_WHERE, "tie_word_embeddings", config["tie_word_embeddings"], bool)
    return LlamaConfig(
        **{ours: config[theirs] for theirs, ours in SIZES.items()},
        norm_eps=config["rms_norm_eps"],
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        window=_window(kind, config),
        tie_embeddings=config["tie_word_embeddings"],
        **_rope_from(config),
    )


def _window(kind: str, config: dict[str, Any]) -> int | None:
    """Return the window of all layers, or None."""
    if kind == "llama":  # transformers reads no sliding_window there
        return None
    used = config["sliding_window"] if kind == "mistral" or config["use_sliding_window"] else None
    name, first = "max_window_layers", config.get("max_window_layers", 0)
    check_type(_WHERE, name, first, Integral)
    layers = [
        "sliding_attention" if used is not None and (kind == "mistral" or layer >= first) else "full_attention"
        for layer in range(config["num_hidden_layers"])
    ]
    given = config.get("layer_types")
    if given is not None:
        name = "layer_types"
        check_type(_WHERE, name, given, list)
        # Mistral has its window whatever layer_types are; the others have it where these say so.
        if (kind == "mistral" and given != layers) or (used is None and "sliding_attention" in given):
            raise ValueError(f"{_WHERE}: 'layer_types' must agree with sliding_window ({used}), got {given}")
        layers = given
    if layers not in ([sort] * config["num_hidden_layers"] for sort in ("sliding_attention", "full_attention")):
        raise ValueError(f"{_WHERE}: '{name}' must give all layers one window or none, got {config[name]}")
    return used if "sliding_attention" in layers else None


def _rope_from(config: dict[str, Any]) -> dict[str, Any]:
    """Return LlamaConfig's arguments of rotary positions."""
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    given = config.get(name) or {}
    check_type(_WHERE, name, given, dict)
    if any(isinstance(value, dict) for value in given.values()):
        raise ValueError(f"{_WHERE}: '{name}' must be one for all layers, got {given}")
    rope = {name: config.get(name) for name in ("rope_theta", "partial_rotary_factor")} | given
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        raise ValueError(f"{_WHERE}: 'rope_type' must be one of {', '.join(ROPE_TYPES)}, got {kind!r}")
    for name, value in (("partial_rotary_factor", 1), ("truncate", True)):
        if rope.get(name) not in (None, value):
            raise ValueError(f"{_WHERE}: '{name}' must be {value}, got {rope[name]}")

    def number(name: str) -> Any:
        check_type(_WHERE, name, rope.get(name), Real)
        return rope[name]

    result = {"rope_base": number("rope_theta"), "rope_scaling": ROPE_TYPES[kind]}
    if kind == "default":
        return result
    if kind != "linear":
        context = config.get("original_max_position_embeddings", rope.get("original_max_position_embeddings"))
        if context is not None:
            check_type(_WHERE, "original_max_position_embeddings", context, Integral)
        result["rope_context"] = context
        if kind == "yarn" and context is not None and rope.get("factor", 1) is None:
            rope["factor"] = config["max_position_embeddings"] / context
    result["rope_factor"] = number("factor")
    if kind == "llama3":
        result |= {"rope_low_frequency": number("low_freq_factor"), "rope_high_frequency": number("high_freq_factor")}
    if kind == "yarn":
        result |= {ours: number(name) for name, ours in _YARN.items() if rope.get(name)}
        if "rope_attention" not in result and rope.get("mscale") and rope.get("mscale_all_dim"):
            upper, lower = (_yarn_scale(rope["factor"], number(name)) for name in ("mscale", "mscale_all_dim"))
            result["rope_attention"] = upper / lower
    return result


def _yarn_scale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(max(factor, 1)) + 1


def config_to(
    config: LlamaConfig,
    begin_of_text: int | None = None,
    end_of_text: int | Sequence[int] | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Return a config.json, with rotary settings as transformers 4 writes them and 5 reads them too.

    Args:
        config: the settings.
        begin_of_text: the id that begins a text; None where the tokenizer has none or is not known.
        end_of_text: the id that ends a text, or several such ids, or None.
        dtype: of the weights, such as "float32".

    Raises:
        ValueError: no architecture of Hugging Face's has this combination of settings.
    """
    if config.qk_norm and config.qkv_bias:
        raise UserValueError(f"{_WHERE}: 'qkv_bias' must be False beside qk_norm, as Qwen3 has no biases, got True")
    plain = config.window is None and config.n_embd % config.n_head == 0  # transformers' Llama insists on the latter
    kind = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama" if plain else "mistral"
    sizes = {"n_kv_head": config.kv_heads, "head_dim": config.head_size, "n_hidden": config.intermediate_size}
    window: dict[str, Any] = {} if kind == "llama" else {"sliding_window": config.window}
    if kind.startswith("qwen"):
        on = config.window is not None
        window |= {"use_sliding_window": on, "max_window_layers": 0 if on else config.n_layer}
    return {
        "model_type": kind,
        "architectures": [ARCHITECTURES[kind]],
        **{theirs: sizes.get(ours, getattr(config, ours)) for theirs, ours in SIZES.items()},
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": kind == "qwen2",
        "mlp_bias": False,
        "attention_dropout": 0.0,
        **window,
        **_rope_to(config),
        "bos_token_id": begin_of_text,  # null too must be said: transformers' default is 1, and 2 for the next
        "eos_token_id": end_of_text if end_of_text is None or isinstance(end_of_text, int) else list(end_of_text),
        "torch_dtype": dtype,
    }


def _rope_to(config: LlamaConfig) -> dict[str, Any]:
    if config.rope_scaling == "none":
        return {"rope_theta": config.rope_base, "rope_scaling": None}
    scaling: dict[str, Any] = {"rope_type": config.rope_scaling, "factor": config.rope_factor}
    if config.rope_scaling != "linear":
        scaling["original_max_position_embeddings"] = config.rope_context or config.context_length
    if config.rope_scaling == "llama3":
        scaling |= {"low_freq_factor": config.rope_low_frequency, "high_freq_factor": config.rope_high_frequency}
    if config.rope_scaling == "yarn":
        yarn = {name: getattr(config, ours) for name, ours in _YARN.items()}
        scaling |= {name: value for name, value in yarn.items() if value is not None}
    return {"rope_theta": config.rope_base, "rope_scaling": scaling}


def generation_config(
    config: LlamaConfig,
    begin_of_text: int | None = None,
    end_of_text: int | Sequence[int] | None = None,
    vocab_size: int | None = None,
) -> dict[str, Any]:
    """Return a generation_config.json.

    Args:
        config: the settings.
        begin_of_text: the id that begins a text, or None.
        end_of_text: the id that ends a text, or several, or None; the first also fills up the shorter texts of a batch.
        vocab_size: how many tokens the tokenizer has; the model's ids beyond them are never drawn. The default is all
            of the model's.
    """
    ends = [end_of_text] if isinstance(end_of_text, int) else list(end_of_text or ())
    padding = list(range(config.vocab_size if vocab_size is None else vocab_size, config.vocab_size))
    return {
        "bos_token_id": begin_of_text,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": ends[0] if ends else None,
        **({"suppress_tokens": padding} if padding else {}),
    }


def layout(config: LlamaConfig) -> Layout:
    """Return what each tensor of Llama's state_dict is made of, row after row.

    Returns:
        By our name: Hugging Face's names without the prefix "model.", and the shapes.
    """
    c, d, f, v = config.n_embd, config.head_size, config.intermediate_size, config.vocab_size
    heads = {"q": config.n_head * d, "k": config.kv_heads * d, "v": config.kv_heads * d}
    block: Layout = {
        "norm_1.weight": [("input_layernorm.weight", (c,))],
        "attention.qkv.weight": [(f"self_attn.{name}_proj.weight", (rows, c)) for name, rows in heads.items()],
        "attention.projection.weight": [("self_attn.o_proj.weight", (c, heads["q"]))],
        "norm_2.weight": [("post_attention_layernorm.weight", (c,))],
        "feed_forward.expand.weight": [(f"mlp.{name}_proj.weight", (f, c)) for name in ("gate", "up")],
        "feed_forward.contract.weight": [("mlp.down_proj.weight", (c, f))],
    }
    if config.qkv_bias:
        block["attention.qkv.bias"] = [(f"self_attn.{name}_proj.bias", (rows,)) for name, rows in heads.items()]
    if config.qk_norm:
        block["attention.query_norm.weight"] = [("self_attn.q_norm.weight", (d,))]
        block["attention.key_norm.weight"] = [("self_attn.k_norm.weight", (d,))]
    result: Layout = {"embedding.weight": [("embed_tokens.weight", (v, c))]}
    for i in range(config.n_layer):
        for ours, parts in block.items():
            result[f"blocks.{i}.{ours}"] = [(f"layers.{i}.{theirs}", shape) for theirs, shape in parts]
    result["norm.weight"] = [("norm.weight", (c,))]
    if not config.tie_embeddings:
        result["output.weight"] = [("lm_head.weight", (v, c))]
    return result


def weights_from(weights: dict[str, Tensor], config: LlamaConfig) -> dict[str, Tensor]:
    """Return Llama's state_dict made of Hugging Face's.

    Args:
        weights: tensors by name, with or without the prefix "model."; what is used is taken out of this dict, so that
            memory does not hold all of it twice.
        config: the settings.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape, or the output layer has weights of its own where
            it should share the embedding's; the message names the first.
    """
    # the file's names by those without the prefix
    spelled = {name.removeprefix("model."): name for name in weights if not _BUFFERS.search(name)}
    if config.tie_embeddings and (output := spelled.pop("lm_head.weight", None)) is not None:
        # Of a tied pair safetensors' save_model keeps one name, and it may be the output layer's.
        pair = weights[output], weights[spelled.setdefault("embed_tokens.weight", output)]
        if pair[0].dtype != pair[1].dtype or not torch.equal(*pair):
            raise ValueError(
                "'lm_head.weight' must be equal to 'embed_tokens.weight', as tie_word_embeddings says that it is shared"
            )
    return join(layout(config), weights, spelled, MODEL)


def weights_to(state: dict[str, Tensor], config: LlamaConfig) -> dict[str, Tensor]:
    """Return Hugging Face's weights made of Llama's state_dict, on the CPU, where they share memory with it.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    theirs = take_apart(layout(config), state, MODEL)
    return {name if name.startswith("lm_head.") else f"model.{name}": tensor for name, tensor in theirs.items()}


def read(folder: Path) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """Return the settings and Llama's state_dict that a folder of Hugging Face's holds, whole or in shards.

    Raises:
        FileNotFoundError: config.json or the weights are missing.
        ValueError: a file is damaged, or not of a model that Llama can be.
    """
    settings = pretrained.read_config(folder)
    try:
        config = config_from(settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / pretrained.CONFIG}: {error}") from error
    weights = pretrained.read_weights(folder)
    try:
        return config, weights_from(weights, config)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def write(
    folder: Path,
    config: LlamaConfig,
    weights: dict[str, Tensor],
    begin_of_text: int | None = None,
    end_of_text: int | Sequence[int] | None = None,
    vocab_size: int | None = None,
) -> None:
    """Write config.json, the weights and generation_config.json, which AutoModelForCausalLM reads.

    The dropout that a model was trained with is left out: theirs have none on residual branches.

    Args:
        folder: is made if missing.
        config: the settings.
        weights: Llama's state_dict; their dtype is kept.
        begin_of_text: see :func:`config_to`.
        end_of_text: see :func:`config_to`.
        vocab_size: see :func:`generation_config`.

    Raises:
        ValueError: no architecture of Hugging Face's has these settings, or the weights are not of them.
        OSError: the disk is full or not writable.
    """
    theirs = weights_to(weights, config)
    dtype = f"{weights['embedding.weight'].dtype}".removeprefix("torch.")
    settings = config_to(config, begin_of_text, end_of_text, dtype)
    pretrained.write(folder, settings, theirs, pretrained.SHARD_BYTES)
    generation = generation_config(config, begin_of_text, end_of_text, vocab_size)
    pretrained.write_json(folder / pretrained.GENERATION, generation)
