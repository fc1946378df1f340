"""GGUF, the files of llama.cpp, to LlamaConfig and Llama's state_dict: architectures llama (Mistral too), qwen2, qwen3.

Quantised tensors become numbers again, one tensor at a time. What a file does not say, this cannot know: llama.cpp's
converter leaves out the window of Mistral 7B's first version.
"""

import math
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastllm.errors import UserImportError, UserValueError, check_type
from fastllm.models.config import LlamaConfig
from fastllm.models.formats.llama import MODEL, layout
from fastllm.models.formats.parts import check_shapes

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

# D channels of a head

ARCHITECTURES = ("llama", "qwen2", "qwen3")
SIZES = {
    "context_length": "context_length", "block_count": "n_layer", "attention.head_count": "n_head",
    "embedding_length": "n_embd", "feed_forward_length": "n_hidden",
}  # fmt: skip
# What a file may not ask otherwise: experts, other scales, windows in some of the layers.
FIXED = {
    "expert_count": 0, "attention.causal": True, "attention.scale": 0.0, "attention.sliding_window_pattern": None,
    "rope.scaling.yarn_ext_factor": 1.0, "rope.scaling.yarn_attn_factor": 1.0, "rope.scaling.yarn_log_multiplier": 0.0,
}  # fmt: skip
# Hugging Face's names by those of GGUF.
_NAMES = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
_BLOCK_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_FACTORS = "rope_freqs.weight"  # Llama 3's: what each pair's frequency is divided by
_EPS = "attention.layer_norm_rms_epsilon"
_MAGIC = b"GGUF"


