"""Attention's tiles lie in shared memory so that their rows come without bank conflicts: what its speed stands on."""

import pytest
import torch

from fastllm import ops
from tests.cuda_emulator.traffic import traffic_of

pytestmark = pytest.mark.emulated


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", [64, 128])
def test_no_bank_conflicts(d, dtype):
    q, k, v = (torch.randn(1, 2, 70, d).to(dtype).requires_grad_() for _ in range(3))

    def both_ways():
        output = ops.scaled_dot_product_attention(q, k, v, is_causal=True)
        torch.autograd.grad(output, (q, k, v), torch.ones_like(output))

    seen = traffic_of(both_ways)
    for kernel in ("forward", "backward_queries", "backward_keys"):
        name = f"attention_{kernel}_kernel"
        assert seen.total("shared", writes=False, kernel=name).bank_conflicts == 0, str(seen)
        stores = seen.total("shared", writes=True, kernel=name)
        # Pairs of float32, a fragment's part, are 8 bytes a lane: results alone are stored so, once.
        assert stores.passes <= (1.5 if dtype == torch.float32 else 1) * stores.fewest_passes, str(seen)
