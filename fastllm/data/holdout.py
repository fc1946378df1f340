"""Which part of the text is for validation: decided after a first reading, from each document's length and hash.

Documents are put into GROUPS groups by a hash of their text and the seed; the groups' order is the draw. Equal
documents are of one group, and a group goes to one split as a whole: no copy of a training document is held out. A
group that is larger than one of the two splits is to be (a single text, two books, a document that is there many times)
cannot be held out whole, so each of its documents gives its end to validation.

What is known of each document waits on the disk for the second reading: memory does not grow with their number.
"""

import hashlib
import math
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastllm.data.documents import Chunk

_BITS = 20
GROUPS = 1 << _BITS
WHOLE = sys.maxsize  # a cut behind the end of every document: all of it is for training
LEFT_OUT = -1  # the cut of a document that is in neither split
_RECORD = np.dtype([("hash", "<u8"), ("length", "<i8")])
_BLOCK = 1 << 16  # records that are in memory at once
_KNOWN = 1 << 20  # hashes that are in memory at once
_WHITE = b" \t\n\r\v\f"


class Survey:
    """What a first reading finds out about the documents.

    Args:
        seed: of the draw.
        scratch: a folder for a temporary file, which has no name there.
    """

    def __init__(self, seed: int, scratch: Path) -> None:
        self.seed = seed
        self.documents = self.characters = 0
        self._prefix = f"{seed}:".encode()
        self._file = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - it lives as long as the survey
        self._waiting: list[tuple[int, int]] = []
        self._sizes = np.zeros(GROUPS, dtype=np.int64)  # characters

    def watch(self, chunks: Iterable[Chunk]) -> Iterator[str]:
        """Pass on the texts."""
        length, digest = 0, self._digest()
        for text, ends in chunks:
            # White space does not count: a file's last document may end in a newline that its copy elsewhere lacks.
            digest.update(text.encode("utf-8", "surrogatepass").translate(None, _WHITE))
            length += len(text)
            if ends:
                self._waiting.append((int.from_bytes(digest.digest(), "little"), length))
                self.documents += 1
                self.characters += length
                length, digest = 0, self._digest()
                if len(self._waiting) == _BLOCK:
                    self._write()
            yield text
        self._write()

    def _digest(self) -> "hashlib.blake2b":
        digest = hashlib.blake2b(digest_size=8)
        digest.update(self._prefix)
        return digest

    def _write(self) -> None:
        records = np.array(self._waiting, dtype=_RECORD)
        np.add.at(self._sizes, _groups(records), records["length"])
        self._file.write(records.tobytes())
        self._waiting = []

    def close(self) -> None:
        """Delete the temporary file."""
        self._file.close()

    def records(self) -> Iterator[np.ndarray]:
        """Give what is known of each document, in blocks of at most _BLOCK."""
        self._file.seek(0)
        while block := self._file.read(_BLOCK * _RECORD.itemsize):
            yield np.frombuffer(block, dtype=_RECORD)

    def leave_out(self, other: "Survey") -> tuple[int, int]:
        """Leave out what another survey, of the same seed, has too; return how many documents and characters."""
        documents = characters = 0
        self._file.flush()
        records = np.memmap(self._file, dtype=_RECORD, mode="r+")
        for known in other._hashes():
            for start in range(0, len(records), _BLOCK):
                block = records[start : start + _BLOCK]
                found = np.isin(block["hash"], known) & (block["length"] >= 0)
                documents += int(found.sum())
                characters += int(block["length"][found].sum())
                block["length"][found] = LEFT_OUT
        records.flush()
        self.documents -= documents
        self.characters -= characters
        return documents, characters

    def _hashes(self) -> Iterator[np.ndarray]:
        waiting: list[np.ndarray] = []
        for block in self.records():
            waiting.append(block["hash"])
            if len(waiting) * _BLOCK >= _KNOWN:
                yield np.concatenate(waiting)
                waiting = []
        if waiting:
            yield np.concatenate(waiting)

    def whole(self, *, val: bool) -> "HoldOut":
        """Return a hold-out of all documents, or of none."""
        return HoldOut(self, np.full(GROUPS, _VAL if val else 0, dtype=np.uint8), 0.0, float(val), False)

    def hold_out(self, share: float) -> "HoldOut":
        """Return which part of what was read is for validation: near to this share of the characters."""
        groups = np.flatnonzero(self._sizes)
        sizes = self._sizes[groups]
        # Not under what a group of many short documents has: those are never cut.
        largest = math.ceil(max(min(share, 1 - share), 16 / GROUPS) * self.characters)
        long = sizes > largest
        chosen = choose(sizes[~long].tolist(), share, keep=not long.any())
        roles = np.zeros(GROUPS, dtype=np.uint8)
        roles[groups[long]] = _CUT
        roles[groups[~long][chosen]] = _VAL
        held, cut = int(sizes[~long][chosen].sum()), int(sizes[long].sum())
        # Of several texts the long ones make up for what whole documents are off by.
        tail = share if cut == self.characters else min(max((share * self.characters - held) / max(cut, 1), 0.0), 1.0)
        return HoldOut(self, roles, tail, held / self.characters, cut == self.characters)


