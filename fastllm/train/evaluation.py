"""Loss over batches that nothing is learnt from, shared out over all processes."""

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from fastllm.data import TokenData
from fastllm.train.parallel import Parallel

# B batch, T tokens of context

IGNORED = -100
Batch = tuple[Tensor, ...]  # tokens, targets, each (B, T)


def windows(data: TokenData, split: str, context_length: int, batch_size: int, parallel: Parallel) -> Iterator[Batch]:
    """Yield a split's windows in order, each token once a target; every process gets every world_size-th batch.

    The tail that fills no window is left out.
    """
    tokens, t = data.split(split, context_length), context_length
    both = torch.from_numpy(tokens[: (len(tokens) - 1) // t * t + 1].astype("int64"))
    inputs, targets = (part.view(-1, t).split(batch_size) for part in (both[:-1], both[1:]))
    yield from list(zip(inputs, targets, strict=True))[parallel.rank :: parallel.world_size]


def mean_loss(
    loss: torch.nn.Module, batches: Iterable[Batch], parallel: Parallel, device: torch.device,
    precision: AbstractContextManager,
) -> float:  # fmt: skip
    """Return the mean loss a target in nats over the batches of all processes, each target once.

    FSDP's processes must all run forward equally often, so one that has no batch left repeats its last for nothing.
    """
    total, count = 0.0, 0
    last: Batch | None = None
    source = iter(batches)
    with _evaluating(loss), torch.no_grad(), precision:
        while True:
            batch = next(source, None)
            if not parallel.any(batch is not None):
                break
            last = batch if batch is not None else last
            if last is None:  # fewer batches than processes
                last = (torch.zeros(1, 1, dtype=torch.int64),) * 2
            value = loss(*(part.to(device) for part in last)).item()
            if batch is not None:
                targets = int((batch[1] != IGNORED).sum())
                total, count = total + (value * targets if targets else 0.0), count + targets
    total, everyone = parallel.sum([total, count])
    return total / everyone if everyone else math.nan


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def perplexity_and_bits(loss: float, manifest_split: dict) -> tuple[float, float | None]:
    """Return perplexity, and bits a byte of the text, which is None where the data folder does not know its bytes."""
    size = manifest_split.get("bytes")
    bits = loss * manifest_split["tokens"] / size / math.log(2) if size else None
    return math.exp(min(loss, 700.0)), bits  # e^710 is past float64
