"""fastllm.optim.AdamW against torch.optim.AdamW."""

import copy
import inspect
import io
import pickle

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


def through_torch_save(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), through_torch_save])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_copy_goes_on_as_the_original(duplicate, steps):
    parameters = make()
    optimizer = AdamW(groups(parameters), lr=1e-2, max_grad_norm=0.5)
    run(parameters, optimizer, steps)
    copied_parameters, copied = duplicate((parameters, optimizer))
    assert copied.max_grad_norm == 0.5
    assert copied.last_grad_norm == optimizer.last_grad_norm
    run(parameters, optimizer, steps=2)
    run(copied_parameters, copied, steps=2)
    for a, b in zip(parameters, copied_parameters, strict=True):
        assert torch.equal(a, b)
        assert a.data_ptr() != b.data_ptr() or not a.numel()


def test_signature_is_torchs():
    ours = list(inspect.signature(AdamW).parameters.values())
    theirs = list(inspect.signature(torch.optim.AdamW).parameters.values())
    assert [(p.name, p.default, p.kind) for p in ours[:-1]] == [(p.name, p.default, p.kind) for p in theirs]
    assert ours[-1].name == "max_grad_norm"


NOT_DONE = [
    ({"amsgrad": True}, "'amsgrad' must be False, got True"),
    ({"differentiable": True}, "'differentiable' must be False, got True"),
    ({"decoupled_weight_decay": False}, "'decoupled_weight_decay' must be True, got False"),
    ({"max_grad_norm": 1.0}, "'max_grad_norm' must be given to the optimizer"),
]
OUT_OF_RANGE = [
    ({"lr": -1.0}, "'lr' must be at least 0, got -1.0"),
    ({"betas": (0.9, 1.0)}, r"'betas' must be in \[0, 1\)"),
    ({"weight_decay": -1.0}, "'weight_decay' must be at least 0, got -1.0"),
]


@pytest.mark.parametrize(("settings", "message"), NOT_DONE + OUT_OF_RANGE)
@pytest.mark.parametrize("way", ["constructor", "add_param_group", "load_state_dict"])
def test_groups_with_settings_that_are_not_done(way, settings, message):
    parameters = make()
    optimizer = AdamW(parameters[:1])
    if way == "load_state_dict":
        state_dict = optimizer.state_dict()
        state_dict["param_groups"][0].update(settings)
    with pytest.raises(ValueError, match=message):
        if way == "constructor":
            AdamW([{"params": parameters, **settings}])
        elif way == "add_param_group":
            optimizer.add_param_group({"params": parameters[1:], **settings})
        else:
            optimizer.load_state_dict(state_dict)
    assert len(optimizer.param_groups) == 1
    run(parameters[:1], optimizer, steps=1)


@pytest.mark.parametrize(("settings", "message"), NOT_DONE)
def test_groups_changed_later(settings, message):
    parameters = make()
    optimizer = AdamW(groups(parameters))
    optimizer.param_groups[1].update(settings)
    before = [p.detach().clone() for p in parameters]
    with pytest.raises(ValueError, match=message):
        run(parameters, optimizer, steps=1)
    assert all(torch.equal(p, q) for p, q in zip(parameters, before, strict=True))


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad])
def test_the_state_of_another_optimizer(kind):
    parameters = make()
    theirs = kind(parameters, lr=1e-2)
    run(parameters, theirs, steps=1)
    with pytest.raises(ValueError, match="AdamW: "):
        AdamW(parameters).load_state_dict(theirs.state_dict())


def test_the_state_of_torchs_amsgrad():
    parameters = make()
    theirs = torch.optim.AdamW(parameters, amsgrad=True)
    run(parameters, theirs, steps=1)
    with pytest.raises(ValueError, match="'amsgrad' must be False, got True"):
        AdamW(parameters).load_state_dict(theirs.state_dict())


def test_a_state_that_holds_other_moments():
    parameters = make()
    optimizer = AdamW(parameters)
    run(parameters, optimizer, steps=1)
    state_dict = copy.deepcopy(optimizer.state_dict())
    del state_dict["state"][2]["exp_avg"]
    with pytest.raises(ValueError, match="the state must hold step, exp_avg and exp_avg_sq, got step, exp_avg_sq"):
        optimizer.load_state_dict(state_dict)


def test_groups_of_their_own_settings(device):
    """maximize, betas and eps are a group's own; what only chooses among torch's implementations is taken."""
    ours, theirs = make(device=device), make()
    optimizers = []
    for parameters, kind in ((ours, AdamW), (theirs, torch.optim.AdamW)):
        optimizer = kind([{"params": parameters[:2], "maximize": True, "betas": (0.5, 0.6)}], lr=1e-2, foreach=True)
        optimizer.add_param_group({"params": parameters[2:], "maximize": False, "eps": 1e-3, "foreach": False})
        run(parameters, optimizer, steps=3)
        optimizers.append(optimizer)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.cpu(), b)
    assert optimizers[0].state_dict()["param_groups"] == optimizers[1].state_dict()["param_groups"]


def test_the_state_of_an_older_torch():
    """Without the settings that came later, and with the number of steps as one of Python's."""
    parameters, straight = make(), make()
    first = AdamW(parameters, lr=1e-2, max_grad_norm=1.0)
    run(parameters, first, steps=2)
    state_dict = copy.deepcopy(first.state_dict())
    for name in ("decoupled_weight_decay", "differentiable", "fused", "maximize"):
        del state_dict["param_groups"][0][name]
    for state in state_dict["state"].values():
        state["step"] = int(state["step"])
    second = AdamW(parameters, max_grad_norm=1.0)
    second.load_state_dict(state_dict)
    assert second.max_grad_norm == 1.0
    reference = AdamW(straight, lr=1e-2, max_grad_norm=1.0)
    run(straight, reference, steps=2)
    for optimizer, trained in ((second, parameters), (reference, straight)):
        run(trained, optimizer, steps=2)
    assert all(torch.equal(a, b) for a, b in zip(parameters, straight, strict=True))


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
        ({"max_grad_norm": 0.0}, "'max_grad_norm' must be positive or None, got 0.0"),
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
