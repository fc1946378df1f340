"""Tensors of more than 2^31 elements: an index that is 32 bits wide anywhere goes wrong here. Needs about 14 GB."""

import pytest
import torch

from fastllm import ops
from tests import reference

pytestmark = pytest.mark.slow

ROWS, COLS = 2**20 + 3, 2048  # 2^31 + 6144 elements


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Not here: filling memory takes longer than the ops."""


@pytest.fixture(scope="module")
def large():
    return torch.randn(1031, COLS).bfloat16().repeat(ROWS // 1031 + 1, 1)[:ROWS]


@pytest.mark.parametrize(
    "op",
    [
        ops.gelu,
        lambda x: ops.softmax(x, -1),
        lambda x: ops.layer_norm(x, (COLS,)),
        lambda x: ops.rms_norm(x, (COLS,)),
        lambda x: ops.linear(x, torch.ones(1, COLS, dtype=x.dtype)),
        lambda x: ops.cross_entropy(x, torch.arange(len(x)) % COLS, reduction="none"),
    ],
    ids=["gelu", "softmax", "layer_norm", "rms_norm", "linear", "cross_entropy"],
)
def test_the_last_rows_are_as_if_alone(op, large):
    rows = 2048  # whole periods of the targets: row -k of the large tensor and of its tail have the same
    tail = large[-(ROWS % rows) :]
    assert torch.equal(op(large)[-len(tail) :], op(tail))


def multipliers(first, count, p, rng_state):
    """Return the reference's multipliers of elements first, .., first + count - 1; first is a multiple of 8."""
    seed, offset = rng_state.tolist()
    threshold = int(p * 65536 + 0.5)
    words = [
        word for block in range(first // 8, (first + count) // 8) for word in reference.philox(seed, block, offset)
    ]
    bits = torch.tensor([half for word in words for half in (word & 0xFFFF, word >> 16)])
    return (bits >= threshold).double() * 65536 / (65536 - threshold)


def test_dropout_counts_past_2_to_the_31(large):
    state = torch.tensor([5, 7])
    output = ops.dropout(large, 0.25, rng_state=state).flatten()
    first = output.numel() - 4096
    expected = large.flatten()[first:].double() * multipliers(first, 4096, 0.25, state)
    torch.testing.assert_close(output[first:].double(), expected, rtol=8e-3, atol=0)


def test_attention_counts_its_weights_past_2_to_the_31():
    tokens = 2**16
    q, k, v = torch.randn(3, 1, 1, tokens, 16)
    state = torch.tensor([5, 7])
    output = ops.scaled_dot_product_attention(q, k, v, dropout_p=0.25, rng_state=state)
    weights = torch.softmax(q[0, 0, -1].double() @ k[0, 0].double().T / 4, -1)
    weights = weights * multipliers((tokens - 1) * tokens, tokens, 0.25, state)
    torch.testing.assert_close(output[0, 0, -1].double(), weights @ v[0, 0].double(), rtol=1e-4, atol=1e-6)
