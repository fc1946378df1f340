"""Loss over batches that nothing is learnt from, shared out over all processes."""

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from fastllm.data.batches import IGNORED, Batch
from fastllm.data.dataset import Split
from fastllm.train.parallel import Parallel


def mean_loss(
    loss: torch.nn.Module, batches: Iterable[Batch], parallel: Parallel, device: torch.device,
    precision: AbstractContextManager,
) -> float:  # fmt: skip
    """Return the mean loss a target in nats over the batches of all processes, each target once.

    The processes must have equally many batches: FSDP's run forward together.
    """
    total, count = 0.0, 0
    with _evaluating(loss), torch.no_grad(), precision:
        for batch in batches:
            targets = int((batch.targets != IGNORED).sum())
            value = loss(*(part.to(device) for part in batch if part is not None)).item()
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


def perplexity_and_bits(loss: float, split: Split, document_mask: bool = False) -> tuple[float, float | None]:
    """Return perplexity, and bits a byte of the text, by which models with different tokenizers compare.

    With document_mask the first token of a document is never predicted, and no bits are given: they would be too few.
    """
    bits = None if document_mask else loss * len(split) / split.bytes / math.log(2)
    return math.exp(min(loss, 700.0)), bits  # e^710 is past float64
