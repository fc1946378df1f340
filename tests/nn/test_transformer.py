"""The Transformer classes against torch's in float64: every way to make them, masks, modes, and what stands in them."""

import copy
import pickle

import pytest
import torch

from fastllm import nn
from tests.nn.twins import assert_twins, both, each, no_fast_path

# torch's words on what it is given here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Support for mismatched"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
]

B, T, S, E, H, F = 3, 5, 7, 12, 3, 16
functional = torch.nn.functional


def squared(x):
    return x.relu().square()


ACTIVATIONS = {
    "relu": "relu", "gelu": "gelu", "F.relu": functional.relu, "F.gelu": functional.gelu, "torch.relu": torch.relu,
    "ReLU": torch.nn.ReLU(), "GELU": torch.nn.GELU(), "tanh GELU": torch.nn.GELU("tanh"), "our GELU": nn.GELU(),
    "SiLU": torch.nn.SiLU(), "F.silu": functional.silu, "a function": squared,
}  # fmt: skip
ORDERS = pytest.mark.parametrize("norm_first", [False, True])
LAYERS = pytest.mark.parametrize("name", ["TransformerEncoderLayer", "TransformerDecoderLayer"])


def layers(name, dtype=torch.float64, **options):
    return both(name, E, H, F, **{"dropout": 0.0, "batch_first": True, "dtype": dtype, **options})


def inputs(name, dtype=torch.float64):
    src, memory = torch.randn(B, T, E, dtype=dtype), torch.randn(B, S, E, dtype=dtype)
    return (src, memory) if "Decoder" in name else (src,)


def masks(name, *chosen):
    """Return masks by the names of a layer's arguments: of "mask", "padding", "causal", "memory_mask", "memory"."""
    hidden = torch.rand(B * H, T, S) < 0.4
    hidden[..., 0] = False
    own = torch.randn(T, T, dtype=torch.float64)
    padding = torch.arange(T) >= torch.tensor([[T], [2], [3]])
    causal = torch.nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64)
    side = "src" if "Encoder" in name else "tgt"
    found = {
        "mask": {f"{side}_mask": own},
        "causal": {f"{side}_mask": causal, "is_causal" if side == "src" else "tgt_is_causal": True},
        "padding": {f"{side}_key_padding_mask": padding},
        "memory_mask": {"memory_mask": hidden},
        "memory": {"memory_key_padding_mask": torch.arange(S) >= torch.tensor([[S], [2], [4]])},
    }
    return {key: value for part in chosen for key, value in found[part].items()}


@LAYERS
@ORDERS
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_layers_are_torchs_in_float64(name, norm_first, activation, bias):
    options = {"activation": ACTIVATIONS[activation], "norm_first": norm_first, "bias": bias}
    assert_twins(*layers(name, **options), inputs(name), {})


@LAYERS
@ORDERS
@pytest.mark.parametrize("chosen", [
    ("mask",), ("causal",), ("padding",), ("mask", "padding"), ("causal", "padding"), ("memory_mask",), ("memory",),
    ("causal", "memory"), ("causal", "padding", "memory_mask", "memory"),
], ids="-".join)  # fmt: skip
@pytest.mark.parametrize("batch_first", [True, False])
def test_masks(name, norm_first, chosen, batch_first):
    if name == "TransformerEncoderLayer":
        chosen = [part for part in chosen if not part.startswith("memory")]
    tensors = inputs(name) if batch_first else each(inputs(name), lambda x: x.transpose(0, 1).contiguous())
    pair = layers(name, norm_first=norm_first, batch_first=batch_first)
    assert_twins(*pair, tensors, masks(name, *chosen))


@LAYERS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_and_no_batch(name, dtype):
    ours, theirs = layers(name, dtype)
    assert_twins(ours, theirs, inputs(name, dtype), {})
    assert_twins(ours, theirs, each(inputs(name, dtype), lambda x: x[0]), {})
    assert ours(*each(inputs(name, dtype), lambda x: x[:0])).shape == (0, T, E)


