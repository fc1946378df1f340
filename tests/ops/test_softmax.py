"""fastllm.ops.softmax."""

import pytest
import torch
import torch.nn.functional as F

from fastllm import ops
from tests import reference
from tests.ops import harness


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("dim", [0, 1, 2, -1])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 9), (3, 17, 65), (2, 5, 1023)])
def test_matches_reference(shape, dim, dtype):
    x = torch.randn(shape, dtype=torch.float64).mul(5).requires_grad_()
    harness.assert_matches_reference(ops.softmax, reference.softmax, [x, dim], dtype, F.softmax)


def test_extremes():
    past_float32 = [100.0, 60.0, 0.0]  # e^100 is, e^60 is not
    rows = [[1e4, -1e4, 0.0], [-torch.inf, 1.0, 2.0], [-torch.inf] * 3, [torch.nan, 0.0, 1.0], [3.0] * 3]
    x = torch.tensor([past_float32, *rows])
    torch.testing.assert_close(ops.softmax(x), F.softmax(x, -1), equal_nan=True)
    assert ops.softmax(torch.empty(3, 0)).shape == (3, 0)
    assert ops.softmax(torch.tensor(2.0), 0).item() == 1.0


def test_gradcheck_contract_compile_threads(threads):
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.softmax(x, 0), [x])
    harness.assert_op_contract(torch.ops.fastllm.softmax.default, (x, 1))
    harness.assert_compiles(ops.softmax, [x])
    harness.assert_deterministic(ops.softmax, [torch.randn(200, 300, requires_grad=True)], threads)


def test_wrong_input():
    with pytest.raises(ValueError, match=r"'dim' must be in \[-2, 2\), got 2"):
        ops.softmax(torch.randn(2, 3), 2)
