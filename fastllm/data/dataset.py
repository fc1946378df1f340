"""Reading a data folder: memory-mapped tokens, and batches whose position can be saved and restored."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastllm.data.prepare import SPLITS, VERSION
from fastllm.errors import UserError
from fastllm.files import sha256
from fastllm.tokenizers import Tokenizer, load_tokenizer

# B batch, T tokens of context


class TokenData:
    """A prepared data folder.

    Args:
        folder: where `fastllm prepare` wrote.

    Raises:
        UserError: the folder is missing, incomplete or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "manifest.json"
        if not path.is_file():
            raise UserError(
                f"{self.folder} is not a data folder (it has no manifest.json): run `fastllm prepare` first"
            )
        try:
            self.manifest = json.loads(path.read_text(encoding="utf-8"))
            version, dtype = self.manifest["version"], np.dtype(self.manifest["dtype"])
            counts = {name: self.manifest["splits"][name]["tokens"] for name in SPLITS}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): run `fastllm prepare` again") from error
        if version != VERSION:
            raise UserError(f"{path}: 'version' must be {VERSION}, got {version}: run `fastllm prepare` again")
        self.tokenizer: Tokenizer = load_tokenizer(self.folder)
        self._splits = {name: self._map(name, dtype, counts[name]) for name in SPLITS}

    def _map(self, name: str, dtype: np.dtype, count: int) -> np.ndarray:
        path, expected = self.folder / f"{name}.bin", count * dtype.itemsize
        size = path.stat().st_size if path.is_file() else 0
        if size != expected:
            raise UserError(f"{path} must have {expected} bytes, got {size}: run `fastllm prepare` again")
        return np.memmap(path, dtype=dtype, mode="r")

    def verify(self) -> None:
        """Compare the token files with the manifest's checksums.

        Raises:
            UserError: a file is damaged.
        """
        for name in SPLITS:
            if sha256(self.folder / f"{name}.bin") != self.manifest["splits"][name]["sha256"]:
                raise UserError(f"{self.folder}/{name}.bin is damaged: run `fastllm prepare` again")

    def split(self, name: str, context_length: int) -> np.ndarray:
        """Return the tokens of "train" or "val".

        Raises:
            UserError: the split is shorter than one context and the token after it.
        """
        tokens = self._splits[name]
        if len(tokens) < context_length + 1:
            raise UserError(
                f"{self.folder}/{name}.bin has {len(tokens)} tokens, but a context of {context_length} needs at least "
                f"{context_length + 1}: take a longer text or a smaller context_length"
            )
        return tokens


class Batches:
    """Random windows of a split, without end: (tokens, targets), each (B, T) int64, targets one token ahead.

    Each epoch cuts the tokens into windows of T at a fresh random offset and takes each once, in a random order. So
    nothing is drawn twice in an epoch, and the whole state is two numbers: batch n is a function of (seed, n).

    Args:
        tokens: the split's ids, 1-d.
        batch_size: B.
        context_length: T.
        seed: of the order.
        position: the number of batches already taken.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, context_length: int, seed: int, position: int = 0) -> None:
        self.tokens, self.batch_size, self.context_length = tokens, batch_size, context_length
        self.seed, self.position = seed, position
        self._epoch = -1
        self._starts = np.empty(0, dtype=np.int64)

    def _windows(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            random = np.random.Generator(np.random.PCG64([self.seed, epoch]))
            spare = len(self.tokens) - 1 - self._per_epoch() * self.context_length
            offset = random.integers(spare + 1)
            self._starts = random.permutation(self._per_epoch()) * self.context_length + offset
            self._epoch = epoch
        return self._starts

    def _per_epoch(self) -> int:
        # One window fewer than fit leaves room for the offset, unless only one fits.
        return max(1, (len(self.tokens) - 1) // self.context_length - 1)

    def next(self) -> tuple[Tensor, Tensor]:
        """Return the next batch."""
        first = self.position * self.batch_size
        starts = []
        for window in range(first, first + self.batch_size):
            epoch, index = divmod(window, self._per_epoch())
            starts.append(self._windows(epoch)[index])
        self.position += 1
        t = self.context_length
        rows = np.stack([self.tokens[start : start + t + 1] for start in starts]).astype(np.int64)
        both = torch.from_numpy(rows)
        return both[:, :-1], both[:, 1:]
