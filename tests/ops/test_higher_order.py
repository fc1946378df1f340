"""Second derivatives, and beyond: what gradient penalties and Hessians need, against torch's in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastllm import nn, ops
from tests.ops import harness

STATE = torch.tensor([3, 4])


def leaf(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def bias_relu_of_torch(x, bias, p=0.0):
    kept = ops.bias_relu(torch.ones_like(x), None, p, rng_state=STATE) if p else 1.0  # the same mask
    return F.relu(x + bias) * kept


CLASSES, WEIGHTS = torch.tensor([0, 4, -100, 2]), torch.rand(5, dtype=torch.float64)
GRID = torch.tensor([[0, 4, -100], [2, 1, 0]])

# name: ours, torch's, inputs
CASES = {
    "layer_norm": (
        lambda x, w, b: ops.layer_norm(x, (5,), w, b), lambda x, w, b: F.layer_norm(x, (5,), w, b),
        [(4, 5), (5,), (5,)],
    ),
    "layer_norm of a row": (
        lambda x, w, b: ops.layer_norm(x, (5,), w, b, 0.1), lambda x, w, b: F.layer_norm(x, (5,), w, b, 0.1),
        [(5,), (5,), (5,)],
    ),
    "layer_norm of two dimensions": (
        lambda x, w: ops.layer_norm(x, (2, 5), w), lambda x, w: F.layer_norm(x, (2, 5), w), [(3, 2, 5), (2, 5)],
    ),
    "layer_norm alone": (lambda x: ops.layer_norm(x, (5,)), lambda x: F.layer_norm(x, (5,)), [(2, 2, 5)]),
    "rms_norm": (lambda x, w: ops.rms_norm(x, (5,), w), lambda x, w: F.rms_norm(x, (5,), w), [(2, 2, 5), (5,)]),
    "rms_norm of two dimensions": (
        lambda x, w: ops.rms_norm(x, (2, 5), w, 0.1), lambda x, w: F.rms_norm(x, (2, 5), w, 0.1), [(3, 2, 5), (2, 5)],
    ),
    "rms_norm alone": (lambda x: ops.rms_norm(x, (5,)), lambda x: F.rms_norm(x, (5,)), [(5,)]),
    "linear": (ops.linear, F.linear, [(2, 3, 4), (5, 4), (5,)]),
    "linear of a row": (ops.linear, F.linear, [(4,), (5, 4)]),
    "gelu": (ops.gelu, F.gelu, [(3, 5)]),
    "gelu, tanh": (lambda x: ops.gelu(x, "tanh"), lambda x: F.gelu(x, approximate="tanh"), [(3, 5)]),
    "bias_gelu": (ops.bias_gelu, lambda x, b: F.gelu(x + b), [(2, 3, 5), (5,)]),
    "bias_gelu, tanh": (
        lambda x, b: ops.bias_gelu(x, b, "tanh"), lambda x, b: F.gelu(x + b, approximate="tanh"), [(5,), (5,)],
    ),
    "bias_relu": (ops.bias_relu, bias_relu_of_torch, [(2, 3, 5), (5,)]),
    "bias_relu with dropout": (
        lambda x, b: ops.bias_relu(x, b, 0.5, rng_state=STATE), lambda x, b: bias_relu_of_torch(x, b, 0.5),
        [(6, 5), (5,)],
    ),
    "softmax": (lambda x: ops.softmax(x, -1), lambda x: F.softmax(x, -1), [(3, 5)]),
    "softmax of the first dimension": (lambda x: ops.softmax(x, 0), lambda x: F.softmax(x, 0), [(3, 5)]),
    "swiglu": (ops.swiglu, lambda x, up: F.silu(x) * up, [(2, 3, 5), (2, 3, 5)]),
    "swiglu, packed": (ops.swiglu, lambda x: F.silu(x[..., :3]) * x[..., 3:], [(4, 6)]),
}  # fmt: skip
for _reduction in ("mean", "sum", "none"):
    for _options in ({}, {"label_smoothing": 0.1, "weight": WEIGHTS}):
        for _shape, _target in (((4, 5), CLASSES), ((2, 5, 3), GRID), ((5,), torch.tensor(3))):
            CASES[f"cross_entropy {_reduction} {len(_options)} {len(_shape)}"] = (
                lambda x, t=_target, r=_reduction, o=_options: ops.cross_entropy(x, t, reduction=r, **o),
                lambda x, t=_target, r=_reduction, o=_options: F.cross_entropy(x, t, reduction=r, **o),
                [_shape],
            )


def second(function, inputs, grad_output, weights):
    """Return the gradients, and those of a function of them, with respect to inputs and grad_output."""
    leaves = [x.detach().requires_grad_() for x in (*inputs, grad_output)]
    grads = torch.autograd.grad(function(*leaves[:-1]), leaves[:-1], leaves[-1], create_graph=True)
    penalty = sum((w * g.square()).sum() for w, g in zip(weights, grads, strict=True))
    return grads, torch.autograd.grad(penalty, leaves, create_graph=True, materialize_grads=True)


@pytest.mark.parametrize("name", CASES)
def test_equals_torchs(name):
    ours, theirs, shapes = CASES[name]
    inputs = [leaf(*shape) for shape in shapes]
    grad_output = torch.randn_like(theirs(*inputs))
    weights = [torch.rand_like(x) for x in inputs]
    for mine, expected in zip(*(second(f, inputs, grad_output, weights) for f in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_gradgradcheck(name):
    ours, _, shapes = CASES[name]
    inputs = [leaf(*shape) for shape in shapes]
    assert torch.autograd.gradgradcheck(ours, inputs)


@pytest.mark.parametrize("name", CASES)
def test_of_one_argument_alone(name):
    """What is frozen is not saved, and is not missed."""
    ours, theirs, shapes = CASES[name]
    for wanted in range(len(shapes)):
        inputs = [torch.randn(s, dtype=torch.float64, requires_grad=i == wanted) for i, s in enumerate(shapes)]

        def penalty(function, inputs=inputs, wanted=wanted):
            output = function(*inputs)
            (grad,) = torch.autograd.grad((output * output.detach().cos()).sum(), inputs[wanted], create_graph=True)
            if not grad.requires_grad:  # it depends on no argument
                return grad, None
            return grad, torch.autograd.grad(grad.square().sum(), inputs[wanted], allow_unused=True)[0]

        for mine, expected in zip(*map(penalty, (ours, theirs)), strict=True):
            zero = torch.zeros_like(inputs[wanted])
            mine, expected = (zero if grad is None else grad for grad in (mine, expected))
            torch.testing.assert_close(mine, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_with_a_graph_of_them_are_the_same(name, dtype):
    """Within the dtype's rounding: kernels and formulas add in other orders."""
    ours, _, shapes = CASES[name]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    inputs = [x.detach().to(dtype).requires_grad_() for x in inputs]
    output = ours(*inputs)
    grad_output = torch.randn_like(output)
    plain, graphed = (
        torch.autograd.grad(output, inputs, grad_output, retain_graph=True, create_graph=graph)
        for graph in (False, True)
    )
    assert [grad.dtype for grad in graphed] == [grad.dtype for grad in plain]
    tolerance = 4 * torch.finfo(dtype).eps
    for mine, expected in zip(graphed, plain, strict=True):
        torch.testing.assert_close(mine, expected, rtol=tolerance, atol=tolerance * max(1.0, expected.abs().max()))


