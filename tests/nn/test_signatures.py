"""Every layer against the torch.nn class that it stands in for: signatures, skip_init, and attributes set later."""

import copy
import inspect

import pytest
import torch

from fastllm import nn

TWINS = [name for name in nn.__all__ if hasattr(torch.nn, name)]  # torch 2.11 has no LinearCrossEntropyLoss
X, T = torch.randn(4, 9), torch.tensor([0, 8, 3, 1])
# How to make each, and what its forward takes.
MAKE = {
    "CrossEntropyLoss": ((), (X, T)),
    "Dropout": ((), (X,)),
    "Embedding": ((9, 6), (T,)),
    "GELU": ((), (X,)),
    "LayerNorm": ((9,), (X,)),
    "Linear": ((9, 5), (X,)),
    "LinearCrossEntropyLoss": ((9, 11), (X, T)),
    "MultiheadAttention": ((9, 3), (X, X, X)),
    "RMSNorm": ((9,), (X,)),
    "Softmax": ((-1,), (X,)),
    "Transformer": ((9, 3, 1, 1, 5), (X, X)),
    "TransformerDecoder": ((torch.nn.TransformerDecoderLayer(9, 3, 5), 1), (X, X)),
    "TransformerDecoderLayer": ((9, 3, 5), (X, X)),
    "TransformerEncoder": ((torch.nn.TransformerEncoderLayer(9, 3, 5), 1), (X,)),
    "TransformerEncoderLayer": ((9, 3, 5), (X,)),
}


def swapped(name, **attributes):
    """Return torch's layer, and a copy whose class was swapped for ours; both with attributes set after that."""
    theirs = getattr(torch.nn, name)(*MAKE[name][0])
    ours = copy.deepcopy(theirs)
    ours.__class__ = getattr(nn, name)
    for attribute, value in attributes.items():
        setattr(theirs, attribute, value)
        setattr(ours, attribute, value)
    return ours, theirs


def test_every_layer_is_here():
    assert set(TWINS) == {name for name in MAKE if hasattr(torch.nn, name)}


def parameters(function):
    return [(p.name, p.default, p.kind) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", TWINS)
def test_constructor_and_forward_are_torchs_to_the_letter(name):
    ours, theirs = getattr(nn, name), getattr(torch.nn, name)
    assert parameters(ours) == parameters(theirs)
    assert parameters(ours.forward) == parameters(theirs.forward)


@pytest.mark.parametrize("make", [
    *((getattr(nn, name), *MAKE[name][0]) for name in (
        "Embedding", "LayerNorm", "Linear", "MultiheadAttention", "RMSNorm", "Transformer", "TransformerDecoderLayer",
        "TransformerEncoderLayer",
    )),
    (nn.LinearCrossEntropyLoss, 9, 11), (nn.DropoutAddLayerNorm, 9), (nn.DropoutAddRMSNorm, 9),
], ids=lambda make: make[0].__name__)  # fmt: skip
def test_skip_init_device_and_dtype(make):
    kind, *arguments = make
    assert all(p.dtype == torch.float64 for p in kind(*arguments, dtype=torch.float64).parameters())
    assert all(p.device.type == "meta" for p in kind(*arguments, device="meta").parameters())
    layer = torch.nn.utils.skip_init(kind, *arguments, dtype=torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 and p.device.type == "cpu" for p in layer.parameters())


def test_positional_arguments_and_pretrained_tables():
    table = torch.randn(9, 6)
    ours = nn.Embedding(9, 6, -1, None, 2.0, False, False, table, True)
    assert ours.padding_idx == 8
    assert ours.weight.data_ptr() == table.data_ptr()
    assert not ours.weight.requires_grad
    assert torch.equal(nn.Embedding.from_pretrained(table)(T), table[T])


@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [
        ("Dropout", "inplace", True),
        ("Embedding", "max_norm", 1.0),
        ("Embedding", "norm_type", 1.0),
        ("Embedding", "scale_grad_by_freq", True),
        ("Embedding", "sparse", True),
        ("LinearCrossEntropyLoss", "options", "chunks"),
        ("LinearCrossEntropyLoss", "out_features", (2,)),
    ],
)
def test_what_is_not_done_is_refused_in_whatever_way_it_comes(name, attribute, value):
    if name not in TWINS:
        pytest.skip("this torch has no such class")
    message = f"'{attribute}' must be "
    ours, _ = swapped(name, **{attribute: value})
    with pytest.raises(ValueError, match=message):
        ours(*MAKE[name][1])
    with pytest.raises(ValueError, match=message):
        getattr(nn, name)(*MAKE[name][0], **{attribute: value})


def test_a_position_table_keeps_what_is_set_of_the_token_table():
    module = nn.PositionalEmbedding(9, 6, 4)
    module.token.padding_idx = 3
    module(T[None]).sum().backward()
    assert not module.token.weight.grad[3].any()
    module.token.max_norm = 1.0
    with pytest.raises(ValueError, match="'max_norm' must be None"):
        module(T[None])


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("CrossEntropyLoss", {"weight": torch.rand(9)}),
        ("CrossEntropyLoss", {"ignore_index": 8}),
        ("CrossEntropyLoss", {"reduction": "sum"}),
        ("CrossEntropyLoss", {"label_smoothing": 0.1}),
        ("Dropout", {"p": 0.0}),
        ("Dropout", {"training": False}),
        ("Embedding", {"padding_idx": 3}),
        ("Embedding", {"padding_idx": -1}),
        ("GELU", {"approximate": "tanh"}),
        ("LayerNorm", {"eps": 0.1}),
        ("LayerNorm", {"bias": None}),
        ("LayerNorm", {"weight": None, "bias": None}),
        ("Linear", {"bias": None}),
        ("LinearCrossEntropyLoss", {"weight": torch.rand(11)}),
        ("LinearCrossEntropyLoss", {"ignore_index": 8}),
        ("LinearCrossEntropyLoss", {"reduction": "none"}),
        ("LinearCrossEntropyLoss", {"label_smoothing": 0.1}),
        ("RMSNorm", {"eps": 0.1}),
        ("RMSNorm", {"weight": None}),
        ("Softmax", {"dim": 0}),
    ],
)
def test_attributes_set_later_act_as_in_torch(name, attributes):
    if name not in TWINS:
        pytest.skip("this torch has no such class")
    ours, theirs = swapped(name, **attributes)
    results = []
    for layer in (ours, theirs):
        inputs = [x.clone().requires_grad_(x.is_floating_point()) for x in MAKE[name][1]]
        output = layer(*inputs)
        output.sum().backward()
        results.append([output, *(x.grad for x in inputs), *(p.grad for p in layer.parameters())])
    for a, b in zip(*results, strict=True):
        if a is not None or b is not None:
            torch.testing.assert_close(a, b, rtol=1.3e-6, atol=1e-5)
