"""transformers' models patched: same numbers, texts and training; what is swapped; what an update must not break."""

import copy
import importlib
import io

import pytest
import torch

pytest.importorskip("transformers")

import transformers

import fastllm
from fastllm.integrations.transformers import modules
from tests.integrations.models import (
    CONFIGS,
    DECODERS,
    assert_bfloat16_as_good,
    assert_same_gradients,
    gradients,
    inputs,
    make,
    padding,
    result,
    tokens,
)  # fmt: skip
from tests.nn.twins import assert_same_curves

NAMES = [name for name in CONFIGS if name not in ("gpt_oss", "bloom", "modernbert", "gemma2")]
ATTENTION = "fastllm.ops.scaled_dot_product_attention"
CLOSE = {"rtol": 1e-5, "atol": 2e-5}


def patched(name, dtype=torch.float32, **options):
    model = make(name, "eager", dtype)
    return model, fastllm.patch(model, **options)


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs(name):
    arguments = inputs(name, None if name in ("vit", "whisper") else "right")
    model, report = patched(name)
    with torch.no_grad():
        got, expected = result(model, arguments), result(make(name, "eager"), arguments)
        torch.testing.assert_close(got, expected, **CLOSE)
        fastllm.unpatch(model)
        assert torch.equal(result(model, arguments), expected)
    assert len(report.swapped) > 10


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16(name):
    assert_bfloat16_as_good(name, patched(name, torch.bfloat16)[0])


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name):
    arguments = inputs(name)
    assert_same_gradients(*(gradients(model, arguments) for model in (patched(name)[0], make(name, "eager"))))


@pytest.mark.parametrize("name", [name for name in DECODERS if name in NAMES])
def test_generate_with_padding(name):
    options = {"attention_mask": padding("left"), "max_new_tokens": 8, "do_sample": False}
    ids = [model.generate(tokens(), **options) for model in (patched(name)[0], make(name, "eager"))]
    assert torch.equal(*ids)


@pytest.mark.parametrize("name", ["t5", "whisper"])
def test_generate_from_an_encoder(name):
    arguments = inputs(name, "right")
    del arguments["decoder_input_ids"]
    ids = [m.generate(**arguments, max_new_tokens=8, do_sample=False) for m in (patched(name)[0], make(name, "eager"))]
    assert torch.equal(*ids)


@pytest.mark.parametrize(("name", "expected"), [
    ("gpt2", {"Conv1D", "NewGELUActivation"}),
    ("bert", {"BertIntermediate", "BertSelfOutput", "BertOutput", "GELUActivation"}),
    ("roberta", {"RobertaIntermediate", "RobertaSelfOutput", "RobertaOutput", "GELUActivation"}),
    ("distilbert", {"FFN", "GELUActivation"}),
    ("vit", {"ViTMLP", "GELUActivation"}),
    ("llama", {"LlamaRMSNorm", "LlamaMLP", "LlamaAttention"}),
    ("mistral", {"MistralRMSNorm", "MistralMLP", "MistralAttention"}),
    ("qwen2", {"Qwen2RMSNorm", "Qwen2MLP", "Qwen2Attention"}),
    ("qwen3", {"Qwen3RMSNorm", "Qwen3MLP", "Qwen3Attention"}),
    ("gemma", {"GemmaRMSNorm", "GemmaAttention", "GELUTanh"}),
    ("t5", {"T5LayerNorm"}),
    ("whisper", {"GELUActivation"}),
])  # fmt: skip
def test_what_is_swapped(name, expected):
    model, report = patched(name)
    kinds = {type(module) for module in model.modules()}
    ours = {kind.__name__ for kind in kinds if kind.__module__ == modules.__name__}
    assert ours == expected
    assert torch.nn.Linear not in kinds and torch.nn.LayerNorm not in kinds and torch.nn.Embedding not in kinds
    attentions = [one for one in report.swapped if one.after == ATTENTION]
    assert len(attentions) == {"t5": 6, "whisper": 6}.get(name, 2)
    assert model.config._attn_implementation == "fastllm"


def test_this_model_alone_changes():
    config = DECODERS["llama"]()
    first, second = (transformers.LlamaForCausalLM._from_config(config, attn_implementation="eager") for _ in range(2))
    second.config = second.model.config = first.config  # as where two share one
    fastllm.patch(first)
    assert config._attn_implementation != "fastllm" and second.config._attn_implementation == "eager"
    assert first.model.layers[0].self_attn.config is first.config, "one config a model, as before"
    assert not any(type(module).__module__.startswith("fastllm.") for module in second.modules())
    fastllm.unpatch(first)
    assert first.config is second.config


def test_only():
    model = make("bert", "eager")
    report = fastllm.patch(model, only=torch.nn.LayerNorm)
    assert {one.before for one in report.swapped} == {"torch.nn.LayerNorm"}
    assert model.config._attn_implementation == "eager"
    fastllm.unpatch(model)
    fastllm.patch(model, only=transformers.models.bert.modeling_bert.BertSelfAttention)
    assert model.config._attn_implementation == "fastllm" and type(model.pooler.dense) is torch.nn.Linear


def test_attention_changes_in_all_layers_of_a_model_or_in_none():
    model = make("llama", "eager")
    report = fastllm.patch(model, only="*.1.*")
    attentions = [one.name for one in report.swapped if one.after == ATTENTION]
    assert attentions == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    both = torch.nn.ModuleDict({"bert": make("bert", "eager"), "bloom": make("bloom", "eager")})
    report = fastllm.patch(both)
    assert {one.name.split(".")[0] for one in report.swapped if one.after == ATTENTION} == {"bert"}
    assert both["bloom"].config._attn_implementation == "eager"