def read(path: Path, dtype: torch.dtype = torch.float32) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """Return the settings and Llama's state_dict that a GGUF file holds.

    Args:
        path: the file.
        dtype: of the weights that are returned.

    Raises:
        UserImportError: the package gguf is not installed.
        FileNotFoundError: there is no such file.
        UserValueError: it is damaged or not GGUF, or of a model that Llama cannot be; the message names what is wrong.

    Follows https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
    """
    check_type("gguf.read", "dtype", dtype, torch.dtype)
    reader = _open(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    try:
        fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
        factors = tensors.pop(_FACTORS, None)
        config = _config_from(fields, tensors, None if factors is None else _numbers(factors))
        return config, _weights_from(tensors, config, fields["general.architecture"] == "llama", dtype)
    except (TypeError, ValueError) as error:
        raise UserValueError(f"{path}: {error}") from error


def _open(path: Path) -> "GGUFReader":
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise UserImportError("GGUF files need the package gguf: pip install 'fastllm[gguf]'") from error
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    with path.open("rb") as file:
        if (start := file.read(len(_MAGIC))) != _MAGIC:
            raise UserValueError(f"{path} is not a GGUF file: it must begin with {_MAGIC!r}, got {start!r}")
    try:
        reader = GGUFReader(path)
    except Exception as error:  # of a file that ends early it shows whatever goes wrong first
        raise UserValueError(f"{path} is damaged or cut short, or of an unknown GGUF version ({error})") from error
    if reader.byte_order == "S":
        raise UserValueError(f"{path}: numbers must be in this machine's byte order, got the other one")
    return reader


def _config_from(fields: dict[str, Any], tensors: dict[str, "ReaderTensor"], factors: np.ndarray | None) -> LlamaConfig:
    """Return the settings; factors, (D / 2,), are what the frequencies of rotary pairs are divided by."""
    kind = fields.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise ValueError(f"'general.architecture' must be one of {', '.join(ARCHITECTURES)}, got {kind!r}")
    if fields.get("split.count", 0) > 1:
        raise ValueError(f"'split.count' must be 1, as a model is read from one file, got {fields['split.count']}")
    own = {
        name.removeprefix(f"{kind}."): _plain(value) for name, value in fields.items() if name.startswith(f"{kind}.")
    }
    for name in (*SIZES, _EPS):
        if name not in own:
            raise ValueError(f"'{kind}.{name}' is missing")
        check_type("GGUF", f"{kind}.{name}", own[name], Real if name == _EPS else Integral)
    for name, value in FIXED.items():
        if own.get(name, value) != value:
            raise ValueError(f"'{kind}.{name}' must be {value}, got {own[name]}")
    if "token_embd.weight" not in tensors:
        raise ValueError("the weights lack 'token_embd.weight'")
    if own["block_count"] > len(tensors):  # a damaged one would take all memory for its names
        raise ValueError(f"'{kind}.block_count' must be at most the {len(tensors)} tensors, got {own['block_count']}")
    config = LlamaConfig(
        **{ours: own[name] for name, ours in SIZES.items()},
        vocab_size=int(tensors["token_embd.weight"].shape[-1]),
        n_kv_head=own.get("attention.head_count_kv"),
        head_dim=own.get("attention.key_length"),
        norm_eps=own[_EPS],
        qkv_bias=kind == "qwen2" or "blk.0.attn_q.bias" in tensors,
        qk_norm=kind == "qwen3",
        window=own.get("attention.sliding_window") or None,
        tie_embeddings="output.weight" not in tensors,
        **_rope(own, factors),
    )
    for name in ("attention.value_length", "rope.dimension_count"):
        if own.get(name, config.head_size) != config.head_size:
            raise ValueError(f"'{kind}.{name}' must be a head's channels ({config.head_size}), got {own[name]}")
    if factors is not None and factors.shape != (config.head_size // 2,):
        raise ValueError(f"'{_FACTORS}' must have the shape ({config.head_size // 2},), got {factors.shape}")
    return config


def _plain(value: Any) -> Any:
    """Return a setting as it was before it became a float32, or a list of the same for every layer."""
    if isinstance(value, list) and value and value == [value[0]] * len(value):
        value = value[0]
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _rope(own: dict[str, Any], factors: np.ndarray | None) -> dict[str, Any]:
    """Return LlamaConfig's arguments of rotary positions, with llama.cpp's defaults."""
    base, kind = own.get("rope.freq_base", 10000.0), own.get("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise ValueError(f"'rope.scaling.type' must be none, linear or yarn, got {kind!r}")
    factor = own.get("rope.scaling.factor") or own.get("rope.scale_linear") or 1.0
    if kind == "linear" and factor == 1:
        kind = "none"
    attention = own.get("rope.scaling.attn_factor", 1.0)
    if kind != "yarn" and attention != 1:
        raise ValueError(f"'rope.scaling.attn_factor' must be 1 where rope.scaling.type is not yarn, got {attention}")
    if factors is not None:
        if kind != "none":
            raise ValueError(f"'{_FACTORS}' must not be there where rope.scaling.type is {kind}")
        return {"rope_base": base, **_llama3(factors.astype(np.float64), base)}
    if kind == "none":
        return {"rope_base": base}
    result = {"rope_base": base, "rope_scaling": kind, "rope_factor": factor}
    if kind == "yarn":
        result["rope_context"] = own.get("rope.scaling.original_context_length")
        names = {"yarn_beta_fast": "rope_beta_fast", "yarn_beta_slow": "rope_beta_slow"}
        result |= {ours: own[f"rope.scaling.{name}"] for name, ours in names.items() if f"rope.scaling.{name}" in own}
        if attention != 1:  # it comes on top of yarn's own
            result["rope_attention"] = attention * (0.1 * math.log(factor) + 1)
    return result


def _llama3(factors: np.ndarray, base: float) -> dict[str, Any]:
    """Return the settings of which llama.cpp's converter made these factors.

    A pair that turns r times in the first context has 1 / ((1 - kept) / factor + kept), kept = (r - low) / (high - low)
    between 0 and 1. With r = context turns, that is a line through the pairs in between. It tells context, low and high
    up to a common multiple; low is 1 in all Llamas.
    """
    factor = float(factors[-1])
    if (factors == 1).all():
        return {}
    turns = base ** (-np.arange(len(factors)) / len(factors)) / (2 * math.pi)  # in one position
    between = (factors > 1) & (factors < factor)
    if between.sum() >= 2:
        kept = (1 / factors - 1 / factor) / (1 - 1 / factor)
        slope, offset = np.polyfit(turns[between], kept[between], 1)
        high = round(float(1 - 1 / offset), 3)
        context = round(float(slope) * (high - 1))
        kept = np.clip((context * turns - 1) / (high - 1), 0, 1)
        if np.allclose(factors, 1 / ((1 - kept) / factor + kept), rtol=1e-5, atol=0):
            return {
                "rope_scaling": "llama3", "rope_factor": factor, "rope_context": context, "rope_low_frequency": 1.0,
                "rope_high_frequency": high,
            }  # fmt: skip
    raise ValueError(f"'{_FACTORS}' must be factors of Llama 3's formula, got {factors.tolist()!s:.80}")


def _weights_from(
    tensors: dict[str, "ReaderTensor"], config: LlamaConfig, permuted: bool, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return Llama's state_dict; permuted says that rows of queries and keys alternate between a head's halves."""
    parts = layout(config)
    names = {theirs: _name(theirs) for group in parts.values() for theirs, _ in group}
    shapes = {name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in tensors.items()}
    check_shapes(parts, shapes, names, MODEL)
    result = {}
    for ours, group in parts.items():
        pieces = []
        for theirs, shape in group:
            piece = torch.from_numpy(_numbers(tensors[names[theirs]])).to(dtype)
            if permuted and ("q_proj" in theirs or "k_proj" in theirs):
                halves = piece.view(-1, config.head_size // 2, 2, *shape[1:])
                piece = halves.transpose(1, 2).reshape(shape)
            pieces.append(piece)
        result[ours] = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return result


def _name(theirs: str) -> str:
    stem, _, kind = theirs.rpartition(".")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{kind}"
    _, layer, name = stem.split(".", 2)
    return f"blk.{layer}.{_BLOCK_NAMES[name]}.{kind}"


def _numbers(tensor: "ReaderTensor") -> np.ndarray:
    """Return a tensor as float32 in memory of its own."""
    from gguf.quants import dequantize

    try:
        return np.require(dequantize(tensor.data, tensor.tensor_type), np.float32, ["C", "W"])
    except NotImplementedError as error:
        raise ValueError(
            f"'{tensor.name}' must be of a type that the package gguf can dequantise, got {tensor.tensor_type.name}"
        ) from error
