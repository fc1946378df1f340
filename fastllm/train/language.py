"""Language modelling: each token of a text is predicted from those before it."""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastllm.data import Batch, Batches, Split, TokenData, windows
from fastllm.data.source import WHOLE, Share
from fastllm.errors import UserValueError
from fastllm.generation import generate
from fastllm.train.config import TrainConfig
from fastllm.train.task import Task

_PROMPT_TOKENS, _SAMPLE_TOKENS = 16, 256


class LanguageModelling(Task):
    """A run on a folder that `fastllm prepare` wrote; its models are decoders."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.data = TokenData(folder)
        self.tokenizer = self.data.tokenizer

    def verify(self) -> None:
        """Compare all files with their checksums."""
        self.data.verify()

    def identity(self) -> str:
        """Return a SHA-256 of the tokens and where documents begin."""
        digest = hashlib.sha256()
        for _, split in sorted(self.data.manifest["splits"].items()):
            for file in (*(shard["file"] for shard in split["shards"]), split["starts"]):
                digest.update(self.data.manifest["files"][file].encode())
        return digest.hexdigest()

    def begin(self, config: TrainConfig, processes: int = 1) -> None:
        """Cut the splits into windows of the model's context_length."""
        if config.batch_size % processes:
            raise UserValueError(
                f"train: 'batch_size' must be a multiple of the {processes} processes, got {config.batch_size}"
            )
        self._context, self._batch_size = config.model.context_length, config.batch_size
        self._document_mask = config.document_mask
        self._splits: dict[str, Split] = {name: self.data.split(name, self._context) for name in ("train", "val")}
        self.source: Batches = self._batches("train", config.seed)
        self._rows_at_once = int(config.sequences_at_once(processes, self._context))

    def _batches(self, split: str, seed: int) -> Batches:
        return Batches(self._splits[split], self._batch_size, self._context, seed, document_mask=self._document_mask)

    def epoch(self, step: int) -> float:
        """Return the number of tokens seen so far as a multiple of the training split's."""
        return self.tokens(step) / (len(self._splits["train"]) - 1)

    def tokens(self, step: int) -> int:
        """Return how many tokens windows had so far."""
        return step * self._batch_size * self._context

    def some(self, split: str, batches: int, share: Share) -> Iterator[Batch]:
        """Yield batches that are drawn as in training, but with another seed."""
        source = self._batches(split, seed=0)
        for _ in range(batches):
            yield from source.next(share).split(self._rows_at_once)

    def all(self, split: str, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield windows that follow each other."""
        return windows(self._splits[split], self._context, self._rows_at_once, share, document_mask=self._document_mask)

    def measures(self, split: str, loss: float) -> dict[str, float | None]:
        """Return perplexity and bits_per_byte, see :func:`perplexity_and_bits`."""
        perplexity, bits = perplexity_and_bits(loss, self._splits[split], self._document_mask)
        return {"perplexity": perplexity, "bits_per_byte": bits}

    def sample(self, model: Any, seed: int) -> str:
        """Return how a model continues the beginning of the validation split."""
        prompt = self._splits["val"].read(0, min(_PROMPT_TOKENS, self._context)).tolist()
        tokens = self.tokenizer.vocab_size
        ids = generate(model, prompt, _SAMPLE_TOKENS, temperature=0.8, seed=seed, vocabulary=tokens)
        return self.tokenizer.decode([*prompt, *ids])


def perplexity_and_bits(loss: float, split: Split, document_mask: bool = False) -> tuple[float, float | None]:
    """Return perplexity, and bits per byte of the text, by which models with different tokenizers compare.

    With document_mask the first token of a document is never predicted, and no bits are given: they would be too few.
    """
    bits = None if document_mask else loss * len(split) / split.bytes / math.log(2)
    return math.exp(min(loss, 700.0)), bits  # e^710 is past float64
