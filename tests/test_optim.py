"""fastllm.optim.AdamW against torch.optim.AdamW."""

import pytest
import torch

from fastllm.optim import AdamW
from tests.devices import ON_CUDA

# Less than a vector, odd, several chunks (of the CUDA norm too), one, many, none.
SHAPES = [(3,), (17, 5), (40_000,), (1,), (128, 129), (0, 4)]
CPU = torch.device("cpu")


def make(dtype=torch.float32, device=CPU):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, dtype=dtype).to(device)) for shape in SHAPES]


def groups(parameters):
    return [{"params": parameters[:2], "weight_decay": 0.0}, {"params": parameters[2:]}]


def run(parameters, optimizer, steps=100, clip=None):
    torch.manual_seed(1)
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.randn(p.shape, dtype=p.dtype).to(p.device)
        if clip:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()


@pytest.mark.parametrize("clip", [None, 1.0, 1e4])
def test_equals_torch_over_100_steps(clip, device):
    assert_equals_torch(torch.float32, clip, device)


@pytest.mark.parametrize("clip", [None, 1.0, 1e4])
def test_equals_torch_over_100_steps_in_float64(clip):
    assert_equals_torch(torch.float64, clip, CPU)


def assert_equals_torch(dtype, clip, device):
    ours, theirs = make(dtype, device), make(dtype)
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}
    run(ours, AdamW(groups(ours), **options, max_grad_norm=clip))
    run(theirs, torch.optim.AdamW(groups(theirs), **options), clip=clip)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"maximize": True}, {"betas": (0.0, 0.0)}, {"betas": (0.9, 0.9999), "eps": 0.1}])
def test_options(options, device):
    ours, theirs = make(device=device), make()
    run(ours, AdamW(ours, **options), steps=3)
    run(theirs, torch.optim.AdamW(theirs, **options), steps=3)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.cpu(), b)


def test_more_tensors_than_a_launch_takes(device):
    """The CUDA kernels take 64 at a time."""

    def many(device):
        torch.manual_seed(0)
        return [torch.nn.Parameter(torch.randn(1 + i % 7).to(device)) for i in range(150)]

    ours, theirs = many(device), many(CPU)
    run(ours, AdamW(ours, max_grad_norm=1.0), steps=2)
    run(theirs, torch.optim.AdamW(theirs), steps=2, clip=1.0)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.cpu(), b)


def test_tensors_that_start_anywhere(device):
    """Views into one buffer, as flattened parameters are: no 16-byte borders."""

    def views(device):
        torch.manual_seed(0)
        flat = torch.randn(1 + 9 + 5000).to(device)
        return [torch.nn.Parameter(flat[1:10]), torch.nn.Parameter(flat[10:])]

    ours, theirs = views(device), views(CPU)
    run(ours, AdamW(ours, max_grad_norm=1.0), steps=2)
    run(theirs, torch.optim.AdamW(theirs), steps=2, clip=1.0)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.cpu(), b)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_reaches_the_parameters(bad, device):
    """As with clip_grad_norm_, so that it is seen."""
    parameters = make(device=device)
    for p in parameters:
        p.grad = torch.ones_like(p)
    parameters[1].grad[0, 0] = bad
    optimizer = AdamW(parameters, max_grad_norm=1.0)
    optimizer.step()
    assert not torch.tensor(optimizer.last_grad_norm).isfinite()
    assert parameters[1][0, 0].isnan()


def test_learning_rate_as_a_tensor(device):
    ours, theirs = make(device=device), make()
    rate = torch.tensor(0.5, device=device)
    optimizers = [AdamW(ours, lr=rate), torch.optim.AdamW(theirs, lr=0.5)]
    for value in (0.5, 0.25):
        rate.fill_(value)
        optimizers[1].param_groups[0]["lr"] = value
        run(ours, optimizers[0], steps=1)
        run(theirs, optimizers[1], steps=1)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.cpu(), b)


