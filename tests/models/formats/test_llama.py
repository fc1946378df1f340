"""Hugging Face's Llama, Mistral, Qwen2 and Qwen3 in and out, against transformers."""

import json
import re
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from fastllm.models import pretrained
from fastllm.models.config import LlamaConfig
from fastllm.models.formats import llama
from tests.models.formats.plain import plain_llama

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 67, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
TOKENS = torch.arange(2 * 40).view(2, 40) * 7 % 67
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
# (model_type, settings): what the four types are made of, and rotary positions of every kind in both spellings.
MODELS = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-all-heads": ("llama", {"num_key_value_heads": None}),
    "llama-wide-heads": ("llama", {"head_dim": 16, "rms_norm_eps": 1e-3}),
    "mistral": ("mistral", {"sliding_window": 5}),
    "mistral-no-window": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied-window": (
        "qwen2", {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
    ),
    "qwen2-window-nowhere": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-window": (
        "qwen3",
        {"head_dim": 8, "use_sliding_window": True, "sliding_window": 5, "layer_types": ["sliding_attention"] * 2},
    ),
    "base": ("llama", {"rope_theta": 500.0}),
    "linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 2.5}}),
    "llama3": ("llama", {"rope_theta": 100.0, "rope_scaling": LLAMA3}),
    "llama3-new": ("llama", {"rope_parameters": {"rope_theta": 100.0, **LLAMA3}}),
    "yarn": ("llama", {"rope_theta": 100.0, "rope_scaling": YARN}),
    "yarn-new": ("qwen3", {"head_dim": 16, "rope_parameters": {"rope_theta": 100.0, **YARN}}),
    "yarn-betas": ("llama", {"rope_theta": 100.0, "rope_scaling": {**YARN, "beta_fast": 2.0, "beta_slow": 0.5}}),
    "yarn-attention": ("llama", {"rope_theta": 100.0, "rope_scaling": {**YARN, "attention_factor": 1.5}}),
    "yarn-mscale": ("llama", {"rope_theta": 100.0, "rope_scaling": {**YARN, "mscale": 2.0, "mscale_all_dim": 0.5}}),
    "yarn-no-factor": ("llama", {"rope_theta": 100.0, "rope_scaling": {**YARN, "factor": None}}),
}  # fmt: skip


def theirs(kind="llama", dtype=torch.float32, **changes):
    """A model of transformers; norms and biases start at 1 and 0, which would hide a mix-up."""
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **json.loads(json.dumps(changes))})
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.3)
    return model.to(dtype).eval()


def reload(folder, dtype="auto"):
    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def assert_round_trip(tmp_path, model, **save):
    """Ours reads it and means the same; transformers reads what ours wrote and has the same bits."""
    model.save_pretrained(tmp_path / "theirs", **save)
    config, weights = llama.read(tmp_path / "theirs")
    with torch.no_grad():
        expected = reload(tmp_path / "theirs")(TOKENS).logits  # model itself may have rounded its rotary frequencies
        for tokens, logits in zip(
            TOKENS, reload(tmp_path / "theirs", torch.float32)(TOKENS).logits.double(), strict=True
        ):
            torch.testing.assert_close(plain_llama(weights, config, tokens), logits, rtol=2e-4, atol=2e-4)
        llama.write(tmp_path / "ours", config, weights)
        again = reload(tmp_path / "ours")
        assert again.dtype == model.dtype
        assert torch.equal(again(TOKENS).logits, expected)
    assert_same(llama.read(tmp_path / "ours"), (config, weights))
    return config, weights


def assert_same(got, expected):
    assert got[0].cost() == expected[0].cost()
    assert got[1].keys() == expected[1].keys()
    for name, tensor in got[1].items():
        assert tensor.dtype == expected[1][name].dtype and torch.equal(tensor, expected[1][name]), name


# --- there and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_round_trips(tmp_path, name):
    kind, changes = MODELS[name]
    config, weights = assert_round_trip(tmp_path, theirs(kind, **changes))
    assert config.tie_embeddings == ("output.weight" not in weights)
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    expected = "llama" if name == "mistral-no-window" else kind  # the same model
    assert written["model_type"] == expected
    assert written["architectures"] == [llama.ARCHITECTURES[expected]]


