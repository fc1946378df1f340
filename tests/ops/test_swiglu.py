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
    (70, 24),  # rows of whole accesses, of more than one block where they are packed
]


def two(shape):
    return [torch.randn(shape, dtype=torch.float64).mul(3).requires_grad_() for _ in range(2)]


def packed(shape):
    return [torch.randn(*shape[:-1], 2 * shape[-1], dtype=torch.float64).mul(3).requires_grad_()]


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("make", [two, packed])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(shape, make, dtype, device):
    harness.assert_matches_reference(ops.swiglu, reference.swiglu, make(shape), dtype, of_torch, device)


def of_torch(input, up=None):
    gate, up = input.chunk(2, -1) if up is None else (input, up)
    return F.silu(gate) * up


def test_extremes(device):
    gate = torch.tensor([0.0, -0.0, 1e4, -1e4, 88.0, -88.0, float("inf"), float("nan"), 1e-40, -1e-40])
    up = torch.tensor([1.0, -2.0]).repeat(5)
    actual = ops.swiglu(gate.to(device), up.to(device)).cpu()
    torch.testing.assert_close(actual, reference.swiglu(gate, up), equal_nan=True)
    finite = [gate[:6].double().requires_grad_(), up[:6].double()]
    harness.assert_matches_reference(ops.swiglu, reference.swiglu, finite, torch.float32, device=device)


VIEWS = {
    "halves": lambda base: base.chunk(2, -1),
    "transposed": lambda base: (base.transpose(1, 2), base.transpose(1, 2) * 2),
    "expanded": lambda base: (base[:, :1].expand(12, 5, 24), base[..., :1].expand(12, 5, 24)),
    "unaligned": lambda base: (base[1:, :, 3:], base[:-1, :, :-3]),
    "rows apart": lambda base: (base[:, 0], base[:, 1]),
    "outer strides differ": lambda base: (base[:, ::2], base[:, :3]),
    "a packed view": lambda base: (base[..., 4:20],),
    "rows that begin at odd places": lambda base: (base.flatten()[:1431].view(53, 27)[:, :16],),
    "a packed view, unaligned": lambda base: (base[..., 3:21],),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("view", VIEWS)
def test_any_strides(view, dtype, device):
    base = torch.randn(12, 5, 24, dtype=dtype, device=device, requires_grad=True)
    inputs = VIEWS[view](base)
    plain = [x.detach().cpu().double().requires_grad_() for x in inputs]
    output, expected = ops.swiglu(*inputs), reference.swiglu(*plain)
    grad_output = torch.randn_like(output)
    grads = torch.autograd.grad(output, inputs, grad_output)
    expected_grads = torch.autograd.grad(expected, plain, grad_output.cpu().double())
    for actual, wanted in zip([output, *grads], [expected, *expected_grads], strict=True):
        torch.testing.assert_close(actual.cpu(), wanted.to(dtype))


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(0, 5),
    cols=st.integers(0, 70),
    dtype=st.sampled_from(harness.DTYPES),
    make=st.sampled_from([two, packed]),
)
def test_any_shape(rows, cols, dtype, make):
    harness.assert_matches_reference(ops.swiglu, reference.swiglu, make((rows, cols)), dtype, torch_op=of_torch)


@pytest.mark.parametrize("view", ["halves", "rows apart", "a packed view"])
def test_rows_are_read_where_they_are(view):
    inputs = VIEWS[view](torch.randn(12, 5, 24))
    harness.assert_copies_nothing(lambda: ops.swiglu(*inputs))


def test_gradcheck():
    assert torch.autograd.gradcheck(ops.swiglu, two((3, 5)))
    assert torch.autograd.gradcheck(ops.swiglu, packed((3, 5)))


def test_op_contract_and_compile():
    gate, up = (torch.randn(4, 10, requires_grad=True) for _ in range(2))
    for inputs in ([gate, up], [gate]):
        harness.assert_op_contract(torch.ops.fastllm.swiglu.default, tuple(inputs))
        harness.assert_compiles(ops.swiglu, inputs)


@pytest.mark.parametrize("make", [two, packed])
def test_deterministic(make, device, parallelism):
    harness.assert_deterministic(
        ops.swiglu, harness.on(device, harness.to(make((40, 130)), torch.float32)), parallelism
    )


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
