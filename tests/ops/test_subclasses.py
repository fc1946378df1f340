"""Tensor subclasses: ops read no memory that does not hold their values, and say whose it is."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.utils._pytree import tree_map_only

from fastllm import nn, ops
from tests import reference
from tests.ops import harness
from tests.ops.test_devices import CALLS, OTHERS


class Plain(torch.Tensor):
    """What anybody may derive; torch would hand its memory to a kernel without a word."""


class Packed(torch.Tensor):
    """A wrapper as torchao's quantized weights are: int8 and a scale a row, which only linear knows how to read."""

    @staticmethod
    def __new__(cls, values, scale):
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=scale.dtype, device=values.device)

    def __init__(self, values, scale):
        self.values, self.scale = values, scale

    @classmethod
    def of(cls, weight):
        scale = weight.abs().amax(1, keepdim=True) / 127
        return cls((weight / scale).round().to(torch.int8), scale)

    def unpack(self):
        return self.values * self.scale

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            input, weight, bias = (*args, None)[:3]
            return F.linear(input, weight.unpack(), bias)
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].values, args[0].scale)
        return NotImplemented


class Watched(torch.Tensor):
    """A wrapper that implements every op by what it wraps."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = tree_map_only(cls, lambda x: x.inner, (args, kwargs or {}))
        return func(*args, **kwargs)


ARGUMENTS = [(f, name) for f, tensors in CALLS.items() for name in tensors]
IDS = {"ids": lambda x: getattr(x, "__name__", x)}


@pytest.mark.parametrize(("function", "name"), ARGUMENTS, **IDS)
def test_every_argument_of_every_op(function, name):
    tensors = dict(CALLS[function])
    tensors[name] = tensors[name].as_subclass(Plain)
    with pytest.raises(TypeError, match=f"^{function.__name__}: '{name}' must be a plain torch.Tensor, got a Plain$"):
        function(**tensors, **OTHERS.get(function, {}))


def test_a_causal_bias_is_no_tensor_elsewhere():
    with pytest.raises(TypeError, match=r"^gelu: 'input' must be a plain torch\.Tensor, got a CausalBias$"):
        ops.gelu(causal_upper_left(3, 3))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
@pytest.mark.parametrize(("function", "name"), ARGUMENTS, **IDS)
def test_a_nested_tensor_is_refused_in_a_sentence(function, name, layout):
    tensors = dict(CALLS[function])
    tensors[name] = torch.nested.nested_tensor([tensors[name], tensors[name]], layout=layout)
    message = rf"^{function.__name__}: '{name}' must be a plain torch\.Tensor, got a nested one: give values\(\)"
    with pytest.raises(TypeError, match=message):
        function(**tensors, **OTHERS.get(function, {}))


def test_what_the_sentence_about_nested_tensors_says_works():
    sequences = [torch.randn(3, 8), torch.randn(5, 8)]
    nested = torch.nested.nested_tensor(sequences, layout=torch.jagged)
    for normed, x in zip(ops.layer_norm(nested.values(), (8,)).split([3, 5]), sequences, strict=True):
        torch.testing.assert_close(normed, ops.layer_norm(x, (8,)))
    values, ids = nested.values()[None], torch.tensor([[0] * 3 + [1] * 5])
    packed = ops.scaled_dot_product_attention(values, values, values, is_causal=True, segment_ids=ids)[0]
    padded = nested.to_padded_tensor(0)
    lengths = ops.scaled_dot_product_attention(
        padded, padded, padded, is_causal=True, key_lengths=nested.offsets().diff()
    )
    for row, (one, x) in enumerate(zip(packed.split([3, 5]), sequences, strict=True)):
        expected = ops.scaled_dot_product_attention(x, x, x, is_causal=True)
        torch.testing.assert_close(one, expected)
        torch.testing.assert_close(lengths[row, : len(x)], expected)


def test_a_class_that_does_not_implement_an_op_is_named():
    with pytest.raises(
        TypeError, match=r"^linear: 'weight' must be a plain .*, got a Packed, which does not implement"
    ):
        ops.linear(torch.randn(2, 3), Packed.of(torch.randn(4, 3)))


@pytest.mark.parametrize("function", CALLS, **IDS)
def test_a_class_that_implements_ops_is_asked(function):
    tensors, others = CALLS[function], OTHERS.get(function, {})
    watched = {name: Watched(tensor) for name, tensor in tensors.items()}
    outputs, expected = function(**watched, **others), function(**tensors, **others)
    assert torch.equal(*(y[0] if isinstance(y, tuple) else y for y in (outputs, expected)))


@pytest.mark.parametrize(("tq", "tk"), [(5, 5), (3, 7), (7, 7)])
@pytest.mark.parametrize("make", [causal_upper_left, causal_lower_right])
@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"window": (2, 1)}, {"causal_align": "bottom-right", "window": (2, 1)}]
)
def test_a_causal_bias_as_attn_mask(make, tq, tk, options, device):
    shift = tk - tq if make is causal_lower_right else 0
    visible = torch.ones(tq, tk).tril(shift) > 0
    bias = make(tq, tk)
    at = tk - tq if "causal_align" in options else 0
    window, is_causal = options.get("window", (-1, -1)), options.get("is_causal", False)
    harness.assert_matches_reference(
        lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, bias, **options),
        lambda q, k, v: reference.attention(q, k, v, visible, is_causal=is_causal, window=window, shift=at),
        [torch.randn(2, 2, n, 8, dtype=torch.float64, requires_grad=True) for n in (tq, tk, tk)],
        torch.float32, device=device,
    )  # fmt: skip


@pytest.mark.parametrize(("tq", "tk"), [(5, 5), (3, 7)])
@pytest.mark.parametrize("make", [causal_upper_left, causal_lower_right])
def test_a_causal_bias_beside_positions_by_key_lengths(make, tq, tk):
    q, k = torch.randn(2, 2, tq, 8), torch.randn(2, 2, tk, 8)
    options = {"key_lengths": torch.tensor([tk, 2]), "causal_align": "key-lengths", "window": (2, 1)}
    visible = torch.ones(tq, tk).tril(tk - tq if make is causal_lower_right else 0) > 0
    ours = ops.scaled_dot_product_attention(q, k, k, make(tq, tk), **options)
    torch.testing.assert_close(ours, ops.scaled_dot_product_attention(q, k, k, visible, **options))


def test_a_causal_bias_of_packed_attention_and_of_another_shape():
    qkv = torch.randn(2, 5, 3, 2, 8)
    expected = ops.attention_packed(qkv, is_causal=True)
    for make in (causal_upper_left, causal_lower_right):
        assert torch.equal(ops.attention_packed(qkv, make(5, 5)), expected)
    with pytest.raises(
        ValueError, match=r"'attn_mask' must be a CausalBias of \(Tq, Tk\) = \(5, 5\), got one of \(4, 5\)"
    ):
        ops.attention_packed(qkv, causal_upper_left(4, 5))


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_whose_weight_is_replaced(bias):
    for layer in (nn.Linear(6, 4, bias=bias), nn.FeedForward(6, bias=bias)):
        x = torch.randn(3, 6)
        linears = [module for module in layer.modules() if isinstance(module, torch.nn.Linear)]
        packed = [Packed.of(linear.weight.detach()) for linear in linears]
        for linear, weight in zip(linears, packed, strict=True):
            linear.weight = torch.nn.Parameter(weight.unpack())
        expected = layer(x)
        for linear, weight in zip(linears, packed, strict=True):
            linear.weight = torch.nn.Parameter(weight, requires_grad=False)
            assert type(linear.weight) is Packed
        torch.testing.assert_close(layer(x), expected)


def test_asking_leaves_signatures_alone():
    assert "attn_mask" in inspect.signature(ops.scaled_dot_product_attention).parameters
    assert torch.equal(ops.gelu(torch.nn.Parameter(torch.ones(2))), ops.gelu(torch.ones(2)))
