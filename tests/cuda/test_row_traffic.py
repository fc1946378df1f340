"""Norms and softmax read and write each row once, in whole sectors: what their speed stands on."""

import pytest
import torch

from fastllm import ops
from tests.cuda_emulator.traffic import traffic_of

pytestmark = pytest.mark.emulated
DTYPES = [torch.float32, torch.bfloat16]
COLUMNS = [64, 1024, 4096]  # part of a warp a row, one or two warps, many


def sectors_of(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors) // 32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cols", COLUMNS)
def test_softmax(cols, dtype):
    x = torch.randn(32, cols).to(dtype)
    seen = traffic_of(lambda: ops.softmax(x, -1))
    assert seen.total("global", writes=False).sectors == seen.total("global", writes=True).sectors == sectors_of(x)
    seen = traffic_of(lambda: torch.ops.fastllm.softmax_backward(x, x, -1))
    assert seen.total("global", writes=False).sectors == sectors_of(x, x)
    assert seen.total("global", writes=True).sectors == sectors_of(x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_over_another_dimension(dtype):
    x = torch.randn(2, 40, 64).to(dtype)
    seen = traffic_of(lambda: ops.softmax(x, 1))
    assert seen.total("global", writes=False).sectors == seen.total("global", writes=True).sectors == sectors_of(x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cols", COLUMNS)
def test_norms(cols, dtype):
    x = torch.randn(32, cols).to(dtype)
    statistics = 32  # rows, whose mean and rstd take a sector each at most
    seen = traffic_of(lambda: ops.layer_norm(x, (cols,)))
    assert seen.total("global", writes=False).sectors == sectors_of(x)
    assert sectors_of(x) < seen.total("global", writes=True).sectors <= sectors_of(x) + 2 * statistics

    mean, rstd = torch.zeros(32), torch.ones(32)
    seen = traffic_of(
        lambda: torch.ops.fastllm.norm_backward(
            x, x, x, mean, rstd, weight=None, bias=None, input_bias=None, p=0.0, rng_state=None
        )
    )
    loads = seen.find("global", writes=False, kernel="norm_backward_kernel")
    assert sum(line.sectors for line in loads if line.bytes == 16) == sectors_of(x, x, x)
    assert seen.total("global", writes=True).sectors == sectors_of(x)


def test_sums_over_rows_have_few_bank_conflicts():
    x, weight = torch.randn(32, 1024).bfloat16(), torch.ones(1024).bfloat16()
    mean, rstd = torch.zeros(32), torch.ones(32)
    seen = traffic_of(
        lambda: torch.ops.fastllm.norm_backward(
            x, None, x, mean, rstd, weight=weight, bias=weight, input_bias=None, p=0.0, rng_state=None
        )
    )
    for writes in (False, True):
        shared = seen.total("shared", writes)
        assert shared.passes <= 2 * shared.fewest_passes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("row_bytes", "parameters", "reads", "weights"), [(32768, 2, 1, 2), (81920, 3, 2, 3)])
def test_backward_of_norms_of_long_rows(row_bytes, parameters, reads, weights, dtype):
    """Row and gradient are read once where shared memory holds the sums over rows, twice where it does not."""
    rows, cols = 3, row_bytes // dtype.itemsize
    x = torch.randn(rows, cols).to(dtype)
    given = [torch.ones(cols, dtype=dtype)] * parameters + [None] * (3 - parameters)
    mean, rstd = torch.zeros(rows), torch.ones(rows)
    seen = traffic_of(lambda: torch.ops.fastllm.norm_backward(x, None, x, mean, rstd, *given, p=0.0, rng_state=None))
    loads = [line for line in seen.find("global", writes=False) if line.bytes in (8, 16)]
    assert sum(line.sectors for line in loads) == (2 * reads + weights) * sectors_of(x), str(seen)
    stores = [line for line in seen.find("global", writes=True) if "in norm_backward.h" in line.source]
    assert sum(line.sectors for line in stores) == sectors_of(x), str(seen)
    assert all(line.efficiency == 1 for line in loads + stores), str(seen)
    assert all(line.bank_conflicts == 0 for line in seen.lines if line.bytes == 16), str(seen)
