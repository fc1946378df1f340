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
from tests.integrations.models import CONFIGS, DECODERS, ENCODERS, inputs, make, padding, result, tokens

# float32: sums in another order, through two layers and an output layer.
CLOSE = {"rtol": 1e-5, "atol": 2e-5}
PADDED = [*itertools.product([*DECODERS, *ENCODERS], [None, "left", "right"])]
CASES = [*PADDED, ("vit", None), ("whisper", None), ("t5", None), ("t5", "right"), ("t5", "left")]
CASES += [("bigbird_pegasus", kind) for kind in (None, "left", "right")]
INTERFACE = [name for name in DECODERS if name != "bloom"]


@pytest.fixture(autouse=True)
def registered():
    register()


@pytest.fixture
def no_dense(monkeypatch):
    """No mask may be formed in full."""

    def refuse(*args, **kwargs):
        raise AssertionError("a dense mask was formed")

    monkeypatch.setattr(masks.CompactMask, "dense", refuse)
    monkeypatch.setattr(masks, "sdpa_mask", refuse)


@pytest.fixture
def spied(monkeypatch):
    """Return the masks that models were given, as a list that grows."""
    given = []

    def spy(**arguments):
        given.append(masks.attention_mask(**arguments))
        return given[-1]

    monkeypatch.setitem(transformers.AttentionMaskInterface._global_mapping, "fastllm", spy)
    return given


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
    """No further from float32's result than eager is, give or take the rounding of a result."""
    kind = None if name in ("vit", "whisper") else "right"
    low = inputs(name, kind, torch.bfloat16)
    with torch.no_grad():
        exact = result(make(name, "eager", torch.bfloat16).float(), inputs(name, kind))
        ours, theirs = (result(make(name, which, torch.bfloat16), low).float() for which in ("fastllm", "eager"))
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max() + 2**-8 * exact.abs().max()


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[1] != "left" or case[0] in INTERFACE])
def test_gradients(name, kind):
    gradients = []
    for which in ("fastllm", "eager"):
        model = make(name, which).train()
        output = result(model, inputs(name, kind))
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        gradients.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, expected in gradients[1].items():
        error = (gradients[0][key] - expected).abs().max()
        assert error <= 3e-5 * max(expected.abs().max(), 1.0), key


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("kind", [None, "left"])
@pytest.mark.parametrize("cache", [None, "static"])
def test_generate(name, kind, cache):
    if cache == "static" and name == "bloom":
        pytest.skip("BLOOM takes no static cache")
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
# Causality, and masks that are not formed
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("kind", [None, "left", "right"])
@pytest.mark.parametrize("training", [False, True])
def test_no_token_sees_later_ones(name, kind, training):
    model, changed = make(name).train(training), tokens()
    changed[:, 7:] = (changed[:, 7:] + 11) % 60 + 1
    with torch.no_grad():
        before, after = (model(ids, attention_mask=padding(kind)).logits for ids in (tokens(), changed))
    real = torch.ones(3, 7) if kind is None else padding(kind)[:, :7]
    torch.testing.assert_close(before[:, :7][real == 1], after[:, :7][real == 1], rtol=0, atol=2e-6)
    assert not torch.allclose(before[:, 7], after[:, 7])


@pytest.mark.parametrize("name", INTERFACE)
@pytest.mark.parametrize("kind", [None, "left", "right"])
def test_decoders_form_no_mask(name, kind, spied, no_dense):
    if name == "gpt_oss":
        pytest.skip("sinks behind a window take a dense mask")
    make(name)(**inputs(name, kind))
    assert len(spied) == (2 if name == "gemma2" else 1)
    assert all(isinstance(mask, masks.CompactMask) and mask.causal for mask in spied)
    assert any(mask.window == (4, 0) for mask in spied) == (name in ("mistral", "gemma2"))
    assert all((mask.lengths is not None) == (kind == "right") for mask in spied)
    assert all((mask.keys is not None) == (kind == "left") for mask in spied)


@pytest.mark.parametrize("kind", [None, "left"])
def test_a_static_cache_takes_no_mask_for_the_prompt(kind, spied, no_dense):
    cache = transformers.StaticCache(config=DECODERS["llama"](), max_cache_len=20)
    make("llama")(tokens(), attention_mask=padding(kind), cache=cache)
    assert spied[0].causal_align == "top-left" and spied[0].shape == (3, 1, 12, 20)


@pytest.mark.parametrize("name", [*ENCODERS, "vit", "t5"])
def test_encoders_form_no_mask(name, spied, no_dense):
    make(name)(**inputs(name))
    own = [mask for mask in spied if mask is not None]
    assert all(isinstance(mask, masks.CompactMask) for mask in own)
    assert name in ("modernbert", "t5") or not own  # a window, and a causal decoder


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_skip_what_is_behind_the_end(name, spied, no_dense):
    make(name)(**inputs(name, "right"))
    assert spied and all(mask.lengths.tolist() == [8, 12, 10] and mask.keys is None for mask in spied)


