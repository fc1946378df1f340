"""patch and unpatch on models of torch.nn: what changes, what must not, and what is refused."""

import copy
import io
import itertools
import sys
import types

import pytest
import torch
from torch.nn.utils import parametrizations, parametrize

import fastllm
from fastllm import nn
from tests.nn.twins import assert_same_curves


class Scaled(torch.nn.Linear):
    """A class of a user's own."""

    def forward(self, input):
        return 2 * super().forward(input)


class Model(torch.nn.Module):
    """Something of everything: drop-ins, a subclass, a layer that fastllm lacks, tied weights."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 8)
        self.layers = torch.nn.TransformerEncoder(
            torch.nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True), 2, enable_nested_tensor=False
        )
        self.more = torch.nn.Sequential(torch.nn.RMSNorm(8), torch.nn.Tanh(), Scaled(8, 8), torch.nn.GELU("tanh"))
        self.head = torch.nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.more(self.layers(self.embedding(tokens))))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model().eval()


@pytest.fixture
def tokens():
    return torch.randint(11, (2, 5))


def test_what_is_swapped_and_what_is_left(model):
    report = fastllm.patch(model)
    assert type(model) is Model
    assert type(model.layers) is nn.TransformerEncoder and type(model.layers.layers[1]) is nn.TransformerEncoderLayer
    assert type(model.layers.layers[0].self_attn.out_proj) is nn.Linear
    assert type(model.more[2]) is Scaled and type(model.more[1]) is torch.nn.Tanh
    assert {(one.name, one.before, one.reason) for one in report.left} == {
        ("more.1", "torch.nn.Tanh", "fastllm has no such layer"),
        ("more.2", "tests.Scaled", "derived from torch.nn.Linear, it may do something else"),
    }
    swapped = {one.name: (one.before, one.after) for one in report.swapped}
    assert swapped["head"] == ("torch.nn.Linear", "fastllm.nn.Linear")
    assert swapped["layers"] == ("torch.nn.TransformerEncoder", "fastllm.nn.TransformerEncoder")
    assert len(swapped) == sum(type(module).__module__.startswith("fastllm.") for module in model.modules())


def test_the_same_results_and_the_same_parameters(model, tokens):
    before, parameters = model(tokens), dict(model.named_parameters(remove_duplicate=False))
    keys = list(model.state_dict())
    fastllm.patch(model)
    torch.testing.assert_close(model(tokens), before)
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters(remove_duplicate=False))
    assert model.head.weight is model.embedding.weight
    assert list(model.state_dict()) == keys
    fastllm.unpatch(model)
    assert torch.equal(model(tokens), before)
    assert not any(type(module).__module__.startswith("fastllm.") for module in model.modules())
    assert not any(name.startswith("_fastllm") for module in model.modules() for name in vars(module))


def test_gradients(model, tokens):
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(tokens).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        if len(gradients) == 1:
            fastllm.patch(model)
    for before, after in zip(*gradients, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_a_root_is_swapped_and_comes_back():
    layer = torch.nn.Linear(3, 4)
    report = fastllm.patch(layer)
    assert type(layer) is nn.Linear and "(model)" in str(report)
    fastllm.unpatch(layer)
    assert type(layer) is torch.nn.Linear


def test_hooks_and_modes_stay(model, tokens):
    seen = []
    model.head.register_forward_hook(lambda module, args, output: seen.append("hook"))
    model.more[0].train()
    fastllm.patch(model)
    model(tokens)
    assert seen == ["hook"]
    assert model.more[0].training and not model.head.training


def test_bfloat16_and_meta_stay():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    assert fastllm.patch(model.bfloat16()).swapped
    assert model(torch.ones(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    on_meta = torch.nn.Linear(4, 4, device="meta")
    fastllm.patch(on_meta)
    assert on_meta(torch.ones(2, 4, device="meta")).shape == (2, 4)


def test_parametrizations_stay_and_can_be_removed():
    layer = parametrizations.weight_norm(torch.nn.Linear(4, 3))
    x = torch.randn(2, 4)
    before = layer(x)
    untouched = copy.deepcopy(layer)
    fastllm.patch(layer)
    assert isinstance(layer, nn.Linear) and parametrize.is_parametrized(layer)
    assert not isinstance(untouched, nn.Linear), "torch's class of a copy is the same object"
    torch.testing.assert_close(layer(x), before)
    layer(x).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    twin = copy.deepcopy(layer)
    fastllm.unpatch(twin)
    assert not isinstance(twin, nn.Linear) and parametrize.is_parametrized(twin)
    torch.testing.assert_close(twin(x), before)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Linear
    fastllm.unpatch(layer)
    assert type(layer) is torch.nn.Linear
    torch.testing.assert_close(layer(x), before)


def test_parametrized_after_it_was_patched():
    layer = torch.nn.Linear(4, 3)
    fastllm.patch(layer)
    parametrizations.weight_norm(layer)
    before = layer(torch.ones(1, 4))
    fastllm.unpatch(layer)
    assert not isinstance(layer, nn.Linear) and parametrize.is_parametrized(layer)
    torch.testing.assert_close(layer(torch.ones(1, 4)), before)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_norm_of_old_and_pruning_stay():
    from torch.nn.utils import prune, weight_norm

    for change in (weight_norm, lambda layer: prune.l1_unstructured(layer, "weight", 0.5)):
        layer, x = torch.nn.Linear(4, 3), torch.randn(2, 4)
        change(layer)
        before = layer(x)
        assert fastllm.patch(layer).swapped
        torch.testing.assert_close(layer(x), before)


def test_copies_and_pickles_can_be_unpatched(model, tokens):
    fastllm.patch(model)
    expected = model(tokens)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(other(tokens), expected)
        fastllm.unpatch(other)
        assert type(other.head) is torch.nn.Linear and type(model.head) is nn.Linear


def test_another_model_is_untouched(model):
    other = Model()
    fastllm.patch(model)
    assert not any(type(module).__module__.startswith("fastllm.") for module in other.modules())


@pytest.mark.parametrize("layer", [
    torch.nn.Dropout(0.1, inplace=True),
    torch.nn.Embedding(3, 4, max_norm=1.0),
    torch.nn.Linear(3, 3, dtype=torch.complex64),
])  # fmt: skip
def test_what_a_drop_in_cannot_do_is_left_with_the_reason(layer):
    report = fastllm.patch(layer)
    assert not report.swapped and type(layer).__module__.startswith("torch.")
    reason = report.left[0].reason
    assert reason in ("inplace=True", "max_norm=1.0", "its weight is torch.complex64")


def test_a_forward_of_its_own_is_left():
    """As accelerate's hooks put one into a module: it would go on calling the class's that it had."""
    layer = torch.nn.Linear(2, 2)
    layer.forward = layer.forward
    assert fastllm.patch(layer).left[0].reason == "it has a forward of its own"


def test_a_method_of_its_own_is_left():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16)
    layer._ff_block = lambda x: 2 * x
    report = fastllm.patch(layer)
    assert report.left[0].reason == "it has a _ff_block of its own" and type(layer) is torch.nn.TransformerEncoderLayer


class OwnAttention(torch.nn.Module):
    """Attention of a user's own: to it is_causal is the hint that torch says it is, and the mask is what counts."""

    def __init__(self, channels):
        super().__init__()
        self.qkv = torch.nn.Linear(channels, 3 * channels)
        self.batch_first = True

    def forward(self, q, k, v, key_padding_mask=None, need_weights=False, attn_mask=None, is_causal=False):
        q, k, v = self.qkv(q).chunk(3, -1)
        scores = q @ k.mT
        if attn_mask is not None:
            # torch's encoder layer gives floating masks, its decoder layer what it is given.
            scores = scores.masked_fill(attn_mask, -1e9) if attn_mask.dtype == torch.bool else scores + attn_mask
        return scores.softmax(-1) @ v, None


