"""fastllm.ops.swiglu, of two tensors and of one that holds both."""

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
    (8,),
    (9,),
    (3, 255),  # one less than whole vectors, several rows
    (17, 1024),  # more than one task
    (0, 5),  # empty batch
    (4, 0),  # empty rows
    (2, 3, 4, 33),
]


def two(shape):
    return [torch.randn(shape, dtype=torch.float64).mul(3).requires_grad_() for _ in range(2)]


def packed(shape):
    return [torch.randn(*shape[:-1], 2 * shape[-1], dtype=torch.float64).mul(3).requires_grad_()]


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("make", [two, packed])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(shape, make, dtype):
    harness.assert_matches_reference(ops.swiglu, reference.swiglu, make(shape), dtype, torch_op=of_torch)


def of_torch(input, up=None):
    gate, up = input.chunk(2, -1) if up is None else (input, up)
    return F.silu(gate) * up


def test_extremes():
    gate = torch.tensor([0.0, -0.0, 1e4, -1e4, 88.0, -88.0, float("inf"), float("nan"), 1e-40, -1e-40])
    up = torch.tensor([1.0, -2.0]).repeat(5)
    torch.testing.assert_close(ops.swiglu(gate, up), reference.swiglu(gate, up), equal_nan=True)
    finite = gate[:6].double().requires_grad_()
    harness.assert_matches_reference(ops.swiglu, reference.swiglu, [finite, up[:6].double()], torch.float32)


@pytest.mark.parametrize("view", ["halves", "transposed", "expanded", "offset", "rows apart", "outer strides differ"])
def test_any_strides(view):
    base = torch.randn(12, 5, 20, dtype=torch.float64)
    gate, up = {
        "halves": base.chunk(2, -1),
        "transposed": (base.transpose(1, 2), base.transpose(1, 2) * 2),
        "expanded": (base[:, :1].expand(12, 5, 20), base[..., :1].expand(12, 5, 20)),
        "offset": (base[1:, :, 3:], base[:-1, :, :-3]),
        "rows apart": (base[:, 0], base[:, 1]),
        "outer strides differ": (base[:, ::2], base[:, :3]),
    }[view]
    gate, up = gate.detach().requires_grad_(), up.detach().requires_grad_()
    harness.assert_matches_reference(ops.swiglu, reference.swiglu, [gate, up], torch.float64)
    torch.testing.assert_close(ops.swiglu(gate, up), reference.swiglu(gate, up))


def test_a_packed_view_is_not_copied():
    projection = torch.randn(6, 48)
    assert torch.equal(ops.swiglu(projection[:, 8:40]), ops.swiglu(projection[:, 8:24], projection[:, 24:40]))


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(0, 5),
    cols=st.integers(0, 70),
    dtype=st.sampled_from(harness.DTYPES),
    make=st.sampled_from([two, packed]),
)
def test_any_shape(rows, cols, dtype, make):
    harness.assert_matches_reference(ops.swiglu, reference.swiglu, make((rows, cols)), dtype, torch_op=of_torch)


def test_gradcheck():
    assert torch.autograd.gradcheck(ops.swiglu, two((3, 5)))
    assert torch.autograd.gradcheck(ops.swiglu, packed((3, 5)))


def test_op_contract_compile_and_threads(threads):
    gate, up = (torch.randn(40, 130, requires_grad=True) for _ in range(2))
    for inputs in ([gate, up], [gate]):
        harness.assert_op_contract(torch.ops.fastllm.swiglu.default, tuple(inputs))
        harness.assert_compiles(ops.swiglu, inputs)
        harness.assert_deterministic(ops.swiglu, inputs, threads)


def test_double_backward_is_a_clear_error():
    x = torch.randn(4, requires_grad=True)
    (grad,) = torch.autograd.grad(ops.swiglu(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"fastllm\.swiglu: double backward is not implemented"):
        grad.sum().backward()


X = torch.randn(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.swiglu(X), ValueError, r"swiglu: 'input' must have an even last dimension.*got \[2, 3\]"),
        (lambda: ops.swiglu(X[0, 0]), ValueError, "at least one dimension, got a scalar"),
        (lambda: ops.swiglu(X.long()), TypeError, "'input' must be float32, float64, bfloat16 or float16, got Long"),
        (lambda: ops.swiglu(X, X[0]), ValueError, r"'up' must have the shape of 'input' \(\[2, 3\]\), got \[3\]"),
        (lambda: ops.swiglu(X, X.double()), TypeError, "'up' must have the dtype of 'input'"),
        (
            lambda: torch.ops.fastllm.swiglu_backward(X, X, None),
            ValueError,
            "'input' must have an even last dimension",
        ),
        (lambda: torch.ops.fastllm.swiglu_backward(X[:1], X, X), ValueError, r"'grad_output' must have shape \[2, 3\]"),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
