"""fastllm.ops.bias_relu: relu's and dropout's results, and gradients from the output alone."""

import pytest
import torch
import torch.nn.functional as F

from fastllm import ops
from tests import reference
from tests.ops import harness

STATE = torch.tensor([2**40 + 7, -3])
SHAPES = [
    (1,),  # a single element: all of it is a partial vector
    (7,),  # one less than an AVX2 vector
    (8,),  # one AVX2 vector, and one Philox block
    (9,),  # one more
    (3, 255),  # one less than whole vectors, rows inside Philox blocks
    (17, 1024),  # more than one task
    (2, 5001),  # without a bias: several runs, the last one short
    (0, 5),  # empty batch
    (4, 0),  # empty rows
    (2, 3, 4, 33),
    (600, 24),  # the bias's gradient is a sum over several groups of rows
]


def relu_of_torch(x, bias=None, p=0.0):
    output = F.relu(x if bias is None else x + bias)
    return output * reference.dropout_multipliers(x.shape, p, STATE).to(output) if p else output


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(shape, with_bias, p, dtype, device):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    bias = [torch.randn(shape[-1], dtype=torch.float64, requires_grad=True)] if with_bias else []

    def ours(x, b=None):
        return ops.bias_relu(x, b, p, rng_state=STATE.to(device))

    def expected(x, b=None):
        return reference.bias_relu(x, b, p, STATE)

    peer = lambda x, b=None: relu_of_torch(x, b, p)  # noqa: E731
    harness.assert_matches_reference(ours, expected, [x, *bias], dtype, peer, device)


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("state", [torch.tensor([0, 0]), STATE])
@pytest.mark.parametrize("shape", [(9,), (3, 65), (2, 4099), (40, 24)])
def test_mask_is_that_of_dropout(shape, state, dtype, device):
    x, bias, state = torch.rand(shape, dtype=dtype), torch.rand(shape[-1], dtype=dtype), state.to(device)
    x, bias = x.to(device), bias.to(device)
    output = ops.bias_relu(x, bias, 0.4, rng_state=state)
    assert torch.equal(output != 0, ops.dropout(torch.ones_like(x), 0.4, rng_state=state) != 0)
    torch.testing.assert_close(output, ops.dropout(F.relu(x + bias), 0.4, rng_state=state))


def both_ways(function, x, grad_output):
    x = x.clone().requires_grad_()
    output = function(x)
    return output.detach(), torch.autograd.grad(output, x, grad_output)[0]


@pytest.mark.parametrize("dtype", harness.DTYPES)
def test_extremes_pass_gradients_as_in_torch(dtype, device):
    kind = torch.finfo(dtype)
    tiny, nan, inf = kind.smallest_normal * kind.eps, float("nan"), float("inf")
    x = torch.tensor([0.0, -0.0, tiny, -tiny, kind.tiny, kind.max, kind.min, inf, -inf, nan, 1.0, -1.0], dtype=dtype)
    assert x[2] > 0
    x = x.repeat(4).to(device)  # whole vectors and a partial one
    grad_output = torch.randn_like(x)
    for expected, actual in zip(
        both_ways(F.relu, x, grad_output), both_ways(ops.bias_relu, x, grad_output), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", harness.DTYPES)
def test_no_sum_that_is_above_0_rounds_to_0(dtype, device):
    """The difference of neighbours is the least there is: were it rounded to 0, its gradient would be lost."""
    x = torch.rand(1000).to(dtype)
    above = x.nextafter(torch.ones_like(x)) if dtype.itemsize > 2 else (x.view(torch.int16) + 1).view(dtype)
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    above, bias = torch.cat([above, above.new_full((8,), tiny)]), -torch.cat([x, x.new_zeros(8)])
    for p in (0.0, 0.5):
        output, grad = both_ways(
            lambda x, p=p: ops.bias_relu(x, bias.to(device), p, rng_state=STATE.to(device)),
            above.to(device), torch.ones_like(above).to(device),
        )  # fmt: skip
        kept = reference.dropout_multipliers(above.shape, p, STATE) > 0
        assert torch.equal(output.cpu() > 0, kept)
        assert torch.equal(grad.cpu() > 0, kept)


def test_not_finite_and_dropped(device):
    """Infinity times 0: NaN, as in torch; its gradient passes, as nothing tells it from a NaN that was kept."""
    x = torch.full((64,), float("inf"), device=device)
    output, grad = both_ways(lambda x: ops.bias_relu(x, None, 0.5, rng_state=STATE.to(device)), x, torch.ones_like(x))
    kept = reference.dropout_multipliers(x.shape, 0.5, STATE) > 0
    assert torch.equal(output.isinf().cpu(), kept)
    assert torch.equal(output.isnan().cpu(), ~kept)
    assert torch.equal(grad, torch.full_like(x, 2.0))


def test_everything_dropped(device):
    x = torch.randn(3, 24, device=device, requires_grad=True)
    bias = torch.randn(24, device=device, requires_grad=True)
    output = ops.bias_relu(x, bias, 1.0)
    output.sum().backward()
    for zeros in (output, x.grad, bias.grad):
        assert torch.equal(zeros, torch.zeros_like(zeros))


def test_nothing_dropped_draws_nothing():
    x = torch.randn(50)
    before = torch.get_rng_state()
    for output in (ops.bias_relu(x), ops.bias_relu(x, p=0.5, training=False)):
        assert torch.equal(output, F.relu(x))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(ops.bias_relu(x, p=0.5), F.relu(x))


@pytest.mark.parametrize("view", ["transposed", "expanded", "offset", "strided", "unaligned"])
def test_any_strides(view, device):
    base = torch.randn(12, 20)
    x = {
        "transposed": base.t(),
        "expanded": base[:, :1].expand(12, 20),
        "offset": base[1:, 3:],
        "strided": base[::2, ::3],
        "unaligned": base.flatten()[1:221].view(11, 20),  # contiguous, but not at a multiple of 16 bytes
    }[view]
    bias = torch.randn(x.shape[-1], 2)[:, 0]
    grad_output, state = torch.randn(*x.shape[::-1]).t(), STATE.to(device)
    for b in (bias, None):
        expected = both_ways(lambda x, b=b: relu_of_torch(x, b, 0.3), x, grad_output)
        there = None if b is None else b.to(device)
        actual = both_ways(
            lambda x, b=there: ops.bias_relu(x, b, 0.3, rng_state=state), x.to(device), grad_output.to(device)
        )
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a.cpu(), e)