class OwnMultihead(torch.nn.MultiheadAttention):
    """A subclass, which patch leaves."""


def own_multihead(channels):
    return OwnMultihead(channels, 2, batch_first=True)


FOREIGN = [*itertools.product(["Encoder", "Decoder"], [OwnAttention, own_multihead], [False, True])]
FOREIGN.remove(("Encoder", OwnAttention, False))  # in evaluation torch's encoder asks attention for in_proj_bias


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(("kind", "own", "training"), FOREIGN)
def test_causal_masks_reach_attention_that_is_not_ours(kind, own, before, training):
    torch.manual_seed(0)
    layer = getattr(torch.nn, f"Transformer{kind}Layer")(8, 2, 16, 0.0, batch_first=True)
    options = {"enable_nested_tensor": False} if kind == "Encoder" else {}
    model = getattr(torch.nn, f"Transformer{kind}")(layer, 2, **options).train(training)
    attentions = [own(8).train(training) for _ in range(2)]
    x, mask = torch.randn(1, 5, 8), torch.ones(5, 5, dtype=torch.bool).triu(1)
    arguments, name = ((x,), "mask") if kind == "Encoder" else ((x, x), "tgt_mask")
    if not before:
        fastllm.patch(model)
    for layer, attention in zip(model.layers, attentions, strict=True):
        layer.self_attn = attention
    if not before:
        got = model(*arguments, **{name: mask})
        fastllm.unpatch(model)
    expected = model(*arguments, **{name: mask})
    if before:
        fastllm.patch(model)
        got = model(*arguments, **{name: mask})
    torch.testing.assert_close(got, expected)


