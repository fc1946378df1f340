"""Every launch of every op, one after another, fails: its op says so by name, and the next call works."""

import pytest
import torch

from fastllm import ops
from fastllm.optim import AdamW
from tests.cuda.cases import CASES, each_case
from tests.cuda_emulator import build

pytestmark = pytest.mark.emulated
ERRORS = {
    "cudaErrorInvalidConfiguration": "the CUDA kernel did not launch: invalid configuration argument",
    "cudaErrorNoKernelImageForDevice": "this build of fastllm has no code for this GPU; build it again",
}
CALLED = {"dropout_add": ("dropout_add", "dropout")}  # ops that errors know by the user's name


def adamw_step(device):
    torch.manual_seed(0)
    # More tensors than one launch takes.
    parameters = [torch.nn.Parameter(torch.randn(1 + i % 3).to(device)) for i in range(70)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    AdamW(parameters, max_grad_norm=1.0).step()
    return [parameter.detach() for parameter in parameters]


def assert_each_launch_is_reported(module, call):
    before = module.launches()
    expected = call()
    count = module.launches() - before
    for number in range(1, count + 1):
        for error, message in ERRORS.items():
            module.fail_launch(number, error)
            with pytest.raises(RuntimeError) as raised:
                call()
            names = CALLED.get(module.failed_op(), (module.failed_op(),))
            assert str(raised.value).startswith(tuple(f"{name}: {message}" for name in names))
            assert module.last_error() == "cudaSuccess"
    for result, right in zip(call(), expected, strict=True):
        assert result is None or torch.equal(result, right)
    return count


@each_case
def test_a_launch_that_fails_names_its_op(emulated, case):
    tensors = case.inputs_on("cuda")
    assert (
        assert_each_launch_is_reported(emulated.module, lambda: case.both_ways(tensors)) > 0
        or case.function is ops.linear
    )


def test_a_launch_of_adamw_that_fails_names_its_op(emulated):
    assert assert_each_launch_is_reported(emulated.module, lambda: adamw_step("cuda")) == 7


def test_the_cases_take_every_kernel(emulated):
    """So that streams, graphs, devices and failing launches are tested for all of them."""
    emulated.module.reset()
    adamw_step("cuda")
    for case in CASES:
        case.both_ways(case.inputs_on("cuda"))
    ran = {name.split("<")[0] for name in emulated.module.kernels()}
    assert ran == kernels_of_the_product()


def kernels_of_the_product():
    sources = "".join(path.read_text() for path in (build.CSRC / "cuda").glob("*.cu"))
    heads = [part.split("{")[0] for part in sources.split("__global__")[1:]]
    return {head.split("_kernel(")[0].split()[-1] + "_kernel" for head in heads}
