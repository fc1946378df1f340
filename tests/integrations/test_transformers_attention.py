"""transformers' models attend with fastllm's kernels as with their own "eager" code."""

import itertools
import sys
import types

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from transformers import masking_utils

from fastllm.errors import UserError
from fastllm.integrations.transformers import library, masks, register
from fastllm.integrations.transformers.attention import attention
from tests.integrations.models import (
    CONFIGS,
    DECODERS,
    ENCODERS,
    INTERFACE,
    assert_bfloat16_as_good,
    assert_same_gradients,
    gradients,
    inputs,
    make,
    padding,
    result,
    tokens,
)  # fmt: skip

# float32: sums in another order, through two layers and an output layer.
CLOSE = {"rtol": 1e-5, "atol": 2e-5}
PADDED = [*itertools.product([*DECODERS, *ENCODERS], [None, "left", "right"])]
CASES = [*PADDED, ("vit", None), ("whisper", None), ("t5", None), ("t5", "right"), ("t5", "left")]
CASES += [("bigbird_pegasus", kind) for kind in (None, "left", "right")]
pytestmark = pytest.mark.usefixtures("registered")


# ----------------------------------------------------------------------------------------------------------------------
# The same numbers
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_outputs(name, kind):
    arguments = inputs(name, kind)
    with torch.no_grad():
        got, expected = (result(make(name, which), arguments) for which in ("fastllm", "eager"))
    torch.testing.assert_close(got, expected, **CLOSE)


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16(name):
    assert_bfloat16_as_good(name, make(name, dtype=torch.bfloat16))


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[1] != "left" or case[0] in INTERFACE])
def test_gradients(name, kind):
    arguments = inputs(name, kind)
    assert_same_gradients(*(gradients(make(name, which), arguments) for which in ("fastllm", "eager")))


# BLOOM takes no static cache.
@pytest.mark.parametrize(
    ("name", "cache"), [*((name, None) for name in DECODERS), *((name, "static") for name in INTERFACE)]
)
@pytest.mark.parametrize("kind", [None, "left"])
def test_generate(name, kind, cache):
    ids = [
        make(name, which).generate(
            tokens(), attention_mask=padding(kind), max_new_tokens=10, do_sample=False, cache_implementation=cache
        )
        for which in ("fastllm", "eager")
    ]
    assert torch.equal(*ids)


@pytest.mark.parametrize("name", ["t5", "whisper"])
@pytest.mark.parametrize("cache", [None, "static"])
def test_generate_from_an_encoder(name, cache):
    arguments = inputs(name, "right")
    del arguments["decoder_input_ids"]
    options = {"max_new_tokens": 8, "do_sample": False, "cache_implementation": cache}
    ids = [make(name, which).generate(**arguments, **options) for which in ("fastllm", "eager")]
    assert torch.equal(*ids)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("kind", [None, "left"])
def test_chunks_behind_a_cache(name, kind):
    """A prompt in two chunks and a token gives what it gives at once: queries stand at the end of the keys."""
    arguments = inputs(name, kind)
    keep = arguments["attention_mask"]
    model = make(name)
    with torch.no_grad():
        expected, cache, parts = model(**arguments).logits, None, []
        for begin, end in ((0, 6), (6, 11), (11, 12)):
            seen = None if keep is None else keep[:, :end]
            output = model(tokens()[:, begin:end], attention_mask=seen, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            parts.append(output.logits)
    real = slice(None) if keep is None else keep == 1
    torch.testing.assert_close(torch.cat(parts, 1)[real], expected[real], **CLOSE)


def test_packed_sequences():
    """Positions that start again mark sequences, which do not see each other."""
    model = make("llama").train()
    row = tokens(batch=1)
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    packed = model(row, position_ids=positions, use_cache=False).logits
    alone = [model(part, use_cache=False).logits for part in (row[:, :5], row[:, 5:])]
    torch.testing.assert_close(packed, torch.cat(alone, 1), **CLOSE)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_bidirectional_decoder(name):
    config = DECODERS[name]()
    config.is_causal = False
    logits = []
    for which in ("fastllm", "eager"):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=which).eval()
        for layer in model.model.layers:
            layer.self_attn.is_causal = False
        logits.append(result(model, inputs(name, "left")))
    torch.testing.assert_close(*logits, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_masks_of_a_user(dtype):
    """A 4D mask says all: no causality is added to it."""
    seen = torch.rand(3, 1, 12, 12, generator=torch.Generator().manual_seed(5)) < 0.6
    seen = seen | torch.eye(12, dtype=torch.bool)
    additive = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    got = make("llama")(tokens(), attention_mask=seen if dtype == torch.bool else additive).logits
    torch.testing.assert_close(got, make("llama", "eager")(tokens(), attention_mask=additive).logits, **CLOSE)


# ----------------------------------------------------------------------------------------------------------------------
# Training, graphs, and what else a model asks for
# ----------------------------------------------------------------------------------------------------------------------


def test_dropout():
    """It acts in training alone, by torch's seed, and keeps the mean."""
    config = DECODERS["llama"]()
    config.attention_dropout = 0.3
    model = transformers.AutoModel.from_config(config, attn_implementation="fastllm")
    layer, given = model.layers[0].self_attn, torch.randn(1, 12, 32)
    turns = model.rotary_emb(given, torch.arange(12)[None])

    def run(seed):
        torch.manual_seed(seed)
        return layer(given, turns, None)[0].detach()

    assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))
    samples = torch.stack([run(seed) for seed in range(400)])
    model.eval()
    assert torch.equal(run(0), run(1))
    error = (samples.mean(0) - run(0)).abs() / (samples.std(0) / 20 + 1e-6)
    assert error.max() < 5


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = make("mistral").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        result(model, inputs("mistral", "left")).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