_VAL, _CUT = 1, 2  # roles of a group; 0 is for training


def _groups(records: np.ndarray) -> np.ndarray:
    return (records["hash"] >> np.uint64(64 - _BITS)).astype(np.int64)


def choose(sizes: list[int], share: float, keep: bool) -> list[int]:
    """Return which groups, in their order, come nearest to a share of their sum together.

    Args:
        sizes: of the groups.
        share: wanted.
        keep: at least one must be chosen, and one must be left.
    """
    wanted, total, chosen = share * sum(sizes), 0, []
    for index, size in enumerate(sizes):
        if abs(total + size - wanted) < abs(total - wanted):
            total += size
            chosen.append(index)
    if keep and len(sizes) > 1 and len(chosen) in (0, len(sizes)):
        shortest = min(range(len(sizes)), key=sizes.__getitem__)
        return [index for index in range(len(sizes)) if (index == shortest) == (not chosen)]
    return chosen


class HoldOut(NamedTuple):
    """The validation split.

    Attributes:
        survey: of the documents.
        roles: of each group.
        tail: the share of each long document, at its end, that is held out.
        drawn: the share of all characters that is in the documents that are held out whole.
        all_long: every document gives its end.
    """

    survey: Survey
    roles: np.ndarray
    tail: float
    drawn: float
    all_long: bool

    def cuts(self) -> Iterator[int]:
        """Give for each document how many of its characters are for training: 0, WHOLE, its part, or LEFT_OUT."""
        rounding = 0.0 if self.survey.documents == 1 else 0.5
        for records in self.survey.records():
            roles, lengths = self.roles[_groups(records)], records["length"]
            cuts = np.where(roles == _VAL, 0, WHOLE)
            # Rounded up, many short documents would give too much.
            heads = np.minimum(lengths * (1 - self.tail) + rounding, lengths - 1).astype(np.int64)
            cuts = np.where((roles == _CUT) & (self.tail > 0), heads, cuts)
            yield from np.where(lengths < 0, LEFT_OUT, cuts).tolist()

    def describe(self) -> str:
        """Say which part is held out, for the manifest."""
        if self.all_long:
            each = "" if self.survey.documents == 1 else " of each document"
            return f"the last {self.tail:g} of the characters{each}"
        drawn = f"documents with {self.drawn:.3g} of the characters, drawn with the seed {self.survey.seed}"
        if not (self.roles == _CUT).any() or self.tail == 0:
            return drawn
        tails = f"the last {self.tail:.3g} of the characters of each long document"
        return f"{drawn}, and {tails}" if self.drawn else tails
