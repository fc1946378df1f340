"""Translation: a target sentence is predicted from its source, token by token."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastllm.data import PairBatch, ParallelBatches, ParallelData, pair_batches
from fastllm.data.source import WHOLE, Share
from fastllm.errors import UserError
from fastllm.generation import translate
from fastllm.generation.scoring import can_score, score
from fastllm.tokenizers import PairTokenizer
from fastllm.train.config import TrainConfig
from fastllm.train.task import Task

_SAMPLES = 8  # sentences of a sample
_BEAMS = 4  # of the whole split's translation


class TranslationTask(Task):
    """A run on a folder that `fastllm prepare parallel` wrote; its models are encoder-decoders."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.data = ParallelData(folder)
        self.tokenizer: PairTokenizer = self.data.tokenizer
        self.splits = tuple(name for name in ("train", "val", "test") if len(self.data.split(name)))

    def verify(self) -> None:
        """Compare all files with their checksums."""
        self.data.verify()

    def identity(self) -> str:
        """Return a SHA-256 of the pairs."""
        return self.data.identity()

    def begin(self, config: TrainConfig, processes: int = 1) -> None:
        """Plan the batches; a pair must fit into the model's context_length."""
        self._config, longest = config, config.model.context_length
        for name in ("train", "val"):
            split = self.data.split(name)
            if not len(split):
                raise UserError(f"train: {self.folder} has no pairs for {name}: prepare it with some")
            most = int(max(split.source_lengths.max(), split.target_lengths.max()))
            if most > longest:
                raise UserError(
                    f"train: 'context_length' must be at least {most}, the tokens of the longest sentence in {name} "
                    f"of {self.folder}, got {longest}"
                )
        self.source: ParallelBatches = self._batches("train", config.seed, config.subword_sampling)
        self.judges = config.eval_translations > 0 and can_score()

    def _batches(self, split: str, seed: int, alpha: float = 0.0) -> ParallelBatches:
        longest = self._config.model.context_length
        pairs = self.data.split(split)
        return ParallelBatches(pairs, self.tokenizer, self._config.batch_tokens, seed, longest=longest, alpha=alpha)

    def epoch(self, step: int) -> float:
        """Return how many pairs were seen so far as a multiple of the training split's."""
        return self.source.pairs_seen(step) / len(self.data.split("train"))

    def tokens(self, step: int) -> int:
        """Return how many tokens of targets were predicted so far."""
        return self.source.targets_seen(step)

    def some(self, split: str, batches: int, share: Share) -> Iterator[PairBatch]:
        """Yield batches that are drawn as in training, but with another seed and the best segmentations."""
        source = self._batches(split, seed=0)
        for _ in range(batches):
            yield from self._parts(source.next(share))

    def all(self, split: str, share: Share = WHOLE) -> Iterator[PairBatch]:
        """Yield pairs by their lengths."""
        pairs = self.data.split(split)
        yield from pair_batches(pairs, self.tokenizer, self._config.batch_tokens, share)

    def _parts(self, batch: PairBatch) -> list[PairBatch]:
        return batch.split(self._config.micro_batch_size or batch.size)

    def measures(self, split: str, loss: float) -> dict[str, float | None]:
        """Return perplexity."""
        return {"perplexity": math.exp(min(loss, 700.0))}  # e^710 is past float64

    def judge(self, model: Any, split: str, whole: bool) -> dict[str, float]:
        """Return bleu and chrf: of the whole split with a beam, or greedily of the same few of its pairs each time."""
        if whole:
            return self.scores(model, split, _BEAMS)[0]
        return self._score(model, split, spread(len(self.data.split(split)), self._config.eval_translations), 1)[0]

    def scores(self, model: Any, split: str, num_beams: int) -> tuple[dict[str, float], dict[str, str]]:
        """Return bleu and chrf of a whole split, and their signatures; nothing without sacrebleu."""
        return self._score(model, split, range(len(self.data.split(split))), num_beams) if can_score() else ({}, {})

    def _score(self, model: Any, split: str, chosen: Sequence[int], num_beams: int) -> tuple[dict, dict]:
        pairs = self.data.split(split)
        found = translate(model, self.tokenizer, [pairs.source_text(i) for i in chosen], num_beams=num_beams)
        return score([one.text for one in found], [pairs.target_text(i) for i in chosen])

    def sample(self, model: Any, seed: int) -> str:
        """Return a few sources of the validation split with their references and translations."""
        pairs = self.data.split("val")
        chosen = spread(len(pairs), _SAMPLES)
        found = translate(model, self.tokenizer, [pairs.source_text(i) for i in chosen], num_beams=_BEAMS)
        return "\n\n".join(
            f"source:      {pairs.source_text(i)}\nreference:   {pairs.target_text(i)}\ntranslation: {one.text}"
            for i, one in zip(chosen, found, strict=True)
        )


def spread(count: int, wanted: int) -> list[int]:
    """Return at most `wanted` numbers below count, evenly spread, so that they are of all of a text."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64)).tolist()