@LAYERS
@ORDERS
def test_dropout_is_where_torch_has_it(name, norm_first):
    """Every place of dropout acts while training, on what torch's acts on, and none in evaluation."""
    ours, theirs = layers(name, torch.float32, dropout=0.4, norm_first=norm_first)
    tensors = inputs(name, torch.float32)
    expected = [module for module in theirs.modules() if getattr(module, "p", None) or getattr(module, "dropout", None)]
    assert len(expected) == (5 if "Decoder" in name else 4) + 1 + ("Decoder" in name)
    places = [n for n, m in ours.named_modules() if isinstance(m, torch.nn.Dropout | torch.nn.MultiheadAttention)]
    still = ours.eval()(*tensors)
    for place in places:  # one at a time
        module = ours.train().get_submodule(place)
        for other in places:
            part = ours.get_submodule(other)
            setattr(part, "dropout" if isinstance(part, torch.nn.MultiheadAttention) else "p", 0.0)
        assert torch.allclose(ours(*tensors), still, atol=1e-5)
        setattr(module, "dropout" if isinstance(module, torch.nn.MultiheadAttention) else "p", 0.4)
        torch.manual_seed(1)
        dropped = ours(*tensors)
        assert not torch.allclose(dropped, still, atol=1e-3), place
        module.register_forward_hook(lambda *_: None)  # called by itself, it does the same
        torch.manual_seed(1)
        torch.testing.assert_close(ours(*tensors), dropped)
        module._forward_hooks.clear()
    assert torch.equal(ours.eval()(*tensors), still)


@LAYERS
@ORDERS
def test_every_part_is_called_where_somebody_looks(name, norm_first):
    ours, theirs = layers(name, norm_first=norm_first)
    tensors, calls = inputs(name), []
    for module in (ours, theirs):
        for part_name, part in module.named_modules():
            part.register_forward_hook(lambda *_, n=part_name, m=module: calls.append((m is ours, n)))
    with no_fast_path():
        assert torch.allclose(ours(*tensors), theirs(*tensors))
    called = {n for is_ours, n in calls if is_ours}
    assert called == {n for n, _ in ours.named_modules()}  # torch does not call out_proj
    assert {n for is_ours, n in calls if not is_ours} == {n for n in called if not n.endswith("out_proj")}


class Doubling(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args):
        return 2 * self.inner(*args)


@LAYERS
@ORDERS
@pytest.mark.parametrize(
    "part", ["linear1", "linear2", "norm1", "norm2", "dropout", "dropout1", "dropout2", "activation"]
)
def test_what_stands_in_a_parts_place_acts(name, norm_first, part):
    ours, theirs = layers(name, norm_first=norm_first, activation=torch.nn.GELU())
    for module in (ours, theirs):
        setattr(module, part, Doubling(getattr(module, part)))
    assert_twins(ours, theirs, inputs(name), {})


@LAYERS
@ORDERS
def test_autocast(name, norm_first):
    ours, theirs = layers(name, torch.float32, norm_first=norm_first)
    tensors = inputs(name, torch.float32)
    with no_fast_path():
        exact = theirs(*tensors)
        with torch.autocast("cpu", torch.bfloat16):
            expected, got = theirs(*tensors), ours(*tensors)
    assert got.dtype == torch.float32  # the stream's
    error = (expected.float() - exact).abs().max()
    assert (got - exact).abs().max() < 2 * error


# ---------------------------------------------------------------------------------------------------------------------
# Stacks
# ---------------------------------------------------------------------------------------------------------------------


def encoders(dtype=torch.float64, norm=True, **options):
    """Return two stacks of both kinds with the same weights."""
    ours, theirs = layers("TransformerEncoderLayer", dtype, **options)
    norms = both("LayerNorm", E, dtype=dtype) if norm else (None, None)
    ours = nn.TransformerEncoder(ours, 2, norms[0])
    theirs = torch.nn.TransformerEncoder(theirs, 2, norms[1], enable_nested_tensor=False)
    for module in theirs.layers.parameters():
        torch.nn.init.normal_(module, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


STACK_MASKS = {
    "none": {},
    "causal": {"mask": torch.nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64)},
    "bool causal": {"mask": torch.ones(T, T, dtype=torch.bool).triu(1)},
    "other": {"mask": torch.linspace(-1, 1, T * T, dtype=torch.float64).view(T, T)},
    "padding": {"src_key_padding_mask": torch.arange(T) >= torch.tensor([[T], [2], [3]])},
}
STACK_MASKS["causal and padding"] = {**STACK_MASKS["bool causal"], **STACK_MASKS["padding"]}


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("mask", STACK_MASKS)
def test_encoder(norm, mask):
    assert_twins(*encoders(norm=norm), inputs("Encoder"), STACK_MASKS[mask])


