"""fastllm.ops.embedding."""

import pytest
import torch

from fastllm import ops
from tests import reference
from tests.ops import harness


def tables(vocabulary, positions, channels):
    return [torch.randn(n, channels, dtype=torch.float64, requires_grad=True) for n in (vocabulary, positions)]


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("shape", [(1,), (4, 9), (0, 3), (2, 3, 5)])
@pytest.mark.parametrize("channels", [1, 8, 65, 130])  # one, a vector, around the columns a task takes
def test_matches_reference(shape, channels, dtype):
    weight, position = tables(70, 20, channels)
    tokens = torch.randint(70, shape)

    def ours(w, p):
        return ops.embedding(tokens, w, position_weight=p, position_offset=3)

    def expected(w, p):
        return reference.embedding(tokens, w, p, 3)

    harness.assert_matches_reference(ours, expected, [weight, position], dtype)
    harness.assert_matches_reference(
        lambda w: ops.embedding(tokens.int(), w), lambda w: reference.embedding(tokens, w), [weight], dtype
    )


@pytest.mark.parametrize("channels", [0, 1, 65])
def test_a_large_vocabulary_most_of_which_is_unused(channels):
    weight, position = tables(5000, 20, channels)  # enough rows that tasks take whole ones
    tokens = torch.cat([torch.randint(5000, (50, 18)), torch.full((50, 2), 7)], 1)

    def ours(w, p):
        return ops.embedding(tokens, w, position_weight=p, padding_idx=3)

    def expected(w, p):
        return reference.embedding(tokens, w, p)

    tokens[tokens == 3] = 4999  # the padding row is another test
    harness.assert_matches_reference(ours, expected, [weight, position], torch.float32)


def test_padding_row_gets_no_gradient():
    weight, _ = tables(5, 1, 4)
    ops.embedding(torch.tensor([1, 2, 2]), weight, padding_idx=2).sum().backward()
    assert weight.grad[1].sum() == 4
    assert not weight.grad[2].any()


def test_gradcheck_contract_compile_threads(threads):
    tokens = torch.randint(7, (3, 4))
    weight, position = tables(7, 4, 5)
    assert torch.autograd.gradcheck(lambda w, p: ops.embedding(tokens, w, position_weight=p), [weight, position])
    harness.assert_op_contract(torch.ops.fastllm.embedding.default, (tokens, weight, -1, position, 0))
    harness.assert_compiles(lambda w: ops.embedding(tokens, w), [weight])
    many = torch.randint(65, (12, 64))
    harness.assert_deterministic(lambda w: ops.embedding(many, w), [torch.randn(65, 128, requires_grad=True)], threads)


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
