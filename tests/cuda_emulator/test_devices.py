"""The emulated CUDA devices: torch's operators there, graphs, streams, and what an op's host code must not do."""

import pytest
import torch

from fastllm import ops
from tests.cuda_emulator import build, load
from tests.gpu import emulated_devices

pytestmark = pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch has CUDA devices of its own")


@pytest.fixture
def planted():
    with emulated_devices(load("planted")) as devices:
        yield devices


def misplace(mistake, device="cuda:1", count=100):
    x, state = torch.randn(count).to(device), torch.ones(4).to(device)
    return torch.ops.emulator_planted.misplace(x, state, mistake), x


# ---------------------------------------------------------------------------------------------------------------------
# What torch does there
# ---------------------------------------------------------------------------------------------------------------------

OPERATORS = [
    lambda x: x + 1,
    lambda x: x.t().contiguous(),
    lambda x: (x @ x.t()).softmax(0),
    lambda x: x.abs().sum(1, keepdim=True).sqrt(),
    lambda x: x.sort(stable=True).indices,
    lambda x: torch.cat([x, x.bfloat16().float()])[1:, ::2],
    lambda x: x.double().square_().mean(),
    lambda x: torch.where(x > 0, x, torch.zeros((), device=x.device)),
    lambda x: x[torch.arange(2, device=x.device)],
    lambda x: torch.linalg.vector_norm(x),
    lambda x: x.view(-1)[3:].unsqueeze(0).expand(2, -1).clone(),
]


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_are_the_cpus(emulated, operator):
    x = torch.randn(4, 6)
    result = operator(x.to("cuda:1"))
    assert result.device == torch.device("cuda:1")
    assert torch.equal(result.cpu(), operator(x))


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_in_a_graph(emulated, operator):
    x = torch.randn(4, 6).to("cuda")
    with emulated.captured() as graph:
        result = operator(x)
    assert len(graph) > 0
    for _ in range(2):
        x.copy_(torch.randn(4, 6))
        graph.replay()
        assert torch.equal(result.cpu(), operator(x.cpu()))


def test_new_memory_is_nan(emulated):
    assert torch.empty(1000, device="cuda").isnan().all().item()
    assert (torch.empty(3, dtype=torch.int64, device="cuda") == -1).all().item()


def test_tensors_of_two_devices(emulated):
    with pytest.raises(RuntimeError, match="at least two devices, cuda:0 and cuda:1"):
        torch.ones(2).to("cuda:0") + torch.ones(2).to("cuda:1")
    with pytest.raises(RuntimeError, match=r"aten::mm.*: tensors of two devices"):
        torch.ones(2, 2).to("cuda:0") @ torch.ones(2, 2).to("cuda:1")
    with pytest.raises(RuntimeError, match=r"aten::cat.*: a tensor of the CPU among those of cuda"):
        torch.cat([torch.ones(2).to("cuda:0"), torch.ones(2)])


def test_taken_away():
    with emulated_devices(load("emulated")) as devices:
        x = torch.randn(3).to("cuda")
        assert devices.module.current_device() == 0
    with pytest.raises(RuntimeError, match="not linked with support for cuda"):
        x + 1
    with pytest.raises(NotImplementedError, match="no CUDA kernels"):
        ops.gelu(x)


def test_a_third_device(emulated):
    with pytest.raises(RuntimeError, match="there is no device cuda:2"):
        torch.ones(2).to("cuda:2")


# ---------------------------------------------------------------------------------------------------------------------
# Graphs
# ---------------------------------------------------------------------------------------------------------------------


def test_nothing_runs_while_it_is_captured(emulated):
    x = torch.zeros(8).to("cuda")
    with emulated.captured() as graph:
        x.add_(1)
        y = ops.gelu(x)
    assert torch.equal(x.cpu(), torch.zeros(8))
    assert y.isnan().all().item()
    graph.replay()
    assert torch.equal(x.cpu(), torch.ones(8))
    assert torch.equal(y.cpu(), ops.gelu(x).cpu())


def test_a_replay_sees_nothing_of_the_last(emulated):
    x = torch.zeros(8).to("cuda")
    with emulated.captured() as graph:
        kept = torch.empty_like(x)
        x.add_(kept)  # which nothing in the graph writes
    kept.fill_(1)
    graph.replay()
    assert x.isnan().all().item()


def test_memory_of_a_graph_is_its_own(emulated):
    x = torch.ones(8).to("cuda")
    with emulated.captured() as graph:
        y = (x + 1) * 2  # x + 1 is freed at once
    others = [torch.zeros(8).to("cuda") for _ in range(50)]
    graph.replay()
    assert torch.equal(y.cpu(), torch.full((8,), 4.0))
    assert not any(other.any().item() for other in others)
    place = y.data_ptr()
    del graph, y
    assert any(torch.empty(8, device="cuda").data_ptr() == place for _ in [0])


