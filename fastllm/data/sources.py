"""Text to be prepared, read as a stream of documents that may be larger than memory.

A source is read from its start as often as asked for, and gives chunks: parts of a document's text, the last of which
says so. Documents with nothing but white space are left out. It knows nothing of tokens.
"""

import codecs
import gzip
import io
import json
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn, Protocol

from fastllm.errors import UserError, UserValueError

STDIN = Path("-")
ENDINGS = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")  # what is read in a folder
FORMATS = ("auto", "text", "jsonl")
_BLOCK = 1 << 18  # bytes that are read at once
_GZIP = b"\x1f\x8b"


class Chunk(NamedTuple):
    """Some text of a document, and whether the document ends with it."""

    text: str
    ends: bool


class Source(Protocol):
    """What prepare reads."""

    names: list[str]
    size: int  # what `done` counts up to in one reading; 0 if that is not known

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

    def open(self, scratch: Path) -> None:
        """Do nothing: it is here."""

    def read(self, done: Callable[[int], None]) -> Iterator[Chunk]:
        """Read the text from the start."""
        for start in range(0, self.size, _BLOCK):
            yield Chunk(self.text[start : start + _BLOCK], start + _BLOCK >= self.size)
            done(min(start + _BLOCK, self.size))


class FileSource:
    """Files and folders of UTF-8 text.

    A text file is one document, or several with a separator between them; a line of a .jsonl file is one. Folders are
    searched to their bottom for files that end in .txt, .jsonl, .txt.gz or .jsonl.gz, in the order of their paths;
    names that start with a dot are passed by. "-" is the standard input, which is copied to the disk first, as
    everything is read twice.

    Args:
        paths: in order; a file that is in them twice is read once, or it could be in both splits.
        field: where a line of a .jsonl file has its text.
        separator: what stands between the documents of a text file; it belongs to none of them.
        format: "text" or "jsonl"; "auto" takes the files that end in .jsonl or .jsonl.gz for the latter.

    Raises:
        UserError: a path does not exist, a folder has no text, or format is something else.
    """

    def __init__(
        self, paths: list[Path], field: str = "text", separator: str | None = None, format: str = "auto"
    ) -> None:
        if format not in FORMATS:
            raise UserValueError(f"prepare text: 'format' must be one of {', '.join(FORMATS)}, got '{format}'")
        if separator == "":
            raise UserValueError("prepare text: 'document_separator' must not be empty")
        self.field, self.separator, self.format = field, separator, format
        self.names = [os.fsencode(path).decode("utf-8", "replace") for path in paths]
        found: dict[Path, Path] = {}
        for path in paths:
            for file in _files(path):
                found.setdefault(file if file == STDIN else file.resolve(), file)
        self.files = list(found.values())
        self.size = sum(_size(file) for file in self.files if file != STDIN)
        self._stdin: BinaryIO | None = None

    def open(self, scratch: Path) -> None:
        """Copy the standard input, where it is wanted, to a nameless file in scratch."""
        if STDIN not in self.files:
            return
        self._stdin = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - it lives as long as the source
        while block := sys.stdin.buffer.read(_BLOCK):
            self._stdin.write(block)
        self._stdin.flush()
        self.size += self._stdin.tell()

    def read(self, done: Callable[[int], None]) -> Iterator[Chunk]:
        """Read the documents of all files.

        Raises:
            UserError: a file cannot be read, is empty, not UTF-8, no sound .gz, or a line of it is not as it should be;
                the message names it and the place.
        """
        before = 0
        for file in self.files:
            name = "the standard input" if file == STDIN else str(file)
            empty, told = True, 0
            try:
                with self._open(file) as raw:
                    for chunk in _without_blank(self._documents(raw, file, name)):
                        empty = False
                        yield chunk
                        if raw.tell() >= told + _BLOCK:  # not for each of many short documents
                            told = raw.tell()
                            done(before + told)
                    before += raw.tell()
                    done(before)
            except gzip.BadGzipFile as error:
                raise UserError(f"prepare text: {name} is no sound .gz: {error}") from error
            except (EOFError, zlib.error) as error:
                raise UserError(f"prepare text: {name} is a damaged or unfinished .gz: {error}") from error
            except OSError as error:
                raise UserError(f"prepare text: cannot read {name}: {error.strerror or error}") from error
            if empty:
                raise UserError(f"prepare text: {name} is empty, or nothing but white space")

    def _open(self, file: Path) -> BinaryIO:
        if file != STDIN:
            return file.open("rb")
        assert self._stdin is not None, "open comes before read"
        self._stdin.seek(0)
        return os.fdopen(os.dup(self._stdin.fileno()), "rb")

    def _documents(self, raw: BinaryIO, file: Path, name: str) -> Iterator[Chunk]:
        zipped = file.suffix == ".gz"
        if file == STDIN:
            zipped = raw.read(len(_GZIP)) == _GZIP
            raw.seek(0)
        data = io.BufferedReader(gzip.GzipFile(fileobj=raw), _BLOCK) if zipped else raw
        lines = self.format == "jsonl" or (self.format == "auto" and ".jsonl" in file.suffixes[-2:])
        if lines:
            return _json_lines(data, name, self.field)
        chunks = _decode(data, name)
        return chunks if self.separator is None else _separate(chunks, self.separator)