@pytest.mark.parametrize("order", ["ours first", "torch first"])
def test_state_dict_goes_both_ways(order, device):
    kinds = [AdamW, torch.optim.AdamW] if order == "ours first" else [torch.optim.AdamW, AdamW]
    parameters, straight = make(device=device), make()
    first = kinds[0](parameters, lr=1e-2)
    run(parameters, first, steps=5)
    second = kinds[1](parameters, lr=1e-2)
    second.load_state_dict(first.state_dict())
    run(parameters, second, steps=5)
    reference = torch.optim.AdamW(straight, lr=1e-2)
    run(straight, reference, steps=5)
    run(straight, reference, steps=5)
    assert all(second.state[p]["step"].item() == 10 for p in parameters)
    for a, b in zip(parameters, straight, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-6)


def test_last_grad_norm_and_missing_gradients(device):
    parameters = make(device=device)
    optimizer = AdamW(parameters, max_grad_norm=1.0)
    assert optimizer.last_grad_norm is None
    before = parameters[0].detach().clone()
    for p in parameters[1:]:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.equal(parameters[0], before)
    assert optimizer.last_grad_norm == pytest.approx(sum(p.numel() for p in parameters[1:]) ** 0.5)
    assert optimizer.grad_norm.device == parameters[0].device


def test_a_step_without_any_gradient():
    optimizer = AdamW(make(), max_grad_norm=1.0)
    optimizer.step()
    assert optimizer.last_grad_norm == 0


def test_same_bits_on_repeat(device):
    results = []
    for _ in range(2):
        parameters = make(device=device)
        run(parameters, AdamW(parameters, max_grad_norm=0.5), steps=2)
        results.append(parameters)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_same_bits_for_any_number_of_threads(threads):
    results = []
    for count in (1, 2, 3):
        threads(count)
        parameters = make()
        run(parameters, AdamW(parameters, max_grad_norm=0.5), steps=3)
        results.append(parameters)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_works_with_a_scheduler():
    parameters = make()
    optimizer = AdamW(parameters, lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    run(parameters, optimizer, steps=1)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "'lr' must be at least 0, got -1.0"),
        ({"betas": (0.9, 1.0)}, r"'betas' must be in \[0, 1\)"),
        ({"max_grad_norm": 0.0}, "'max_grad_norm' must be over 0 or None, got 0.0"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        AdamW(make(), **options)


def test_parameters_elsewhere():
    parameter = torch.nn.Parameter(torch.ones(2, device="meta"))
    parameter.grad = torch.ones_like(parameter)
    with pytest.raises(TypeError, match="'params' must be on the CPU or on CUDA, got meta"):
        AdamW([parameter]).step()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@ON_CUDA
def test_other_dtypes_on_cuda(dtype, device):
    parameters = make(dtype, device)
    for p in parameters:
        p.grad = torch.ones_like(p)
    with pytest.raises(TypeError, match="'parameters' must be float32"):
        AdamW(parameters).step()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_captured_step_is_replayed():
    ours, theirs = make(device="cuda"), make()
    rate = torch.tensor(1e-2, device="cuda")
    optimizer = AdamW(ours, lr=rate, max_grad_norm=1.0)
    for p in ours:
        p.grad = torch.zeros_like(p)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        optimizer.step()  # makes the state, outside the graph
    torch.cuda.current_stream().wait_stream(stream)
    for p, fresh in zip(ours, theirs, strict=True):
        p.data.copy_(fresh.data)
        optimizer.state[p]["step"].zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    reference = torch.optim.AdamW(theirs, lr=1e-2)
    for step in range(3):
        rate.fill_(1e-2 / (step + 1))
        reference.param_groups[0]["lr"] = 1e-2 / (step + 1)
        for p, q in zip(ours, theirs, strict=True):
            q.grad = torch.randn_like(q)
            p.grad.copy_(q.grad)
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        graph.replay()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.cpu(), b)
