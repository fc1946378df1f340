"""fastllm.ops.cross_entropy and linear_cross_entropy, against torch in float64."""

import pytest
import torch
import torch.nn.functional as F

from fastllm import ops
from tests.devices import ON_CUDA
from tests.ops import harness

# One; less than a vector; a character vocabulary; one past a block of the CPU's online sum and past what a CUDA warp
# takes; one past what a CUDA block has under way.
CLASSES = [1, 7, 65, 1025, 8193]


def problem(rows, classes):
    target = torch.randint(classes, (rows,))
    target[::5] = -100
    return torch.randn(rows, classes, dtype=torch.float64, requires_grad=True), target


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", CLASSES)
def test_cross_entropy_matches_torch_in_float64(classes, label_smoothing, reduction, dtype, device):
    logits, target = problem(23 if classes < 1000 else 6, classes)
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    harness.assert_matches_reference(
        lambda x: ops.cross_entropy(x, target.to(device), **options),
        lambda x: F.cross_entropy(x, target, **options),
        [logits], dtype, device=device,
    )  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_more_rows_than_are_summed_at_a_time(reduction, device):
    logits, target = problem(9000, 3)  # three pieces of CUDA's reduction
    harness.assert_matches_reference(
        lambda x: ops.cross_entropy(x, target.to(device), reduction=reduction),
        lambda x: F.cross_entropy(x, target, reduction=reduction),
        [logits], torch.float32, device=device,
    )  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [65, 1025])
def test_class_weights(classes, dtype, label_smoothing, reduction, device):
    logits, target = problem(23, classes)
    weight = torch.rand(classes, dtype=torch.float64)
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    harness.assert_matches_reference(
        lambda x: ops.cross_entropy(x, target.to(device), weight.to(x), **options),
        lambda x: F.cross_entropy(x, target, weight.to(x.dtype), **options),
        [logits], dtype, device=device,
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(5,), (3, 5), (3, 5, 4), (2, 5, 3, 2)])
def test_shapes(shape, device):
    logits = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    target = torch.randint(5, () if len(shape) == 1 else (shape[0], *shape[2:]))
    harness.assert_matches_reference(
        lambda x: ops.cross_entropy(x, target.to(device), reduction="none"),
        lambda x: F.cross_entropy(x, target, reduction="none"),
        [logits], torch.float32, device=device,
    )  # fmt: skip


# Rows of which CUDA's 16-byte accesses begin after 0 to 3 floats; in the first case the gradient's begin elsewhere.
@pytest.mark.parametrize("classes", [64, 70, 1031])
def test_logits_that_start_anywhere(classes, device):
    base = torch.randn(9 * classes + 1)
    logits, target = base[1:].view(9, classes), torch.randint(classes, (9,))
    leaf, exact = logits.to(device).requires_grad_(), logits.double().requires_grad_()
    loss, expected = ops.cross_entropy(leaf, target.to(device)), F.cross_entropy(exact, target)
    (grad,), (expected_grad,) = torch.autograd.grad(loss, leaf), torch.autograd.grad(expected, exact)
    harness.assert_close(loss.cpu(), expected, torch.float32)
    harness.assert_close(grad.cpu(), expected_grad, torch.float32)


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("classes", [7, 65, 1025])
def test_linear_cross_entropy_matches_torch_in_float64(classes, bias, reduction, dtype, device):
    _, target = problem(61, classes)
    x = torch.randn(61, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(classes, 12, dtype=torch.float64, requires_grad=True)
    extra = [torch.randn(classes, dtype=torch.float64, requires_grad=True)] if bias else []
    harness.assert_matches_reference(
        lambda x, w, *b: ops.linear_cross_entropy(
            x, w, target.to(device), linear_bias=b[0] if b else None, reduction=reduction, label_smoothing=0.1
        ),
        lambda x, w, *b: F.cross_entropy(F.linear(x, w, *b), target, reduction=reduction, label_smoothing=0.1),
        [x, weight, *extra], dtype, device=device,
    )  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_cross_entropy_over_several_chunks_on_cuda(dtype, reduction, device):
    _, target = problem(4200, 9)  # 2048 rows a chunk, and a rest
    inputs = [torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (4200, 9)]
    inputs.append(torch.randn(9, dtype=torch.float64, requires_grad=True))
    harness.assert_matches_reference(
        lambda x, w, b: ops.linear_cross_entropy(x, w, target.to(device), linear_bias=b, reduction=reduction),
        lambda x, w, b: F.cross_entropy(F.linear(x, w, b), target, reduction=reduction),
        inputs, dtype, device=device,
    )  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_linear_cross_entropy_under_autocast(dtype, reduction):
    """Products of rounded operands; the loss is of float32, and so are the gradients until they reach the operands.

    Where bfloat16 has products of its own, the logits' gradient is an operand too.
    """
    _, target = problem(61, 65)
    leaves = [torch.randn(shape, requires_grad=True) for shape in ((61, 12), (65, 12), (65,))]
    exact_leaves = [leaf.detach().to(dtype).double().requires_grad_() for leaf in leaves]
    options = {"ignore_index": -100, "reduction": reduction}
    with torch.autocast("cpu", dtype):
        loss = ops.linear_cross_entropy(*leaves[:2], target, linear_bias=leaves[2], **options)
    exact = F.cross_entropy(F.linear(*exact_leaves), target, **options)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact.float(), rtol=1e-6, atol=1e-6)
    grads = torch.autograd.grad(loss, leaves, torch.full_like(loss, 3.0))
    exact_grads = torch.autograd.grad(exact, exact_leaves, torch.full_like(exact, 3.0))
    for grad, wanted in zip(grads, exact_grads, strict=True):
        assert grad.dtype == torch.float32
        eps = torch.finfo(dtype).eps
        rounded = dtype == torch.bfloat16 and ops.build_info()["cpu_capability"] == "amx"
        atol = eps * wanted.abs().max().item() if rounded else 1e-7
        torch.testing.assert_close(grad, wanted.to(dtype).float(), rtol=eps, atol=atol)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@ON_CUDA
