"""fastllm.ops.layer_norm, rms_norm and dropout_add_layer_norm."""

import pytest
import torch
import torch.nn.functional as F

from fastllm import ops
from tests import reference
from tests.ops import harness

COLUMNS = [1, 7, 8, 9, 65, 255, 768, 1023]  # one element; around one AVX2 vector; odd tails; a usual width


def inputs(rows, cols, affine=True):
    x = torch.randn(rows, cols, dtype=torch.float64, requires_grad=True)
    if not affine:
        return [x]
    return [x, *(torch.randn(cols, dtype=torch.float64, requires_grad=True) for _ in range(2))]


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("cols", COLUMNS)
def test_layer_norm_matches_reference(cols, affine, dtype, device):
    # eps of 1e-2: rows of one element have no variance, and would divide rounding errors by its root.
    def ours(x, *params):
        return ops.layer_norm(x, (cols,), *params, eps=1e-2)

    def expected(x, *params):
        return reference.layer_norm(x, (cols,), *params, eps=1e-2)

    def theirs(x, *params):
        return F.layer_norm(x, (cols,), *params, eps=1e-2)

    harness.assert_matches_reference(ours, expected, inputs(67, cols, affine), dtype, theirs, device)


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("cols", COLUMNS)
def test_rms_norm_matches_reference(cols, dtype, device):
    def ours(x, w):
        return ops.rms_norm(x, (cols,), w, 1e-2)

    def expected(x, w):
        return reference.rms_norm(x, (cols,), w, 1e-2)

    def theirs(x, w):
        return F.rms_norm(x, (cols,), w, 1e-2)

    harness.assert_matches_reference(ours, expected, inputs(67, cols)[:2], dtype, theirs, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("cols", [7, 64, 129])
@pytest.mark.parametrize("with_bias", [True, False])
def test_dropout_add_layer_norm_matches_reference(cols, p, with_bias, dtype, device):
    x, weight, bias = inputs(33, cols)
    residual = torch.randn(33, cols, dtype=torch.float64, requires_grad=True)
    extra = [torch.randn(cols, dtype=torch.float64, requires_grad=True)] if with_bias else []
    state = torch.tensor([123, 456])

    def ours(x, r, w, b, *extra):
        normed, new_residual = ops.dropout_add_layer_norm(
            x, r, w, b, p, 1e-2, input_bias=extra[0] if extra else None, rng_state=state.to(device)
        )
        return torch.stack([normed, new_residual])

    def expected(x, r, w, b, *extra):
        new_residual = reference.dropout_add(x, r, p, state, extra[0] if extra else None)
        return torch.stack([reference.layer_norm(new_residual, (cols,), w, b, 1e-2), new_residual])

    harness.assert_matches_reference(ours, expected, [x, residual, weight, bias, *extra], dtype, device=device)


@pytest.mark.parametrize("which", [0, 1])
def test_either_output_alone_has_its_gradients(which):
    x, weight, bias = (t.detach().requires_grad_() for t in inputs(5, 12))
    residual = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    ours = ops.dropout_add_layer_norm(x, residual, weight, bias, p=0.0)[which].square().sum()
    total = x + residual
    expected = (reference.layer_norm(total, (12,), weight, bias), total)[which].square().sum()
    for a, b in zip(
        torch.autograd.grad(ours, [x, residual]), torch.autograd.grad(expected, [x, residual]), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_large_mean_small_deviation():
    x = torch.randn(8, 1000) + 1e4
    expected = F.layer_norm(x.double(), (1000,))
    # The input itself is rounded to 1e4 * 6e-8; the mean too.
    torch.testing.assert_close(ops.layer_norm(x, (1000,)).double(), expected, rtol=0, atol=2e-3)


def test_several_dimensions_strides_and_empty():
    x = torch.randn(6, 5, 4, dtype=torch.float64).permute(2, 0, 1)
    torch.testing.assert_close(ops.layer_norm(x, (6, 5)), F.layer_norm(x, (6, 5)))
    assert ops.layer_norm(torch.empty(0, 4), (4,)).shape == (0, 4)


def test_low_precision_activations_with_float32_parameters():
    x, weight, bias = (t.detach() for t in inputs(5, 12))
    output = ops.layer_norm(x.bfloat16(), (12,), weight.float(), bias.float())
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.double(), reference.layer_norm(x, (12,), weight, bias), rtol=0.02, atol=0.05)


def test_gradcheck():
    x, weight, bias = inputs(3, 5)
    residual = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    state = torch.tensor([1, 2])
    assert torch.autograd.gradcheck(lambda *t: ops.layer_norm(t[0], (5,), *t[1:]), [x, weight, bias])
    assert torch.autograd.gradcheck(lambda x, w: ops.rms_norm(x, (5,), w), [x, weight])
    assert torch.autograd.gradcheck(
        lambda *t: ops.dropout_add_layer_norm(*t, p=0.4, rng_state=state), [x, residual, weight, bias]
    )


def test_op_contract():
    x, weight, bias = (t.detach().float().requires_grad_() for t in inputs(3, 5))
    residual = torch.randn(3, 5, requires_grad=True)
    state = torch.tensor([1, 2])
    harness.assert_op_contract(torch.ops.fastllm.layer_norm.default, (x, (5,), weight, bias, 1e-5))
    harness.assert_op_contract(torch.ops.fastllm.rms_norm.default, (x, (5,), weight, 1e-5))
    args = (x, residual, weight, bias, 0.3, 1e-5, None, state)
    harness.assert_op_contract(torch.ops.fastllm.dropout_add_layer_norm.default, args)


def test_compiles_and_is_deterministic(threads):
    x, weight, bias = (t.detach().float().requires_grad_() for t in inputs(300, 65))
    harness.assert_compiles(lambda x, w, b: ops.layer_norm(x, (65,), w, b), [x, weight, bias])
    # More elements than 64 tasks of 16 Ki hold: rows are cut by their number, which must not be that of threads.
    x, weight, bias = (t.detach().float().requires_grad_() for t in inputs(20000, 65))
    harness.assert_deterministic(lambda x, w, b: ops.layer_norm(x, (65,), w, b), [x, weight, bias], threads)


X = torch.randn(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.layer_norm(X, (4,)), ValueError, r"'normalized_shape' must be the last dimensions.*got \[4\]"),
        (lambda: ops.layer_norm(X, (3,), X), ValueError, r"'weight' must have shape \[3\], got \[2, 3\]"),
        (lambda: ops.rms_norm(X, ()), ValueError, "'normalized_shape' must have at least one dimension"),
        (lambda: ops.layer_norm(X.long(), (3,)), TypeError, "'input' must be float32.*got Long"),
        (lambda: ops.dropout_add_layer_norm(X, X, None, None, p=2.0), ValueError, r"'p' must be in \[0, 1\], got 2"),
        (lambda: ops.dropout_add_layer_norm(X, X[0], None, None), ValueError, "'residual' must have the shape"),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
