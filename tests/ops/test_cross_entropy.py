"""fastllm.ops.cross_entropy and linear_cross_entropy, against torch in float64."""

import pytest
import torch
import torch.nn.functional as F

from fastllm import ops
from tests.ops import harness

CLASSES = [1, 7, 65, 1025]  # one; less than a vector; a character vocabulary; one past a block of the online sum


def problem(rows, classes):
    target = torch.randint(classes, (rows,))
    target[::5] = -100
    return torch.randn(rows, classes, dtype=torch.float64, requires_grad=True), target


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", CLASSES)
def test_cross_entropy_matches_torch_in_float64(classes, label_smoothing, reduction, dtype):
    logits, target = problem(23, classes)
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    harness.assert_matches_reference(
        lambda x: ops.cross_entropy(x, target, **options),
        lambda x: F.cross_entropy(x, target, **options),
        [logits], dtype,
    )  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_class_weights(label_smoothing, reduction):
    logits, target = problem(23, 65)
    weight = torch.rand(65, dtype=torch.float64)
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    for dtype in (torch.float32, torch.float64):
        harness.assert_matches_reference(
            lambda x: ops.cross_entropy(x, target, weight.to(x.dtype), **options),
            lambda x: F.cross_entropy(x, target, weight.to(x.dtype), **options),
            [logits], dtype,
        )  # fmt: skip


@pytest.mark.parametrize("shape", [(5,), (3, 5), (3, 5, 4), (2, 5, 3, 2)])
def test_shapes(shape):
    logits = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    target = torch.randint(5, () if len(shape) == 1 else (shape[0], *shape[2:]))
    harness.assert_matches_reference(
        lambda x: ops.cross_entropy(x, target, reduction="none"),
        lambda x: F.cross_entropy(x, target, reduction="none"),
        [logits], torch.float32,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("classes", [7, 65, 1025])
def test_linear_cross_entropy_matches_torch_in_float64(classes, bias, reduction, dtype):
    _, target = problem(61, classes)
    x = torch.randn(61, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(classes, 12, dtype=torch.float64, requires_grad=True)
    extra = [torch.randn(classes, dtype=torch.float64, requires_grad=True)] if bias else []
    harness.assert_matches_reference(
        lambda x, w, *b: ops.linear_cross_entropy(x, w, target, *b, reduction=reduction, label_smoothing=0.1),
        lambda x, w, *b: F.cross_entropy(F.linear(x, w, *b), target, reduction=reduction, label_smoothing=0.1),
        [x, weight, *extra], dtype,
    )  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_linear_cross_entropy_under_autocast(dtype, reduction):
    """Products of rounded operands; the loss is of float32, and so are the gradients until they reach the operands."""
    _, target = problem(61, 65)
    leaves = [torch.randn(shape, requires_grad=True) for shape in ((61, 12), (65, 12), (65,))]
    exact_leaves = [leaf.detach().to(dtype).double().requires_grad_() for leaf in leaves]
    options = {"ignore_index": -100, "reduction": reduction}
    with torch.autocast("cpu", dtype):
        loss = ops.linear_cross_entropy(*leaves[:2], target, leaves[2], **options)
    exact = F.cross_entropy(F.linear(*exact_leaves), target, **options)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact.float(), rtol=1e-6, atol=1e-6)
    grads = torch.autograd.grad(loss, leaves, torch.full_like(loss, 3.0))
    exact_grads = torch.autograd.grad(exact, exact_leaves, torch.full_like(exact, 3.0))
    for grad, wanted in zip(grads, exact_grads, strict=True):
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, wanted.to(dtype).float(), rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_linear_cross_entropy_under_autocast_leaves_float64_alone_and_compiles():
    _, target = problem(8, 5)
    x, weight = torch.randn(8, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)

    def cast(x, w):
        with torch.autocast("cpu", torch.bfloat16):
            return ops.linear_cross_entropy(x, w, target)

    assert cast(x.double(), weight.double()).dtype == torch.float64
    harness.assert_compiles(cast, [x, weight])
    args = (x.bfloat16(), weight.bfloat16(), target, None, -100, "mean", 0.0, True)
    harness.assert_op_contract(torch.ops.fastllm.linear_cross_entropy.default, args)


def test_a_loss_scaler_saves_small_gradients_under_autocast():
    """Of a mean over many rows they are near float16's smallest number until the scaler's factor is in them."""
    x, weight = torch.randn(4096, 2, requires_grad=True), torch.randn(5, 2).mul(1e-3)
    target = torch.randint(5, (4096,))
    with torch.autocast("cpu", torch.float16):
        loss = ops.linear_cross_entropy(x, weight, target)
    (grad,) = torch.autograd.grad(loss * 65536, x)
    exact = x.detach().half().double().requires_grad_()
    (wanted,) = torch.autograd.grad(F.cross_entropy(F.linear(exact, weight.half().double()), target) * 65536, exact)
    torch.testing.assert_close(grad.double(), wanted, rtol=1e-3, atol=1e-6)


def test_linear_cross_entropy_over_several_chunks():
    classes, rows = 300_000, 60  # more logits than a chunk holds
    x, weight = torch.randn(rows, 2, requires_grad=True), torch.randn(classes, 2, requires_grad=True)
    target = torch.randint(classes, (rows,))
    ours, ours_grads = harness.run(lambda x, w: ops.linear_cross_entropy(x, w, target), [x, weight])
    exact, exact_grads = harness.run(
        lambda x, w: F.cross_entropy(F.linear(x, w), target), harness.to([x, weight], torch.float64)
    )
    for a, b in zip([ours, *ours_grads], [exact, *exact_grads], strict=True):
        harness.assert_close(a, b, torch.float32)


def test_extremes():
    logits = torch.tensor([[1e4, -1e4], [-torch.inf, 0.0], [0.0, 0.0]])
    target = torch.tensor([0, 1, 1])
    torch.testing.assert_close(ops.cross_entropy(logits, target), F.cross_entropy(logits, target))
    assert ops.cross_entropy(logits, torch.full((3,), -100)).isnan()  # as torch: nothing to average


def test_gradcheck():
    logits, target = problem(4, 5)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.cross_entropy(x, target, label_smoothing=0.2), [logits])
    for reduction in ("mean", "none"):
        assert torch.autograd.gradcheck(
            lambda x, w, r=reduction: ops.linear_cross_entropy(x, w, target, reduction=r), [x, weight]
        )