def test_linear_cross_entropy_under_autocast_on_cuda(dtype, reduction, device):
    """There the logits are rounded too; the loss and the gradients that it hands on are not."""
    _, target = problem(61, 65)
    leaves = [torch.randn(shape, device=device, requires_grad=True) for shape in ((61, 12), (65, 12), (65,))]
    exact_leaves = [leaf.detach().cpu().to(dtype).double().requires_grad_() for leaf in leaves]
    with torch.autocast(device.type, dtype):
        loss = ops.linear_cross_entropy(*leaves[:2], target.to(device), linear_bias=leaves[2], reduction=reduction)
    exact = F.cross_entropy(F.linear(*exact_leaves), target, reduction=reduction)
    assert loss.dtype == torch.float32
    assert not torch.equal(loss, loss.to(dtype).float())
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(loss.cpu(), exact.float(), rtol=eps, atol=8 * eps)
    grads = torch.autograd.grad(loss, leaves, torch.full_like(loss, 3.0))
    exact_grads = torch.autograd.grad(exact, exact_leaves, torch.full_like(exact, 3.0))
    for grad, wanted in zip(grads, exact_grads, strict=True):
        assert grad.dtype == torch.float32
        assert (grad.cpu() - wanted).abs().max() <= 4 * eps * wanted.abs().max()


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


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_cross_entropy_under_autocast(dtype, reduction, device):
    """As torch's, which casts logits to float32: the loss is of float32, the gradient of the logits' dtype."""
    logits, target = problem(61, 65)
    weight = torch.rand(65)
    logits = logits.detach().to(dtype).to(device).requires_grad_()
    with torch.autocast(device.type, torch.bfloat16):
        loss = ops.cross_entropy(logits, target.to(device), weight.to(device), reduction=reduction)
    exact = logits.detach().cpu().double().requires_grad_()
    expected = F.cross_entropy(exact, target, weight.double(), reduction=reduction)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(loss.double().cpu(), expected, rtol=1e-6, atol=1e-6)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    (wanted,) = torch.autograd.grad(expected.sum(), exact)
    assert grad.dtype == dtype
    torch.testing.assert_close(grad.cpu(), wanted.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_cross_entropy_under_autocast_copies_nothing_and_compiles():
    logits, target = torch.randn(8, 5).bfloat16().requires_grad_(), torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])

    def cast(x):
        with torch.autocast("cpu", torch.bfloat16):
            return ops.cross_entropy(x, target)

    harness.assert_copies_nothing(lambda: cast(logits))
    harness.assert_compiles(cast, [logits])
    harness.assert_op_contract(torch.ops.fastllm.cross_entropy.default, (logits, target, None, -100, "sum", 0.0, True))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("trained", [(0,), (1,), (2,), (1, 2)])