def test_gradcheck():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    for p in (0.0, 0.5):
        assert torch.autograd.gradcheck(lambda x, b, p=p: ops.bias_relu(x, b, p, rng_state=STATE), [x, bias])
        assert torch.autograd.gradcheck(lambda x, p=p: ops.bias_relu(x, None, p, rng_state=STATE), [x])


def test_what_changes_the_output_is_noticed():
    x = torch.randn(5, requires_grad=True)
    output = ops.bias_relu(x)
    output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_op_contract_and_compile():
    x, bias = torch.randn(50, 129, requires_grad=True), torch.randn(129, requires_grad=True)
    for given in ((x, bias, 0.3, STATE), (x, None, 0.3, STATE), (x, bias, 0.0, None)):
        harness.assert_op_contract(torch.ops.fastllm.bias_relu.default, given)
    harness.assert_op_contract(torch.ops.fastllm.bias_relu_backward.default, (x.detach(), x.detach(), 0.3, True))
    harness.assert_compiles(lambda x, b: ops.bias_relu(x, b, 0.3, rng_state=STATE), [x, bias])


def test_deterministic(device, parallelism):
    inputs = harness.on(device, [torch.randn(300, 129, requires_grad=True), torch.randn(129, requires_grad=True)])
    harness.assert_deterministic(
        lambda x, b: ops.bias_relu(x, b, 0.3, rng_state=STATE.to(device)), inputs, parallelism
    )  # fmt: skip


X = torch.randn(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.bias_relu(X, p=-0.1), ValueError, r"bias_relu: 'p' must be in \[0, 1\], got -0.1"),
        (lambda: ops.bias_relu(X, p=float("nan")), ValueError, r"bias_relu: 'p' must be in \[0, 1\], got nan"),
        (
            lambda: ops.bias_relu(X, None, 0.5, rng_state=torch.zeros(2)),
            TypeError,
            "'rng_state' must be int64, got Float",
        ),
        (lambda: ops.bias_relu(X.long()), TypeError, "bias_relu: 'input' must be float32, .*, got Long"),
        (lambda: ops.bias_relu(X, torch.randn(4)), ValueError, r"'bias' must have shape \[3\], got \[4\]"),
        (lambda: ops.bias_relu(X, torch.randn(3).double()), TypeError, "'bias' must have the dtype of 'input'"),
        (lambda: ops.bias_relu(X[0, 0], torch.randn(1)), ValueError, "at least one dimension, got a scalar"),
        (
            lambda: torch.ops.fastllm.bias_relu_backward(X, X[0], 0.0, False),
            ValueError,
            "bias_relu_backward: 'output' must have the shape of 'grad_output'",
        ),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