def test_op_contract_compile_threads(threads):
    logits, target = problem(6, 5)
    x, weight = torch.randn(6, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    harness.assert_op_contract(torch.ops.fastllm.cross_entropy.default, (logits, target))
    for reduction in ("mean", "none"):
        args = (x, weight, target, None, -100, reduction, 0.1)
        harness.assert_op_contract(torch.ops.fastllm.linear_cross_entropy.default, args)
    harness.assert_compiles(lambda x, w: ops.linear_cross_entropy(x, w, target), [x, weight])
    many = torch.randint(65, (768,))
    args = [torch.randn(768, 128, requires_grad=True), torch.randn(65, 128, requires_grad=True)]
    harness.assert_deterministic(lambda x, w: ops.linear_cross_entropy(x, w, many), args, threads)


X, T = torch.randn(2, 3), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.cross_entropy(X, torch.tensor([0, 3])), ValueError, r"'target' must be in \[0, 3\).*got 3 at pos"),
        (lambda: ops.cross_entropy(X, X), TypeError, "class probabilities are not supported"),
        (lambda: ops.cross_entropy(X, T, reduction="avg"), ValueError, "'reduction' must be 'mean', 'sum' or 'none'"),
        (lambda: ops.cross_entropy(X, T, label_smoothing=2.0), ValueError, r"'label_smoothing' must be in \[0, 1\]"),
        (lambda: ops.cross_entropy(X, T[:1]), ValueError, r"'target' must have shape \[2\], got \[1\]"),
        (lambda: ops.linear_cross_entropy(X, X[:, :2], T), ValueError, r"'weight' must have shape \(classes, 3\)"),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