def test_what_is_frozen_gets_no_gradient_in_any_chunk(trained, dtype):
    tensors = [torch.randn(60, 2), torch.randn(300_000, 2), torch.randn(300_000)]
    target = torch.randint(300_000, (60,))
    results = []
    for wanted in (trained, (0, 1, 2)):
        x, weight, bias = leaves = [t.to(dtype).requires_grad_(i in wanted) for i, t in enumerate(tensors)]
        loss = ops.linear_cross_entropy(x, weight, target, linear_bias=bias)
        results.append(torch.autograd.grad(loss, [leaves[i] for i in trained]))
    for a, b in zip(*results, strict=True):
        harness.assert_close(a, b, dtype)


def test_extremes(device):
    logits = torch.tensor([[1e4, -1e4], [-torch.inf, 0.0], [0.0, 0.0]])
    target = torch.tensor([0, 1, 1])
    loss = ops.cross_entropy(logits.to(device), target.to(device))
    torch.testing.assert_close(loss.cpu(), F.cross_entropy(logits, target))


# A logit's last place at 1e8 is 8: beside it nothing is left of the sum. 1030 classes are of several threads, blocks.
@pytest.mark.parametrize("classes", [2, 7, 1030])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("offset", [5000.0, -5000.0, 1e8, -1e30])
def test_an_offset_that_all_logits_share(offset, weighted, label_smoothing, classes, device):
    logits = (torch.randn(5, classes) + offset).requires_grad_()
    target = torch.tensor([0, classes - 1, -100, 1, 0])
    weight = torch.rand(classes) + 0.5 if weighted else None
    options = {"label_smoothing": label_smoothing, "reduction": "none"}
    exact = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(exact, target, None if weight is None else weight.double(), **options)
    leaf = logits.detach().to(device).requires_grad_()
    loss = ops.cross_entropy(leaf, target.to(device), None if weight is None else weight.to(device), **options)
    torch.testing.assert_close(loss.cpu().double(), expected, rtol=2e-6, atol=1e-6)
    (grad,), (exact_grad,) = torch.autograd.grad(loss.sum(), leaf), torch.autograd.grad(expected.sum(), exact)
    torch.testing.assert_close(grad.cpu().double(), exact_grad, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("offset", [5000.0, 1e8])
def test_an_offset_that_all_logits_of_a_linear_layer_share(offset, reduction, device):
    bias, target = torch.randn(7) + offset, torch.randint(7, (9,))
    inputs = [torch.zeros(9, 3), torch.randn(7, 3), bias]  # the logits are the bias: no product rounds them
    exact = [t.double().requires_grad_() for t in inputs]
    leaves = [t.to(device).requires_grad_() for t in inputs]
    expected = F.cross_entropy(F.linear(*exact), target, reduction=reduction)
    loss = ops.linear_cross_entropy(*leaves[:2], target.to(device), linear_bias=leaves[2], reduction=reduction)
    torch.testing.assert_close(loss.cpu().double(), expected, rtol=2e-6, atol=1e-6)
    grads = torch.autograd.grad(loss.sum(), leaves)
    for grad, wanted in zip(grads, torch.autograd.grad(expected.sum(), exact), strict=True):
        torch.testing.assert_close(grad.cpu().double(), wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("classes", [6, 1030])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, 1e30, -1e30, 1e-40])
def test_one_extreme_logit(value, classes, device):
    logits = torch.randn(3, classes)
    logits[0, 1] = logits[1, -1] = value
    target = torch.tensor([1, 0, 0])
    leaf, exact = logits.to(device).requires_grad_(), logits.double().requires_grad_()
    loss = ops.cross_entropy(leaf, target.to(device), reduction="none")
    expected = F.cross_entropy(exact, target, reduction="none")
    harness.assert_close(loss.cpu(), expected, torch.float32)
    (grad,), (expected_grad,) = (torch.autograd.grad(y.sum(), x) for y, x in ((loss, leaf), (expected, exact)))
    harness.assert_close(grad.cpu(), expected_grad, torch.float32)


@pytest.mark.parametrize("classes", [6, 1030])
def test_rows_of_nothing_but_minus_infinity(classes, device):
    logits = torch.full((2, classes), -torch.inf, device=device)
    assert ops.cross_entropy(logits, torch.zeros(2, dtype=torch.int64, device=device), reduction="none").isnan().all()