@pytest.mark.parametrize("kind", llama.ARCHITECTURES)
def test_bfloat16_stays_bfloat16(tmp_path, kind):
    _, weights = assert_round_trip(tmp_path, theirs(kind, torch.bfloat16, head_dim=8))
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("tied", [True, False])
def test_shards(tmp_path, tied, monkeypatch):
    monkeypatch.setattr(pretrained, "SHARD_BYTES", 20_000)
    assert_round_trip(tmp_path, theirs(tie_word_embeddings=tied), max_shard_size="20KB")
    for folder in (tmp_path / "theirs", tmp_path / "ours"):
        files = list(folder.glob("model-*.safetensors"))
        assert len(files) > 1 and not (folder / "model.safetensors").exists()
    sizes = [sum(t.nbytes for t in safetensors.torch.load_file(file).values()) for file in files]
    assert max(sizes) <= 20_000
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)


def test_the_contract_of_names():
    """What fastllm's Llama calls its tensors, and their shapes."""
    c, d, h, k, f, v = 32, 8, 6, 2, 40, 67
    sizes = LlamaConfig(v, 16, 1, h, k, c, d, f, qkv_bias=True, tie_embeddings=False)
    block = {
        "norm_1.weight": (c,), "attention.qkv.weight": ((h + 2 * k) * d, c), "attention.qkv.bias": ((h + 2 * k) * d,),
        "attention.projection.weight": (c, h * d), "norm_2.weight": (c,), "feed_forward.expand.weight": (2 * f, c),
        "feed_forward.contract.weight": (c, f),
    }  # fmt: skip
    expected = {"embedding.weight": (v, c), "norm.weight": (c,), "output.weight": (v, c)}
    expected |= {f"blocks.0.{name}": shape for name, shape in block.items()}

    def shapes(config):
        parts = llama.layout(config)
        return {name: (sum(shape[0] for _, shape in part), *part[0][1][1:]) for name, part in parts.items()}

    assert shapes(sizes) == expected
    expected |= {f"blocks.0.attention.{name}_norm.weight": (d,) for name in ("query", "key")}
    del expected["output.weight"], expected["blocks.0.attention.qkv.bias"]
    assert shapes(replace(sizes, qkv_bias=False, qk_norm=True, tie_embeddings=True)) == expected


@pytest.mark.parametrize("kind", llama.ARCHITECTURES)
def test_what_a_config_does_not_say(kind):
    """Old files are short: the rest is what transformers takes."""
    needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = {**{name: SIZES[name] for name in needed}, "num_attention_heads": 32, "hidden_size": 64}
    assert_same_settings(
        llama.config_from({"model_type": kind, **sizes}), transformers.AutoConfig.for_model(kind, **sizes)
    )


