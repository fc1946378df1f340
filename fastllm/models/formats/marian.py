"""Folders of Marian models (OPUS-MT) as transformers' MarianMTModel has them, to and from Transformer's.

A Marian model is the paper's Transformer with its norms behind the sub-layers, sines in the first half of a position's
channels and cosines in the second, and a bias of the output. A model whose sines and cosines alternate, as the paper's,
becomes one by another order of its channels, which changes nothing but the order of sums.
"""

from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastllm.errors import UserValueError, check_type
from fastllm.models import pretrained
from fastllm.models.config import TransformerConfig
from fastllm.models.formats.parts import Layout, join, take_apart

# C = n_embd channels, F = n_hidden, V vocabulary

MODEL = "a Marian model"  # in a message
ACTIVATIONS = {"swish": "silu", "silu": "silu", "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh"}
NUMBERS = {
    "max_position_embeddings": "context_length", "encoder_layers": "n_encoder_layer",
    "decoder_layers": "n_decoder_layer", "encoder_attention_heads": "n_head", "d_model": "n_embd",
    "encoder_ffn_dim": "n_hidden",
}  # fmt: skip
DROPOUTS = ("dropout", "attention_dropout", "activation_dropout")
# What transformers takes for a setting that config.json does not have.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 58101, "max_position_embeddings": 1024, "encoder_layers": 12, "encoder_ffn_dim": 4096,
    "encoder_attention_heads": 16, "decoder_layers": 12, "decoder_ffn_dim": 4096, "decoder_attention_heads": 16,
    "activation_function": "gelu", "d_model": 1024, "dropout": 0.1, "attention_dropout": 0.0,
    "activation_dropout": 0.0, "scale_embedding": False, "share_encoder_decoder_embeddings": True,
    "tie_word_embeddings": True,
}  # fmt: skip
# What a config.json may not ask otherwise. Only old ones say it; MarianMTModel does not look at it.
FIXED = {
    "normalize_before": False, "normalize_embedding": False, "add_final_layer_norm": False,
    "static_position_embeddings": True,
}  # fmt: skip
# What Marian always is.
_SETTINGS: dict[str, Any] = {"bias": True, "norm_first": False, "final_norm": False, "norm_eps": 1e-5}
_WHERE = "Marian config"
_BIAS = "final_logits_bias"
# By our tables of embeddings, their names; of tensors that are one, a file may have any.
_SHARED, _SOURCE, _TARGET, _OUTPUT = (
    f"{name}.weight" for name in ("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head")
)
_TABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "all": {"embedding.weight": (_SHARED, _SOURCE, _TARGET, _OUTPUT)},
    "target": {"embedding.weight": (_TARGET, _OUTPUT), "source_embedding.weight": (_SOURCE,)},
    "none": {
        "embedding.weight": (_TARGET, _SHARED), "source_embedding.weight": (_SOURCE, _SHARED),
        "output.weight": (_OUTPUT,),
    },
}  # fmt: skip


def config_from(config: dict[str, Any]) -> TransformerConfig:
    """Return the settings that a config.json holds.

    Raises:
        ValueError: it asks for something that Transformer does not do.
        TypeError: a value is of a wrong type.
    """
    given = {**DEFAULTS, **config}
    for name in ("vocab_size", *NUMBERS):
        check_type(_WHERE, name, given[name], Integral)
    for name in DROPOUTS:
        check_type(_WHERE, name, given[name], Real)
    for name in ("scale_embedding", "share_encoder_decoder_embeddings", "tie_word_embeddings"):
        check_type(_WHERE, name, given[name], bool)
    for name, value in FIXED.items():
        if given.get(name, value) != value:
            raise ValueError(f"{_WHERE}: '{name}' must be {value}, got {given[name]}")
    for name in ("ffn_dim", "attention_heads"):
        if given[f"decoder_{name}"] != given[f"encoder_{name}"]:
            sizes = f"(encoder_{name}, {given[f'encoder_{name}']}), got {given[f'decoder_{name}']}"
            raise ValueError(f"{_WHERE}: 'decoder_{name}' must be as the encoder's {sizes}")
    activation = given["activation_function"]
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"{_WHERE}: 'activation_function' must be one of {known}, got {activation!r}")
    target = given.get("decoder_vocab_size") or given["vocab_size"]
    check_type(_WHERE, "decoder_vocab_size", target, Integral)
    shared, tied = given["share_encoder_decoder_embeddings"], given["tie_word_embeddings"]
    if shared and target != given["vocab_size"]:
        raise ValueError(
            f"{_WHERE}: 'decoder_vocab_size' must be vocab_size ({given['vocab_size']}), as the embeddings are shared, "
            f"got {target}"
        )
    return TransformerConfig(
        vocab_size=target,
        source_vocab_size=None if target == given["vocab_size"] else given["vocab_size"],
        **{ours: given[theirs] for theirs, ours in NUMBERS.items()},
        **{name: given[name] for name in DROPOUTS},
        activation=ACTIVATIONS[activation],
        output_bias=True,
        positions="sinusoidal_halves",
        share_embeddings="none" if not tied else "all" if shared else "target",
        scale_embeddings=given["scale_embedding"],
        **_SETTINGS,
    )