def test_attention_that_does_not_ask_is_left():
    """Falcon has a way of its own for each implementation."""
    config = transformers.FalconConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, alibi=True, hidden_dropout=0.0
    )
    torch.manual_seed(0)
    model = transformers.FalconForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    expected = model(tokens()).logits
    report = fastllm.patch(model)
    reasons = {one.reason for one in report.left if "attention" in one.before}
    assert reasons == {"the model does not ask transformers' attention interface"}
    torch.testing.assert_close(model(tokens()).logits, expected, **CLOSE)


def test_a_config_that_asks_for_weights_gets_them():
    model = make("gpt2", "eager")
    model.config.output_attentions = True
    report = fastllm.patch(model)
    assert any("weights" in one.reason for one in report.left)
    assert len(model(tokens()).attentions) == 2


def test_changes_of_a_config_outlive_unpatch(tmp_path):
    model, _ = patched("gpt2")
    model.resize_token_embeddings(70)
    model.config.pad_token_id = 3
    fastllm.unpatch(model)
    assert (model.config.vocab_size, model.config.pad_token_id) == (70, 3)
    assert model.config._attn_implementation == "eager" and model.transformer.config is model.config
    model.save_pretrained(tmp_path)
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    model, _ = patched("llama")
    model.set_attn_implementation("sdpa")
    fastllm.unpatch(model)
    assert model.config._attn_implementation == "sdpa"


def test_attention_may_still_be_chosen():
    """set_attn_implementation acts on a patched model as on any."""
    model, _ = patched("llama")
    model.set_attn_implementation("eager")
    arguments = inputs("llama", "right")
    torch.testing.assert_close(result(model, arguments), result(make("llama", "eager"), arguments), **CLOSE)


def test_a_hook_on_a_part_that_is_read_runs():
    """Where fused code would read a layer, a hook on it has it called."""
    seen = []
    for name, part in (("bert", "encoder.layer.0.output.LayerNorm"), ("llama", "model.layers.0.mlp.act_fn"),
                       ("bert", "encoder.layer.0.intermediate.intermediate_act_fn")):  # fmt: skip
        model, _ = patched(name)
        model.get_submodule(part).register_forward_hook(lambda *args, part=part: seen.append(part))
        result(model, inputs(name))
    assert len(seen) == 3


def test_copies_pickles_and_folders(tmp_path):
    model, _ = patched("llama")
    arguments = inputs("llama")
    expected = result(model, arguments)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    modules._made.cache_clear()  # as in the process that loads it
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(result(other, arguments), expected)
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config._attn_implementation != "fastllm"
    torch.testing.assert_close(result(loaded, arguments), expected, **CLOSE)


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_training_follows_the_same_curve(name):
    arguments = inputs(name)

    def loss(model):
        output = result(model.train(), arguments)
        return (output - torch.linspace(-1, 1, output.numel()).view_as(output)).square().mean()

    assert_same_curves(patched(name)[0], make(name, "eager"), loss)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.jit")  # torch.compile's own
@pytest.mark.parametrize("name", ["llama", "bert", "gpt2"])
def test_compiles_as_one_graph(name):
    model, _ = patched(name)
    torch.compiler.reset()
    arguments = inputs(name, "right")
    with torch.no_grad():
        expected = result(model, arguments)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(result(compiled, arguments), expected, **CLOSE)


# ----------------------------------------------------------------------------------------------------------------------
# An update of transformers
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def llama_file():
    modules._made.cache_clear()
    yield importlib.import_module("transformers.models.llama.modeling_llama")
    modules._made.cache_clear()


def refusal(model):
    with pytest.raises(RuntimeError, match="is not the one that this fastllm knows") as error:
        fastllm.patch(model)
    assert not any(type(module).__module__.startswith("fastllm.") for module in model.modules()), "nothing has changed"
    return str(error.value)


def test_a_renamed_class_is_named(llama_file, monkeypatch):
    model = make("llama", "eager")
    monkeypatch.delattr(llama_file, "LlamaMLP")
    assert "transformers.models.llama.modeling_llama has no class LlamaMLP" in refusal(model)


def test_a_class_that_computes_something_else_is_named(llama_file, monkeypatch):
    model = make("llama", "eager")
    before = llama_file.LlamaRMSNorm.forward
    monkeypatch.setattr(llama_file.LlamaRMSNorm, "forward", lambda self, x: 1.001 * before(self, x))
    assert "modeling_llama.LlamaRMSNorm computes something else" in refusal(model)


def test_a_class_that_is_called_in_another_way_is_named(llama_file, monkeypatch):
    model = make("llama", "eager")
    before = llama_file.LlamaMLP.forward
    monkeypatch.setattr(llama_file.LlamaMLP, "forward", lambda self, x, more: before(self, x))
    assert "modeling_llama.LlamaMLP is made or called in another way (TypeError: " in refusal(model)


def test_a_rotation_that_is_not_called_is_named(llama_file, monkeypatch):
    model = make("llama", "eager")
    monkeypatch.setattr(llama_file.LlamaAttention, "forward", lambda self, *args: args)
    assert "does not call apply_rotary_pos_emb" in refusal(model)


def test_trying_a_class_leaves_the_random_state(llama_file):
    model = make("llama", "eager")
    state = torch.get_rng_state()
    fastllm.patch(model)
    assert torch.equal(torch.get_rng_state(), state)
