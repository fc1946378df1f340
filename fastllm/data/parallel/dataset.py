"""Reading a folder of pairs: token ids of both sides, memory-mapped and checked."""

import hashlib
from pathlib import Path

import numpy as np

from fastllm.data.dataset import DataFolder, Split
from fastllm.data.documents import shown
from fastllm.data.parallel.preparation import KIND, SIDES, SPLITS, VERSION
from fastllm.errors import UserError
from fastllm.tokenizers import PairTokenizer, load_tokenizer


class ParallelSplit:
    """The pairs of a split.

    Args:
        source, target: the token ids of both sides; each sentence ends in the token that ends one.
        tokenizer: gives them back as texts.

    Attributes:
        source_lengths, target_lengths: tokens of each sentence, its end counted.
    """

    def __init__(self, source: Split, target: Split, tokenizer: PairTokenizer) -> None:
        self._source, self._target, self._tokenizer = source, target, tokenizer
        self.source_lengths, self.target_lengths = _lengths(source), _lengths(target)

    def __len__(self) -> int:
        return len(self.source_lengths)

    def source_ids(self, i: int) -> np.ndarray:
        """Return the ids of a source, int64."""
        return _read(self._source, self.source_lengths, i)

    def target_ids(self, i: int) -> np.ndarray:
        """Return the ids of a target, int64."""
        return _read(self._target, self.target_lengths, i)

    def source_text(self, i: int) -> str:
        """Return a source, its tags in front."""
        return self._tokenizer.decode_source(self.source_ids(i))

    def target_text(self, i: int) -> str:
        """Return a target."""
        return self._tokenizer.decode_target(self.target_ids(i))


def _lengths(split: Split) -> np.ndarray:
    return np.diff(np.append(split.starts, len(split))) if len(split) else np.zeros(0, np.int64)


def _read(split: Split, lengths: np.ndarray, i: int) -> np.ndarray:
    start = int(split.starts[i])
    return split.read(start, start + int(lengths[i]))


class ParallelData(DataFolder):
    """The data folder of translation models.

    Args:
        folder: where `fastllm prepare parallel` wrote.

    Attributes:
        tokenizer: of both sides.

    Raises:
        UserError: the folder is missing, incomplete, damaged, of another kind or of another version.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, "folder of sentence pairs", "fastllm prepare parallel")
        if self.manifest.get("kind") != KIND:
            raise UserError(
                f"{shown(self.folder)} has text of one language: translation models (--model transformer) learn from "
                "sentence pairs, which `fastllm prepare parallel` makes a folder of"
            )
        tokenizer = load_tokenizer(self.folder)
        if not isinstance(tokenizer, PairTokenizer):
            raise UserError(f"{shown(self.folder)} is damaged: its tokenizer is no pair: run prepare again")
        self.tokenizer = tokenizer
        with self.damage_told():
            self.require_version(VERSION)
            self._splits = {name: self._open(self.manifest["splits"][name]) for name in SPLITS}

    def _open(self, entry: dict) -> ParallelSplit:
        source, target = (self.open_split(entry[side]) for side in SIDES)
        return ParallelSplit(source, target, self.tokenizer)

    def identity(self) -> str:
        """Return a SHA-256 of the pairs, wherever the folder is."""
        digest = hashlib.sha256()
        for name in SPLITS:
            for side in SIDES:
                entry = self.manifest["splits"][name][side]
                for file in (*(shard["file"] for shard in entry["shards"]), entry["starts"]):
                    digest.update(self.manifest["files"][file].encode())
        return digest.hexdigest()

    def split(self, name: str) -> ParallelSplit:
        """Return "train", "val" or "test", which may have no pairs."""
        return self._splits[name]
