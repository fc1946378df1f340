"""What only a GPU can show: other streams, captured and compiled graphs, no waiting for the device, a second one."""

import pytest
import torch

from fastllm import ops
from tests.ops.test_devices import CALLS, OTHERS

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
WITHOUT_CUDA_KERNEL = {ops.attention_packed, ops.decode_attention, ops.scaled_dot_product_attention}
SERVED = [function for function in CALLS if function not in WITHOUT_CUDA_KERNEL]
each_op = pytest.mark.parametrize("function", SERVED, ids=lambda f: f.__name__)


def inputs_on(device, function):
    """Return an op's tensors there; the floating ones want a gradient, but rotary tables, which are constants."""
    tensors = {name: value.detach().clone().to(device) for name, value in CALLS[function].items()}
    constants = {"cos", "sin"}
    return {k: v.requires_grad_(v.is_floating_point() and k not in constants) for k, v in tensors.items()}


def both_ways(function, tensors, others=None):
    """Return an op's first output and the gradients of its square."""
    output = function(**tensors, **(OTHERS.get(function, {}) if others is None else others))
    output = output[0] if isinstance(output, tuple) else output
    leaves = [value for value in tensors.values() if value.requires_grad]
    return [output.detach(), *torch.autograd.grad(output.square().sum(), leaves, allow_unused=True)]


def assert_equal(results, expected):
    for result, right in zip(results, expected, strict=True):
        assert (result is None) == (right is None)
        assert result is None or torch.equal(result, right)


@each_op
def test_same_as_on_the_cpu(function):
    results = both_ways(function, inputs_on("cuda", function))
    for result, right in zip(results, both_ways(function, inputs_on("cpu", function)), strict=True):
        if right is not None:
            torch.testing.assert_close(result.cpu(), right, rtol=1e-4, atol=1e-5)


@each_op
def test_on_another_stream(function):
    expected = both_ways(function, inputs_on("cuda", function))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results = both_ways(function, inputs_on("cuda", function))
    stream.synchronize()
    assert_equal(results, expected)


@each_op
def test_a_captured_graph_sees_new_inputs(function):
    tensors = inputs_on("cuda", function)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        both_ways(function, tensors)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = both_ways(function, tensors)
    with torch.no_grad():
        for name, value in tensors.items():
            if value.is_floating_point():
                value.mul_(-0.5)
            elif name == "rng_state":
                value.add_(1)
    graph.replay()
    torch.cuda.synchronize()
    assert_equal(results, both_ways(function, tensors))


@each_op
def test_never_waits_for_the_device(function):
    tensors = inputs_on("cuda", function)
    both_ways(function, tensors)
    torch.cuda.set_sync_debug_mode("error")
    try:
        both_ways(function, tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_op
def test_compiled_to_graphs(function):
    tensors = inputs_on("cuda", function)
    expected = both_ways(function, tensors)
    torch._dynamo.reset()
    compiled = torch.compile(lambda **given: function(**given), fullgraph=True, mode="reduce-overhead")
    for _ in range(3):  # the third call replays
        torch.compiler.cudagraph_mark_step_begin()
        results = [r if r is None else r.clone() for r in both_ways(compiled, tensors, OTHERS.get(function, {}))]
    torch.testing.assert_close(results, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
@each_op
def test_on_a_second_device(function):
    expected = both_ways(function, inputs_on("cuda:0", function))
    results = both_ways(function, inputs_on("cuda:1", function))
    assert_equal([r if r is None else r.to("cuda:0") for r in results], expected)


@each_op
def test_a_tensor_that_stayed_on_the_cpu_is_named(function):
    tensors = inputs_on("cuda", function)
    for name in list(tensors)[1:]:
        moved = {**tensors, name: CALLS[function][name]}
        with pytest.raises(TypeError, match=f"'{name}' must be on the device of "):
            function(**moved, **OTHERS.get(function, {}))