@ORDERS
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", ["padding", "causal and padding"])
@pytest.mark.parametrize("activation", ["gelu", "relu", "F.silu"])
def test_evaluation_leaves_padded_tokens_out(norm_first, batch_first, mask, activation, monkeypatch):
    """Not of an activation that might look at the other tokens."""
    activation = ACTIVATIONS[activation]
    ours, theirs = encoders(norm_first=norm_first, batch_first=batch_first, activation=activation)
    (src,) = inputs("Encoder")
    src = src if batch_first else src.transpose(0, 1)
    rows = []
    forward = nn.Linear.forward

    def counting(layer, x):
        rows.append(x.shape.numel() // x.size(-1))
        return forward(layer, x)

    monkeypatch.setattr(nn.Linear, "forward", counting)
    with torch.no_grad(), no_fast_path():
        got, expected = ours.eval()(src, **STACK_MASKS[mask]), theirs.eval()(src, **STACK_MASKS[mask])
    padding = STACK_MASKS["padding"]["src_key_padding_mask"]
    visible = ~padding if batch_first else ~padding.t()
    torch.testing.assert_close(got[visible], expected[visible])
    assert got.shape == src.shape
    left_out = activation is not functional.silu
    assert set(rows) == {int(visible.sum()) if left_out else B * T}
    if left_out:
        torch.testing.assert_close(got[~visible], ours.norm.bias.expand_as(got[~visible]))


@pytest.mark.parametrize("why", ["training", "gradients", "a hook", "holes", "a float mask", "not enabled", "a mask"])
def test_padded_tokens_are_kept_where_torch_keeps_them_or_somebody_looks(why):
    ours, theirs = encoders()
    ours.eval(), theirs.eval()
    (src,) = inputs("Encoder")
    options = dict(STACK_MASKS["padding"])
    if why == "training":
        ours.train()
    elif why == "a hook":
        ours.layers[1].norm2.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    elif why == "holes":
        options["src_key_padding_mask"] = torch.arange(T) % 2 == torch.tensor([[1], [0], [1]])
    elif why == "a float mask":
        padding = options["src_key_padding_mask"]
        options["src_key_padding_mask"] = torch.zeros(B, T, dtype=torch.float64).masked_fill(padding, float("-inf"))
    elif why == "not enabled":
        ours.enable_nested_tensor = False
    elif why == "a mask":
        options["mask"] = STACK_MASKS["other"]["mask"]
    shapes = []
    with torch.set_grad_enabled(why == "gradients"), no_fast_path():
        torch.testing.assert_close(ours(src, **options), theirs(src, **options))
    assert shapes in ([], [(B, T, E)])


def test_holes_are_left_out_if_nobody_asks_for_the_check():
    ours, theirs = encoders()
    ours.mask_check = False
    padding = torch.arange(T) % 2 == torch.tensor([[1], [0], [1]])
    (src,) = inputs("Encoder")
    with torch.no_grad(), no_fast_path():
        got = ours.eval()(src, src_key_padding_mask=padding)
        expected = theirs.eval()(src, src_key_padding_mask=padding)
    torch.testing.assert_close(got[~padding], expected[~padding])
    with torch.no_grad():
        assert ours(src, src_key_padding_mask=torch.ones(B, T, dtype=torch.bool)).isfinite().all()


def test_decoder():
    ours, theirs = layers("TransformerDecoderLayer")
    ours, theirs = nn.TransformerDecoder(ours, 2), torch.nn.TransformerDecoder(theirs, 2)
    for chosen in ((), ("causal",), ("mask", "memory"), ("causal", "padding", "memory_mask", "memory")):
        options = masks("TransformerDecoder", *chosen)
        options.pop("tgt_is_causal", None)  # to be found out
        assert_twins(ours, theirs, inputs("Decoder"), options)


def test_a_causal_mask_is_found_and_not_read(monkeypatch):
    seen = []
    forward = nn.MultiheadAttention.forward

    def watching(layer, *args, attn_mask=None, is_causal=False, **options):
        seen.append((attn_mask is None, is_causal))
        return forward(layer, *args, attn_mask=attn_mask, is_causal=is_causal, **options)

    monkeypatch.setattr(nn.MultiheadAttention, "forward", watching)
    for mask in ("causal", "bool causal", "other"):
        encoders()[0](*inputs("Encoder"), **STACK_MASKS[mask])
    assert seen == [(True, True)] * 4 + [(False, False)] * 2


@pytest.mark.parametrize(
    "options", [{}, {"batch_first": True, "norm_first": True, "activation": "gelu", "bias": False}]
)
def test_transformer(options):
    torch.manual_seed(5)
    theirs = torch.nn.Transformer(E, H, 2, 2, F, 0.0, **options)
    torch.manual_seed(5)
    ours = nn.Transformer(E, H, 2, 2, F, 0.0, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    assert {type(part) for part in ours.modules() if not type(part).__module__.startswith("fastllm")} == {
        torch.nn.ModuleList
    }
    ours.double(), theirs.double()
    tgt, src = inputs("Decoder")
    if not options:
        src, tgt = src.transpose(0, 1), tgt.transpose(0, 1)
    causal = masks("TransformerDecoder", "causal")["tgt_mask"]
    padding = torch.arange(S) >= torch.tensor([[S], [2], [4]])
    assert_twins(ours, theirs, (src, tgt), {"tgt_mask": causal, "src_key_padding_mask": padding})
    assert_twins(ours, theirs, (src, tgt), {"memory_key_padding_mask": padding})


def test_custom_encoder_and_decoder():
    encoder, decoder = torch.nn.Identity(), torch.nn.Identity()
    encoder.forward = lambda src, **masks: src + 1
    decoder.forward = lambda tgt, memory, **masks: tgt + memory
    ours = nn.Transformer(E, H, custom_encoder=encoder, custom_decoder=decoder)
    assert torch.equal(ours(torch.ones(2, 1, E), torch.ones(2, 1, E)), torch.full((2, 1, E), 3.0))
    assert ours.encoder is encoder
    assert ours.decoder is decoder


def test_custom_layers_get_the_mask_as_torchs_do():
    class Layer(torch.nn.Module):
        def forward(self, src, src_mask=None, is_causal=False, src_key_padding_mask=None):
            given.append((src_mask, is_causal, src_key_padding_mask))
            return src

    given = []
    mask, padding = STACK_MASKS["causal"]["mask"], STACK_MASKS["padding"]["src_key_padding_mask"]
    nn.TransformerEncoder(Layer(), 2)(torch.zeros(B, T, E), mask, padding)
    assert [(m is mask, c, p is padding) for m, c, p in given] == [(True, True, True)] * 2


@pytest.mark.parametrize("mask", ["none", "causal and padding"])
@pytest.mark.parametrize("training", [True, False])
def test_compile_and_export(mask, training):
    ours, _ = encoders(torch.float32)
    ours.train(training)
    (src,) = inputs("Encoder", torch.float32)
    expected = ours(src, **STACK_MASKS[mask])
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(ours, (src,), STACK_MASKS[mask]).module()
    for function in (compiled, exported):
        torch.testing.assert_close(function(src, **STACK_MASKS[mask]), expected)


def test_copies():
    for module in (layers("TransformerDecoderLayer")[0], encoders()[0]):
        tensors = inputs("Decoder")[: 2 if "Decoder" in type(module).__name__ else 1]
        for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(copied(*tensors), module(*tensors))


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda: nn.TransformerEncoderLayer(6, 4), ValueError, r"'d_model' must be a multiple of nhead \(4\), got 6"),
    (lambda: nn.TransformerDecoderLayer(6, 4), ValueError, r"'d_model' must be a multiple of nhead \(4\), got 6"),
    (lambda: nn.Transformer(6, 4), ValueError, r"'d_model' must be a multiple of nhead \(4\), got 6"),
    (lambda: nn.TransformerEncoderLayer(6, 3, activation="swish"), RuntimeError, "relu/gelu, not swish"),
    (
        lambda: type("Mine", (nn.TransformerEncoderLayer,), {"_ff_block": None}),
        TypeError, "Mine: '_ff_block' would never be called",
    ),
    (
        lambda: type("Mine", (nn.TransformerDecoderLayer,), {"_mha_block": None}),
        TypeError, "Mine: '_mha_block' would never be called",
    ),
    (
        lambda: encoders()[0].eval()(*inputs("E"), src_key_padding_mask=torch.ones(B, 4, dtype=torch.bool)),
        ValueError, r"padding_mask' must have shape \[3, 5\], got \[3, 4\]",
    ),
])  # fmt: skip
@torch.no_grad()
def test_wrong_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_on_a_gpu_nothing_is_waited_for(gpu):
    ours, _ = layers("TransformerDecoderLayer", torch.float32)
    tensors, options = inputs("Decoder", torch.float32), masks("Decoder", "padding", "memory")
    expected = ours(*tensors, **options, tgt_is_causal=True)
    ours.to("cuda:0")
    tensors = each(tensors, lambda x: x.to("cuda:0"))
    options = {name: mask.to("cuda:0") for name, mask in options.items()}
    with gpu.without_waiting():
        output = ours(*tensors, **options, tgt_is_causal=True)
    torch.testing.assert_close(output.cpu(), expected)
