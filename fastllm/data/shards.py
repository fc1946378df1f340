"""The files of a split: shards of token ids, cut at a fixed number of tokens, and where documents begin."""

import hashlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fastllm.data.encoding import Encoded

STARTS = np.dtype("<i8")


class HashedFile:
    """A file being written, and its SHA-256."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("wb")
        self._digest = hashlib.sha256()

    def write(self, values: np.ndarray) -> None:
        """Append an array's memory."""
        data = np.ascontiguousarray(values).data.cast("B")
        self._file.write(data)
        self._digest.update(data)

    def close(self) -> str:
        """Return the SHA-256 in hex."""
        self._file.close()
        return self._digest.hexdigest()


class SplitWriter:
    """Writes one split into a folder.

    Args:
        folder: where.
        name: "train" or "val".
        dtype: of the ids.
        shard_tokens: ids a shard has; the last has the rest.
        end_of_text: an id that follows each document; None for none.
    """

    def __init__(self, folder: Path, name: str, dtype: np.dtype, shard_tokens: int, end_of_text: int | None) -> None:
        self.folder, self.name, self.dtype, self.shard_tokens = folder, name, dtype, shard_tokens
        self._end = np.array([] if end_of_text is None else [end_of_text], dtype=dtype)
        self.tokens = self.documents = self.characters = self.bytes = 0
        self.checksums: dict[str, str] = {}  # by file
        self._shards: list[dict] = []
        self._shard: HashedFile | None = None
        self._starts = HashedFile(folder / f"{name}-documents.bin")
        self._inside = False

    def add(self, encoded: Encoded) -> None:
        """Append a piece. Only bytes of the source are counted, so bits per byte compare between tokenizers."""
        self.characters += len(encoded.piece.text) - encoded.piece.added
        self.bytes += encoded.bytes - encoded.piece.added
        self._append(encoded.ids)
        if encoded.piece.ends:
            self._append(self._end)
            self._inside = False

    def _append(self, ids: np.ndarray) -> None:
        if len(ids) and not self._inside:
            self._starts.write(np.array([self.tokens], dtype=STARTS))
            self._inside = True
            self.documents += 1
        while len(ids):
            if self._shard is None:
                self._shard = HashedFile(self.folder / f"{self.name}-{len(self._shards):05d}.bin")
            room = self.shard_tokens - self.tokens % self.shard_tokens
            self._shard.write(ids[:room])
            self.tokens += len(ids[:room])
            ids = ids[room:]
            if self.tokens % self.shard_tokens == 0:
                self._close_shard()

    def _close_shard(self) -> None:
        if self._shard is not None:
            before = len(self._shards) * self.shard_tokens
            self._shards.append({"file": self._shard.path.name, "tokens": self.tokens - before})
            self._finish(self._shard)
            self._shard = None

    def _finish(self, file: HashedFile) -> None:
        self.checksums[file.path.name] = file.close()

    def close(self) -> dict:
        """Finish the files; return the manifest's entry."""
        self._close_shard()
        self._finish(self._starts)
        return {
            "tokens": self.tokens,
            "documents": self.documents,
            "characters": self.characters,
            "bytes": self.bytes,
            "shards": self._shards,
            "starts": self._starts.path.name,
        }
