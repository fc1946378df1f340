"""GPT-2 in and out: Hugging Face's folders in all their forms, and nanoGPT's checkpoints."""

import json
import math
import os

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from fastllm.models import GPT, GPTConfig
from fastllm.models.formats.gpt2 import from_gpt2, to_gpt2

transformers = pytest.importorskip("transformers")

# B batch, T tokens, C channels, H heads, V vocabulary

SIZES = {"vocab_size": 67, "n_positions": 24, "n_layer": 3, "n_head": 4, "n_embd": 48}
TOKENS = torch.arange(3 * 24).view(3, 24) * 7 % 67


def randomised(model):
    """Biases and norms start at 0 and 1, which would hide a mix-up."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def gpt2(**changes):
    return randomised(transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**SIZES, **changes})))


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def assert_same_logits(folder, oracle):
    model = GPT.from_pretrained(folder)
    torch.testing.assert_close(model(TOKENS), oracle(TOKENS).logits, rtol=0, atol=1e-4)


# --- in -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours"), [("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh"), ("gelu", "gelu")]
)
def test_activations(tmp_path, theirs, ours):
    oracle = gpt2(activation_function=theirs)
    oracle.save_pretrained(tmp_path)
    assert GPT.from_pretrained(tmp_path).config.activation == ours  # the two forms differ by less than the tolerance
    assert_same_logits(tmp_path, oracle)


def test_without_the_prefix(tmp_path):
    oracle = gpt2()
    oracle.transformer.save_pretrained(tmp_path)
    assert_same_logits(tmp_path, oracle)


def test_shards(tmp_path):
    oracle = gpt2()
    oracle.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_same_logits(tmp_path, oracle)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shard = index["weight_map"]["transformer.ln_f.weight"]
    (tmp_path / shard).unlink()
    with pytest.raises(FileNotFoundError, match=f"{shard} is missing"):
        GPT.from_pretrained(tmp_path)
    index["weight_map"]["transformer.ln_f.weight"] = "../elsewhere.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"a shard must be a file beside it, got '../elsewhere"):
        GPT.from_pretrained(tmp_path)


def test_an_old_checkpoint(tmp_path):
    """torch.save's format, causal masks among the weights, the output layer stored though it is tied."""
    oracle = gpt2()
    oracle.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    weights = oracle.state_dict()
    assert "lm_head.weight" in weights
    for layer in range(3):
        weights[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 24, 24).tril()
        weights[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    assert_same_logits(tmp_path, oracle)


def test_an_output_layer_that_gives_the_embedding_its_weights(tmp_path):
    """safetensors' save_model keeps one name of a tied pair: the first in the alphabet."""
    oracle = gpt2()
    oracle.save_pretrained(tmp_path)
    safetensors.torch.save_model(oracle, tmp_path / "model.safetensors")
    names = safetensors.torch.load_file(tmp_path / "model.safetensors").keys()
    assert "lm_head.weight" in names and "transformer.wte.weight" not in names
    assert_same_logits(tmp_path, oracle)
    stored = nanogpt_checkpoint(True)
    stored["model"].pop("transformer.wte.weight")
    torch.save(stored, tmp_path / "ckpt.pt")
    tokens = torch.tensor([[3, 1, 4, 1]])
    expected = plain_nanogpt({**stored["model"], "wte.weight": stored["model"]["lm_head.weight"]}, tokens[0])
    logits = GPT.from_nanogpt(tmp_path / "ckpt.pt")(tokens)[0].double()
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_what_is_loaded_is_in_eval_mode(tmp_path):
    """As transformers has it: with GPT-2's dropout of 0.1 the outputs would be random."""
    oracle = gpt2()
    oracle.save_pretrained(tmp_path / "gpt2")
    GPT(GPTConfig(11, 8, 1, 2, 16, dropout=0.1)).save_pretrained(tmp_path / "ours")
    torch.save(nanogpt_checkpoint(True), tmp_path / "ckpt.pt")
    loaded = (
        GPT.from_pretrained(tmp_path / "gpt2"),
        GPT.from_pretrained(tmp_path / "ours"),
        GPT.from_nanogpt(tmp_path / "ckpt.pt"),
    )
    for model in loaded:
        assert not any(module.training for module in model.modules())
        assert model.config.dropout == 0.1
    torch.testing.assert_close(loaded[0](TOKENS), oracle(TOKENS).logits, rtol=0, atol=1e-4)


def test_half_precision_weights_become_float32(tmp_path):
    gpt2().bfloat16().save_pretrained(tmp_path)
    model = GPT.from_pretrained(tmp_path)
    assert model.embedding.token.weight.dtype == torch.float32


def test_an_output_layer_of_its_own(tmp_path):
    oracle = gpt2(tie_word_embeddings=False)
    oracle.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'tie_word_embeddings' must be True, got False"):
        GPT.from_pretrained(tmp_path)
    change_config(tmp_path, tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"'lm_head.weight' must be equal to 'wte.weight'"):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "'model_type' must be one of gpt2, .*fastllm-gpt.*, got 'bert'"),
        ({"activation_function": "relu"}, "'activation_function' must be one of gelu_new, .*, got 'relu'"),
        ({"n_inner": 7}, r"'n_inner' must be 4 n_embd \(192\), got 7"),
        ({"attn_pdrop": 0.3}, "the dropouts must be equal, got resid_pdrop 0.1, embd_pdrop 0.1, attn_pdrop 0.3"),
        ({"layer_norm_epsilon": 1e-6}, "'layer_norm_epsilon' must be 1e-05, got 1e-06"),
        ({"scale_attn_weights": False}, "'scale_attn_weights' must be True, got False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "'scale_attn_by_inverse_layer_idx' must be False, got True"),
        ({"reorder_and_upcast_attn": True}, "'reorder_and_upcast_attn' must be False, got True"),
        ({"add_cross_attention": True}, "'add_cross_attention' must be False, got True"),
        ({"n_head": 5}, r"'n_embd' must be a multiple of n_head \(5\), got 48"),
        ({"n_layer": "12"}, "config.json: GPT-2 config: 'n_layer' must be a whole number, got str '12'"),
        ({"n_embd": 48.0}, "'n_embd' must be a whole number, got float 48.0"),
        ({"vocab_size": None}, "'vocab_size' must be a whole number, got None"),
        ({"n_positions": [24]}, r"'n_positions' must be a whole number, got list \[24\]"),
        ({"n_head": True}, "'n_head' must be a whole number, got bool True"),
        ({"attn_pdrop": "0.1"}, "'attn_pdrop' must be a number, got str '0.1'"),
        ({"resid_pdrop": [0.1]}, r"'resid_pdrop' must be a number, got list \[0.1\]"),
        ({"activation_function": ["gelu"]}, r"'activation_function' must be a str, got list \['gelu'\]"),
        ({"n_inner": "192"}, r"'n_inner' must be 4 n_embd \(192\), got 192"),
        ({"model_type": ["gpt2"]}, r"'model_type' must be one of gpt2, .*fastllm-gpt.*, got \['gpt2'\]"),
        ({"n_layer": 4}, r"the weights lack 'blocks.3\."),
        ({"n_layer": 2}, r"the model has no 'blocks.2\..*', which is among the weights"),
        ({"vocab_size": 68}, r"'embedding.token.weight' must have the shape \(68, 48\), got \(67, 48\)"),
    ],
)
def test_a_config_that_does_not_fit(tmp_path, change, message):
    gpt2().save_pretrained(tmp_path)
    change_config(tmp_path, **change)
    with pytest.raises(ValueError, match=message):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layer": "3"}, "config.json: GPTConfig: 'n_layer' must be a whole number, got str '3'"),
        ({"dropout": None}, "'dropout' must be a number, got None"),
        (
            {"layers": 3},
            "'layers' is not a setting; did you mean n_layer.; there are vocab_size, context_length, ",
        ),
    ],
)
def test_a_config_of_ours_that_does_not_fit(tmp_path, change, message):
    GPT(GPTConfig(67, 24, 1, 4, 48)).save_pretrained(tmp_path)
    change_config(tmp_path, **change)
    with pytest.raises(ValueError, match=message):
        GPT.from_pretrained(tmp_path)


