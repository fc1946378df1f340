"""Attention where numbers are hard: large scores, masks of large numbers, sums over many queries."""

import pytest
import torch
import torch.nn.functional as F

from fastllm import ops
from tests import reference
from tests.ops import harness
from tests.ops.test_attention import qkv


# Masks that say never by a number: rows of nothing else weigh all keys alike, forward and backward.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("never", [-1e4, -1e9, -1e30, None])
@pytest.mark.parametrize("is_causal", [False, True])
def test_rows_of_a_mask_of_large_numbers(is_causal, never, dtype, device):
    q, k, v = qkv(tq=66, tk=70)
    mask = torch.zeros(66, 70, dtype=torch.float64)
    mask[3] = mask[60:] = torch.finfo(dtype).min if never is None else never
    mask[5, 2:] = mask[3, 0]
    with torch.no_grad():
        q[:, :, 3] = q[:, :, 60:] = 0  # scores of 0: others would be rounded away beside the mask
    harness.assert_matches_reference(
        lambda q, k, v, m: ops.scaled_dot_product_attention(q, k, v, m, is_causal=is_causal),
        lambda q, k, v, m: reference.attention(q, k, v, m, is_causal=is_causal),
        [q, k, v, mask.requires_grad_()],
        dtype,
        device=device,
    )


def test_weights_of_large_equal_scores_in_backward(device):
    """No mask: equal keys whose products are 1e8, where a logsumexp has no bits for the number of keys."""
    q, k = torch.full((1, 1, 5, 4), 1e4), torch.full((1, 1, 9, 4), 1e4)
    v = torch.randn(1, 1, 9, 4)
    leaves = harness.on(device, [v.requires_grad_()])
    output = ops.scaled_dot_product_attention(q.to(device), k.to(device), leaves[0], scale=0.25)
    (grad,) = torch.autograd.grad(output.sum(), leaves)
    torch.testing.assert_close(grad.cpu(), torch.full_like(v, 5 / 9))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("packed", [False, True])
def test_a_bias_that_many_queries_share_is_summed_before_it_is_rounded(packed, dtype, device):
    """Values that share an offset: what the output's rounding takes away, all queries have in common."""
    q, k, v = (torch.randn(1, 2, n, 32).to(dtype) for n in (600, 600, 600))
    v = v + 10
    bias, grad_output = torch.randn(600).to(dtype).requires_grad_(), torch.randn(1, 2, 600, 32).to(dtype)
    stacked = torch.stack([q, k, v], 2).transpose(1, 3)  # (B, T, 3, H, D)

    def ours(m):
        if packed:
            return ops.attention_packed(stacked.to(device), m).transpose(1, 2)
        return ops.scaled_dot_product_attention(q.to(device), k.to(device), v.to(device), m)

    _, (grad,) = harness.run(ours, harness.on(device, [bias]), grad_output.to(device))
    _, (exact,) = harness.run(
        lambda m: reference.attention(q.double(), k.double(), v.double(), m),
        harness.to([bias], torch.float64),
        grad_output.double(),
    )
    assert (grad.cpu() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


def test_extremes(device):
    q, k, v = (t.detach().float() for t in qkv(tq=66))
    for factor in (1e4, 0.0):  # huge logits; all equal
        expected = F.scaled_dot_product_attention((q * factor).double(), k.double(), v.double())
        torch.testing.assert_close(
            ops.scaled_dot_product_attention(*harness.on(device, [q * factor, k, v])).cpu().double(),
            expected,
            rtol=1e-3,
            atol=1e-3,
        )
    for b, t in ((0, 5), (2, 0)):
        empty = torch.randn(b, 2, t, 8, device=device)
        assert ops.scaled_dot_product_attention(empty, empty, empty).shape == (b, 2, t, 8)