def assert_same_settings(ours, config):
    assert ours.context_length == config.max_position_embeddings
    assert ours.kv_heads == config.num_key_value_heads
    assert ours.head_size == (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    assert ours.norm_eps == config.rms_norm_eps
    assert ours.rope_base == config.rope_parameters["rope_theta"]
    assert ours.tie_embeddings == config.tie_word_embeddings
    assert ours.window == (config.sliding_window if config.model_type == "mistral" else None)


def test_a_window_that_is_not_used():
    """So are the files of Qwen 2.5."""
    sizes = {"use_sliding_window": False, "sliding_window": 5, "max_window_layers": 1}
    assert llama.config_from({"model_type": "qwen2", **SIZES, **sizes}).window is None
    assert llama.config_from({"model_type": "llama", **SIZES, "sliding_window": 5}).window is None


def test_where_the_first_context_is_not_said():
    """It is then the model's own; a setting beside the rotary ones counts first."""
    yarn = {"model_type": "llama", **SIZES, "rope_scaling": {"type": "yarn", "factor": 2.0}}
    assert llama.config_from(yarn).rope_context is None
    beside = {**yarn, "rope_scaling": YARN, "original_max_position_embeddings": 8}
    assert llama.config_from(beside).rope_context == 8


# --- in -------------------------------------------------------------------------------------------------------------


def test_without_the_prefix(tmp_path):
    model = theirs(tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "whole")
    model.model.save_pretrained(tmp_path / "inner")
    assert any(name.startswith("layers.") for name in safetensors.torch.load_file(tmp_path / "inner/model.safetensors"))
    assert_same(llama.read(tmp_path / "inner"), llama.read(tmp_path / "whole"))


def test_an_old_checkpoint(tmp_path):
    """torch.save's format, rotary frequencies among the weights, the output layer stored though it is tied."""
    model = theirs(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    expected = llama.read(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    weights = model.state_dict()
    assert "lm_head.weight" in weights
    for layer in range(2):
        weights[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    assert_same(llama.read(tmp_path), expected)
    weights["lm_head.weight"] = weights["lm_head.weight"] + 1
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"'lm_head.weight' must be equal to 'embed_tokens.weight', as tie_word_"):
        llama.read(tmp_path)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].bfloat16()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"'lm_head.weight' must be equal to 'embed_tokens.weight'"):
        llama.read(tmp_path)


def test_an_output_layer_that_gives_the_embedding_its_weights(tmp_path):
    """safetensors' save_model keeps one name of a tied pair: the first in the alphabet."""
    model = theirs(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    expected = llama.read(tmp_path)
    safetensors.torch.save_model(model, tmp_path / "model.safetensors")
    assert "model.embed_tokens.weight" not in safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert_same(llama.read(tmp_path), expected)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("llama", {"model_type": "gemma"}, "'model_type' must be one of llama, mistral, qwen2, qwen3, got 'gemma'"),
        ("llama", {"model_type": ["llama"]}, r"'model_type' must be one of .*, got \['llama'\]"),
        ("llama", {"hidden_act": "gelu"}, "'hidden_act' must be silu, as .* SwiGLU, got gelu"),
        ("llama", {"mlp_bias": True}, "'mlp_bias' must be False, .*, got True"),
        ("llama", {"attention_bias": True}, "'attention_bias' must be False, as attention's output .*, got True"),
        ("qwen3", {"attention_bias": True}, "'attention_bias' must be False, .*, got True"),
        ("llama", {"attention_dropout": 0.1}, "'attention_dropout' must be 0.0, as .* residual branches .*, got 0.1"),
        ("llama", {"quantization_config": {"bits": 4}}, "'quantization_config' must be None, .*, got {'bits': 4}"),
        ("llama", {"hidden_size": "32"}, "config.json: Llama config: 'hidden_size' must be a whole number, got str"),
        ("llama", {"vocab_size": None}, "'vocab_size' must be a whole number, got None"),
        ("llama", {"rms_norm_eps": "small"}, "'rms_norm_eps' must be a number, got str 'small'"),
        ("llama", {"tie_word_embeddings": 1}, "'tie_word_embeddings' must be a bool, got int 1"),
        ("llama", {"num_attention_heads": 3}, r"'n_head' must be a multiple of n_kv_head \(2\), got 3"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'rope_type' must be one of .*, got 'dynamic'"),
        ("llama", {"rope_scaling": {"rope_type": "longrope"}}, "'rope_type' must be one of .*, got 'longrope'"),
        ("llama", {"rope_scaling": {"rope_type": ["yarn"]}}, r"'rope_type' must be one of .*, got \['yarn'\]"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "'factor' must be a number, got None"),
        ("llama", {"rope_scaling": {**LLAMA3, "low_freq_factor": None}}, "'low_freq_factor' must be a number, got"),
        ("llama", {"rope_scaling": {**YARN, "truncate": False}}, "'truncate' must be True, got False"),
        ("llama", {"rope_scaling": {**YARN, "mscale": "1", "mscale_all_dim": 1}}, "'mscale' must be a number"),
        (
            "llama", {"rope_scaling": {**YARN, "original_max_position_embeddings": 16.5}},
            "'original_max_position_embeddings' must be a whole number, got float 16.5",
        ),
        ("llama", {"rope_scaling": "yarn"}, "'rope_scaling' must be a dict, got str 'yarn'"),
        ("llama", {"partial_rotary_factor": 0.5}, "'partial_rotary_factor' must be 1, got 0.5"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "'rope_parameters' must be one for"),
        ("llama", {"rope_parameters": {"rope_theta": "1e4"}}, "'rope_theta' must be a number, got str '1e4'"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "layer_types": None},
            "'max_window_layers' must give all layers one window or none, got 1",
        ),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
            "'layer_types' must give all layers one window or none, got .'sliding_attention', 'full_attention'.",
        ),
        ("qwen2", {"layer_types": ["chunked_attention"] * 2}, "'layer_types' must give all layers one window or none"),
        ("qwen2", {"layer_types": 2}, "'layer_types' must be a list, got int 2"),
        (
            "qwen2", {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 2},
            r"'layer_types' must agree with sliding_window \(None\), got .'sliding_attention'",
        ),
        (
            "mistral", {"sliding_window": 5, "layer_types": ["full_attention"] * 2},
            r"'layer_types' must agree with sliding_window \(5\), got .'full_attention'",
        ),
        ("mistral", {"sliding_window": 0}, "'window' must be at least 1, got 0"),
        ("llama", {"num_hidden_layers": 3}, "the weights lack 'layers.2.input_layernorm.weight'"),
        ("llama", {"num_hidden_layers": 1}, "has no 'model.layers.1.*', which is among the weights"),
        (
            "llama", {"vocab_size": 68},
            r"'model.embed_tokens.weight' must have the shape \(68, 32\), got \(67, 32\)",
        ),
        ("llama", {"tie_word_embeddings": True}, "'lm_head.weight' must be equal to 'embed_tokens.weight'"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit(tmp_path, kind, change, message):
    theirs(kind, head_dim=8).save_pretrained(tmp_path)
    change_config(tmp_path, **change)
    with pytest.raises(ValueError, match=message) as caught:
        llama.read(tmp_path)
    assert f"{caught.value}".startswith(f"{tmp_path}") and "\n" not in f"{caught.value}"


def test_a_config_without_a_size(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 67}')
    with pytest.raises(ValueError, match=r"config.json: Llama config: 'num_hidden_layers' is missing"):
        llama.read(tmp_path)


def test_weights_that_do_not_fit():
    model = theirs("qwen2")
    config = llama.config_from(model.config.to_dict())
    weights = dict(model.state_dict())
    bias = weights.pop("model.layers.1.self_attn.k_proj.bias")
    with pytest.raises(ValueError, match=r"the weights lack 'layers.1.self_attn.k_proj.bias'"):
        llama.weights_from(weights, config)
    weights["model.layers.1.self_attn.k_proj.bias"] = bias[:-1]
    with pytest.raises(
        ValueError, match=r"'model.layers.1.self_attn.k_proj.bias' must have the shape \(16,\), got \(15,\)"
    ):
        llama.weights_from(weights, config)
    weights["model.layers.1.self_attn.k_proj.bias"] = bias
    weights["model.layers.1.self_attn.o_proj.bias"] = bias
    with pytest.raises(ValueError, match=r"has no 'model.layers.1.self_attn.o_proj.bias', which is among the weights"):
        llama.weights_from(weights, config)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json is missing: .* is not a model's folder"):
        llama.read(tmp_path)
    theirs().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no weights: expected model.safetensors"):
        llama.read(tmp_path)


# --- out ------------------------------------------------------------------------------------------------------------


def some_state(config):
    parts = llama.layout(config)
    return {
        name: 0.3 * torch.randn(sum(shape[0] for _, shape in part), *part[0][1][1:]) for name, part in parts.items()
    }


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "llama"),
        ({"n_embd": 30, "head_dim": 16}, "mistral"),  # transformers' Llama refuses 30 channels for 4 heads
        ({"window": 5}, "mistral"),
        ({"qkv_bias": True}, "qwen2"),
        ({"qkv_bias": True, "window": 5, "head_dim": 16}, "qwen2"),
        ({"qk_norm": True, "head_dim": 16}, "qwen3"),
        ({"qk_norm": True, "window": 5}, "qwen3"),
        ({"rope_scaling": "yarn", "rope_factor": 4.0, "rope_beta_fast": 8.0, "rope_attention": 1.25}, "llama"),
        ({"rope_scaling": "llama3", "rope_factor": 4.0, "rope_high_frequency": 3.0, "rope_context": 24}, "llama"),
        ({"rope_scaling": "linear", "rope_factor": 3.0, "rope_base": 300.0}, "llama"),
    ],
)
def test_transformers_reads_what_we_write(tmp_path, changes, kind):
    sizes = {"vocab_size": 67, "context_length": 64, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32}
    config = LlamaConfig(**{**sizes, "n_hidden": 48, **changes})
    state = some_state(config)
    llama.write(tmp_path, config, state)
    model = reload(tmp_path)
    assert model.config.model_type == kind
    with torch.no_grad():
        logits = model(TOKENS[:1]).logits[0].double()
    torch.testing.assert_close(plain_llama(state, config, TOKENS[0]), logits, rtol=2e-4, atol=2e-4)
    assert_same(llama.read(tmp_path), (config, state))


