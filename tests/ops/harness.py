"""What every op's tests share: comparing with the float64 reference, and the contract that all ops keep.

A tolerance stands beside its dtype: float32 and float64 are held to absolute bars; bfloat16 and float16 to a multiple
of the error that torch's own op makes in that dtype against the same float64 reference.
"""

import copy

import torch

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: (1.3e-6, 1e-5), torch.float64: (1e-7, 1e-9)}  # rtol, atol
LOW_PRECISION_FORWARD, LOW_PRECISION_GRADIENT = 2.0, 3.0  # times the error of torch's op


def run(function, inputs, grad_output=None):
    """Return (output, gradients of all floating inputs that require grad) of function(*inputs)."""
    leaves = [
        x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor) else copy.copy(x)
        for x in inputs
    ]
    output = function(*leaves)
    wanted = [x for x in leaves if isinstance(x, torch.Tensor) and x.requires_grad]
    if not wanted:
        return output.detach(), []
    grad_output = torch.ones_like(output) if grad_output is None else grad_output.to(output.dtype)
    return output.detach(), list(torch.autograd.grad(output, wanted, grad_output))


def to(inputs, dtype):
    return [
        x.detach().to(dtype).requires_grad_(x.requires_grad)
        if isinstance(x, torch.Tensor) and x.is_floating_point()
        else x
        for x in inputs
    ]


def assert_close(actual, expected, dtype, what="", scale_atol=True):
    """Float32/float64 comparison; atol grows with the reference's size, as long sums do."""
    rtol, atol = TOLERANCE[dtype]
    expected = expected.double()
    if scale_atol and expected.numel():
        finite = expected[expected.isfinite()]
        atol *= max(1.0, finite.abs().max().item() if finite.numel() else 1.0)
    torch.testing.assert_close(
        actual.double(), expected, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m: f"{what}: {m}"
    )


def on(device, inputs):
    return [x.detach().to(device).requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor) else x for x in inputs]


def assert_matches_reference(ours, reference, inputs, dtype, torch_op=None, device=CPU):
    """Forward and every gradient of `ours` in `dtype` against `reference` in float64 on the same rounded inputs.

    inputs are float64 tensors (requires_grad marks what gets a gradient) and other arguments; `ours` alone runs on
    `device`. torch_op, torch's own version, sets the bar for bfloat16 and float16; without it the reference itself, run
    in that dtype, does.
    """
    rounded = to(inputs, dtype)
    exact_inputs = to(rounded, torch.float64)
    grad_output = torch.randn_like(reference(*exact_inputs).detach()).to(dtype)
    exact, exact_grads = run(reference, exact_inputs, grad_output)
    actual, actual_grads = run(ours, on(device, rounded), grad_output.to(device))
    actual, actual_grads = actual.cpu(), [grad.cpu() for grad in actual_grads]
    assert actual.dtype == dtype, f"output dtype {actual.dtype}, expected {dtype}"
    assert actual.shape == exact.shape
    pairs = [("output", actual, exact)] + [
        (f"gradient {i}", a, e) for i, (a, e) in enumerate(zip(actual_grads, exact_grads, strict=True))
    ]
    if dtype in TOLERANCE:
        for what, a, e in pairs:
            assert_close(a, e, dtype, what)
        return
    peer, peer_grads = run(torch_op or reference, rounded, grad_output)
    for (what, a, e), p in zip(pairs, [peer, *peer_grads], strict=True):
        factor = LOW_PRECISION_FORWARD if what == "output" else LOW_PRECISION_GRADIENT
        # The peer may be lucky on small tensors: half a unit in the last place of the largest value is always granted.
        kind = torch.finfo(dtype)
        floor = kind.eps * max(e.abs().max().item() if e.numel() else 0.0, kind.smallest_normal)
        error = (a.double() - e).abs().max().item() if e.numel() else 0.0
        bar = factor * max((p.double() - e).abs().max().item() if e.numel() else 0.0, floor / 2)
        assert error <= bar, f"{what}: error {error:.3g} over {bar:.3g}, {factor} x torch's own in {dtype}"


def assert_deterministic(function, inputs, threads):
    """Same bits on repeat and for 1, 2 and 3 threads; elsewhere than on the CPU, `threads` is `parallelism`."""
    results = []
    for count in (1, 2, 3, 3):
        threads(count)
        output, grads = run(function, inputs)
        results.append([output, *grads])
    for other in results[1:]:
        for first, again in zip(results[0], other, strict=True):
            assert torch.equal(first.nan_to_num(), again.nan_to_num())


def assert_copies_nothing(call):
    """No tensor is made contiguous or converted on the way to the kernel."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    names = {event.name for event in profile.events()}
    assert any(name.startswith("fastllm::") for name in names)
    assert not names & {"aten::copy_", "aten::clone", "aten::contiguous"}


def assert_op_contract(op, args, kwargs=None):
    """torch.library.opcheck: schema, autograd registration, fake tensors, static and dynamic AOT dispatch."""
    torch.library.opcheck(op, args, kwargs or {})


def assert_compiles(function, inputs):
    """torch.compile(fullgraph=True) equals eager, values and gradients."""
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    eager_output, eager_grads = run(function, inputs)
    output, grads = run(compiled, inputs)
    torch.testing.assert_close(output, eager_output, rtol=0, atol=0, equal_nan=True)
    for a, e in zip(grads, eager_grads, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0, equal_nan=True)
