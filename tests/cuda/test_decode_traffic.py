"""decode_attention reads keys and values once, in whole sectors, whatever the group: what its speed stands on."""

import pytest
import torch

from fastllm import ops
from tests.cuda_emulator.traffic import traffic_of

pytestmark = pytest.mark.emulated
LENGTHS = [256, 100]


def seen_of(heads, d, dtype, left=-1):
    """Return what a step over two heads of keys and values takes."""
    query, cache = torch.randn(2, heads, 1, d).to(dtype), torch.randn(2, 2, 260, d).to(dtype)
    lengths = torch.tensor(LENGTHS)
    return traffic_of(lambda: ops.decode_attention(query, cache, cache.clone(), lengths, window=(left, 0)))


def sectors_read(seen):
    return sum(line.sectors for line in seen.find("global", writes=False, kernel="split_kernel") if line.bytes == 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("group", [1, 4])
def test_keys_and_values_are_read_once(group, d, dtype):
    seen = seen_of(2 * group, d, dtype)
    assert sectors_read(seen) == 2 * 2 * sum(LENGTHS) * d * dtype.itemsize // 32
    lines = [line for line in seen.find("global", writes=False, kernel="split_kernel") if line.bytes == 16]
    assert all(line.efficiency == 1 for line in lines), str(seen)


def test_keys_outside_of_a_window_are_not_read():
    assert sectors_read(seen_of(2, 64, torch.float32, left=9)) == 2 * 2 * (10 + 10) * 64 * 4 // 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_bank_conflicts(dtype):
    seen = seen_of(8, 64, dtype)
    for writes in (False, True):
        shared = seen.total("shared", writes)
        assert shared.passes <= 2 * shared.fewest_passes, str(seen)