def test_every_setting_comes_back(tmp_path):
    config = LlamaConfig(
        67, 64, 2, 4, 2, 32, 8, 48, norm_eps=1e-4, qkv_bias=True, window=7, tie_embeddings=True, rope_base=300.0,
        rope_scaling="yarn", rope_factor=2.0, rope_context=16, rope_beta_fast=9.0, rope_beta_slow=2.0,
        rope_attention=1.5,
    )  # fmt: skip
    assert llama.config_from(llama.config_to(config)) == config
    config = replace(config, qkv_bias=False, qk_norm=True, window=None, rope_scaling="llama3", rope_low_frequency=2.0,
                     rope_high_frequency=5.0, rope_beta_fast=32.0, rope_beta_slow=1.0, rope_attention=None)  # fmt: skip
    assert llama.config_from(llama.config_to(config)) == config


def test_the_presets_are_written(tmp_path):
    for name in LlamaConfig.presets:
        config = LlamaConfig.preset(name)
        assert llama.config_from(llama.config_to(config)).cost() == config.cost()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"qkv_bias": True, "qk_norm": True},
            "'qkv_bias' must be False beside qk_norm, as Qwen3 has no biases, got True",
        ),
    ],
)
def test_what_no_architecture_has(tmp_path, changes, message):
    config = LlamaConfig(67, 64, 2, 4, 2, 32, 8, 48, **changes)
    with pytest.raises(ValueError, match=message):
        llama.write(tmp_path, config, some_state(config))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("norm.weight"), "weights_to: 'state' must have 'norm.weight'"),
        (lambda s: s.update({"bias": torch.ones(1)}), "'state' must be of a Llama .*, which has no 'bias'"),
        (
            lambda s: s.update({"blocks.0.attention.qkv.weight": torch.ones(63, 32)}),
            r"'blocks.0.attention.qkv.weight' must have the shape \(64, 32\), got \(63, 32\)",
        ),
    ],
)
def test_a_state_that_does_not_fit(change, message):
    config = LlamaConfig(67, 64, 2, 4, 2, 32, 8, 48)
    state = some_state(config)
    change(state)
    with pytest.raises(ValueError, match=message):
        llama.weights_to(state, config)


def test_the_ids_of_a_tokenizer(tmp_path):
    config = LlamaConfig(67, 64, 1, 4, 2, 32, 8, 48)
    llama.write(tmp_path / "none", config, some_state(config))
    model = reload(tmp_path / "none")
    assert model.config.bos_token_id is None and model.config.eos_token_id is None
    assert model.generation_config.suppress_tokens is None
    llama.write(tmp_path / "some", config, some_state(config), 1, [2, 5], 65)
    model = reload(tmp_path / "some")
    assert (model.config.bos_token_id, model.config.eos_token_id) == (1, [2, 5])
    generation = model.generation_config
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, [2, 5], 2)
    assert generation.suppress_tokens == [65, 66]
    assert llama.generation_config(config, None, 3)["eos_token_id"] == 3


def test_written_files_say_nothing_of_shards(tmp_path):
    """And are as readable as others."""
    config = LlamaConfig(67, 64, 1, 4, 2, 32, 8, 48)
    llama.write(tmp_path, config, some_state(config))
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "config.json").stat().st_mode
    names = safetensors.torch.load_file(tmp_path / "model.safetensors").keys()
    assert all(re.match(r"model\.|lm_head\.weight$", name) for name in names)
