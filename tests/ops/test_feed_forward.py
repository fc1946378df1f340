"""fastllm.ops.feed_forward."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm import ops
from tests import reference
from tests.ops import harness

# M rows, C channels in, F hidden, O out
SHAPES = [
    (1, 1, 1, 1),  # all of it is edge
    (7, 5, 9, 3),  # odd sizes below a register tile
    (100, 24, 96, 24),  # a block of rows and a bit
    (97, 300, 70, 33),  # the depth of the first product in two slices: only the last may be activated
    (5, 33, 600, 300),  # so too for both products of backward
    (0, 4, 5, 6),  # no rows
]


def inputs(m, c, f, o, bias=True):
    make = lambda *shape: torch.randn(shape, dtype=torch.float64, requires_grad=True)  # noqa: E731
    return [make(m, c), make(f, c), make(f) if bias else None, make(o, f), make(o) if bias else None]


def of_reference(approximate):
    def run(x, w1, b1, w2, b2):
        hidden = reference.gelu(reference.linear(x, w1, b1), approximate)
        return reference.linear(hidden, w2, b2)

    return run


def of_torch(approximate):
    return lambda x, w1, b1, w2, b2: F.linear(F.gelu(F.linear(x, w1, b1), approximate=approximate), w2, b2)


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(shape, bias, approximate, dtype):
    harness.assert_matches_reference(
        lambda *x: ops.feed_forward(*x, approximate), of_reference(approximate), inputs(*shape, bias), dtype,
        of_torch(approximate),
    )  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 120), st.integers(1, 40), st.integers(1, 300), st.integers(1, 40), st.booleans())
def test_any_shape(m, c, f, o, transposed):
    x, w1, b1, w2, b2 = inputs(m, c, f, o)
    if transposed:
        x, w1, w2 = (t.detach().t().contiguous().t().requires_grad_() for t in (x, w1, w2))
    harness.assert_matches_reference(ops.feed_forward, of_reference("tanh"), [x, w1, b1, w2, b2], torch.float32)


def test_equals_the_separate_ops_bit_for_bit():
    x, w1, _, w2, _ = (
        t.detach().float().requires_grad_() if t is not None else None for t in inputs(200, 64, 256, 64, bias=False)
    )
    fused, fused_grads = harness.run(lambda x, w1, w2: ops.feed_forward(x, w1, None, w2, None), [x, w1, w2])
    separate, separate_grads = harness.run(
        lambda x, w1, w2: ops.linear(ops.gelu(ops.linear(x, w1), "tanh"), w2), [x, w1, w2]
    )
    for a, b in zip([fused, *fused_grads], [separate, *separate_grads], strict=True):
        assert torch.equal(a, b)


def test_a_column_major_gradient():
    arguments = inputs(20, 8, 16, 9)
    grad_output = torch.randn(9, 20).t()
    single = [t.detach().float().requires_grad_() for t in arguments]
    _, grads = harness.run(ops.feed_forward, single, grad_output)
    _, expected = harness.run(of_reference("tanh"), [t.detach().double().requires_grad_() for t in single], grad_output)
    for actual, reference_value in zip(grads, expected, strict=True):
        harness.assert_close(actual, reference_value, torch.float32)


def test_only_wanted_gradients():
    for frozen in range(5):
        arguments = inputs(9, 8, 16, 8)
        arguments[frozen].requires_grad_(False)
        harness.assert_matches_reference(ops.feed_forward, of_reference("tanh"), arguments, torch.float32)


def test_leading_dimensions():
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    harness.assert_matches_reference(
        ops.feed_forward, of_reference("tanh"), [x, *inputs(1, 8, 16, 5)[1:]], torch.float32
    )


def test_gradcheck():
    assert torch.autograd.gradcheck(ops.feed_forward, inputs(3, 4, 6, 5))


def test_op_contract_compile_threads(threads):
    arguments = [t.detach().float().requires_grad_() for t in inputs(130, 24, 40, 24)]
    harness.assert_op_contract(torch.ops.fastllm.feed_forward.default, (*arguments, "tanh"))
    harness.assert_compiles(ops.feed_forward, arguments)
    harness.assert_deterministic(ops.feed_forward, arguments, threads)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.feed_forward(*arguments).dtype == torch.bfloat16


def test_double_backward_is_a_clear_error():
    arguments = inputs(3, 4, 6, 5)
    (grad,) = torch.autograd.grad(ops.feed_forward(*arguments).sum(), arguments[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=r"fastllm\.feed_forward: double backward is not implemented"):
        grad.sum().backward()


X, W1, W2 = torch.randn(2, 3), torch.randn(5, 3), torch.randn(4, 5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.feed_forward(X, W2, None, W2, None), ValueError, r"'expand_weight' must have shape \(hidden, 3\)"),
        (lambda: ops.feed_forward(X, W1, None, W1, None), ValueError, r"'contract_weight' must have shape \(out, 5\)"),
        (lambda: ops.feed_forward(X, W1, W2[0, :2], W2, None), ValueError, r"'expand_bias' must have shape \[5\]"),
        (lambda: ops.feed_forward(X, W1, None, W2.double(), None), TypeError, "'contract_weight' must have the dtype"),
        (lambda: ops.feed_forward(X, W1, None, W2, None, "relu"), ValueError, "'approximate' must be 'none' or 'tanh'"),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
