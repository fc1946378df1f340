"""fastllm.ops.linear and the matrix product under it."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm import ops
from tests import reference
from tests.ops import harness

# M rows, K input features, N output features
SHAPES = [
    (1, 1, 1),  # all of it is edge
    (5, 7, 15),  # less than a register tile (6 x 16 on AVX2) each way
    (6, 8, 16),  # one tile
    (7, 9, 17),  # one more each way
    (100, 65, 33),  # several tasks, all with edges
    (96, 256, 256),  # whole tasks and depths
    (97, 257, 257),  # one more each way
    (13, 600, 20),  # three slices of the depth
    (300, 20, 70),  # more rows than a slice of the depth: the gradients of weight and bias are sums of several
    (3, 1100, 1300),  # more packed columns than one slab holds; two blocks of bfloat16's depth
    (1030, 40, 33),  # more rows than a block of bfloat16's, and one row and one column more than whole tiles
    (0, 4, 5),  # no rows
    (4, 0, 5),  # no depth: the bias alone
    (4, 5, 0),  # no columns
]


def inputs(m, k, n, bias=True):
    x = torch.randn(m, k, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(n, k, dtype=torch.float64, requires_grad=True)
    return [x, weight, torch.randn(n, dtype=torch.float64, requires_grad=True)] if bias else [x, weight]


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(shape, bias, dtype, device):
    harness.assert_matches_reference(ops.linear, reference.linear, inputs(*shape, bias), dtype, F.linear, device)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3, 4), (2, 0)])
def test_leading_dimensions(lead, device):
    x = torch.randn(*lead, 10, dtype=torch.float64, requires_grad=True)
    _, weight, bias = inputs(1, 10, 7)
    harness.assert_matches_reference(ops.linear, reference.linear, [x, weight, bias], torch.float32, device=device)


@pytest.mark.parametrize("view", ["transposed", "expanded", "offset", "strided", "permuted"])
def test_any_strides(view):
    def make(rows, cols):
        base = torch.randn(2 * cols + 3, 2 * rows + 3)
        return {
            "transposed": base[:cols, :rows].t(),
            "expanded": base[0, :cols].expand(rows, cols),
            "offset": base.t()[1 : rows + 1, 3 : cols + 3],
            "strided": base.t()[: 2 * rows : 2, : 2 * cols : 2],
            "permuted": base[:cols, :rows].clone().t(),
        }[view]

    x, weight = make(20, 12).requires_grad_(), make(9, 12).requires_grad_()
    bias, grad_output = torch.randn(9, requires_grad=True), make(20, 9)
    output, grads = harness.run(ops.linear, [x, weight, bias], grad_output)
    exact = [t.double() for t in (x, weight, bias)]
    expected, expected_grads = harness.run(reference.linear, exact, grad_output)
    for actual, reference_value in zip([output, *grads], [expected, *expected_grads], strict=True):
        harness.assert_close(actual, reference_value, torch.float32)


# The gradient of a sum has strides of 0: with one column, or with no rows, these say nothing of the memory's order.
@pytest.mark.parametrize("shape", [(0, 1, 1), (0, 4, 5), (1, 1, 1), (7, 3, 1), (1, 3, 7)])
def test_bias_gradient_of_a_sum(shape):
    x, weight, bias = (t.detach().float().requires_grad_() for t in inputs(*shape))
    ops.linear(x, weight, bias).sum().backward()
    assert torch.equal(bias.grad, torch.full_like(bias, shape[0]))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40), st.sampled_from(harness.DTYPES))
def test_any_shape(m, k, n, dtype):
    harness.assert_matches_reference(ops.linear, reference.linear, inputs(m, k, n), dtype, torch_op=F.linear)


def test_only_the_gradients_that_are_needed():
    for needed in ([True, False, False], [False, True, False], [False, False, True]):
        x, weight, bias = (t.detach().float().requires_grad_(n) for t, n in zip(inputs(4, 5, 6), needed, strict=True))
        ops.linear(x, weight, bias).sum().backward()
        assert [t.grad is not None for t in (x, weight, bias)] == needed


def test_non_finite_values_stay_where_they_are():
    x, weight, _ = (t.detach().float() for t in inputs(8, 20, 33))
    x[3, 4] = float("nan")
    x[5, 1] = float("inf")
    torch.testing.assert_close(ops.linear(x, weight), F.linear(x, weight), equal_nan=True)


def test_gradcheck():
    assert torch.autograd.gradcheck(ops.linear, inputs(3, 4, 5))


def test_op_contract():
    args = tuple(t.detach().float().requires_grad_() for t in inputs(3, 4, 5))
    harness.assert_op_contract(torch.ops.fastllm.linear.default, args)
    harness.assert_op_contract(torch.ops.fastllm.linear.default, args[:2])


def test_compiles():
    harness.assert_compiles(ops.linear, [t.detach().float().requires_grad_() for t in inputs(3, 4, 5)])


def test_deterministic(threads):
    args = [t.detach().float().requires_grad_() for t in inputs(200, 300, 70)]
    harness.assert_deterministic(ops.linear, args, threads)


@pytest.mark.parametrize("rows", [2, 7, 13, 100])  # around a register tile of 6 or 12 rows; many
def test_a_row_has_the_same_bits_alone_and_in_a_batch(rows):
    x, weight, bias = (t.detach().float() for t in inputs(rows, 600, 70))
    together = ops.linear(x, weight, bias)
    for row in (0, rows - 1):
        assert torch.equal(ops.linear(x[row], weight, bias), together[row])


ON_TILES = pytest.mark.skipif(
    ops.build_info()["cpu_capability"] != "amx", reason="products of bfloat16 are torch's: this CPU has no AMX"
)


@ON_TILES
@pytest.mark.parametrize("rows", [2, 17, 33, 1100])  # around a tile of 16 rows and a pair of them; several blocks
def test_a_row_of_bfloat16_has_the_same_bits_alone_and_in_a_batch(rows, threads):
    args = [t.detach().bfloat16().requires_grad_() for t in inputs(rows, 2100, 70)]
    harness.assert_deterministic(ops.linear, args, threads)
    x, weight, bias = (t.detach() for t in args)
    together = ops.linear(x, weight, bias)
    for row in (0, rows - 1):
        assert torch.equal(ops.linear(x[row], weight, bias), together[row])


@ON_TILES
@pytest.mark.parametrize("transposed", [False, True])
def test_products_of_bfloat16_read_nothing_beside_their_rows(transposed):
    """oneDNN's, on CPUs with AMX, take what stands behind a strided row for a part of it (torch 2.13)."""

    def slice_of(rows, cols):
        base = torch.full((cols, rows + 40) if transposed else (rows, cols + 40), float("nan"), dtype=torch.bfloat16)
        view = base.t()[:rows] if transposed else base[:, :cols]
        return view.copy_(torch.randn(rows, cols)).requires_grad_()

    x, weight = slice_of(21, 17), slice_of(19, 17)
    output = ops.linear(x, weight)
    output.backward(slice_of(21, 19).detach())
    assert all(t.isfinite().all() for t in (output, x.grad, weight.grad))


def test_autocast_uses_the_lower_precision():
    x, weight, bias = (t.detach().float() for t in inputs(4, 5, 6))
    with torch.autocast("cpu", torch.bfloat16):
        output = ops.linear(x, weight, bias)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, F.linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16()))


X = torch.randn(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.linear(X, torch.randn(4, 5)), ValueError, r"'weight' must have 3 columns.*got \[4, 5\]"),
        (lambda: ops.linear(X, torch.randn(3)), ValueError, r"'weight' must have shape \(out_features, in_features\)"),
        (lambda: ops.linear(X, torch.randn(4, 3), torch.randn(3)), ValueError, r"'bias' must have shape \[4\]"),
        (lambda: ops.linear(X, torch.randn(4, 3).double()), TypeError, "'weight' must have the dtype of 'input'"),
        (lambda: ops.linear(X.long(), torch.randn(4, 3)), TypeError, "'input' must be float32.*got Long"),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
