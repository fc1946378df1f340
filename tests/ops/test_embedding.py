"""fastllm.ops.embedding."""

import pytest
import torch

from fastllm import ops
from tests import reference
from tests.devices import ON_CUDA
from tests.ops import harness


def tables(vocabulary, positions, channels):
    return [torch.randn(n, channels, dtype=torch.float64, requires_grad=True) for n in (vocabulary, positions)]


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("shape", [(1,), (4, 9), (0, 3), (2, 3, 5)])
@pytest.mark.parametrize("channels", [1, 8, 65, 130])  # one, a vector, around the columns a task takes
def test_matches_reference(shape, channels, dtype, device):
    weight, position = tables(70, 20, channels)
    tokens = torch.randint(70, shape)

    def ours(w, p):
        return ops.embedding(tokens.to(device), w, position_weight=p, position_offset=3)

    def expected(w, p):
        return reference.embedding(tokens, w, p, 3)

    harness.assert_matches_reference(ours, expected, [weight, position], dtype, device=device)
    harness.assert_matches_reference(
        lambda w: ops.embedding(tokens.int().to(device), w), lambda w: reference.embedding(tokens, w), [weight], dtype,
        device=device,
    )  # fmt: skip


# Of the CUDA kernel, which sums pieces of 32 sorted tokens: a run that lies in one, one that a border cuts, one that
# fills several, runs that end at a border, all tokens alike; columns of more than one block, and of less than a vector.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [3, 132, 520])
@pytest.mark.parametrize(
    "runs", [[5, 7], [30, 20, 5], [3, 200, 30], [32, 64, 31, 1], [170]], ids=lambda runs: "-".join(map(str, runs))
)
def test_runs_of_equal_tokens(runs, channels, dtype, device):
    weight, _ = tables(10, 1, channels)
    tokens = torch.cat([torch.full((count,), 2 * token) for token, count in enumerate(runs)])
    tokens = tokens[torch.randperm(len(tokens))]
    harness.assert_matches_reference(
        lambda w: ops.embedding(tokens.to(device), w), lambda w: reference.embedding(tokens, w), [weight], dtype,
        device=device,
    )  # fmt: skip


@pytest.mark.parametrize("batch", [1, 7, 40])  # less than a block's warps, as many less one, several rounds of them
@pytest.mark.parametrize("channels", [5, 136])
def test_position_gradient_over_many_sequences(batch, channels, device):
    weight, position = tables(10, 9, channels)
    tokens = torch.randint(10, (batch, 4))
    harness.assert_matches_reference(
        lambda w, p: ops.embedding(tokens.to(device), w, position_weight=p, position_offset=2),
        lambda w, p: reference.embedding(tokens, w, p, 2),
        [weight, position], torch.float32, device=device,
    )  # fmt: skip


def test_tables_that_start_anywhere(device):
    weight, grad = (torch.randn(rows * 8 + 1, device=device)[1:].view(rows, 8) for rows in (40, 6))  # no 16-byte border
    tokens = torch.randint(40, (6,))
    weight.requires_grad_()
    output = ops.embedding(tokens.to(device), weight)
    assert torch.equal(output.cpu(), weight.detach().cpu()[tokens])
    (grad_weight,) = torch.autograd.grad(output, weight, grad)
    torch.testing.assert_close(grad_weight.cpu(), torch.zeros(40, 8).index_add_(0, tokens, grad.cpu()))


@pytest.mark.parametrize("channels", [0, 1, 65])
def test_a_large_vocabulary_most_of_which_is_unused(channels, device):
    weight, position = tables(5000, 20, channels)  # enough rows that tasks take whole ones
    tokens = torch.cat([torch.randint(5000, (50, 18)), torch.full((50, 2), 7)], 1)

    def ours(w, p):
        return ops.embedding(tokens.to(device), w, position_weight=p, padding_idx=3)

    def expected(w, p):
        return reference.embedding(tokens, w, p)

    tokens[tokens == 3] = 4999  # the padding row is another test
    harness.assert_matches_reference(ours, expected, [weight, position], torch.float32, device=device)


