"""Where dropout's randomness comes from."""

import torch
from torch import Tensor


def new_rng_state(device: torch.device) -> Tensor:
    """Return (seed, offset), int64 (2,), drawn from torch's generator of that device."""
    return torch.randint(2**63 - 1, (2,), dtype=torch.int64, device=device)


def rng_state_for(input: Tensor, p: float, training: bool, rng_state: Tensor | None) -> Tensor | None:
    """Return the state an op with dropout gets: None, for no dropout, unless it is training with p over 0."""
    if not training or p == 0:
        return None
    return new_rng_state(input.device) if rng_state is None else rng_state
