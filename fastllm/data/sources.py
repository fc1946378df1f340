"""Text to be prepared, read as a stream of documents that may be larger than memory.

A source is read from its start as often as asked for, and gives chunks: parts of a document's text, the last of which
says so. Documents with nothing but white space are left out. It knows nothing of tokens.
"""

import gzip
import io
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from fastllm.data.discovery import STDIN, cannot_read, find, format_of
from fastllm.data.documents import (
    BLOCK,
    Chunk,
    decode,
    json_array,
    json_lines,
    separate,
    shown,
    without_blank,
)
from fastllm.errors import UserError, UserValueError

FORMATS = ("auto", "text", "jsonl", "json")
_LISTED = 10
_GZIP = b"\x1f\x8b"


class Source(Protocol):
    """What prepare reads."""

    names: list[str]
    size: int  # what `done` counts up to in one reading; 0 if that is not known

    @property
    def notes(self) -> list[str]:
        """What the last reading found that may be a mistake."""

    def open(self, scratch: Path) -> None:
        """Get ready; temporary files go into the folder scratch and have no name there."""

    def read(self, done: Callable[[int], None]) -> Iterator[Chunk]:
        """Read everything from the start, and tell done how much that was so far."""


class TextSource:
    """One document that is in memory.

    Args:
        text: the document.
        names: what it is, for the manifest.
    """

    def __init__(self, text: str, names: list[str]) -> None:
        self.text, self.names, self.size = text, names, len(text)
        self.notes: list[str] = []

    def open(self, scratch: Path) -> None:
        """Do nothing: it is here."""

    def read(self, done: Callable[[int], None]) -> Iterator[Chunk]:
        """Read the text from the start."""
        for start in range(0, self.size, BLOCK):
            yield Chunk(self.text[start : start + BLOCK], start + BLOCK >= self.size)
            done(min(start + BLOCK, self.size))


class FileSource:
    """Files and folders of UTF-8 text.

    A text file is one document, or several with a separator between them; a line of a JSON Lines file is one, and so is
    a record of a JSON file, which is an array of objects or of strings. Folders are searched to their bottom, also
    through links, for files that end in .txt, .jsonl or .ndjson, or one of them and .gz, in the order of their paths;
    names that start with a dot, and data folders, are passed by. "-" is the standard input, which is copied to the disk
    first, as everything is read twice.

    Args:
        paths: in order; a file that is in them twice is read once.
        field: where an object of a JSON file has its text.
        separator: what stands between the documents of a text file; it belongs to none of them.
        format: "text", "jsonl" or "json"; "auto" goes by the last suffix before .gz: .jsonl and .ndjson, .json, and
            text for all others.
        without: a source whose files are not to be read.

    Attributes:
        files: what is read, in order.
        skipped: names of files and folders in the paths that are not read.

    Raises:
        UserError: a path does not exist, a folder has no text, or format is something else.
    """

    def __init__(
        self,
        paths: list[Path],
        field: str = "text",
        separator: str | None = None,
        format: str = "auto",
        *,
        without: "FileSource | None" = None,
    ) -> None:
        if format not in FORMATS:
            raise UserValueError(f"prepare text: 'format' must be one of {', '.join(FORMATS)}, got '{format}'")
        if separator == "":
            raise UserValueError("prepare text: 'document_separator' must not be empty")
        self.field, self.separator, self.format = field, separator, format
        self.names = [shown(path) for path in paths]
        self.skipped: list[str] = []
        self._empty: list[str] = []
        self._separators = 0  # that the last reading found
        self._named = set(paths)
        found: dict[Path, Path] = {}
        taken = {_identity(file) for file in without.files} if without else set()
        for path in paths:
            for file in find(path, self.skipped):
                if _identity(file) not in taken:
                    found.setdefault(_identity(file), file)
        self.files: list[Path] = list(found.values())
        if not self.files:
            raise UserError("prepare text: all files are for validation too, and none is left to train on")
        self.size = sum(_size(file) for file in self.files if file != STDIN)
        self._stdin: BinaryIO | None = None

    def format_of(self, file: Path) -> str:
        """Return what a file is read as: "text", "jsonl" or "json"."""
        return self.format if self.format != "auto" else format_of(file) or "text"

    @property
    def file_names(self) -> list[str]:
        """The files, as text."""
        return [_name(file) for file in self.files]

    @property
    def notes(self) -> list[str]:
        """What the last reading found that may be a mistake."""
        notes = []
        if self._empty:
            notes.append(f"no text in {listed(self._empty)}")
        texts = [_name(file) for file in self.files if self.format_of(file) == "text"]
        if self.separator is not None and texts and not self._separators:
            notes.append(
                f"the document separator {self.separator!r} does not occur in {listed(texts)}: "
                "each file is one document"
            )
        return notes

    def open(self, scratch: Path) -> None:
        """Copy the standard input, where it is wanted, to a nameless file in scratch."""
        if STDIN not in self.files:
            return
        self._stdin = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - it lives as long as the source
        while block := sys.stdin.buffer.read(BLOCK):
            self._stdin.write(block)
        self._stdin.flush()
        self.size += self._stdin.tell()

    def read(self, done: Callable[[int], None]) -> Iterator[Chunk]:
        """Read the documents of all files.

        Raises:
            UserError: a file cannot be read, was named and is empty, is not UTF-8, no valid .gz, or a line of it is not
                as it should be; the message names it and the place.
        """
        before = self._separators = 0
        self._empty = []
        for file in self.files:
            name = _name(file)
            empty, told = True, 0
            try:
                with self._open(file) as raw:
                    for chunk in without_blank(self._documents(raw, file, name)):
                        empty = False
                        yield chunk
                        if raw.tell() >= told + BLOCK:  # not for each of many short documents
                            told = raw.tell()
                            done(before + told)
                    before += raw.tell()
                    done(before)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise UserError(f"prepare text: {name} is not a valid .gz file, or is incomplete: {error}") from error
            except OSError as error:
                cannot_read(name, error)
            if empty and file in self._named:
                raise UserError(f"prepare text: {name} has no text: it is empty or only white space")
            if empty:
                self._empty.append(name)

    def _open(self, file: Path) -> BinaryIO:
        if file != STDIN:
            return file.open("rb")
        assert self._stdin is not None, "open comes before read"
        self._stdin.seek(0)
        return os.fdopen(os.dup(self._stdin.fileno()), "rb")

    def _documents(self, raw: BinaryIO, file: Path, name: str) -> Iterator[Chunk]:
        zipped = raw.read(len(_GZIP)) == _GZIP or file.name.lower().endswith(".gz")
        raw.seek(0)
        data = io.BufferedReader(gzip.GzipFile(fileobj=raw), BLOCK) if zipped else raw
        format = self.format_of(file)
        if format == "text":
            chunks = decode(data, name)
            return chunks if self.separator is None else separate(chunks, self.separator, self._separated)
        return (json_lines if format == "jsonl" else json_array)(data, name, self.field)

    def _separated(self) -> None:
        self._separators += 1


def listed(names: list[str]) -> str:
    """Name some of many."""
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _name(file: Path) -> str:
    return "the standard input" if file == STDIN else shown(file)


def _identity(file: Path) -> Path:
    return file if file == STDIN else file.resolve()


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        cannot_read(file, error)
