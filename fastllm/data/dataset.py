"""Reading a data folder: token ids and documents' beginnings, memory-mapped and checked."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from fastllm.data.discovery import MANIFEST
from fastllm.data.documents import shown
from fastllm.data.pieces import SPLITS
from fastllm.data.preparation import VERSION
from fastllm.data.shards import STARTS
from fastllm.errors import UserError
from fastllm.files import previous, sha256
from fastllm.tokenizers import Tokenizer, load_tokenizer


class Split:
    """The tokens of a split: a sequence of ids in several arrays, and the documents in it.

    Args:
        shards: the ids, in order; all but the last of one size.
        starts: where each document begins, rising from 0; the default is one document.
        characters: of the text.
        bytes: of the text in UTF-8, for bits per byte.

    Example:
        >>> split = Split([np.array([5, 6, 7]), np.array([8, 9])], starts=np.array([0, 2]))
        >>> split.read(1, 4), split.segments(1, 4)
        (array([6, 7, 8]), array([0, 1, 1]))
    """

    def __init__(
        self, shards: list[np.ndarray], starts: np.ndarray | None = None, characters: int = 0, bytes: int = 0
    ) -> None:
        self._shards = shards
        self._size = len(shards[0]) if shards else 0
        self._length = sum(len(shard) for shard in shards)
        self.starts = np.zeros(1, dtype=STARTS) if starts is None else starts
        self.characters, self.bytes = characters, bytes

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the ids [start, stop), int64."""
        ids = np.empty(stop - start, dtype=np.int64)
        position = start
        while position < stop:
            shard, offset = divmod(position, self._size)
            part = self._shards[shard][offset : offset + stop - position]
            ids[position - start : position - start + len(part)] = part
            position += len(part)
        return ids

    def segments(self, start: int, stop: int) -> np.ndarray:
        """Return the number of each document of the ids [start, stop), counted from the first's; int64."""
        first, last = np.searchsorted(self.starts, [start, stop - 1], side="right")
        begins = np.zeros(stop - start, dtype=np.int64)
        begins[np.asarray(self.starts[first:last]) - start] = 1
        return begins.cumsum()


class TokenData:
    """A prepared data folder.

    Args:
        folder: where `fastllm prepare` wrote.

    Raises:
        UserError: the folder is missing, incomplete, damaged or of another version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.exists() and previous(self.folder).exists():
            self.folder = previous(self.folder)  # prepare was killed between its two renames
        path = self.folder / MANIFEST
        if not path.is_file():
            what = f"it has no {MANIFEST}" if self.folder.exists() else "it does not exist"
            raise UserError(f"{shown(self.folder)} is not a data folder ({what}): make one with `fastllm prepare`")
        try:
            self.manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if self.manifest.get("kind") == "parallel":
                raise UserError(
                    f"{shown(self.folder)} has pairs of sentences, which translation models learn from: train with "
                    "--model transformer"
                )
            if self.manifest["version"] != VERSION:
                raise UserError(
                    f"{shown(path)}: 'version' must be {VERSION}, got {self.manifest['version']}: "
                    "run `fastllm prepare` again"
                )
            dtype = np.dtype(self.manifest["dtype"])
            self._splits = {name: self._open(self.manifest["splits"][name], dtype) for name in SPLITS}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{shown(path)} is damaged ({error}): run `fastllm prepare` again") from error
        self.tokenizer: Tokenizer = load_tokenizer(self.folder)

    def _open(self, entry: dict, dtype: np.dtype) -> Split:
        shards = [map_file(self.folder / shard["file"], dtype, shard["tokens"]) for shard in entry["shards"]]
        starts = map_file(self.folder / entry["starts"], STARTS, entry["documents"])
        return Split(shards, starts, entry["characters"], entry["bytes"])

    def verify(self) -> None:
        """Compare all files with the manifest's checksums.

        Raises:
            UserError: a file is damaged.
        """
        verify_files(self.folder, self.manifest["files"])

    def split(self, name: str, context_length: int) -> Split:
        """Return "train" or "val".

        Raises:
            UserError: the split is shorter than one context and the token after it.
        """
        split = self._splits[name]
        if len(split) < context_length + 1:
            raise UserError(
                f"{shown(self.folder)}: the split '{name}' has {len(split)} tokens, but a context of {context_length} "
                f"needs at least {context_length + 1}: use more text or a smaller context_length"
            )
        return split


def map_file(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    """Return a data folder's file as an array, without reading it.

    Raises:
        UserError: it is missing or has another size.
    """
    expected = count * dtype.itemsize
    size = path.stat().st_size if path.is_file() else 0
    if size != expected:
        damage = f"expected {expected} bytes, got {size}"
        raise UserError(f"{shown(path)} is damaged: {damage}: run `fastllm prepare` again")
    return np.memmap(path, dtype=dtype, mode="r") if count else np.zeros(0, dtype)


def verify_files(folder: Path, checksums: dict[str, str]) -> None:
    """Compare files with their SHA-256.

    Raises:
        UserError: one is missing or damaged.
    """
    for name, expected in checksums.items():
        if not (folder / name).is_file() or sha256(folder / name) != expected:
            raise UserError(f"{shown(folder / name)} is damaged: run `fastllm prepare` again")
