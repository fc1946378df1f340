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
    seen = traffic_of(lambda: ops.softmax(x))
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
