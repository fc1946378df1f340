"""fastllm.optim.AdamW against torch.optim.AdamW."""

import pytest
import torch

from fastllm.optim import AdamW

SHAPES = [(3,), (17, 5), (40_000,), (1,), (128, 129)]  # less than a vector, odd, several chunks, one, many


def make(dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in SHAPES]


def groups(parameters):
    return [{"params": parameters[:2], "weight_decay": 0.0}, {"params": parameters[2:]}]


def run(parameters, optimizer, steps=100, clip=None):
    torch.manual_seed(1)
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.randn_like(p)
        if clip:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clip", [None, 1.0, 1e4])
def test_equals_torch_over_100_steps(clip, dtype):
    ours, theirs = make(dtype), make(dtype)
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}
    run(ours, AdamW(groups(ours), **options, max_grad_norm=clip))
    run(theirs, torch.optim.AdamW(groups(theirs), **options), clip=clip)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_maximize():
    ours, theirs = make(), make()
    run(ours, AdamW(ours, maximize=True), steps=3)
    run(theirs, torch.optim.AdamW(theirs, maximize=True), steps=3)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("order", ["ours first", "torch first"])
def test_state_dict_goes_both_ways(order):
    kinds = [AdamW, torch.optim.AdamW] if order == "ours first" else [torch.optim.AdamW, AdamW]
    parameters, straight = make(), make()
    first = kinds[0](parameters, lr=1e-2)
    run(parameters, first, steps=5)
    second = kinds[1](parameters, lr=1e-2)
    second.load_state_dict(first.state_dict())
    run(parameters, second, steps=5)
    reference = torch.optim.AdamW(straight, lr=1e-2)
    run(straight, reference, steps=5)
    run(straight, reference, steps=5)
    for a, b in zip(parameters, straight, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_last_grad_norm_and_missing_gradients():
    parameters = make()
    optimizer = AdamW(parameters, max_grad_norm=1.0)
    before = parameters[0].detach().clone()
    for p in parameters[1:]:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.equal(parameters[0], before)
    assert optimizer.last_grad_norm == pytest.approx(sum(p.numel() for p in parameters[1:]) ** 0.5)


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
