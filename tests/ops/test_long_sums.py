"""Sums of very many elements keep float32's accuracy: over long rows and columns, and over the rows of a long matrix.

One running sum of millions is 1e-5 to 1e-3 off, as what is added is small beside it.
"""

import pytest
import torch
import torch.nn.functional as F

from fastllm import ops
from tests.ops import harness

LONG = 2**22
TOLERANCE = 2e-6  # float32, relative to the largest value


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Not here: filling memory takes longer than the ops."""


def assert_accurate(ours, reference, inputs, grad, tolerance=TOLERANCE):
    inputs = [x.requires_grad_() for x in inputs]
    output, grads = harness.run(ours, inputs, grad)
    exact, exact_grads = harness.run(reference, harness.to(inputs, torch.float64), grad)
    for i, (a, e) in enumerate(zip([output, *grads], [exact, *exact_grads], strict=True)):
        error = ((a.double() - e).abs().max() / e.abs().max()).item()
        assert error <= tolerance, f"{'output' if i == 0 else f'gradient {i - 1}'}: error {error:.2g}"


@pytest.mark.parametrize(("ours", "reference"), [(ops.layer_norm, F.layer_norm), (ops.rms_norm, F.rms_norm)])
def test_norms_of_long_rows(ours, reference):
    x, grad = torch.rand(1, LONG) + 0.5, torch.rand(1, LONG)
    assert_accurate(lambda x: ours(x, (LONG,)), lambda x: reference(x, (LONG,)), [x], grad)


@pytest.mark.parametrize("inner", [1, 2])
def test_softmax_over_many(inner):
    x, grad = torch.rand(LONG // inner, inner), torch.rand(LONG // inner, inner)
    # Every lane of a vector has a column of its own where there are several: its sum is float32's to the end.
    tolerance = TOLERANCE if inner == 1 else 5e-6
    assert_accurate(lambda x: ops.softmax(x, 0), lambda x: torch.softmax(x, 0), [x], grad, tolerance)


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (lambda x, w, b: ops.layer_norm(x, (8,), w, b, 0.1), lambda x, w, b: F.layer_norm(x, (8,), w, b, 0.1)),
        (lambda x, w, b: ops.bias_gelu(x, b) * w, lambda x, w, b: F.gelu(x + b) * w),
        (lambda x, w, b: ops.bias_relu(x, b) * w, lambda x, w, b: F.relu(x + b) * w),
        (lambda x, w, b: ops.dropout_add(x * w, x, 0.0, bias=b), lambda x, w, b: x * w + x + b),
    ],
    ids=["layer_norm", "bias_gelu", "bias_relu", "dropout_add"],
)
def test_gradients_of_parameters_over_many_rows(ours, reference):
    """The gradient is the same for each row, so that what additions round off adds up."""
    x, parameters = torch.randn(8).repeat(LONG // 8, 1), torch.rand(2, 8)
    assert_accurate(ours, reference, [x, *parameters], torch.full_like(x, 0.1))