def config_to(config: TransformerConfig, start: int | None, end: int | None, dtype: str) -> dict[str, Any]:
    """Return a config.json.

    Args:
        config: the settings.
        start: the id that begins a target, which also fills up the shorter ones of a batch; None if it is not known.
        end: the id that ends a target; None if it is not known.
        dtype: of the weights, such as "float32".

    Raises:
        ValueError: MarianMTModel cannot be such a model.
    """
    for name, value in _SETTINGS.items():
        if getattr(config, name) != value:
            raise UserValueError(f"{_WHERE}: '{name}' must be {value} in a Marian model, got {getattr(config, name)}")
    allowed = {"positions": ("sinusoidal", "sinusoidal_halves"), "activation": tuple(ACTIVATIONS.values())}
    for name, values in allowed.items():
        if getattr(config, name) not in values:
            known = " or ".join(dict.fromkeys(values))
            raise UserValueError(f"{_WHERE}: '{name}' must be {known} in a Marian model, got {getattr(config, name)}")
    sizes = {"n_hidden": config.intermediate_size}
    return {
        "model_type": "marian",
        "architectures": ["MarianMTModel"],
        "is_encoder_decoder": True,
        "vocab_size": config.source_vocabulary,
        "decoder_vocab_size": config.vocab_size,
        **{theirs: sizes.get(ours, getattr(config, ours)) for theirs, ours in NUMBERS.items()},
        "decoder_ffn_dim": config.intermediate_size,
        "decoder_attention_heads": config.n_head,
        **{name: getattr(config, name) for name in DROPOUTS},
        "activation_function": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation),
        "scale_embedding": config.scale_embeddings,
        "share_encoder_decoder_embeddings": config.sharing == "all",
        "tie_word_embeddings": config.sharing != "none",
        **_ids(start, end),
        "torch_dtype": dtype,
    }


def _ids(start: int | None, end: int | None) -> dict[str, Any]:
    # null too must be said: transformers' defaults are those of one model
    return {
        "bos_token_id": None, "decoder_start_token_id": start, "pad_token_id": start, "eos_token_id": end,
        "forced_eos_token_id": end,
    }  # fmt: skip


def generation_config(config: TransformerConfig, start: int | None, end: int | None) -> dict[str, Any]:
    """Return a generation_config.json: a beam of 4, and the token that begins a target never drawn."""
    never = {"bad_words_ids": [[start]]} if start not in (None, end) else {}
    return {**_ids(start, end), **never, "num_beams": 4, "max_length": config.context_length}


def layout(config: TransformerConfig) -> Layout:
    """Return what the tensors of Transformer's state_dict are made of, row after row, but for the embeddings."""
    c, f = config.n_embd, config.intermediate_size
    result: Layout = {}
    for side, blocks in (("encoder", config.n_encoder_layer), ("decoder", config.n_decoder_layer)):
        parts = {
            "attention.qkv": [(f"self_attn.{name}_proj", c, c) for name in "qkv"],
            "attention.projection": [("self_attn.out_proj", c, c)],
            "feed_forward.expand": [("fc1", f, c)],
            "feed_forward.contract": [("fc2", c, f)],
        }
        norms = ["self_attn_layer_norm", "final_layer_norm"]
        if side == "decoder":
            norms.insert(1, "encoder_attn_layer_norm")
            parts |= {
                "cross_attention.query": [("encoder_attn.q_proj", c, c)],
                "cross_attention.key_value": [(f"encoder_attn.{name}_proj", c, c) for name in "kv"],
                "cross_attention.projection": [("encoder_attn.out_proj", c, c)],
            }
        for i in range(blocks):
            theirs = f"model.{side}.layers.{i}"
            for ours, linears in parts.items():
                result[f"{side}.{i}.{ours}.weight"] = [(f"{theirs}.{n}.weight", (rows, k)) for n, rows, k in linears]
                result[f"{side}.{i}.{ours}.bias"] = [(f"{theirs}.{n}.bias", (rows,)) for n, rows, _ in linears]
            for number, norm in enumerate(norms, 1):
                for kind in ("weight", "bias"):
                    result[f"{side}.{i}.norm_{number}.{kind}"] = [(f"{theirs}.{norm}.{kind}", (c,))]
    return result


