"""The kernels library's kernelize puts fastllm's layers into transformers' models."""

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("kernels")

import kernels
from transformers.utils import is_kernels_available

import fastllm
from fastllm import ops
from fastllm.integrations.transformers.kernels import kernel_mapping
from tests.integrations.models import inputs, make, result

# transformers marks its layers for kernelize where it finds a version of the library that it takes.
pytestmark = pytest.mark.skipif(not is_kernels_available(), reason="transformers takes another version of kernels")
EXPECTED = {"llama": {"rms_norm", "rotary_embedding"}, "gpt2": {"gelu"}, "bert": {"gelu"}, "gemma": {"gelu"}}


def spy(op, kernel, called):
    def function(*args, **kwargs):
        called.add(op)
        return kernel(*args, **kwargs)

    return function


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("mode", [kernels.Mode.INFERENCE, kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE])
def test_kernelize(name, mode, monkeypatch):
    arguments = inputs(name, "right")
    expected = result(make(name, "eager"), arguments)
    model = make(name, "eager")
    with kernels.use_kernel_mapping(kernel_mapping(), inherit_mapping=False):
        kernels.kernelize(model, mode=mode, device="cpu")
    called = set()
    for op in ("rms_norm", "rotary_embedding", "gelu"):
        monkeypatch.setattr(ops, op, spy(op, getattr(ops, op), called))
    output = result(model, arguments)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=2e-5)
    output.square().sum().backward()
    assert EXPECTED[name] <= called


def test_a_kernelized_model_can_be_patched():
    """What kernelize gave a forward of its own is left; the rest is swapped."""
    arguments = inputs("llama")
    model = make("llama", "eager")
    with kernels.use_kernel_mapping(kernel_mapping(), inherit_mapping=False):
        kernels.kernelize(model, mode=kernels.Mode.INFERENCE, device="cpu")
    report = fastllm.patch(model)
    assert {one.before for one in report.left if "forward" in one.reason} == {"transformers.LlamaRMSNorm"}
    torch.testing.assert_close(result(model, arguments), result(make("llama"), arguments), rtol=1e-5, atol=2e-5)