@pytest.mark.parametrize("function", ["cross_entropy", "linear_cross_entropy"])
def test_no_target_that_counts(function, device):
    x = torch.randn(3, 2, device=device, requires_grad=True)
    target = torch.full((3,), -100, device=device)
    if function == "cross_entropy":
        loss = ops.cross_entropy(x, target)
    else:
        loss = ops.linear_cross_entropy(x, torch.randn(4, 2, device=device), target)
    assert loss.isnan()  # as torch: nothing to average
    assert not torch.autograd.grad(loss, x)[0].any()


@pytest.mark.parametrize("function", ["cross_entropy", "linear_cross_entropy"])
@pytest.mark.parametrize("target", [5, -1])
@ON_CUDA
def test_a_target_out_of_range_on_cuda_gives_nan(target, function, device):
    x = torch.randn(3, 2 if function == "linear_cross_entropy" else 5, device=device, requires_grad=True)
    targets = torch.tensor([1, target, -100], device=device)
    weight = torch.randn(5, 2, device=device)

    def loss(reduction):
        if function == "cross_entropy":
            return ops.cross_entropy(x, targets, reduction=reduction)
        return ops.linear_cross_entropy(x, weight, targets, reduction=reduction)

    rows = loss("none")
    assert rows.isnan().tolist() == [False, True, False]
    mean = loss("mean")
    assert mean.isnan()
    assert torch.autograd.grad(mean, x)[0].isnan().any(1).tolist() == [False, True, False]


def test_float16_gradients_of_a_mean_do_not_underflow(device):
    """Softmax / N is below what float16 holds, small weights make the input's gradient so; a loss scale lifts it."""
    rows, classes, targets = 8192, 300, 4
    x = torch.rand(rows, 8).half().to(device).requires_grad_()
    weight = (1e-3 * torch.randn(classes, 8)).half().to(device).requires_grad_()
    target, scale = torch.randint(targets, (rows,)), torch.tensor(32768.0)
    grads = torch.autograd.grad(ops.linear_cross_entropy(x, weight, target.to(device)), [x, weight], scale.to(x))
    exact = [t.detach().double().cpu().requires_grad_() for t in (x, weight)]
    expected = torch.autograd.grad(F.cross_entropy(F.linear(*exact), target), exact, scale.double())
    # Of the weight, the classes that are no target: their gradient is made of nothing but softmax / N.
    for ours, reference in ((grads[0], expected[0]), (grads[1][targets:], expected[1][targets:])):
        assert (ours.cpu().double() - reference).abs().max() < 2e-3 * reference.abs().max()


@pytest.mark.parametrize("function", ["cross_entropy", "linear_cross_entropy"])
@ON_CUDA
def test_float64_on_cuda(function, device):
    x, target = torch.randn(3, 5, dtype=torch.float64, device=device), torch.tensor([1, 2, 3], device=device)
    arguments = (x, target) if function == "cross_entropy" else (x, x, target - 1)
    with pytest.raises(TypeError, match=f"{function}: 'input' must be float32, bfloat16 or float16 on CUDA, got Doub"):
        getattr(ops, function)(*arguments)


@pytest.mark.parametrize("classes", [65, 2001])
def test_same_bits_on_repeat(classes, device):
    logits, target = problem(50, classes)
    leaf = logits.detach().float().to(device).requires_grad_()
    results = []
    for _ in range(2):
        loss = ops.cross_entropy(leaf, target.to(device), label_smoothing=0.1)
        results.append((loss, *torch.autograd.grad(loss, leaf)))
    assert all(torch.equal(first, again) for first, again in zip(*results, strict=True))


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
        (
            lambda: ops.cross_entropy(X, T.int()),
            TypeError,
            "'target' must be int64, of class indices, or floating, of ",
        ),
        (lambda: ops.cross_entropy(X, T, reduction="avg"), ValueError, "'reduction' must be 'mean', 'sum' or 'none'"),
        (lambda: ops.cross_entropy(X, T, label_smoothing=2.0), ValueError, r"'label_smoothing' must be in \[0, 1\]"),
        (lambda: ops.cross_entropy(X, T[:1]), ValueError, r"'target' must have shape \[2\], got \[1\]"),
        (
            lambda: ops.linear_cross_entropy(X, X[:, :2], T),
            ValueError,
            r"'linear_weight' must have shape \(classes, 3\)",
        ),
        (
            lambda: ops.cross_entropy(X, T, torch.ones(3, requires_grad=True)),
            ValueError,
            "'weight' must not require a gradient",
        ),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