@pytest.mark.parametrize(
    ("wait", "what"),
    [
        (lambda x: x.sum().item(), "aten::_local_scalar_dense"),
        (lambda x: x.nonzero(), "aten::nonzero"),
        (lambda x: x[x > 0], "aten::"),
        (lambda x: x.cpu(), "a copy to the CPU"),
        (lambda x: x.copy_(torch.ones(4)), "a copy from the CPU"),
        (lambda x: torch.equal(x, x), "aten::equal"),
        (lambda x: bool(x.any()), "aten::"),
    ],
)
def test_what_makes_the_host_wait(emulated, wait, what):
    x = torch.ones(4).to("cuda")
    wait(x)
    message = f"{what}.* makes the host wait for the device, which "
    with pytest.raises(build.EmulatorError, match=message + "cannot be captured"), emulated.captured():
        wait(x)
    with pytest.raises(build.EmulatorError, match=message + "is forbidden here"), emulated.without_waiting():
        wait(x)
    wait(x)


def test_one_graph_at_a_time(emulated):
    with emulated.captured() as graph:
        for forbidden, message in ((graph.begin, "captured already"), (graph.replay, "cannot be replayed while")):
            with pytest.raises(build.EmulatorError, match=message):
                forbidden()


# ---------------------------------------------------------------------------------------------------------------------
# What an op must not do on the host
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mistake", ["none", "sets memory"])
def test_an_op_that_makes_no_mistake(planted, mistake):
    with planted.other_stream(1):
        y, x = misplace(mistake)
    assert torch.equal(x.cpu(), y.cpu())
    state = torch.ones(4).to("cuda")
    with planted.captured() as graph:
        y = torch.ops.emulator_planted.misplace(state, state, mistake)
    assert torch.equal(state.cpu(), torch.ones(4))
    graph.replay()
    assert torch.equal(state.cpu(), y.cpu())
    assert torch.equal(state.cpu(), torch.ones(4) if mistake == "none" else torch.zeros(4))


NOT_CURRENT = "while the current device is cuda:1, the current stream stream 7 of cuda:1"
KERNEL = r"copy_kernel, block \(\d, 0, 0\), thread \(\d+, 0, 0\): "


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("launches on the null stream", f"copy_kernel: goes to the default stream {NOT_CURRENT}"),
        ("takes the stream of its caller", f"copy_kernel: goes to stream 6 of cuda:0 {NOT_CURRENT}"),
        ("sets memory on the null stream", f"cudaMemsetAsync: goes to the default stream {NOT_CURRENT}"),
        ("has no guard", KERNEL + "out of bounds: .* of .*, memory of cuda:1, in a launch on cuda:0"),
        ("asks the first device", "misplace: asks for an attribute of cuda:0 while the current device is cuda:1"),
        ("leaves its device current", "misplace: leaves cuda:1 current, on stream 7 of cuda:1, where it found cuda:0"),
        ("reads its state on the host", r"misplace: the host reads or writes byte 0 of 'state' \[4\] Float, memory of"),
    ],
)
def test_an_op_that_takes_the_wrong_place(planted, mistake, message):
    planted.module.exchange_stream(0, 6)
    planted.module.exchange_stream(1, 7)
    for _ in range(2):
        with pytest.raises(build.EmulatorError, match=message):
            misplace(mistake)
        planted.module.set_device(0)
        assert torch.equal(*(t.cpu() for t in misplace("none")))


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("waits for a value", "misplace: aten::_local_scalar_dense makes the host wait for the device"),
        ("waits for a shape", "misplace: aten::nonzero makes the host wait for the device"),
        ("copies from the host", "misplace: a copy from the CPU makes the host wait for the device"),
        ("reads its state on the host", "misplace: the host reads or writes byte 0 of 'state'"),
    ],
)
def test_an_op_that_cannot_be_captured(planted, mistake, message):
    x, state = torch.ones(4).to("cuda"), torch.ones(4).to("cuda")
    with pytest.raises(build.EmulatorError, match=message), planted.captured():
        torch.ops.emulator_planted.misplace(x, state, mistake)
    with planted.captured():
        torch.ops.emulator_planted.misplace(x, state, "none")


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("says nothing of its error", "misplace: does not tell that a launch failed: invalid configuration argument"),
        ("leaves its error behind", "misplace: leaves the error of a launch behind: invalid configuration argument"),
    ],
)
def test_an_op_that_hides_a_failed_launch(planted, mistake, message):
    planted.module.fail_launch(1, "cudaErrorInvalidConfiguration")
    with pytest.raises(build.EmulatorError, match=message):
        misplace(mistake)
    misplace(mistake)


def test_devices_differ_in_what_they_allow(emulated):
    """So that a figure which belongs to another device shows."""
    processors, capability, shared_bytes = 16, 75, 97  # the toolkit's numbers of the attributes
    found = []
    for device in range(emulated.count):
        emulated.module.set_device(device)
        found.append([emulated.module.attribute(which) for which in (processors, capability, shared_bytes)])
    assert found[0] == [("cudaSuccess", value) for value in (132, 9, 227 * 1024)]
    assert found[1] == [("cudaSuccess", value) for value in (108, 8, 163 * 1024)]