def _files(path: Path) -> list[Path]:
    if path == STDIN or path.is_file():
        return [path]
    if not path.is_dir():
        if path.exists():  # a pipe or a device: it could not be read twice
            raise UserError(f"prepare text: {path} is not a file or folder; send it to the standard input, as -")
        raise UserError(f"prepare text: cannot read {path}: No such file or directory")
    found = []
    for folder, folders, names in os.walk(path, onerror=_cannot_read):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if name.endswith(ENDINGS) and not name.startswith(".")]
    if not found:
        raise UserError(f"prepare text: {path} has no files that end in {', '.join(ENDINGS)}")
    return sorted(found)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        _cannot_read(error)


def _cannot_read(error: OSError) -> NoReturn:
    raise UserError(f"prepare text: cannot read {error.filename}: {error.strerror}") from error


# ----------------------------------------------------------------------------------------------------------------------
# From bytes to documents
# ----------------------------------------------------------------------------------------------------------------------


def _decode(data: BinaryIO, name: str) -> Iterator[Chunk]:
    """Give the text of a file, one document."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    while True:
        block = data.read(_BLOCK)
        waiting = len(decoder.getstate()[0])  # bytes of a character that the last block cut
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise _not_utf8(name, error, offset - waiting) from error
        yield Chunk(text.removeprefix("\ufeff") if offset == 0 else text, ends=not block)
        if not block:
            return
        offset += len(block)


def _json_lines(data: BinaryIO, name: str, field: str) -> Iterator[Chunk]:
    """Give the text in each line of a .jsonl file, a document each."""
    offset = 0
    for number, line in enumerate(data, 1):
        where = f"{name}, line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if not text.isspace():
                yield Chunk(_field(json.loads(text), field, where), ends=True)
        except UnicodeDecodeError as error:
            raise _not_utf8(where, error, offset) from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"prepare text: {where} is not JSON: {error}") from error
        offset += len(line)


def _field(value: object, field: str, where: str) -> str:
    if not isinstance(value, dict):
        raise UserError(f"prepare text: {where} must be an object with the field '{field}', got {_kind(value)}")
    if field not in value:
        there = ", ".join(map(repr, value)) or "no fields"
        raise UserError(f"prepare text: {where} has no field '{field}' but {there}; name another with --field")
    text = value[field]
    if not isinstance(text, str):
        raise UserError(f"prepare text: {where}: '{field}' must be a text, got {_kind(text)}")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"prepare text: {where}: '{field}' has half of a surrogate pair, which is no character")
    return text


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _not_utf8(where: str, error: UnicodeDecodeError, offset: int) -> UserError:
    return UserError(
        f"prepare text: {where} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {offset + error.start} "
        "does not belong; convert the file first, e.g. with iconv"
    )


def _separate(chunks: Iterator[Chunk], separator: str) -> Iterator[Chunk]:
    """Split a document at each separator, also where two chunks share one."""
    kept = len(separator) - 1  # characters that may be the start of one
    rest = ""
    for text, ends in chunks:
        *whole, rest = (rest + text).split(separator)
        for document in whole:
            yield Chunk(document, ends=True)
        if ends:
            yield Chunk(rest, ends=True)
            return
        cut = max(0, len(rest) - kept)
        yield Chunk(rest[:cut], ends=False)
        rest = rest[cut:]


def _without_blank(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Leave out documents of nothing but white space."""
    leading: list[Chunk] = []  # white space that may turn out to be all there is
    blank = True
    for chunk in chunks:
        if blank and (not chunk.text or chunk.text.isspace()):
            leading = [] if chunk.ends else [*leading, chunk]
            continue
        yield from leading
        yield chunk
        leading, blank = [], chunk.ends
