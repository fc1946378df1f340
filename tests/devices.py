"""The `device` fixture: one test body for the CPU's kernels, the CUDA kernels in the emulator, and those on a GPU."""

import zlib

import pytest
import torch

from tests.cuda_emulator import load

EMULATED, CUDA = "cuda-emulated", "cuda"
PARAMETERS = ["cpu", pytest.param(EMULATED, marks=pytest.mark.emulated), pytest.param(CUDA, marks=pytest.mark.cuda)]

# For tests of what holds on CUDA alone.
ON_CUDA = pytest.mark.parametrize("device", PARAMETERS[1:], indirect=True)


@pytest.fixture(params=PARAMETERS)
def device(request):
    """Give the torch.device for the test's tensors: "cpu" for the emulator, which replaces the CPU's kernels."""
    if request.param == CUDA and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    if request.param != EMULATED:
        yield torch.device(request.param)
        return
    emulated = load("emulated")
    emulated.seed(zlib.crc32(request.node.nodeid.encode()))
    emulated.install()
    calls = emulated.calls()
    yield torch.device("cpu")
    ran = emulated.calls() - calls
    emulated.uninstall()
    assert ran, "this test called no op that has a CUDA implementation"


@pytest.fixture
def parallelism(device, request, threads):
    """Give a function of a number that changes in what order the device works: results must not change with it."""
    kind = request.node.callspec.params["device"]
    if kind == EMULATED:
        return load("emulated").seed
    return threads if kind == "cpu" else lambda number: None


def deselect_float64_on_cuda(config, items):
    """Take out the tests of what CUDA kernels refuse by design, as tests/ops' test of wrong dtypes proves."""

    def is_for_cpu_alone(item):
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        return parameters.get("device", "cpu") != "cpu" and parameters.get("dtype") == torch.float64

    taken_out = [item for item in items if is_for_cpu_alone(item)]
    if taken_out:
        config.hook.pytest_deselected(items=taken_out)
        items[:] = [item for item in items if not is_for_cpu_alone(item)]