def test_containers_alone_can_be_swapped():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    model, x = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(), torch.randn(1, 5, 8)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(5)
    expected = model(x, mask=mask)
    fastllm.patch(model, only=[torch.nn.TransformerEncoder, torch.nn.TransformerEncoderLayer])
    torch.testing.assert_close(model(x, mask=mask), expected)


def test_a_hook_sees_the_mask():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    model, seen = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), []
    fastllm.patch(model)
    model.layers[0].register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs["src_mask"]), with_kwargs=True)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(5)
    model(torch.randn(1, 5, 8), mask=mask)
    assert seen[0] is mask


def test_a_subclass_of_a_transformer_layer_keeps_working_around_swapped_parts():
    class Own(torch.nn.TransformerEncoderLayer):
        pass

    layer, x = Own(8, 2, 16, batch_first=True).eval(), torch.randn(2, 5, 8)
    padding = torch.arange(5) >= torch.tensor([[5], [3]])
    for training in (False, True):
        layer.train(training)
        for part in layer.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        layer.self_attn.dropout = 0.0
        before = layer(x, src_key_padding_mask=padding)
        assert fastllm.patch(layer).swapped and type(layer) is Own
        torch.testing.assert_close(layer(x, src_key_padding_mask=padding), before)
        fastllm.unpatch(layer)


def test_only(model):
    report = fastllm.patch(model, only=torch.nn.Linear)
    assert {one.before for one in report.swapped} == {"torch.nn.Linear"} and not report.left
    assert type(model.layers.layers[0]) is torch.nn.TransformerEncoderLayer
    fastllm.unpatch(model)
    report = fastllm.patch(model, only=["layers.layers.0*", torch.nn.RMSNorm])
    assert {one.name.split(".")[0] for one in report.swapped} == {"layers", "more"}
    assert type(model.layers.layers[1]) is torch.nn.TransformerEncoderLayer and type(model.head) is torch.nn.Linear


@pytest.mark.parametrize(("only", "error", "said"), [
    (3, TypeError, "'only' must be classes of modules or patterns of their names, got 3"),
    ([int], TypeError, "'only' must be classes of modules or patterns of their names, got <class 'int'>"),
    ("decoder.*", ValueError, "'only' names 'decoder.*', which the model does not have"),
    (torch.nn.Conv1d, ValueError, "'only' names a torch.nn.Conv1d, which the model does not have"),
])  # fmt: skip
def test_only_that_names_nothing(model, only, error, said):
    with pytest.raises(error, match=said.replace("*", r"\*")):
        fastllm.patch(model, only=only)
    fastllm.patch(model)


def test_verify(model, tokens, capsys):
    model.more.train()
    report = fastllm.patch(model, verify=tokens, verbose=True)
    assert report.difference is not None and report.difference < 1e-5 and report.speedup > 0
    assert model.more.training and not model.layers.training, "modes are put back"
    printed = capsys.readouterr().out
    assert printed == f"{report}\n" and "times as fast" in printed
    assert "6 x torch.nn.Linear -> fastllm.nn.Linear  [layers.layers.0.self_attn.out_proj, " not in printed
    assert type(model.head) is nn.Linear
    fastllm.unpatch(model)
    assert fastllm.patch(model, verify={"tokens": tokens}).difference < 1e-5
    with pytest.raises(ValueError, match="'verify' must be an input for which the model gives floating tensors"):
        fastllm.patch(torch.nn.Flatten(), verify=torch.ones(2, 2).long())


class Odd(torch.nn.Module):
    """Outputs that a drop-in's presence changes."""

    def __init__(self, change):
        super().__init__()
        self.layer, self.change = torch.nn.Linear(4, 4), change

    def forward(self, x):
        return self.layer(x), *self.change(torch.zeros(2), type(self.layer) is nn.Linear)


