"""Ops on the emulator: what their kernels may touch, and how a fault reaches Python."""

import pytest
import torch

from fastllm import ops
from tests.cuda_emulator import build, load


@pytest.fixture
def copy():
    """Give an op that copies its input, makes the mistake it is told to, and writes its `state` as its schema says."""
    planted = load("planted")
    assert set(planted.install()) == {"copy", "misplace"}
    yield torch.ops.emulator_planted.copy
    planted.uninstall()


def test_an_op_may_touch_its_arguments_and_what_it_allocates(copy):
    x, state = torch.randn(100), torch.ones(100)
    assert torch.equal(copy(x, state, "none"), x)
    assert torch.equal(state, torch.zeros(100))


READS, WRITES = (rf"out of bounds: {verb} 4 bytes at .* at copy.cu:\d+" for verb in ("reads", "writes"))


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("writes its input", rf"{WRITES}, which this op may only read"),
        ("reads past its input", rf"{READS}; the nearest buffer is 'input' \[100\] Float of 400 bytes, which ended 0 "),
        ("reads a freed temporary", rf"{READS}; the nearest buffer is "),
        ("reads what it was not given", rf"{READS}; the nearest buffer is "),
    ],
)
def test_a_fault_is_an_error_in_python(copy, mistake, message):
    # The view ends within its storage: what lies behind is not the op's to read.
    x, state = torch.randn(200)[:100], torch.ones(100)
    with pytest.raises(build.EmulatorError, match=r"copy_kernel, block \(\d, 0, 0\), thread \(\d+, 0, 0\): " + message):
        copy(x, state, mistake)
    assert torch.equal(copy(x, state, "none"), x), "the next call works"


def test_a_fault_in_backward_is_an_error_in_python(copy):
    x = torch.randn(100, requires_grad=True)
    y = copy(x, torch.ones(100), "none")
    with pytest.raises(build.EmulatorError, match="which this op may only read"):
        y.sum().backward()


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("launches too many threads", "copy: the CUDA kernel did not launch: invalid configuration argument"),
        ("has no code for the GPU", "copy: this build of fastllm has no code for this GPU; build it again"),
    ],
)
def test_a_launch_that_a_gpu_refuses_names_the_op(copy, mistake, message):
    with pytest.raises(RuntimeError, match=message):
        copy(torch.randn(4), torch.ones(4), mistake)


def test_installed_and_uninstalled():
    emulated = load("emulated")
    x = torch.randn(1000)
    of_cpu = ops.gelu(x)
    assert {"gelu", "gelu_backward"} <= set(emulated.install())
    calls = emulated.calls()
    torch.testing.assert_close(ops.gelu(x), of_cpu)
    assert emulated.calls() == calls + 1
    with pytest.raises(TypeError, match="'input' must be float32, bfloat16 or float16 on CUDA, got Double"):
        ops.gelu(x.double())
    emulated.uninstall()
    assert torch.equal(ops.gelu(x), of_cpu)
    assert emulated.calls() == calls + 2
