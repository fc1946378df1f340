"""What a GPU shows, or the emulator's devices: streams, captured and compiled graphs, no waiting, a second device."""

import pytest
import torch

from tests.cuda.cases import CALLS, OTHERS, change, each_case


def assert_equal(results, expected):
    for result, right in zip(results, expected, strict=True):
        assert (result is None) == (right is None)
        if result is not None:
            assert torch.equal(result.cpu(), right.cpu())


@each_case
def test_same_as_on_the_cpu(gpu, case):
    results = case.both_ways(case.inputs_on("cuda"))
    for result, right in zip(results, case.both_ways(case.inputs_on("cpu")), strict=True):
        if right is not None:
            low = right.dtype != torch.float32
            rtol, atol = (2e-2, 2e-2) if low else (1e-4, 1e-4)
            torch.testing.assert_close(result.cpu(), right, rtol=rtol, atol=atol)


@each_case
def test_on_another_stream(gpu, case):
    expected = case.both_ways(case.inputs_on("cuda"))
    with gpu.other_stream():
        results = case.both_ways(case.inputs_on("cuda"))
    assert_equal(results, expected)


@each_case
def test_a_captured_graph_sees_new_inputs(gpu, case):
    tensors = case.inputs_on("cuda")
    with gpu.other_stream():
        case.both_ways(tensors)
    with gpu.captured() as graph:
        results = case.both_ways(tensors)
    for _ in range(2):
        change(tensors)
        graph.replay()
        assert_equal(results, case.both_ways(tensors))


@each_case
def test_never_waits_for_the_device(gpu, case):
    tensors = case.inputs_on("cuda")
    case.both_ways(tensors)
    with gpu.without_waiting():
        case.both_ways(tensors)


@each_case
def test_compiled_to_graphs(gpu, case):
    tensors = case.inputs_on("cuda")
    torch._dynamo.reset()
    compiled = gpu.compile(case.function)
    for _ in range(3):  # the third call replays
        results = [r if r is None else r.clone() for r in case.both_ways(tensors, compiled)]
        torch.testing.assert_close(results, case.both_ways(tensors), rtol=1e-5, atol=1e-6)
        change(tensors)


@each_case
def test_on_a_second_device(gpu, case):
    """While the first is current, and each has a stream of its own."""
    if gpu.count < 2:
        pytest.skip("needs two NVIDIA GPUs")
    expected = case.both_ways(case.inputs_on("cuda:0"))
    with gpu.other_stream(0), gpu.other_stream(1):
        results = case.both_ways(case.inputs_on("cuda:1"))
        assert all(result is None or result.device.index == 1 for result in results)
    assert_equal(results, expected)


@pytest.mark.parametrize("function", CALLS, ids=lambda f: f.__name__)
def test_a_tensor_that_stayed_on_the_cpu_is_named(gpu, function):
    tensors = {name: value.to("cuda") for name, value in CALLS[function].items()}
    for name in list(tensors)[1:]:
        moved = {**tensors, name: CALLS[function][name]}
        with pytest.raises(TypeError, match=f"'{name}' must be on the device of "):
            function(**moved, **OTHERS.get(function, {}))
