"""Sectors and bank conflicts are counted as a profiler counts them."""

import pytest
import torch

from fastllm import ops
from tests.cuda_emulator import samples
from tests.cuda_emulator.traffic import traffic_of

N = 64


def transpose(kernel, shared_bytes):
    x, y = torch.randn(N, N), torch.empty(N, N)
    seen = samples.run(kernel, blocks=(2, 2), threads=(32, 8), shared_bytes=shared_bytes, x=x, y=y, n=N)
    assert torch.equal(y, x.t())
    return seen


def test_transpose_that_scatters():
    seen = transpose("transpose_scattered", 0)
    assert seen.total("global", writes=False).sectors_per_request == 4  # 32 floats one after another
    assert seen.total("global", writes=True).sectors_per_request == 32
    assert seen.total("global", writes=True).efficiency == 1 / 8


def test_transpose_through_shared_memory_with_bank_conflicts():
    seen = transpose("transpose_tiled<32>", 32 * 32 * 4)
    assert seen.total("global", writes=False).sectors_per_request == 4
    assert seen.total("global", writes=True).sectors_per_request == 4
    assert seen.total("shared", writes=True).bank_conflicts == 0
    reads = seen.total("shared", writes=False)
    assert reads.passes == 32 * reads.requests  # a column of 32 floats is one bank
    assert reads.bank_conflicts == 31 * reads.requests


def test_transpose_through_shared_memory_without_bank_conflicts():
    seen = transpose("transpose_tiled<33>", 32 * 33 * 4)
    assert seen.total("global", writes=True).efficiency == 1
    assert seen.total("shared", writes=True).bank_conflicts == 0
    assert seen.total("shared", writes=False).bank_conflicts == 0


def test_requests_are_of_whole_warps():
    x, y = torch.randn(1000), torch.randn(1000)
    seen = samples.run("saxpy", blocks=4, threads=256, a=2.0, x=x, y=y, count=1000)
    stores = seen.total("global", writes=True)
    assert (stores.requests, stores.lanes) == (32, 1000)  # 31 whole warps and 8 lanes
    assert stores.sectors == 125


def test_lines_name_kernel_and_source():
    x, y = torch.randn(32), torch.randn(32)
    seen = samples.run("saxpy", threads=32, a=2.0, x=x, y=y, count=32)
    (stores,) = seen.find("global", writes=True)
    assert stores.kernel == "saxpy"
    assert stores.source.startswith("saxpy.cu:")
    assert "saxpy: store to global, 4 bytes a lane, 1 requests of 32.0 lanes, 4.00 sectors each (saxpy.cu:" in str(seen)


def test_async_copies_and_matrix_loads_count():
    x = torch.randn(2, 256)
    seen = samples.run("copy_in_stages<Mistake::kNone>", shared_bytes=2048, x=x, y=torch.empty_like(x), chunks=2)
    assert seen.total("global", writes=False).sectors_per_request == 16
    assert seen.total("shared", writes=True).fewest_passes == 4 * 2 * 2  # 16 bytes a lane: 8 lanes at once
    rows, fragments = torch.zeros(256, dtype=torch.int16), torch.empty(256, dtype=torch.int16)
    seen = samples.run("load_fragments<false>", threads=32, shared_bytes=512, rows=rows, fragments=fragments)
    (loads,) = seen.find("shared", writes=False)
    assert (loads.bytes, loads.requests, loads.passes, loads.bank_conflicts) == (16, 1, 4, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gelu_loads_and_stores_16_bytes_a_lane_and_wastes_no_sector(dtype):
    x = torch.randn(1 << 14).to(dtype)
    seen = traffic_of(lambda: ops.gelu(x))
    for writes in (False, True):
        access = seen.total("global", writes, "gelu_kernel")
        assert access.bytes == 16
        assert access.sectors_per_request == 16  # 32 lanes of 16 bytes, in sectors of 32
        assert access.efficiency == 1
