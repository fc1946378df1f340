"""fastllm.ops.gelu and bias_gelu."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm import ops
from tests import reference
from tests.ops import harness

SHAPES = [
    (1,),  # a single element: all of it is a partial vector
    (7,),  # one less than an AVX2 vector
    (8,),  # one AVX2 vector
    (9,),  # one more
    (3, 255),  # one less than whole vectors, several rows
    (5, 1023),
    (17, 1024),  # more than one task
    (2, 5001),  # without a bias: several runs, the last one short
    (0, 5),  # empty batch
    (4, 0),  # empty rows
    (2, 3, 4, 33),
    (600, 24),  # the bias's gradient is a sum over several groups of rows
]
FORMS = ["none", "tanh"]


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gelu_matches_reference(shape, approximate, dtype, device):
    x = torch.randn(shape, dtype=torch.float64).mul(3).requires_grad_()
    harness.assert_matches_reference(ops.gelu, reference.gelu, [x, approximate], dtype, gelu_of_torch, device)


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_bias_gelu_matches_reference(shape, approximate, dtype, device):
    x = torch.randn(shape, dtype=torch.float64).mul(3).requires_grad_()
    bias = torch.randn(shape[-1], dtype=torch.float64, requires_grad=True)
    inputs = [x, bias, approximate]
    harness.assert_matches_reference(ops.bias_gelu, reference.bias_gelu, inputs, dtype, device=device)


def gelu_of_torch(x, approximate):
    return F.gelu(x, approximate=approximate)


@pytest.mark.parametrize("approximate", FORMS)
def test_extremes(approximate, device):
    x = torch.tensor([0.0, -0.0, 1e4, -1e4, float("inf"), float("nan"), 1e-40, -1e-40, -12.0, 12.0])
    # Not against torch's: with AVX-512, F.gelu(inf) is NaN (torch 2.13).
    expected = reference.gelu(x.double(), approximate).float()
    torch.testing.assert_close(ops.gelu(x.to(device), approximate).cpu(), expected, equal_nan=True)


@pytest.mark.parametrize("view", ["transposed", "expanded", "offset", "strided", "unaligned"])
def test_any_strides(view, device):
    base = torch.randn(12, 20)
    x = {
        "transposed": base.t(),
        "expanded": base[:, :1].expand(12, 20),
        "offset": base[1:, 3:],
        "strided": base[::2, ::3],
        "unaligned": base.flatten()[1:221].view(11, 20),  # contiguous, but not at a multiple of 16 bytes
    }[view]
    bias = torch.randn(x.shape[-1], 2)[:, 0]
    expected = reference.bias_gelu(x, bias)
    torch.testing.assert_close(ops.bias_gelu(x.to(device), bias.to(device)).cpu(), expected)
    torch.testing.assert_close(ops.gelu(x.to(device)).cpu(), reference.gelu(x))


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(0, 5),
    cols=st.integers(0, 70),
    approximate=st.sampled_from(FORMS),
    dtype=st.sampled_from(harness.DTYPES),
    transpose=st.booleans(),
)
def test_any_shape(rows, cols, approximate, dtype, transpose):
    x = torch.randn(cols, rows, dtype=torch.float64).t() if transpose else torch.randn(rows, cols, dtype=torch.float64)
    bias = torch.randn(cols, dtype=torch.float64, requires_grad=True)
    inputs = [x.requires_grad_(), bias, approximate]
    harness.assert_matches_reference(ops.bias_gelu, reference.bias_gelu, inputs, dtype)


@pytest.mark.parametrize("approximate", FORMS)
def test_gradcheck(approximate):
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.gelu(x, approximate), [x])
    assert torch.autograd.gradcheck(lambda x, b: ops.bias_gelu(x, b, approximate), [x, bias])


def test_op_contract():
    x, bias = torch.randn(3, 5, requires_grad=True), torch.randn(5, requires_grad=True)
    harness.assert_op_contract(torch.ops.fastllm.gelu.default, (x, "tanh"))
    harness.assert_op_contract(torch.ops.fastllm.bias_gelu.default, (x, bias, "tanh"))


def test_compiles():
    x, bias = torch.randn(3, 5, requires_grad=True), torch.randn(5, requires_grad=True)
    harness.assert_compiles(ops.gelu, [x])
    harness.assert_compiles(ops.bias_gelu, [x, bias])


def test_gelu_is_deterministic(device, parallelism):
    x = torch.randn(300, 129, requires_grad=True)
    harness.assert_deterministic(ops.gelu, harness.on(device, [x]), parallelism)


def test_deterministic(device, parallelism):
    x, bias = torch.randn(300, 129, requires_grad=True), torch.randn(129, requires_grad=True)
    harness.assert_deterministic(ops.bias_gelu, harness.on(device, [x, bias]), parallelism)


X = torch.randn(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.gelu(X, "sigmoid"), ValueError, "gelu: 'approximate' must be 'none' or 'tanh', got 'sigmoid'"),
        (
            lambda: ops.gelu(X.long()),
            TypeError,
            "gelu: 'input' must be float32, float64, bfloat16 or float16, got Long",
        ),
        (lambda: ops.bias_gelu(X, torch.randn(4)), ValueError, r"'bias' must have shape \[3\], got \[4\]"),
        (lambda: ops.bias_gelu(X, torch.randn(3).double()), TypeError, "'bias' must have the dtype of 'input'"),
        (lambda: ops.bias_gelu(X[0, 0], torch.randn(1)), ValueError, "at least one dimension, got a scalar"),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