def weights_from(weights: dict[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """Return Transformer's state_dict made of a MarianMTModel's, which are taken out of their dict.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape, or two differ that should be one; the message
            names the first.
    """
    rest = {name: tensor for name, tensor in weights.items() if not name.endswith("embed_positions.weight")}
    weights.clear()
    tables = {}
    for ours, names in _TABLES[config.sharing].items():
        found = [name for name in names if name in rest]
        if not found:
            raise ValueError(f"the weights lack '{names[0]}'")
        tables[ours] = rest[found[0]]
        for name in found[1:] if config.sharing != "none" else ():
            if not torch.equal(rest[name], tables[ours]):
                raise ValueError(f"'{name}' must be equal to '{found[0]}', as config.json says that they are one")
    rest = {name: tensor for name, tensor in rest.items() if name not in (_SHARED, _SOURCE, _TARGET, _OUTPUT)}
    bias = rest.pop(_BIAS, None)
    if bias is not None and tuple(bias.shape) != (1, config.vocab_size):
        raise ValueError(f"'{_BIAS}' must have the shape {(1, config.vocab_size)}, got {tuple(bias.shape)}")
    tables["output.bias"] = tables["embedding.weight"].new_zeros(config.vocab_size) if bias is None else bias[0]
    return tables | join(layout(config), rest, {name: name for name in rest}, MODEL)


def weights_to(state: dict[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """Return a MarianMTModel's weights made of Transformer's state_dict.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    state = dict(state)
    if config.positions == "sinusoidal":
        state = _in_halves(state, config.n_embd)
    result = {}
    for ours, names in _TABLES[config.sharing].items():
        result[names[0]] = state.pop(ours).detach().cpu()
    bias = state.pop("output.bias") if config.output_bias else result[next(iter(result))].new_zeros(config.vocab_size)
    result[_BIAS] = bias.detach().cpu()[None]
    return result | take_apart(layout(config), state, MODEL)


def _in_halves(state: dict[str, Tensor], channels: int) -> dict[str, Tensor]:
    """Return the weights of the same model with its channels in another order: the even ones, then the odd ones."""
    order = torch.cat([torch.arange(0, channels, 2), torch.arange(1, channels, 2)])
    result = {}
    for name, tensor in state.items():
        module = name.rsplit(".", 2)[-2]
        writes = module in ("projection", "contract") or module.startswith("norm")
        if module in ("embedding", "source_embedding", "qkv", "query", "key_value", "expand"):
            reads = name.endswith("weight")
        else:
            reads = name == "output.weight"
        chosen = order.to(tensor.device)
        result[name] = tensor[chosen] if writes else tensor[:, chosen] if reads else tensor
    return result


def read(folder: Path) -> tuple[TransformerConfig, dict[str, Tensor]]:
    """Return the settings and Transformer's state_dict that a folder holds, whole or in shards.

    Raises:
        FileNotFoundError: config.json or the weights are missing.
        ValueError: a file is damaged, or not of a model that Transformer can be.
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
    folder: Path, config: TransformerConfig, weights: dict[str, Tensor], begin_of_text: int | None = None,
    end_of_text: int | None = None, vocab_size: int | None = None,
) -> None:  # fmt: skip
    """Write config.json, the weights and generation_config.json, which AutoModelForSeq2SeqLM reads.

    Args:
        folder: is made if missing.
        config: of the model.
        weights: its state_dict; their dtype is kept.
        begin_of_text: the id that begins a target; None if it is not known.
        end_of_text: the id that ends a target; None if it is not known.
        vocab_size: how many ids the tokenizer has; a model with more is refused.

    Raises:
        ValueError: MarianMTModel cannot be such a model.
        OSError: the disk is full or not writable.
    """
    if vocab_size not in (None, config.vocab_size):
        raise UserValueError(
            f"{_WHERE}: 'vocab_size' must be the tokenizer's ({vocab_size}), as Marian's is, got {config.vocab_size}"
        )
    dtype = f"{weights['embedding.weight'].dtype}".removeprefix("torch.")
    settings = config_to(config, begin_of_text, end_of_text, dtype)
    pretrained.write(folder, settings, weights_to(weights, config), pretrained.SHARD_BYTES)
    pretrained.write_json(folder / pretrained.GENERATION, generation_config(config, begin_of_text, end_of_text))