COMPILED = itertools.product(["gpt2", "mistral", "gemma2", "gpt_oss", "bert", "t5"], [None, "right"])


@pytest.mark.parametrize(("name", "kind"), [*COMPILED, ("whisper", None)])  # which takes no padding
def test_compiles_as_one_graph(name, kind):
    arguments = inputs(name, kind)
    torch.compiler.reset()
    model = make(name)
    if name == "gpt_oss":
        model.set_experts_implementation("batched_mm")
    with torch.no_grad():
        expected = result(model, arguments)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(result(compiled, arguments), expected, **CLOSE)


def test_layers_compile_alone():
    """Masks come from outside of the graph then: another rule must not meet the graph of the one before."""
    torch.compiler.reset()
    model, plain = make("mistral"), make("mistral")
    for layer in model.model.layers:
        layer.compile(fullgraph=True, backend="aot_eager")
    for kind in (None, "left", "right", None):
        arguments = inputs("mistral", kind)
        torch.testing.assert_close(result(model, arguments), result(plain, arguments), **CLOSE)


def test_weights_are_not_given(caplog):
    output = make("bert")(tokens(), output_attentions=True)
    assert not output.attentions
    assert "`fastllm` attention does not give weights" in caplog.text
    with pytest.raises(ValueError, match="output_attentions"):
        make("bert").config.output_attentions = True


def test_autocast():
    """Rotary positions leave queries and keys in float32 and values in bfloat16."""
    arguments = inputs("gpt_oss", "left")
    with torch.no_grad():
        exact = result(make("gpt_oss", "eager"), arguments)
        with torch.autocast("cpu", torch.bfloat16):
            got = result(make("gpt_oss"), arguments)
            ids = make("gpt_oss").generate(tokens(), max_new_tokens=3, do_sample=False)
    assert (got - exact).abs().max() < 0.05 * exact.abs().max()
    assert ids.shape == (3, 15)


# ----------------------------------------------------------------------------------------------------------------------
# The attention function
# ----------------------------------------------------------------------------------------------------------------------


def heads(b=2, h=4, t=5, d=8):
    return torch.randn(b, h, t, d, generator=torch.Generator().manual_seed(h * t))


class Layer(torch.nn.Module):
    is_causal = True


def test_a_query_that_sees_nothing_gives_zeros():
    q, k = heads(), heads(h=2)
    seen = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    seen[:, :, 2] = False
    output, weights = attention(Layer(), q, k, k, seen)
    assert weights is None and output.shape == (2, 5, 4, 8)
    assert (output[:, 2] == 0).all() and (output[:, 3] != 0).all()


def test_whose_causality_counts():
    q = heads()
    causal = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).transpose(1, 2)
    whole = torch.nn.functional.scaled_dot_product_attention(q, q, q).transpose(1, 2)
    torch.testing.assert_close(attention(Layer(), q, q, q, None)[0], causal, **CLOSE)
    torch.testing.assert_close(attention(torch.nn.Module(), q, q, q, None)[0], causal, **CLOSE)
    torch.testing.assert_close(attention(Layer(), q, q, q, None, is_causal=False)[0], whole, **CLOSE)
    last = attention(Layer(), q[:, :, -1:], q, q, None)[0]
    torch.testing.assert_close(last, causal[:, -1:], **CLOSE)


def test_an_empty_cache_with_room():
    """A prompt over a static cache: queries stand at the first keys."""
    q, k, sinks = heads(), heads(t=9), torch.randn(4)
    for aux in (None, sinks):
        expected = attention(Layer(), q, k[:, :, :5], k[:, :, :5], None, s_aux=aux)[0]
        for keys, lengths in ((None, None), (torch.ones(2, 9, dtype=torch.bool), None), (None, torch.tensor([5, 9]))):
            mask = masks.CompactMask((2, 1, 5, 9), "cpu", True, "top-left", None, keys, lengths)
            torch.testing.assert_close(attention(Layer(), q, k, k, mask, s_aux=aux)[0], expected, **CLOSE)
    with pytest.raises(ValueError, match="'attention_mask' must be given where a causal layer"):
        attention(Layer(), q, k, k, None)