def test_a_config_without_a_size(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "vocab_size": 67}')
    with pytest.raises(ValueError, match=r"config.json: GPT-2 config: 'n_layer' is missing"):
        GPT.from_pretrained(tmp_path)


class Evil:
    """What a pickle can do: run a command when it is read."""

    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "config.json is damaged: it is not JSON"),
        ("config.json", b"[]", "config.json is damaged: expected an object, got list"),
        ("model.safetensors", b"\0" * 20, "model.safetensors is damaged"),
        ("pytorch_model.bin", b"nothing", "pytorch_model.bin is damaged, or holds more than tensors"),
        ("pytorch_model.bin", [1], "pytorch_model.bin: expected tensors by name, got list"),
        ("pytorch_model.bin", {"a": 1}, "pytorch_model.bin: expected tensors by name, got int 1 as 'a'"),
        ("pytorch_model.bin", Evil(), "pytorch_model.bin is damaged, or holds more than tensors and plain values"),
        ("model.safetensors.index.json", b"{}", "model.safetensors.index.json is damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    gpt2().save_pretrained(tmp_path)
    if name != "config.json":
        (tmp_path / "model.safetensors").unlink()
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(ValueError, match=message):
        GPT.from_pretrained(tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json is missing: .* is not a model's folder"):
        GPT.from_pretrained(tmp_path)
    gpt2().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no weights: expected model.safetensors"):
        GPT.from_pretrained(tmp_path)


# --- out ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu"])
def test_transformers_reads_what_we_write(tmp_path, bias, activation):
    config = GPTConfig(67, 24, 3, 4, 48, dropout=0.2, bias=bias, activation=activation)
    model = randomised(GPT(config))
    model.save_huggingface(tmp_path)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    theirs = theirs.eval()
    assert theirs.dtype == torch.float32
    assert theirs.config.resid_pdrop == theirs.config.embd_pdrop == theirs.config.attn_pdrop == 0.2
    assert theirs.config.eos_token_id is None
    expected = theirs(TOKENS, labels=TOKENS)
    torch.testing.assert_close(model(TOKENS), expected.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(model.loss(TOKENS[:, :-1], TOKENS[:, 1:]), expected.loss, rtol=1e-6, atol=1e-6)
    again = GPT.from_pretrained(tmp_path)
    torch.testing.assert_close(again(TOKENS), model(TOKENS), rtol=0, atol=1e-6)


def test_there_and_back_changes_no_bit(tmp_path):
    state = randomised(GPT(GPTConfig(67, 24, 3, 4, 48))).state_dict()
    back = from_gpt2(to_gpt2(state))
    assert state.keys() == back.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_written_files_are_as_readable_as_others(tmp_path):
    GPT(GPTConfig(67, 24, 1, 4, 48)).save_huggingface(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "config.json").stat().st_mode


def test_a_tokenizer_that_does_not_fit(tmp_path):
    from fastllm.tokenizers import ByteTokenizer

    with pytest.raises(ValueError, match="'tokenizer' must have at most the model's 67 tokens, got 257"):
        GPT(GPTConfig(67, 24, 1, 4, 48)).save_huggingface(tmp_path, ByteTokenizer())


# --- nanoGPT --------------------------------------------------------------------------------------------------------


def nanogpt_checkpoint(bias, prefix="", vocabulary=11):
    """What nanoGPT's train.py saves, its weights made up: linear layers (out, in), the output layer tied."""
    channels, layers, context = 16, 2, 8
    weights = {"wte.weight": torch.randn(vocabulary, channels), "wpe.weight": torch.randn(context, channels)}
    linear = {"attn.c_attn": (3, 1), "attn.c_proj": (1, 1), "mlp.c_fc": (4, 1), "mlp.c_proj": (1, 4)}
    for layer in range(layers):
        for name, (out, into) in linear.items():
            weights[f"h.{layer}.{name}.weight"] = 0.3 * torch.randn(out * channels, into * channels)
            weights[f"h.{layer}.{name}.bias"] = torch.randn(out * channels)
        weights |= {f"h.{layer}.ln_{i}.{kind}": torch.randn(channels) for i in (1, 2) for kind in ("weight", "bias")}
    weights |= {f"ln_f.{kind}": torch.randn(channels) for kind in ("weight", "bias")}
    named = {f"{prefix}transformer.{name}": w for name, w in weights.items() if bias or not name.endswith("bias")}
    named[f"{prefix}lm_head.weight"] = weights["wte.weight"]
    arguments = {"n_layer": layers, "n_head": 2, "n_embd": channels, "block_size": context, "bias": bias,
                 "vocab_size": vocabulary, "dropout": 0.1}  # fmt: skip
    return {"model": named, "model_args": arguments, "optimizer": {"state": {}}, "iter_num": 7,
            "best_val_loss": torch.tensor(1.5), "config": {"out_dir": "out"}}  # fmt: skip


def plain_nanogpt(weights, tokens, heads=2, layers=2):
    """The model of such a checkpoint in plain steps: (T,) -> logits (T, V)."""
    weights = {name.removeprefix("_orig_mod.").removeprefix("transformer."): w.double() for name, w in weights.items()}

    def linear(x, name):
        y = x @ weights[f"{name}.weight"].T
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    def norm(x, name):
        y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return y * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0)

    x = weights["wte.weight"][tokens] + weights["wpe.weight"][: len(tokens)]
    for layer in range(layers):
        query, key, value = linear(norm(x, f"h.{layer}.ln_1"), f"h.{layer}.attn.c_attn").chunk(3, -1)
        mixed = []
        for q, k, v in zip(*(t.chunk(heads, -1) for t in (query, key, value)), strict=True):
            scores = q @ k.T / math.sqrt(q.shape[-1])
            future = torch.ones_like(scores, dtype=torch.bool).triu(1)
            mixed.append(scores.masked_fill(future, -math.inf).softmax(-1) @ v)
        x = x + linear(torch.cat(mixed, -1), f"h.{layer}.attn.c_proj")
        x = x + linear(F.gelu(linear(norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc")), f"h.{layer}.mlp.c_proj")
    return norm(x, "ln_f") @ weights["lm_head.weight"].T


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("bias", [True, False])
def test_nanogpts_checkpoint(tmp_path, bias, prefix):
    checkpoint = nanogpt_checkpoint(bias, prefix)
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    model = GPT.from_nanogpt(tmp_path / "ckpt.pt")
    assert model.config == GPTConfig(11, 8, 2, 2, 16, dropout=0.1, bias=bias, activation="gelu")
    tokens = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    expected = plain_nanogpt(checkpoint["model"], tokens)
    torch.testing.assert_close(model(tokens[None])[0].double(), expected, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "ours")
    assert GPT.from_pretrained(tmp_path / "ours").config == model.config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: [1], "expected 'model' and 'model_args' in it, got list"),
        (lambda c: {"model": c["model"]}, "expected 'model' and 'model_args' in it, got model"),
        (lambda c: {**c, "model_args": {"n_layer": 2}}, "'model_args' must be bias, block_size, .*, got n_layer"),
        (lambda c: {**c, "model_args": {**c["model_args"], "n_head": 3}}, "'n_embd' must be a multiple of n_head"),
        (lambda c: {**c, "model_args": [1]}, r"'model_args' must be a dict, got list \[1\]"),
        (lambda c: {**c, "model": [1]}, "'model': expected tensors by name, got list"),
        (lambda c: {**c, "model": {"wte": 3}}, "'model': expected tensors by name, got int 3 as 'wte'"),
        (lambda c: {**c, "model_args": {**c["model_args"], "n_layer": "2"}}, "'n_layer' must be a whole number"),
        (lambda c: {**c, "config": Evil()}, "is damaged, or holds more than tensors and plain values"),
    ],
)
def test_checkpoints_that_are_not_nanogpts(tmp_path, change, message):
    torch.save(change(nanogpt_checkpoint(True)), tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match=message):
        GPT.from_nanogpt(tmp_path / "ckpt.pt")
    with pytest.raises(FileNotFoundError, match=r"none.pt does not exist"):
        GPT.from_nanogpt(tmp_path / "none.pt")


def test_unknown_activation():
    with pytest.raises(ValueError, match="'activation' must be gelu_tanh or gelu, got 'relu'"):
        GPTConfig(activation="relu")
