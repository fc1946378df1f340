"""fastllm.ops.layer_norm, rms_norm, dropout_add_layer_norm and dropout_add_rms_norm."""

import pytest
import torch
import torch.nn.functional as F

from fastllm import nn, ops
from tests import reference
from tests.ops import harness

COLUMNS = [1, 7, 8, 9, 65, 255, 768, 1023]  # one element; around one AVX2 vector; odd tails; a usual width
# On CUDA a row is shared by more threads the longer it is, 16 bytes a thread and access, or one element if it is no
# multiple of that: several warps; more than registers hold in backward; more than they hold at all; more than shared
# memory holds the sums of.
LONG_ROWS = [1032, 2056, 4104, 8200, 8201, 16392, 30001, 32776]

STATE = torch.tensor([123, 456])


def inputs(rows, cols, affine=True):
    x = torch.randn(rows, cols, dtype=torch.float64, requires_grad=True)
    if not affine:
        return [x]
    return [x, *(torch.randn(cols, dtype=torch.float64, requires_grad=True) for _ in range(2))]


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("cols", COLUMNS)
def test_layer_norm_matches_reference(cols, affine, dtype, device):
    # eps of 1e-2: rows of one element have no variance, and would divide rounding errors by its root.
    def ours(x, *params):
        return ops.layer_norm(x, (cols,), *params, eps=1e-2)

    def expected(x, *params):
        return reference.layer_norm(x, (cols,), *params, eps=1e-2)

    def theirs(x, *params):
        return F.layer_norm(x, (cols,), *params, eps=1e-2)

    harness.assert_matches_reference(ours, expected, inputs(67, cols, affine), dtype, theirs, device)


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("cols", COLUMNS)
def test_rms_norm_matches_reference(cols, dtype, device):
    def ours(x, w):
        return ops.rms_norm(x, (cols,), w, 1e-2)

    def expected(x, w):
        return reference.rms_norm(x, (cols,), w, 1e-2)

    def theirs(x, w):
        return F.rms_norm(x, (cols,), w, 1e-2)

    harness.assert_matches_reference(ours, expected, inputs(67, cols)[:2], dtype, theirs, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("cols", [7, 64, 129])
@pytest.mark.parametrize("with_bias", [True, False])
def test_dropout_add_layer_norm_matches_reference(cols, p, with_bias, dtype, device):
    x, weight, bias = inputs(33, cols)
    residual = torch.randn(33, cols, dtype=torch.float64, requires_grad=True)
    extra = [torch.randn(cols, dtype=torch.float64, requires_grad=True)] if with_bias else []

    def ours(x, r, w, b, *extra):
        normed, new_residual = ops.dropout_add_layer_norm(
            x, r, w, b, p, 1e-2, input_bias=extra[0] if extra else None, rng_state=STATE.to(device)
        )
        return torch.stack([normed, new_residual])

    def expected(x, r, w, b, *extra):
        new_residual = reference.dropout_add(x, r, p, STATE, extra[0] if extra else None)
        return torch.stack([reference.layer_norm(new_residual, (cols,), w, b, 1e-2), new_residual])

    harness.assert_matches_reference(ours, expected, [x, residual, weight, bias, *extra], dtype, device=device)


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])  # 0.5: what is kept is scaled by a float32, and 2 is one
@pytest.mark.parametrize("cols", [1, 7, 64, 129])
@pytest.mark.parametrize("affine", [True, False])
def test_dropout_add_rms_norm_matches_reference(affine, cols, p, dtype, device):
    x, weight, bias = inputs(33, cols)
    residual = torch.randn(33, cols, dtype=torch.float64, requires_grad=True)
    parameters = [weight, bias] if affine else []  # the bias is the input's

    def ours(x, r, w=None, b=None):
        state = STATE.to(device)
        return torch.stack(ops.dropout_add_rms_norm(x, r, w, p, 1e-2, input_bias=b, rng_state=state))

    def expected(x, r, w=None, b=None):
        new_residual = reference.dropout_add(x, r, p, STATE, b)
        return torch.stack([reference.rms_norm(new_residual, (cols,), w, 1e-2), new_residual])

    harness.assert_matches_reference(ours, expected, [x, residual, *parameters], dtype, device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cols", LONG_ROWS)
def test_long_rows_of_dropout_add_rms_norm(cols, dtype, device):
    x, weight, bias = inputs(2, cols)
    residual = torch.randn_like(x, requires_grad=True)

    def ours(x, r, w, b):
        return torch.stack(ops.dropout_add_rms_norm(x, r, w, 0.3, input_bias=b, rng_state=STATE.to(device)))

    def expected(x, r, w, b):
        total = reference.dropout_add(x, r, 0.3, STATE, b)
        return torch.stack([reference.rms_norm(total, (cols,), w, torch.finfo(torch.float32).eps), total])

    harness.assert_matches_reference(ours, expected, [x, residual, weight, bias], dtype, device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cols", LONG_ROWS)
@pytest.mark.parametrize("op", ["layer_norm", "dropout_add_layer_norm"])
def test_long_rows(op, cols, dtype, device):
    x, weight, bias = inputs(2, cols)
    residual, extra = torch.randn_like(x, requires_grad=True), torch.randn_like(bias, requires_grad=True)

    def ours(x, w, b, *more):
        if not more:
            return ops.layer_norm(x, (cols,), w, b)
        return torch.stack(
            ops.dropout_add_layer_norm(x, more[0], w, b, 0.3, input_bias=more[1], rng_state=STATE.to(device))
        )

    def expected(x, w, b, *more):
        if not more:
            return reference.layer_norm(x, (cols,), w, b)
        total = reference.dropout_add(x, more[0], 0.3, STATE, more[1])
        return torch.stack([reference.layer_norm(total, (cols,), w, b), total])

    tensors = [x, weight, bias] if op == "layer_norm" else [x, weight, bias, residual, extra]
    harness.assert_matches_reference(ours, expected, tensors, dtype, device=device)


@pytest.mark.parametrize("cols", [9000, 16392, 32776])
def test_long_rows_with_a_gradient_of_the_residual_stream_alone(cols, device):
    residual, x, parameter = torch.randn(3, cols), torch.randn(3, cols), torch.ones(cols)
    given = [t.to(device) for t in (residual, x, torch.zeros(3), torch.ones(3), parameter, parameter, parameter)]
    gradients = torch.ops.fastllm.norm_backward(None, *given, p=0.3, rng_state=STATE.to(device))
    grad_x, grad_weight, grad_bias, grad_input, grad_input_bias = (t.cpu() for t in gradients)
    expected = residual * reference.dropout_multipliers((3, cols), 0.3, STATE).float()
    assert torch.equal(grad_x, residual)
    assert not grad_weight.any() and not grad_bias.any()
    torch.testing.assert_close(grad_input, expected)
    torch.testing.assert_close(grad_input_bias, expected.sum(0))


@pytest.mark.parametrize(
    ("rows", "cols", "times"),
    [
        (2117, 257, 2),  # on CUDA, more than two rounds of 264 blocks of 4 rows
        (265, 4104, 1),  # there, more than two rounds of 132 blocks of a row that registers do not hold
        (3, 8200, 2),  # and of one that is gone through in chunks
    ],
)
def test_many_rows_are_summed_the_same_way_each_time(rows, cols, times, device):
    x, weight, bias = (t.detach().float() for t in inputs(rows, cols))
    grad = torch.randn(rows, cols)
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    expected = torch.autograd.grad(reference.layer_norm(exact[0], (cols,), *exact[1:]), exact, grad.double())
    mean, rstd = x.double().mean(1).float(), (x.double().var(1, correction=0) + 1e-5).rsqrt().float()
    given = [t.to(device) for t in (grad, x, mean, rstd, weight, bias)]
    runs = [
        torch.ops.fastllm.norm_backward(given[0], None, *given[1:], input_bias=None, p=0.0, rng_state=None)[:3]
        for _ in range(times)
    ]
    for first, again, e in zip(runs[0], runs[-1], expected, strict=True):
        assert torch.equal(first, again)
        harness.assert_close(first.cpu(), e, torch.float32)


def test_sums_are_the_same_wherever_they_are_made(device):
    """On CUDA, one parameter's sums of a long row fit into shared memory, three parameters' do not."""
    rows, cols = 134, 19400  # more rows than the 132 groups that are summed
    x, grad = (torch.randn(rows, cols, device=device, dtype=torch.bfloat16) for _ in range(2))
    weight, mean, rstd = torch.randn(cols).to(device), torch.randn(rows).to(device), torch.rand(rows).to(device)

    def gradients(*parameters):
        return torch.ops.fastllm.norm_backward(grad, None, x, mean, rstd, *parameters, p=0.0, rng_state=None)

    assert torch.equal(gradients(weight, None, None)[1], gradients(weight, weight, weight)[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cols", [64, 65])
def test_dropout_mask_is_the_contract_s(cols, dtype, device):
    ones = torch.ones(9, cols, dtype=dtype, device=device)
    outputs = ops.dropout_add_layer_norm(ones, 0 * ones, None, None, 0.3, rng_state=STATE.to(device))
    expected = reference.dropout_multipliers((9, cols), 0.3, STATE).to(dtype)
    assert torch.equal(outputs[1].cpu(), expected)
    outputs = ops.dropout_add_rms_norm(ones, 0 * ones, None, 0.3, rng_state=STATE.to(device))
    assert torch.equal(outputs[1].cpu(), expected)


@pytest.mark.parametrize("moved", ["input", "weight", "gradient"])
def test_memory_that_is_not_aligned(moved, device):
    """A tensor may begin anywhere, in the middle of 16 bytes too."""

    def place(t, name):
        if name != moved:
            return t.to(device)
        return torch.cat([t.new_zeros(1), t.flatten()]).to(device)[1:].view(t.shape)

    x, weight, bias = (t.detach().float() for t in inputs(5, 64))
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    ours = [place(t, name).requires_grad_() for t, name in ((x, "input"), (weight, "weight"), (bias, "bias"))]
    grad = torch.randn(5, 64)
    output, expected = ops.layer_norm(ours[0], (64,), *ours[1:]), reference.layer_norm(exact[0], (64,), *exact[1:])
    output.backward(place(grad, "gradient"))
    expected.backward(grad.double())
    harness.assert_close(output.detach().cpu(), expected.detach(), torch.float32)
    for a, e in zip(ours, exact, strict=True):
        harness.assert_close(a.grad.cpu(), e.grad, torch.float32)


@pytest.mark.parametrize("which", [0, 1])
def test_either_output_alone_has_its_gradients(which, device):
    x, weight, bias = (t.detach().float().to(device).requires_grad_() for t in inputs(5, 12))
    residual = torch.randn(5, 12, device=device, requires_grad=True)
    total = x + residual
    for outputs, expected in (
        (
            ops.dropout_add_layer_norm(x, residual, weight, bias, p=0.0),
            reference.layer_norm(total, (12,), weight, bias),
        ),
        (ops.dropout_add_rms_norm(x, residual, weight, p=0.0, eps=1e-5), reference.rms_norm(total, (12,), weight)),
    ):
        ours, theirs = outputs[which].square().sum(), (expected, total)[which].square().sum()
        grads = torch.autograd.grad(ours, [x, residual])
        for a, b in zip(grads, torch.autograd.grad(theirs, [x, residual], retain_graph=True), strict=True):
            torch.testing.assert_close(a, b)


def about(mean, cols, dtype):
    """Return rows with a mean far from 0: of normal deviation, of a few units in the last place, of one, and of none.

    In some the first element is far from the others.
    """
    rows = mean * torch.ones(12, cols, dtype=torch.float64)
    rows[:4] += torch.randn(4, cols)
    rows[4:8] *= 1 + 4 * torch.finfo(dtype).eps * torch.randn(4, cols)
    rows[8:10, cols // 3] *= 1 + torch.finfo(dtype).eps
    rows[3::4, 0] = 0
    return rows.to(dtype)


def layer_norm_about(center):
    """Return the reference for rows that are near `center`, in whose difference from it float64 is exact."""
    return lambda x, *params: reference.layer_norm(x - center, (x.shape[-1],), *params)


@pytest.mark.parametrize(
    ("mean", "dtype"), [(m, d) for d in harness.DTYPES for m in (1000.1, -6e4, 1e6) if abs(m) < torch.finfo(d).max]
)
@pytest.mark.parametrize("cols", [768, 20001])  # on CUDA, a row that registers hold and one that they do not
@pytest.mark.parametrize("op", ["layer_norm", "dropout_add_layer_norm"])
def test_large_means(op, mean, cols, dtype, device):
    x, weight, bias = about(mean, cols, dtype), *torch.randn(2, cols).to(dtype)
    grad = torch.randn(x.shape).to(dtype)

    def ours(x, w, b):
        if op == "layer_norm":
            return ops.layer_norm(x, (cols,), w, b)
        return ops.dropout_add_layer_norm(torch.zeros_like(x), x, w, b, p=0.0)[0]

    def theirs(x, w, b):
        return F.layer_norm(x, (cols,), w, b)

    given = [t.requires_grad_() for t in (x, weight, bias)]
    output, grads = harness.run(ours, harness.on(device, given), grad.to(device))
    exact, exact_grads = harness.run(
        layer_norm_about(x[:, -1:].detach().double()), harness.to(given, torch.float64), grad
    )
    peer, peer_grads = harness.run(theirs, given, grad)
    for what, a, e, p in zip(
        ("output", "x", "weight", "bias"), [output, *grads], [exact, *exact_grads], [peer, *peer_grads], strict=True
    ):
        # Row by row: those of little deviation have larger outputs and errors.
        a, e, p = (t.double().cpu().reshape(-1, cols) for t in (a, e, p))
        error, bar = (a - e).abs().amax(1), 2 * (p - e).abs().amax(1) + 32 * torch.finfo(dtype).eps * e.abs().amax(1)
        assert (error <= bar).all(), f"{what}: errors {error.tolist()} over {bar.tolist()}, twice torch's own"


@pytest.mark.parametrize("cols", [768, 20001])
@pytest.mark.parametrize("mean", [0.0, 1000.1, 1e6])
def test_means_are_rounded_once_and_what_that_loses_is_made_up_for(mean, cols, device):
    """x - mean is exact then, to what float32 holds, in backward too; forward takes in what float32 does not hold."""
    x = torch.randn(4, cols) + mean
    first = x[:, :1].double()
    exact = (first + (x.double() - first).mean(1, keepdim=True)).flatten()
    output, means, _ = torch.ops.fastllm.layer_norm(x.to(device), (cols,), None, None, 1e-5)
    unit = torch.nextafter(exact.abs().float(), torch.tensor(torch.inf)).double() - exact.abs().float().double()
    assert ((means.cpu().double() - exact).abs() <= 0.51 * unit + 1e-6 * (mean == 0)).all()
    torch.testing.assert_close(output.cpu().double(), layer_norm_about(first)(x.double()), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("value", [0.0, 1000.1, 1e6])
def test_a_constant_row_is_normalised_to_zero(value, device):
    x = torch.full((3, 768), value).to(device)
    for output in (ops.layer_norm(x, (768,)), ops.dropout_add_layer_norm(0 * x, x, None, None, p=0.0)[0]):
        torch.testing.assert_close(output, torch.zeros_like(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", harness.DTYPES)
def test_rms_norm_adds_the_epsilon_that_torch_adds(dtype, device):
    """That of what it computes in: bfloat16's own would take a third off rows of this size."""
    x = (torch.randn(4, 64) * 0.1).to(dtype)
    for scale in (1.0, 1e-2):
        output, peer = ops.rms_norm((x * scale).to(device), (64,)).cpu(), F.rms_norm(x * scale, (64,))
        tolerance = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(output, peer, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(nn.RMSNorm(64, dtype=dtype)(x * scale), peer, rtol=tolerance, atol=tolerance)
        fused = ops.dropout_add_rms_norm((x * scale).to(device), torch.zeros_like(x).to(device), None, p=0.0)[0].cpu()
        torch.testing.assert_close(fused, peer, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("eps", [None, 1e-5])
def test_modules_are_traced_by_fx(eps):
    """A traced input has no dtype yet: nothing in Python may ask for it."""
    module = torch.nn.Sequential(nn.LayerNorm(8), nn.RMSNorm(8, eps=eps))
    x = torch.randn(3, 8)
    assert torch.equal(torch.fx.symbolic_trace(module)(x), module(x))


def test_several_dimensions_strides_and_empty(device):
    x = torch.randn(6, 5, 4, device=device).permute(2, 0, 1)
    torch.testing.assert_close(ops.layer_norm(x, (6, 5)), F.layer_norm(x, (6, 5)))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_empty(shape, device):
    x, weight, bias = (torch.ones(s, device=device, requires_grad=True) for s in (shape, shape[1:], shape[1:]))
    for call in (
        lambda: ops.layer_norm(x, shape[1:], weight, bias),
        lambda: ops.layer_norm(x, shape[1:], None, bias),
        lambda: ops.dropout_add_layer_norm(x, x, weight, bias, rng_state=STATE.to(device))[0],
        lambda: ops.dropout_add_rms_norm(x, x, weight, input_bias=bias, rng_state=STATE.to(device))[0],
    ):
        output = call()
        assert output.shape == shape
        weight.grad = bias.grad = None
        output.sum().backward()
        assert x.grad.shape == shape
        assert all(torch.equal(t.grad, torch.zeros_like(t)) for t in (weight, bias) if t.grad is not None)


@pytest.mark.parametrize("parameters", [(torch.float32, torch.float32), (torch.float16, torch.float64)])
@pytest.mark.parametrize("cols", [11, 64])
def test_parameters_of_other_dtypes(cols, parameters, device):
    x, weight, bias = inputs(5, cols)
    ours = harness.on(device, [x.bfloat16(), weight.to(parameters[0]), bias.to(parameters[1])])
    ours = [t.detach().requires_grad_() for t in ours]
    exact = [t.detach().cpu().double().requires_grad_() for t in ours]
    output, expected = ops.layer_norm(ours[0], (cols,), *ours[1:]), reference.layer_norm(exact[0], (cols,), *exact[1:])
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.cpu().double(), expected, rtol=0.01, atol=0.01)
    grad = torch.randn(5, cols).bfloat16()
    output.backward(grad.to(device))
    expected.backward(grad.double())
    assert [t.grad.dtype for t in ours] == [torch.bfloat16, *parameters]
    for a, e, tolerance in zip(ours, exact, (2e-2, 2e-3, 2e-3), strict=True):
        torch.testing.assert_close(a.grad.cpu().double(), e.grad, rtol=tolerance, atol=tolerance)


def test_gradcheck():
    x, weight, bias = inputs(3, 5)
    residual = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    state = torch.tensor([1, 2])
    assert torch.autograd.gradcheck(lambda *t: ops.layer_norm(t[0], (5,), *t[1:]), [x, weight, bias])
    assert torch.autograd.gradcheck(lambda x, w: ops.rms_norm(x, (5,), w), [x, weight])
    assert torch.autograd.gradcheck(
        lambda *t: ops.dropout_add_layer_norm(*t, p=0.4, rng_state=state), [x, residual, weight, bias]
    )
    assert torch.autograd.gradcheck(
        lambda x, r, w, b: ops.dropout_add_rms_norm(x, r, w, 0.4, input_bias=b, rng_state=state),
        [x, residual, weight, bias],
    )


def test_op_contract():
    x, weight, bias = (t.detach().float().requires_grad_() for t in inputs(3, 5))
    residual = torch.randn(3, 5, requires_grad=True)
    state = torch.tensor([1, 2])
    harness.assert_op_contract(torch.ops.fastllm.layer_norm.default, (x, (5,), weight, bias, 1e-5))
    for eps in (1e-5, None):
        harness.assert_op_contract(torch.ops.fastllm.rms_norm.default, (x, (5,), weight, eps))
    args = (x, residual, weight, bias, 0.3, 1e-5, None, state)
    harness.assert_op_contract(torch.ops.fastllm.dropout_add_layer_norm.default, args)
    for eps in (1e-5, None):
        args = (x, residual, weight, 0.3, eps, bias, state)
        harness.assert_op_contract(torch.ops.fastllm.dropout_add_rms_norm.default, args)


def test_is_deterministic_on_every_device(device, parallelism):
    x, weight, bias = (t.detach().float().requires_grad_() for t in inputs(100, 257))
    state = STATE.to(device)

    def both(x, w, b):
        layer = ops.dropout_add_layer_norm(x, x, w, b, 0.3, input_bias=b, rng_state=state)
        return torch.stack([*layer, *ops.dropout_add_rms_norm(x, x, w, 0.3, input_bias=b, rng_state=state)])

    harness.assert_deterministic(both, harness.on(device, [x, weight, bias]), parallelism)


def test_compiles_and_is_deterministic(threads):
    x, weight, bias = (t.detach().float().requires_grad_() for t in inputs(300, 65))
    harness.assert_compiles(lambda x, w, b: ops.layer_norm(x, (65,), w, b), [x, weight, bias])
    harness.assert_compiles(lambda x, w, b: ops.dropout_add_rms_norm(x, x, w, 0, input_bias=b)[0], [x, weight, bias])
    # More elements than 64 tasks of 16 Ki hold, and no more rows than 64 blocks of 128: rows are cut by their number,
    # which must not be that of threads.
    x, weight, bias = (t.detach().float().requires_grad_() for t in inputs(3000, 1000))
    harness.assert_deterministic(lambda x, w, b: ops.layer_norm(x, (1000,), w, b), [x, weight, bias], threads)


X = torch.randn(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.layer_norm(X, (4,)), ValueError, r"'normalized_shape' must be the last dimensions.*got \[4\]"),
        (lambda: ops.layer_norm(X, (3,), X), ValueError, r"'weight' must have shape \[3\], got \[2, 3\]"),
        (lambda: ops.rms_norm(X, ()), ValueError, "'normalized_shape' must have at least one dimension"),
        (lambda: ops.layer_norm(X.long(), (3,)), TypeError, "'input' must be float32.*got Long"),
        (lambda: ops.dropout_add_layer_norm(X, X, None, None, p=2.0), ValueError, r"'p' must be in \[0, 1\], got 2"),
        (lambda: ops.dropout_add_layer_norm(X, X[0], None, None), ValueError, "'residual' must have the shape"),
        (
            lambda: ops.dropout_add_rms_norm(X, X, None, p=-1.0),
            ValueError,
            r"dropout_add_rms_norm: 'p' must be in \[0, 1\], got -1",
        ),
        (lambda: ops.dropout_add_rms_norm(X, X, X), ValueError, r"'weight' must have shape \[3\], got \[2, 3\]"),
        (lambda: ops.dropout_add_rms_norm(X, X.double(), None), TypeError, "'residual' must have the dtype of 'input'"),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


BACKWARD = {"grad_output": X, "grad_residual": None, "normalized": X, "mean": torch.ones(2), "rstd": torch.ones(2),
            "weight": None, "bias": None, "input_bias": None, "p": 0.0, "rng_state": None}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"rstd": torch.ones(4)}, ValueError, "'rstd' must have an element for each row of 'normalized', got 4"),
        ({"mean": torch.ones(3)}, ValueError, r"'mean' must have shape \[2\], got \[3\]"),
        ({"rstd": torch.ones(2).double()}, TypeError, "'rstd' must be Float, got Double"),
        ({"weight": torch.ones(4)}, ValueError, "'weight' must have 3 elements, got 4"),
        ({"input_bias": torch.ones(2)}, ValueError, "'input_bias' must have 3 elements, got 2"),
        ({"grad_residual": X[:1]}, ValueError, "'grad_residual' must have the shape of 'normalized'"),
        ({"normalized": X.long()}, TypeError, "'normalized' must be float32.*got Long"),
    ],
)
def test_wrong_input_of_backward(given, error, message, device):
    with pytest.raises(error, match=message):
        torch.ops.fastllm.norm_backward(
            **{k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in {**BACKWARD, **given}.items()}
        )
