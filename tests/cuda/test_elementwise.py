"""What tests/ops cannot see of elementwise ops and rotary_embedding on CUDA: what they read, write and refuse."""

import pytest
import torch

from fastllm import ops
from tests.cuda_emulator import build
from tests.cuda_emulator.traffic import Traffic
from tests.devices import PARAMETERS, device  # noqa: F401, pytest finds it here

on_cuda_alone = pytest.mark.parametrize("device", PARAMETERS[1:], indirect=True)

ROWS, COLS = 256, 1024
STATE = torch.tensor([1, 2])


def rows(cols=COLS, count=ROWS):
    return torch.randn(count, cols)


# Arguments, the op, and how many matrices of (ROWS, COLS) forward and backward read and write.
TRAFFIC = {
    "gelu": ([rows()], ops.gelu, 1 + 2, 1 + 1),
    "bias_gelu": ([rows(), rows(1, COLS).flatten()], ops.bias_gelu, 1 + 2, 1 + 1),
    "bias_relu": (
        [rows(), rows(1, COLS).flatten()],
        lambda x, b: ops.bias_relu(x, b, 0.3, rng_state=STATE),
        1 + 2,
        1 + 1,
    ),
    "dropout": ([rows()], lambda x: ops.dropout(x, 0.3, rng_state=STATE), 1 + 1, 1 + 1),
    "dropout_add": (
        [rows(), rows(), rows(1, COLS).flatten()],
        lambda x, r, b: ops.dropout_add(x, r, 0.3, bias=b, rng_state=STATE),
        2 + 1,
        1 + 1,
    ),
    "swiglu": ([rows(), rows()], ops.swiglu, 2 + 3, 1 + 2),
    "swiglu, packed": ([rows(2 * COLS)], ops.swiglu, 2 + 3, 1 + 2),
}


@pytest.mark.emulated
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TRAFFIC)
def test_one_pass_over_memory_16_bytes_a_lane(name, dtype):
    inputs, function, reads, writes = TRAFFIC[name]
    inputs = [x.to(dtype).requires_grad_() for x in inputs]
    seen = traffic(lambda: function(*inputs).backward(torch.ones(ROWS, COLS, dtype=dtype)))
    for writing, matrices in ((False, reads), (True, writes)):
        lines = seen.find("global", writing)
        lines = [each for each in lines if "packed.h" in each.source and not (writing and "strips.h" in each.source)]
        # The others: dropout's state, and partial sums, in float32 and once a group of rows.
        assert all((line.bytes, line.efficiency) == (16, 1) for line in lines), str(seen)
        moved = sum(line.lanes * line.bytes for line in lines)
        expected = matrices * ROWS * COLS * dtype.itemsize
        # A thread's 2 rows share a load of their bias, which all but the first warp of a block finds in L1.
        biases = 0 if writing or inputs[-1].dim() > 1 else ROWS // 2 * (2 if name == "bias_gelu" else 1)
        assert moved == expected + biases * COLS * dtype.itemsize, str(seen)
    assert all(line.bank_conflicts == 0 for line in seen.lines), str(seen)


@pytest.mark.emulated
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_add_with_a_bias_of_odd_length_keeps_to_wide_accesses(dtype):
    x, residual, bias = (t.to(dtype) for t in (rows(1001, 8), rows(1001, 8), rows(1001, 1).flatten()))
    seen = traffic(lambda: ops.dropout_add(x, residual, 0.3, bias=bias, rng_state=STATE))
    stores = seen.total("global", True)
    assert (stores.bytes, stores.lanes) == (16, x.numel() * dtype.itemsize // 16), str(seen)
    assert stores.efficiency > 0.99, str(seen)
    assert sum(line.lanes for line in seen.find("global", False) if line.bytes == 16) == 2 * stores.lanes, str(seen)


@pytest.mark.emulated
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("layout", ["bhtd", "bthd"])
@pytest.mark.parametrize("dim", [32, 64])  # of 64
def test_rotary_embedding_reads_and_writes_each_head_once(dim, layout, interleaved):
    packed, (cos, sin) = torch.randn(2, 16, 3, 8, 64).bfloat16(), ops.rotary_tables(16, dim)
    x = packed[:, :, 1].transpose(1, 2) if layout == "bhtd" else packed[:, :, 1]
    seen = traffic(lambda: ops.rotary_embedding(x, cos, sin, interleaved=interleaved, layout=layout))
    stores, loads = seen.total("global", True), seen.total("global", False)
    assert (stores.bytes, stores.lanes) == (16, x.numel() // 8)
    tables = 2 * 16 * 8 * dim // 8  # both tables, for each token of 2 x 8 heads once in 4 heads, 4 angles a lane
    assert loads.lanes <= stores.lanes + tables
    if dim == 64 or interleaved:  # else what does not turn is read and written half a sector at a time
        assert stores.efficiency == 1
        heads = [line for line in seen.find("global", False) if "packed.h" in line.source and line.bytes == 16]
        assert sum(line.lanes for line in heads if line.efficiency == 1) >= x.numel() // 8, str(seen)


def traffic(run):
    """Return what the kernels of run() took of memory."""
    try:
        emulated = build.load("emulated")
    except build.CannotBuildError as missing:
        pytest.skip(str(missing))
    emulated.install()
    emulated.reset()
    try:
        run()
    finally:
        emulated.uninstall()
    return Traffic(emulated.instructions())


@on_cuda_alone
@pytest.mark.parametrize("positions", [[9, -1], [[0, 9, 1], [10, 2, 1 << 60]]])
def test_a_position_outside_the_tables_gives_nan(positions, device):  # noqa: F811
    x, positions = torch.randn(2, 3, 3, 10), torch.tensor(positions)
    cos, sin = ops.rotary_tables(10, 8)
    actual = ops.rotary_embedding(*(t.to(device) for t in (x, cos, sin)), positions=positions.to(device)).cpu()
    at = positions if positions.dim() == 2 else positions[:, None] + torch.arange(3)
    outside = ((at < 0) | (at >= 10))[:, None, :, None].expand(2, 3, 3, 8)
    assert torch.equal(actual[..., :8].isnan(), outside)
    assert torch.equal(actual[..., 8:], x[..., 8:])


X = torch.randn(2, 4, 3, 8, dtype=torch.float64)


@on_cuda_alone
@pytest.mark.parametrize(
    ("op", "call"),
    [
        ("gelu", lambda x: ops.gelu(x)),
        ("bias_gelu", lambda x: ops.bias_gelu(x, x[0, 0, 0])),
        ("bias_relu", lambda x: ops.bias_relu(x)),
        ("dropout", lambda x: ops.dropout(x)),
        ("dropout_add", lambda x: ops.dropout_add(x, x)),
        ("swiglu", lambda x: ops.swiglu(x, x)),
        ("rotary_embedding", lambda x: ops.rotary_embedding(x, x[0, 0, :, :4], x[0, 0, :, :4])),
    ],
)
def test_float64_is_refused(op, call, device):  # noqa: F811
    with pytest.raises(TypeError, match=f"{op}: 'input' must be float32, bfloat16 or float16 on CUDA, got Double"):
        call(X.to(device))
