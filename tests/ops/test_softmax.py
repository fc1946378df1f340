"""fastllm.ops.softmax."""

import pytest
import torch
import torch.nn.functional as F

from fastllm import ops
from tests import reference
from tests.ops import harness

# As a row on CUDA: two warps, more than registers hold (of whole vectors, and of single elements).
LONG_ROWS = [1032, 16392, 8201]


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("dim", [0, 1, 2, -1])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 9), (3, 17, 65), (2, 5, 1023)])
def test_matches_reference(shape, dim, dtype, device):
    x = torch.randn(shape, dtype=torch.float64).mul(5).requires_grad_()
    harness.assert_matches_reference(ops.softmax, reference.softmax, [x, dim], dtype, F.softmax, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", LONG_ROWS)
def test_long_rows(size, dtype, device):
    x = torch.randn(2, size, dtype=torch.float64).mul(5).requires_grad_()
    harness.assert_matches_reference(ops.softmax, reference.softmax, [x, -1], dtype, F.softmax, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [40960, 32769])  # on CUDA, taken in pieces: of whole vectors, and of single elements
def test_few_rows_that_are_longer_still(size, dtype, device):
    x = torch.randn(3, size, dtype=torch.float64).mul(5)
    x[1, :20000] = -torch.inf  # whole pieces of them
    x[2, :10000] = -1e4
    x.requires_grad_()
    harness.assert_matches_reference(ops.softmax, reference.softmax, [x, -1], dtype, F.softmax, device)


def test_a_row_of_more_pieces_than_a_block_has_threads(device):
    x = torch.randn(1, 256 * 2048 + 1)
    x[0, -1] = 20.0  # the last piece is not lost in the sum
    torch.testing.assert_close(
        ops.softmax(x.to(device), -1).cpu().double(), x.double().softmax(-1), rtol=2e-5, atol=1e-12
    )


def test_extremes_of_few_long_rows(device):
    x = torch.zeros(3, 40000)
    x[0, 17], x[1, 30000], x[2] = torch.nan, torch.inf, -torch.inf
    assert ops.softmax(x.to(device), -1).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [24, 130, 300])  # on CUDA: of several warps, of 32, more than their registers hold
@pytest.mark.parametrize("inner", [3, 70])  # neighbouring columns in a warp: across rows, and past its end
def test_long_columns(inner, size, dtype, device):
    x = torch.randn(3, size, inner, dtype=torch.float64).mul(5).requires_grad_()
    harness.assert_matches_reference(ops.softmax, reference.softmax, [x, 1], dtype, F.softmax, device)


def test_extremes(device):
    past_float32 = [100.0, 60.0, 0.0]  # e^100 is, e^60 is not
    rows = [[1e4, -1e4, 0.0], [-torch.inf, 1.0, 2.0], [-torch.inf] * 3, [torch.nan, 0.0, 1.0], [3.0] * 3]
    infinite = [[torch.inf, 0.0, 1.0], [torch.inf, -torch.inf, torch.nan]]
    x = torch.tensor([past_float32, *rows, *infinite])
    for dim, t in ((-1, x), (0, x.t().contiguous())):
        torch.testing.assert_close(ops.softmax(t.to(device), dim).cpu(), F.softmax(t, dim), equal_nan=True)
    assert ops.softmax(torch.empty(3, 0, device=device), -1).shape == (3, 0)
    assert ops.softmax(torch.tensor(2.0, device=device), 0).item() == 1.0


@pytest.mark.parametrize("size", [40, *LONG_ROWS])
def test_a_mask_that_leaves_few(size, device):
    """Most threads see nothing but -inf, or -inf before anything else."""
    x = torch.randn(3, size)
    x[0, : size - 3] = -torch.inf
    x[1, 5:] = -torch.inf
    x[2, :] = -torch.inf
    for dim, t in ((-1, x), (0, x.t().contiguous())):
        torch.testing.assert_close(ops.softmax(t.to(device), dim).cpu(), F.softmax(t, dim), equal_nan=True)


def test_memory_that_is_not_aligned(device):
    x, grad = torch.randn(2 * 64 + 1)[1:].view(2, 64), torch.randn(2 * 64 + 1)[1:].view(2, 64)
    ours = torch.cat([torch.zeros(1), x.flatten()]).to(device)[1:].view(2, 64).requires_grad_()
    exact = x.double().requires_grad_()
    output, expected = ops.softmax(ours, -1), reference.softmax(exact, -1)
    output.backward(torch.cat([torch.zeros(1), grad.flatten()]).to(device)[1:].view(2, 64))
    expected.backward(grad.double())
    harness.assert_close(output.detach().cpu(), expected.detach(), torch.float32)
    harness.assert_close(ours.grad.cpu(), exact.grad, torch.float32)


@pytest.mark.parametrize("dim", [0, 1])
def test_is_deterministic_on_every_device(dim, device, parallelism):
    x = torch.randn(70, 300, requires_grad=True)
    harness.assert_deterministic(lambda x: ops.softmax(x, dim), harness.on(device, [x]), parallelism)


def test_gradcheck_contract_compile_threads(threads):
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.softmax(x, 0), [x])
    harness.assert_op_contract(torch.ops.fastllm.softmax.default, (x, 1))
    harness.assert_compiles(lambda x: ops.softmax(x, -1), [x])
    harness.assert_deterministic(lambda x: ops.softmax(x, -1), [torch.randn(200, 300, requires_grad=True)], threads)


def test_wrong_input():
    with pytest.raises(ValueError, match=r"'dim' must be in \[-2, 2\), got 2"):
        ops.softmax(torch.randn(2, 3), 2)
