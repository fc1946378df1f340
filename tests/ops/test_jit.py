"""torch.jit: scripting is refused in a sentence, wherever an op or a layer stands; tracing works."""

import pytest
import torch

from fastllm import nn, ops
from tests.ops.test_devices import CALLS, OTHERS

INSTEAD = r"torch\.jit\.script does not take it: use torch\.export or torch\.compile"
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


@pytest.mark.parametrize("function", CALLS, ids=lambda f: f.__name__)
def test_scripting_an_op_is_refused_by_name(function):
    with pytest.raises(RuntimeError, match=rf"^TorchScript error: fastllm\.ops\.{function.__name__}: {INSTEAD}"):
        torch.jit.script(function)


def calls_an_op(x: torch.Tensor) -> torch.Tensor:
    return ops.gelu(x)


def test_scripting_a_function_that_calls_one_is_refused_by_name():
    with pytest.raises(RuntimeError, match=rf"fastllm\.ops\.gelu: {INSTEAD}"):
        torch.jit.script(calls_an_op)


LAYERS = {
    "Linear": (4, 4), "GELU": (), "LayerNorm": (4,), "FeedForward": (4,), "MultiheadAttention": (4, 2),
    "CrossEntropyLoss": (), "TransformerEncoderLayer": (4, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("wrap", [lambda layer: layer, lambda layer: torch.nn.Sequential(torch.nn.ReLU(), layer)])
def test_scripting_a_layer_is_refused_by_name(name, wrap):
    with pytest.raises(RuntimeError, match=rf"^TorchScript error: fastllm\.nn\.\w+\.{name}: {INSTEAD}"):
        torch.jit.script(wrap(getattr(nn, name)(*LAYERS[name])))


def test_every_layer_refuses():
    layers = [getattr(nn, name) for name in nn.__all__]
    layers = [layer for layer in layers if isinstance(layer, type) and issubclass(layer, torch.nn.Module)]
    assert set(LAYERS) <= {layer.__name__ for layer in layers}
    assert all(hasattr(layer, "__prepare_scriptable__") for layer in layers)
    assert not any(hasattr(layer, "__prepare_scriptable__") for layer in (torch.nn.Module, torch.nn.Linear))


@pytest.mark.parametrize("function", CALLS, ids=lambda f: f.__name__)
def test_a_trace_gives_what_the_op_gives(function):
    others = OTHERS.get(function, {})
    names, values = zip(*CALLS[function].items(), strict=True)

    def call(*values):
        output = function(**dict(zip(names, values, strict=True)), **others)
        return output[0] if isinstance(output, tuple) else output

    traced = torch.jit.trace(call, values)
    others_values = tuple(2 * value if value.is_floating_point() else value for value in values)
    assert torch.equal(traced(*others_values), call(*others_values))


def test_a_traced_layer_has_gradients():
    layer = torch.nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8))
    traced, x = torch.jit.trace(layer, torch.randn(2, 4)), torch.randn(3, 4)
    ours = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    theirs = torch.autograd.grad(traced(x).square().sum(), list(layer.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