def test_verify_hides_nothing():
    x = torch.randn(2, 4)
    lost = fastllm.patch(Odd(lambda zero, ours: [zero + (float("nan") if ours else 0)]), verify=x)
    assert lost.difference != lost.difference, "NaN"
    same = fastllm.patch(Odd(lambda zero, ours: [zero + float("inf"), zero + float("nan")]), verify=x)
    assert same.difference < 1e-5
    model = Odd(lambda zero, ours: [] if ours else [zero])
    with pytest.raises(ValueError, match="the model gave 2 tensors and would give 1, or of other shapes; it is left"):
        fastllm.patch(model, verify=x)
    assert type(model.layer) is torch.nn.Linear


def test_any_name_of_a_shared_module_names_it():
    layer = torch.nn.Linear(4, 4)
    model = torch.nn.ModuleDict({"a": layer, "b": layer})
    for only in ("b", "a", "*", ["a", "b"]):
        assert len(fastllm.patch(model, only=only).swapped) == 1
        fastllm.unpatch(model)


def test_dropout_of_whole_numbers_in_evaluation():
    layer, x = torch.nn.Dropout(0.5).eval(), torch.arange(3)
    fastllm.patch(layer)
    assert torch.equal(layer(x), x)


def test_an_example_that_fails_leaves_the_model_as_it_was(model):
    with pytest.raises(RuntimeError):
        fastllm.patch(model, verify=torch.randn(3, 3))
    assert type(model.head) is torch.nn.Linear
    fastllm.patch(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.jit")  # torch.compile's own
def test_refusals(model):
    with pytest.raises(TypeError, match=r"'model' must be a torch\.nn\.Module, got a int"):
        fastllm.patch(3)
    with pytest.raises(TypeError, match=r"'model' must be a torch\.nn\.Module, got a int"):
        fastllm.unpatch(3)
    with pytest.raises(ValueError, match="'model' is not patched, nor is anything in it"):
        fastllm.unpatch(model)
    fastllm.patch(model)
    with pytest.raises(ValueError, match="'embedding' in it is patched already; unpatch the model first"):
        fastllm.patch(model)
    fastllm.unpatch(model)
    with pytest.raises(NotImplementedError, match="'model' is compiled: patch the model first, then compile it"):
        fastllm.patch(torch.compile(model))
    model.head.compile()
    with pytest.raises(NotImplementedError, match="'head' in it is compiled"):
        fastllm.patch(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_models_are_refused():
    model = torch.nn.Sequential(torch.jit.script(torch.nn.Linear(2, 2)))
    with pytest.raises(NotImplementedError, match="'0' in it is TorchScript"):
        fastllm.patch(model)


def test_devices_without_kernels_are_refused():
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = torch.nn.Linear(2, 2, device="meta")
    with FakeTensorMode():
        model.weight = torch.nn.Parameter(torch.empty(2, 2, device="mps"))
    with pytest.raises(
        NotImplementedError, match="'weight' in the model is on mps:0: there are kernels for cpu and cuda"
    ):
        fastllm.patch(model)


def test_a_module_that_was_wrapped_since_is_not_broken():
    layer = torch.nn.Linear(2, 2)
    fastllm.patch(layer)
    layer.__class__ = type("Wrapped", (torch.nn.Module,), {})
    with pytest.raises(NotImplementedError, match="has become a Wrapped since it was patched"):
        fastllm.unpatch(layer)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.jit")
def test_compiled_and_exported_after(model, tokens):
    fastllm.patch(model)
    expected = model(tokens)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(tokens), expected)
    with torch.no_grad():
        exported = torch.export.export(model, (tokens,))
    torch.testing.assert_close(exported.module()(tokens), expected)


def test_a_transformer_trains_along_the_same_curve():
    torch.manual_seed(0)
    theirs = torch.nn.Transformer(16, 2, 1, 1, 32, dropout=0.0, batch_first=True)
    ours = copy.deepcopy(theirs)
    fastllm.patch(ours)
    source, target = torch.randn(4, 6, 16), torch.randn(4, 5, 16)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(5)
    assert_same_curves(ours, theirs, lambda model: (model(source, target, tgt_mask=mask) - target).square().mean())


def test_a_model_of_torch_does_not_ask_for_transformers(model, monkeypatch):
    """Some other library may have imported a version that fastllm knows nothing of."""
    monkeypatch.setitem(sys.modules, "transformers", types.ModuleType("transformers"))
    assert fastllm.patch(model).swapped


def test_reading_order_does_not_matter():
    """Names are found before anything is swapped: a second name of one module is not patched twice."""
    layer = torch.nn.Linear(2, 2)
    model = torch.nn.ModuleDict({"a": layer, "b": layer})
    assert len(fastllm.patch(model).swapped) == 1
    fastllm.unpatch(model)
    assert type(layer) is torch.nn.Linear