@pytest.mark.parametrize("name", ["indices", "block_indices", "sinks"])
def test_what_is_not_served_is_refused(name):
    q = heads()
    with pytest.raises(NotImplementedError, match=rf"does not know '{name}' of Layer: use"):
        attention(Layer(), q, q, q, None, **{name: torch.zeros(1)})
    assert attention(Layer(), q, q, q, None, **{name: None})


def test_one_query_in_groups():
    """With a mask for all heads, one a head, sinks and a gradient."""
    q, k, v = heads(t=1), heads(h=2, t=6), heads(h=2, t=6).flip(2).requires_grad_()
    shared = torch.tensor([[False, True, True, True, True, False], [True] * 6])[:, None, None]
    own = torch.rand(2, 4, 1, 6) < 0.7
    for mask in (None, shared, own, torch.where(shared, 0.0, -torch.inf)):
        output, _ = attention(Layer(), q, k, v, mask, scaling=0.5)
        full = None if mask is None else mask.expand(2, 4, 1, 6)
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, full, scale=0.5, enable_gqa=True)
        torch.testing.assert_close(output, expected.transpose(1, 2), **CLOSE)
        gradients = [torch.autograd.grad(out.square().sum(), v)[0] for out in (output, expected)]
        torch.testing.assert_close(*gradients, **CLOSE)


def test_queries_without_a_batch():
    k = heads()
    output, _ = attention(Layer(), heads(b=1), k, k, None)
    torch.testing.assert_close(output, attention(Layer(), heads(b=1).expand(2, -1, -1, -1), k, k, None)[0])


def test_position_bias_over_a_mask():
    """The bias is differentiable, and a compact mask stands over it."""
    q, bias = heads(), torch.randn(1, 4, 5, 5, requires_grad=True)
    keys = torch.tensor([[False, True, True, True, True], [True] * 5])
    mask = masks.CompactMask((2, 1, 5, 5), "cpu", True, window=(2, 0), keys=keys)
    for given in (mask, mask.dense(), torch.where(mask.dense(), 0.0, -torch.inf)):
        output, _ = attention(Layer(), q, q, q, given, position_bias=bias)
        scores = q @ q.transpose(-1, -2) * 8**-0.5 + bias
        weights = scores.masked_fill(~mask.dense(), -torch.inf).softmax(-1).nan_to_num()
        expected = (weights @ q).transpose(1, 2)
        torch.testing.assert_close(output, expected, **CLOSE)
    gradients = [torch.autograd.grad(out[1].square().sum(), bias)[0] for out in (output, expected)]
    torch.testing.assert_close(*gradients, **CLOSE)


def test_sinks_stand_alone():
    q = heads()
    with pytest.raises(ValueError, match="'s_aux' must stand alone"):
        attention(Layer(), q, q, q, None, s_aux=torch.zeros(4), softcap=1.0)


# ----------------------------------------------------------------------------------------------------------------------
# Registration
# ----------------------------------------------------------------------------------------------------------------------


def test_registration_is_idempotent():
    def registered():
        names = (transformers.AttentionInterface, transformers.AttentionMaskInterface)
        return [dict(interface._global_mapping) for interface in names]

    before = registered()
    register()
    assert registered() == before
    assert [mapping["fastllm"] for mapping in before] == [attention, masks.attention_mask]


@pytest.mark.parametrize(
    ("module", "name"),
    [("transformers.masking_utils", "sdpa_mask"), ("transformers.masking_utils", "causal_mask_function"),
     ("transformers", "AttentionMaskInterface"), ("transformers", "PreTrainedModel")],
)  # fmt: skip
def test_a_name_that_is_gone(module, name, monkeypatch):
    for ours in ("masks", "attention"):
        monkeypatch.delitem(sys.modules, f"fastllm.integrations.transformers.{ours}")
    library_module = sys.modules[module]

    class Later(types.ModuleType):
        def __getattr__(self, other):
            if other == name:
                raise AttributeError(other)
            return getattr(library_module, other)

    monkeypatch.setitem(sys.modules, module, Later(module))
    with pytest.raises(UserError, match=rf"^transformers 5[\w.]* has no {module}\.{name}, which fastllm\."):
        register()


def test_a_parameter_that_is_gone(monkeypatch):
    monkeypatch.setattr(masking_utils, "sdpa_mask", lambda batch_size, query_length: None)
    with pytest.raises(
        UserError, match=r"has no transformers\.masking_utils\.sdpa_mask\(allow_is_bidirectional_skip=\)"
    ):
        register()


def test_a_flag_that_is_gone(monkeypatch):
    monkeypatch.delattr(transformers.PreTrainedModel, "_supports_sdpa")
    with pytest.raises(UserError, match=r"has no transformers\.PreTrainedModel\._supports_sdpa, which"):
        register()


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="needs transformers: pip install transformers"):
        library.needed("transformers", "AttentionInterface")
