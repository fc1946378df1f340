"""Every op under torch.export with a dynamic batch, torch.compile with dynamic shapes, and torch.func."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from fastllm import ops
from tests.ops.test_devices import CALLS, OTHERS

NOT_BATCHED = {
    "rng_state", "alibi_slopes", "bias", "input_bias", "linear_bias", "linear_weight", "position_weight", "weight",
}  # fmt: skip


def first(output):
    return output[0] if isinstance(output, tuple) else output


def wrapped(function):
    """Return (function of the list of its tensors, those tensors)."""
    tensors, others = CALLS[function], OTHERS.get(function, {})

    def call(values):
        return first(function(**dict(zip(tensors, values, strict=True)), **others))

    return call, list(tensors.values())


def batched(function, values, times):
    """Repeat what has a batch dimension; return it and which of it has."""
    size = values[0].shape[0]
    has = [
        v.dim() > 0 and v.shape[0] == size and name not in NOT_BATCHED
        for name, v in zip(CALLS[function], values, strict=True)
    ]
    return [torch.cat([v] * times) if b else v for v, b in zip(values, has, strict=True)], has


@pytest.mark.parametrize("function", CALLS, ids=lambda f: f.__name__)
def test_export_with_a_dynamic_batch(function):
    call, values = wrapped(function)

    class Module(torch.nn.Module):
        def forward(self, values):
            return call(values)

    sample, has = batched(function, values, 4)
    batch = torch.export.Dim("batch", max=64)
    program = torch.export.export(Module(), (sample,), dynamic_shapes=([{0: batch} if b else {} for b in has],))
    for times in (2, 7):
        other, _ = batched(function, values, times)
        assert torch.equal(program.module()(other), call(other))


@pytest.mark.parametrize("function", CALLS, ids=lambda f: f.__name__)
def test_compile_with_dynamic_shapes_compiles_once(function):
    call, values = wrapped(function)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for times in (7, 11, 13):  # sizes that no other dimension has: equal ones are taken for the same at first
        other, _ = batched(function, values, times)
        assert torch.equal(compiled(other), call(other))
        counts.append(counter.frame_count)
    assert counts == counts[:1] * 3


def test_functional_gradient_is_a_clear_error():
    """torch.func's transforms do not take autograd formulas in C++; torch's own error says so."""
    with pytest.raises(RuntimeError, match="C\\+\\+ torch::autograd::Function with functorch transforms"):
        torch.func.grad(lambda x: ops.gelu(x).sum())(torch.randn(3))


@pytest.mark.parametrize("function", CALLS, ids=lambda f: f.__name__)
def test_vmap_equals_a_loop(function):
    call, values = wrapped(function)
    at = next(i for i, v in enumerate(values) if v.is_floating_point())
    several = torch.stack([values[at], 2 * values[at], -values[at]])

    def one(x):
        return call([*values[:at], x, *values[at + 1 :]])

    assert torch.equal(torch.func.vmap(one)(several), torch.stack([one(x) for x in several]))
