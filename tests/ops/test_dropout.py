"""fastllm.ops.dropout and dropout_add: the mask is the contract's, bit for bit."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fastllm import ops
from tests import reference
from tests.ops import harness

STATES = [torch.tensor([0, 0]), torch.tensor([-1, 2**62]), torch.tensor([2**40 + 7, -3])]


def test_reference_philox_gives_random123s_known_answers():
    low, high = 0, 2**64 - 1
    assert reference.philox(low, low, low) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert reference.philox(high, high, high) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = (0x299F31D0A4093822, 0x85A308D3243F6A88, 0x0370734413198A2E)  # key, counter low, counter high
    assert reference.philox(*pi) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (9,), (3, 65), (2, 4099)])  # around a Philox block; rows; a run
def test_mask_equals_the_reference(shape, p, state, dtype, device):
    expected = reference.dropout_multipliers(shape, p, state)
    ones = torch.ones(shape, dtype=dtype, device=device)
    output = ops.dropout(ones, p, rng_state=state.to(device)).cpu()
    assert torch.equal(output != 0, expected != 0)
    torch.testing.assert_close(output, expected.to(dtype))


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(
    "shape", [(9, 37), (5, 264), (300, 24), (0, 24), (3, 0)]
)  # odd; aligned; groups of rows; empty
def test_dropout_add_matches_reference(shape, with_bias, dtype, device):
    x, residual = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    bias = [torch.randn(shape[1], dtype=torch.float64, requires_grad=True)] if with_bias else []

    def ours(x, r, *b):
        return ops.dropout_add(x, r, 0.5, bias=b[0] if b else None, rng_state=STATES[1].to(device))

    def expected(x, r, *b):
        return reference.dropout_add(x, r, 0.5, STATES[1], b[0] if b else None)

    harness.assert_matches_reference(ours, expected, [x, residual, *bias], dtype, device=device)


def test_without_dropout_it_adds(device):
    x, residual, bias = (torch.randn(*shape, device=device) for shape in ((5, 24), (5, 24), (24,)))
    expected = residual + (x + bias)
    torch.testing.assert_close(ops.dropout_add(x, residual, training=False, bias=bias), expected)


@pytest.mark.parametrize("offset", [0, 1])  # 1: not at a multiple of 16 bytes
def test_unaligned_views_and_a_strided_state(offset, device):
    x = torch.ones(1000, device=device)[offset : offset + 800].view(20, 40)
    state = torch.stack([STATES[2], STATES[0]], 1)[:, 0]
    expected = reference.dropout_multipliers(x.shape, 0.3, state).float()
    torch.testing.assert_close(ops.dropout(x, 0.3, rng_state=state.to(device)).cpu(), expected)


def test_mean_is_exact_within_4_sigma():
    n, p = 1_000_000, 0.1
    mean = ops.dropout(torch.ones(n), p).mean().item()
    assert abs(mean - 1) < 4 * (p / (1 - p) / n) ** 0.5


def test_no_dropout_draws_nothing():
    before = torch.get_rng_state()
    x = torch.randn(5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ops.dropout(x, 0.5, training=False), x)
    assert torch.equal(ops.dropout(x, 0.0), x)
    assert torch.equal(torch.get_rng_state(), before)


def test_everything_dropped(device):
    x = torch.randn(21, requires_grad=True, device=device)
    output = ops.dropout(x, 1.0)
    output.sum().backward()
    assert torch.equal(output, torch.zeros_like(x))
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_manual_seed_reproduces():
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(ops.dropout(torch.ones(100)))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing(use_reentrant):
    grads = []
    for wrap in (False, True):
        torch.manual_seed(3)
        x = torch.linspace(-1, 1, 50).requires_grad_()
        y = checkpoint(ops.dropout, x, use_reentrant=use_reentrant) if wrap else ops.dropout(x)
        y.square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


def test_deterministic(device, parallelism):
    inputs = [torch.randn(*shape, requires_grad=True) for shape in ((300, 129), (300, 129), (129,))]

    def call(x, r, b):
        return ops.dropout_add(x, r, 0.3, bias=b, rng_state=STATES[2].to(device))

    harness.assert_deterministic(call, harness.on(device, inputs), parallelism)


def test_op_contract_and_compile():
    x, residual = torch.randn(50, 129, requires_grad=True), torch.randn(50, 129, requires_grad=True)
    bias = torch.randn(129, requires_grad=True)
    harness.assert_op_contract(torch.ops.fastllm.dropout_add.default, (x, residual, bias, 0.3, STATES[2]))

    def call(x, r, b):
        return ops.dropout_add(x, r, 0.3, bias=b, rng_state=STATES[2])

    harness.assert_compiles(call, [x, residual, bias])


X = torch.randn(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.dropout(X, -0.1), ValueError, r"dropout: 'p' must be in \[0, 1\], got -0.1"),
        (lambda: ops.dropout(X, rng_state=torch.zeros(2)), TypeError, "'rng_state' must be int64, got Float"),
        (lambda: ops.dropout(X, rng_state=torch.zeros(3).long()), ValueError, r"'rng_state' must have shape \[2\]"),
        (lambda: ops.dropout_add(X, X[0]), ValueError, "'residual' must have the shape of 'input'"),
        (lambda: ops.dropout_add(X, X, bias=torch.ones(2)), ValueError, r"'bias' must have shape \[3\], got \[2\]"),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
