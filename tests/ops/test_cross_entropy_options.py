"""cross_entropy and linear_cross_entropy of class probabilities, with class weights, and the dtype of their loss."""

import pytest
import torch
import torch.nn.functional as F

from fastllm import ops
from tests.ops import harness

OPTIONS = [
    {"reduction": reduction, "label_smoothing": smoothing}
    for reduction in ("mean", "sum", "none")
    for smoothing in (0.0, 0.1)
]


def random_leaf(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def probabilities_like(logits):
    return torch.randn_like(logits).softmax(-1).detach().requires_grad_()


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_probabilities(options, weighted, dtype):
    logits, weight = random_leaf(6, 9), torch.rand(9, dtype=torch.float64) if weighted else None
    harness.assert_matches_reference(
        lambda x, t: ops.cross_entropy(x, t, None if weight is None else weight.to(x), **options),
        lambda x, t: F.cross_entropy(x, t, None if weight is None else weight.to(x), **options),
        [logits, probabilities_like(logits)],
        dtype,
    )


@pytest.mark.parametrize("shape", [(5,), (3, 5), (3, 5, 4), (2, 5, 3, 2), (0, 5)])
def test_shapes_of_probabilities(shape):
    logits = random_leaf(*shape)
    harness.assert_matches_reference(
        lambda x, t: ops.cross_entropy(x, t, reduction="none"),
        lambda x, t: F.cross_entropy(x, t, reduction="none"),
        [logits, probabilities_like(logits)],
        torch.float32,
    )


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("target", ["classes", "probabilities"])
@pytest.mark.parametrize("options", OPTIONS)
def test_class_weights_of_linear_cross_entropy(options, target, dtype):
    x, linear_weight, bias, weight = random_leaf(6, 4), random_leaf(9, 4), random_leaf(9), torch.rand(9)
    given = torch.tensor([0, 8, -100, 3, 3, 1]) if target == "classes" else torch.rand(6, 9)
    harness.assert_matches_reference(
        lambda x, w, b: ops.linear_cross_entropy(x, w, given, linear_bias=b, weight=weight.to(x), **options),
        lambda x, w, b: F.cross_entropy(
            F.linear(x, w, b), given if target == "classes" else given.to(x), weight.to(x), **options
        ),
        [x, linear_weight, bias],
        dtype,
    )


def test_probabilities_of_linear_cross_entropy_and_other_dtypes():
    x, w, target = torch.randn(6, 4).bfloat16(), torch.randn(9, 4).bfloat16(), torch.rand(6, 9)
    loss = ops.linear_cross_entropy(x, w, target.double(), label_smoothing=0.1)
    assert loss.dtype == torch.bfloat16
    expected = F.cross_entropy(F.linear(x, w).float(), target, label_smoothing=0.1)
    torch.testing.assert_close(loss, expected.bfloat16())


def losses(x, w, **options):
    """Return each way to a loss."""
    classes, probabilities, logits = torch.tensor([0, 8, 3]), torch.rand(3, 9), F.linear(x, w)
    return {
        "cross_entropy": ops.cross_entropy(logits, classes, **options),
        "of probabilities": ops.cross_entropy(logits, probabilities, **options),
        "linear": ops.linear_cross_entropy(x, w, classes, **options),
        "linear, weighted": ops.linear_cross_entropy(x, w, classes, weight=torch.rand(9), **options),
        "linear, of probabilities": ops.linear_cross_entropy(x, w, probabilities, **options),
    }


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_losss_dtype(dtype, reduction):
    x, w = torch.randn(3, 4, dtype=dtype, requires_grad=True), torch.randn(9, 4, dtype=dtype)
    for options in ({}, {"dtype": dtype}):
        assert {loss.dtype for loss in losses(x, w, reduction=reduction, **options).values()} == {dtype}
    if dtype == torch.float64:
        return
    for name, loss in losses(x, w, reduction=reduction, dtype=torch.float32).items():
        assert loss.dtype == torch.float32, name
        (grad,) = torch.autograd.grad(loss.sum(), x, retain_graph=True)
        assert grad.dtype == dtype, name
        assert grad.any(), name


def test_a_float32_loss_is_that_of_float32_logits(device):
    logits, target = torch.randn(50, 9, device=device).bfloat16(), torch.randint(9, (50,), device=device)
    wide = ops.cross_entropy(logits, target, dtype=torch.float32)
    assert torch.equal(wide, ops.cross_entropy(logits.float(), target))
    assert torch.equal(wide.bfloat16(), ops.cross_entropy(logits, target))
    assert wide != wide.bfloat16()
    x, w = torch.randn(50, 4, device=device).bfloat16(), torch.randn(9, 4, device=device).bfloat16()
    assert ops.linear_cross_entropy(x, w, target, dtype=torch.float32).dtype == torch.float32


def test_under_autocast():
    x, w = torch.randn(3, 4, requires_grad=True), torch.randn(9, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert {loss.dtype for loss in losses(x, w).values()} == {torch.float32}
        assert {loss.dtype for loss in losses(x, w, dtype=torch.float32).values()} == {torch.float32}


def test_compiles():
    def each(x, w):
        return sum(loss.float() for loss in losses(x, w, dtype=torch.float32).values())

    torch._dynamo.reset()
    x, w = torch.randn(3, 4).bfloat16(), torch.randn(9, 4).bfloat16()
    torch.manual_seed(0)
    expected = each(x, w)
    torch.manual_seed(0)
    torch.testing.assert_close(torch.compile(each, fullgraph=True, backend="aot_eager")(x, w), expected)


def test_gradcheck():
    logits = random_leaf(3, 5)
    weight = torch.rand(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, t: ops.cross_entropy(x, t, weight, label_smoothing=0.1), [logits, probabilities_like(logits)]
    )


X, W, P = torch.randn(2, 3), torch.randn(5, 3), torch.rand(2, 5)
L, T = torch.randn(2, 5), torch.tensor([1, 2])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: ops.cross_entropy(L, P[:1]),
            ValueError,
            r"'target' must have input's shape \[2, 5\] where .*\[1, 5\]",
        ),
        (lambda: ops.cross_entropy(T, P), TypeError, "'input' must be float32, .*, got torch.int64"),
        (lambda: ops.cross_entropy(P[0, 0], P), ValueError, "'input' must have at least one dimension, got a scalar"),
        (lambda: ops.cross_entropy(L, P, reduction="avg"), ValueError, "'reduction' must be 'mean', .*, got 'avg'"),
        (lambda: ops.cross_entropy(L, P, label_smoothing=2.0), ValueError, r"'label_smoothing' must be in \[0, 1\]"),
        (lambda: ops.cross_entropy(L, P, ignore_index=1), ValueError, "'ignore_index' must be negative where .* got 1"),
        (lambda: ops.cross_entropy(L, P, P[0, :4]), ValueError, r"'weight' must have shape \[5\], got \[4\]"),
        (
            lambda: ops.cross_entropy(L, P, torch.ones(5, requires_grad=True)),
            ValueError,
            "'weight' must not require a gradient",
        ),
        (lambda: ops.cross_entropy(L, P.to("meta")), TypeError, r"'target' must be on the device of 'input' \(cpu\)"),
        (
            lambda: ops.cross_entropy(L, T, dtype=torch.float64),
            ValueError,
            r"'dtype' must be input's dtype \(torch.float32\), or torch.float32 where .*, got torch.float64",
        ),
        (lambda: ops.cross_entropy(L.double(), T, dtype=torch.float32), ValueError, "'dtype' must be input's dtype"),
        (lambda: ops.linear_cross_entropy(X, W, T, dtype=torch.half), ValueError, "linear_cross_entropy: 'dtype' must"),
        (lambda: ops.cross_entropy(L, T, dtype=32), ValueError, "'dtype' must be"),
        (lambda: ops.linear_cross_entropy(X[0], W, P), ValueError, r"'input' must have shape \(rows, channels\), got"),
        (
            lambda: ops.linear_cross_entropy(X, W[:, :2], P),
            ValueError,
            r"linear_cross_entropy: 'linear_weight' must have shape \(classes, 3\), got \[5, 2\]",
        ),
        (
            lambda: ops.linear_cross_entropy(X, W, P, linear_bias=P[0, :4]),
            ValueError,
            r"linear_cross_entropy: 'linear_bias' must have shape \[5\], got \[4\]",
        ),
        (
            lambda: ops.linear_cross_entropy(X, W.double(), P),
            TypeError,
            r"linear_cross_entropy: 'linear_weight' must have the dtype of 'input' \(torch.float32\), got",
        ),
        (
            lambda: ops.linear_cross_entropy(X, W.to("meta"), P),
            TypeError,
            r"linear_cross_entropy: 'linear_weight' must be on the device of 'input' \(cpu\), got meta",
        ),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