def test_steps_of_generation_form_a_row(spied, no_dense):
    make("llama").generate(tokens(), attention_mask=padding("left"), max_new_tokens=4, do_sample=False)
    assert [tuple(mask.shape) for mask in spied[1:]] == [(3, 1, 1, length) for length in (13, 14, 15)]


LENGTHS = [(1, 1), (1, 6), (5, 5), (5, 6), (2, 9), (9, 9)]  # (Tq, Tk): a step, a prompt, a chunk behind a cache


@pytest.mark.parametrize(("q_length", "kv_length"), LENGTHS)
@pytest.mark.parametrize(("at_the_end", "kv_offset"), [(True, 0), (True, 3), (False, 0)])
@pytest.mark.parametrize("causal", [True, False])
def test_masks_equal_those_of_sdpa(q_length, kv_length, at_the_end, kv_offset, causal):
    """A sliding cache has forgotten the first 3 keys; a static one has room behind the prompt."""
    total = kv_length + kv_offset
    for window, keep in itertools.product([None, 1, 4, 6, 9, 10], paddings(kv_offset, total)):
        pattern = {
            (True, True): masking_utils.causal_mask_function,
            (True, False): masking_utils.sliding_window_causal_mask_function(window),
            (False, True): masking_utils.bidirectional_mask_function,
            (False, False): masking_utils.sliding_window_bidirectional_mask_function(window),
        }[causal, window is None]
        arguments = {
            "batch_size": 3, "q_length": q_length, "kv_length": kv_length, "kv_offset": kv_offset,
            "q_offset": total - q_length if at_the_end else torch.zeros((), dtype=torch.long),
            "mask_function": pattern, "attention_mask": keep, "local_size": window,
            "config": types.SimpleNamespace(sliding_window=window),
        }  # fmt: skip
        got = masks.attention_mask(**arguments, allow_is_causal_skip=causal, allow_is_bidirectional_skip=not causal)
        expected = masking_utils.sdpa_mask(**arguments, allow_is_causal_skip=False)
        assert got is None or isinstance(got, masks.CompactMask) or got.shape[2] == 1
        got = torch.ones(1, dtype=torch.bool) if got is None else got & True
        assert torch.equal(got.expand_as(expected), expected), (window, keep)


def paddings(begin, end):
    """Yield masks of padding (3, end): the first, the last or some of keys [begin, end) do not count in some rows."""
    whole = torch.ones(3, end, dtype=torch.bool)
    left, right = whole.clone(), whole.clone()
    left[0, : begin + 2] = False
    right[0, end - 1] = False
    holes = torch.rand(3, end, generator=torch.Generator().manual_seed(end)) < 0.7
    yield from (None, whole, left, right, holes, whole[:, :-1])  # what is missing counts as padding


def test_other_patterns_stay_dense():
    """A chunk is no window, and a mask that is to be joined with another must be one."""
    plain = {"batch_size": 1, "q_length": 6, "kv_length": 6}
    chunked = masking_utils.chunked_causal_mask_function(4, torch.zeros(1, dtype=torch.long))
    config = types.SimpleNamespace(sliding_window=4, attention_chunk_size=4)
    mask = masks.attention_mask(**plain, mask_function=chunked, local_size=4, config=config)
    assert type(mask) is torch.Tensor
    assert torch.equal(mask, masking_utils.sdpa_mask(**plain, mask_function=chunked, local_size=4))
    assert type(masks.attention_mask(**plain, allow_is_causal_skip=False)) is torch.Tensor
    own = masking_utils.and_masks(masking_utils.causal_mask_function, lambda b, h, q, k: k != 2)
    keep = torch.ones(1, 6, dtype=torch.bool)
    keep[:, 0] = False
    assert type(masks.attention_mask(**plain, mask_function=own, attention_mask=keep)) is torch.Tensor


def test_a_compact_mask_is_a_mask():
    """Code that computes with it gets the dense one."""
    mask = masks.CompactMask(
        (2, 1, 3, 4), "cpu", True, "bottom-right", (1, 0), torch.tensor([[True] * 4, [False] + [True] * 3])
    )
    dense = mask.dense()
    assert (mask.shape, mask.dtype, mask.ndim) == (dense.shape, torch.bool, 4)
    assert dense[0, 0].int().tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert dense[1, 0].int().tolist() == [[0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert torch.equal(mask[..., :2], dense[..., :2]) and torch.equal(~mask, ~dense)
    assert torch.equal(torch.zeros(2, 1, 3, 4).masked_fill(mask, 1.0), dense.float())
    assert mask.to("meta").shape == dense.shape and "window=(1, 0)" in repr(mask)
    with pytest.raises(NotImplementedError, match="no memory to write to"):
        mask[:, :, 0] = True
    with pytest.raises(NotImplementedError, match="no memory to write to"):
        mask.fill_(True)


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


@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma2", "gpt_oss", "bert", "t5", "whisper"])
@pytest.mark.parametrize("kind", [None, "right"])
def test_compiles_as_one_graph(name, kind):
    arguments = inputs(name, kind)
    if name == "whisper" and kind:
        pytest.skip("Whisper takes no padding")
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