def test_third_derivatives():
    (x,) = inputs = [leaf(3)]
    for ours, theirs in ((ops.gelu, F.gelu), (lambda x: ops.softmax(x, 0), lambda x: F.softmax(x, 0))):
        results = []
        for function in (ours, theirs):
            y = function(x)[0]
            for _ in range(3):
                (grad,) = torch.autograd.grad(y, inputs, create_graph=True)
                y = (grad * torch.arange(1.0, 4.0)).sum()
            results.append(grad)
        torch.testing.assert_close(*results)


def test_a_gradient_penalty_trains_a_network():
    def step(layers):
        torch.manual_seed(1)
        model = torch.nn.Sequential(*layers).double()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        x = leaf(7, 4)
        (grad,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        ((grad.norm(dim=1) - 1) ** 2).mean().backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    mine = step([nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 1)])
    theirs = step([torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.LayerNorm(8), torch.nn.Linear(8, 1)])
    assert len(mine) == len(theirs) == 4  # all but the biases that a gradient of x does not depend on
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_under_autocast_the_formula_keeps_its_dtype():
    x, w = leaf(3, 4), leaf(5, 4)
    output = ops.linear(x, w)
    with torch.autocast("cpu", torch.bfloat16):
        (grad,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    torch.testing.assert_close(grad, w.sum(0).expand(3, 4))


def test_nothing_counts():
    """A mean over no target: kernels and formula give no gradient."""
    logits, target = leaf(2, 5), torch.tensor([-100, -100])
    loss = ops.cross_entropy(logits, target)
    assert math.isnan(loss.item())
    (plain,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (graphed,) = torch.autograd.grad(loss, logits, create_graph=True)
    assert torch.equal(plain, graphed)


@pytest.mark.parametrize("name", ["linear", "layer_norm", "gelu", "cross_entropy mean 0 2"])
def test_on_every_device(name, device):
    ours, theirs, shapes = CASES[name]
    inputs = [torch.randn(shape) for shape in shapes]
    grad_output = torch.randn_like(theirs(*inputs))
    weights = [torch.rand_like(x) for x in inputs]
    (_, mine), (_, expected) = (
        second(f, harness.on(d, inputs), grad_output.to(d), [w.to(d) for w in weights])
        for f, d in ((lambda *x: ours(*x), device), (theirs, "cpu"))
    )
    torch.testing.assert_close([grad.cpu() for grad in mine], list(expected), rtol=1e-4, atol=1e-4)