@pytest.mark.parametrize("padding_idx", [None, 0, 2, 4, -1, -3, -5])
def test_padding_row_gets_no_gradient(padding_idx, device):
    tokens, table = torch.tensor([1, 2, 2, 0, 4]), torch.randn(5, 4)
    weight, expected = (table.detach().clone().to(where).requires_grad_() for where in (device, "cpu"))
    ops.embedding(tokens.to(device), weight, padding_idx).sum().backward()
    torch.nn.functional.embedding(tokens, expected, padding_idx).sum().backward()
    assert torch.equal(weight.grad.cpu(), expected.grad)


@pytest.mark.parametrize("padding_idx", [5, -6])
def test_padding_outside_the_table(padding_idx, device):
    with pytest.raises(ValueError, match=rf"'padding_idx' must be in \[-5, 5\) or None, got {padding_idx}"):
        ops.embedding(torch.tensor([1], device=device), torch.ones(5, 2, device=device), padding_idx)


def test_the_table_may_be_updated_before_backward(device):
    weight = torch.randn(5, 4, device=device, requires_grad=True)
    output = ops.embedding(torch.tensor([1, 2], device=device), weight)
    with torch.no_grad():
        weight.add_(1)
    output.sum().backward()
    assert weight.grad.sum() == 8


def test_gradcheck_contract_compile_threads(threads):
    tokens = torch.randint(7, (3, 4))
    weight, position = tables(7, 4, 5)
    assert torch.autograd.gradcheck(lambda w, p: ops.embedding(tokens, w, position_weight=p), [weight, position])
    harness.assert_op_contract(torch.ops.fastllm.embedding.default, (tokens, weight, -1, position, 0))
    harness.assert_op_contract(torch.ops.fastllm.embedding.default, (tokens, weight, None, None, 0))
    harness.assert_compiles(lambda w: ops.embedding(tokens, w), [weight])
    many = torch.randint(65, (12, 64))
    harness.assert_deterministic(lambda w: ops.embedding(many, w), [torch.randn(65, 128, requires_grad=True)], threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_on_repeat(dtype, device):
    tokens = torch.randint(5, (300,), device=device)
    weight = torch.randn(5, 24, dtype=dtype, device=device, requires_grad=True)
    grad = torch.randn(300, 24, dtype=dtype, device=device)
    first, again = (torch.autograd.grad(ops.embedding(tokens, weight), weight, grad)[0] for _ in range(2))
    assert torch.equal(first, again)


@ON_CUDA
def test_a_token_outside_the_table_on_cuda_gives_nan_and_no_gradient(device):
    tokens = torch.tensor([1, 5, -1, 2], device=device)
    weight = torch.randn(5, 4, device=device, requires_grad=True)
    output = ops.embedding(tokens, weight)
    assert output.isnan().all(1).tolist() == [False, True, True, False]
    output.nan_to_num().sum().backward()
    assert weight.grad.sum(1).tolist() == [0, 4, 4, 0, 0]


@ON_CUDA
def test_float64_on_cuda(device):
    with pytest.raises(TypeError, match="'weight' must be float32, bfloat16 or float16 on CUDA, got Double"):
        ops.embedding(torch.tensor([1], device=device), torch.ones(2, 2, dtype=torch.float64, device=device))


W = torch.randn(5, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.embedding(torch.tensor([1, 5]), W), ValueError, r"must be in \[0, 5\), got 5 at position 1"),
        (lambda: ops.embedding(torch.tensor([1.0]), W), TypeError, "'input' must be int64 or int32, got Float"),
        (lambda: ops.embedding(torch.tensor([1]), W[0]), ValueError, "'weight' must have shape"),
        (
            lambda: ops.embedding(torch.zeros(6).long(), W, position_weight=W),
            ValueError,
            "'position_weight' must have at least 6 rows",
        ),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
