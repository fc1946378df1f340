"""From the bytes of a file to documents, as a stream; and the messages about bytes that are not text."""

import codecs
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fastllm.errors import UserError

BLOCK = 1 << 18  # bytes that are read at once
_SHORT = 16  # characters: an error so near the end of what was read may be that more must be read
_JSON, _JSON_WHITE = json.JSONDecoder(), re.compile(r"[ \t\r\n]*")
_COMPRESSED = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}


class Chunk(NamedTuple):
    """Some text of a document, and whether the document ends with it."""

    text: str
    ends: bool


def shown(path: str | Path) -> str:
    """Return a path, or a word of the command line, as text: UTF-8 in any locale, with other bytes replaced."""
    return os.fsencode(path).decode("utf-8", "replace")


def decode(data: BinaryIO, name: str) -> Iterator[Chunk]:
    """Give the text of a file, one document."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, begun = 0, False
    while True:
        block = data.read(BLOCK)
        waiting = len(decoder.getstate()[0])  # bytes of a character that the last block cut
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise _not_utf8(name, error, offset - waiting) from error
        yield Chunk(text if begun else text.removeprefix("\ufeff"), ends=not block)
        begun = begun or bool(text)
        if not block:
            return
        offset += len(block)


def json_lines(data: BinaryIO, name: str, field: str) -> Iterator[Chunk]:
    """Give the text in each line of a JSON Lines file, a document each."""
    offset = 0
    for number, line in enumerate(data, 1):
        where = f"{name}, line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if not text.isspace():
                yield Chunk(_text_of(json.loads(text), field, where), ends=True)
        except UnicodeDecodeError as error:
            raise _not_utf8(where, error, offset) from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"prepare text: {where} is not JSON: {error}") from error
        offset += len(line)


def json_array(data: BinaryIO, name: str, field: str) -> Iterator[Chunk]:
    """Give the text of each record of a JSON array, a document each; the whole file is never in memory."""
    text = _JsonText(decode(data, name))
    if (got := text.next()) != "[":
        kind = {"{": "an object", "": "an empty file"}.get(got, "something else")
        raise UserError(
            f"prepare text: {name} must be an array of objects with the field '{field}' or of strings, got {kind}; "
            "convert it to JSON Lines first"
        )
    number, mark = 0, ","
    if text.peek() == "]":
        mark = text.next()
    while mark == ",":
        number += 1
        where = f"{name}, record {number}"
        try:
            value = text.value()
        except (ValueError, RecursionError) as error:
            raise UserError(f"prepare text: {where} is not JSON: {getattr(error, 'msg', error)}") from error
        yield Chunk(_checked(value, where) if isinstance(value, str) else _text_of(value, field, where), ends=True)
        mark = text.next()
    if mark != "]":
        got = repr(mark) if mark else "the end of the file"
        raise UserError(f"prepare text: {name}: expected ',' or ']' after record {number}, got {got}")
    if text.peek():
        raise UserError(
            f"prepare text: {name} has more text after its array; if it has a record on each line, name it .jsonl"
        )


class _JsonText:
    """JSON that is read as far as it is needed."""

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self._chunks = chunks
        self._text, self._place, self._ended = "", 0, False

    def _more(self) -> None:
        """Read on, as much as is there already: a long value is then parsed a few times only."""
        parts = [self._text[self._place :]]
        size, read = len(parts[0]), 0
        while not self._ended and read <= size:
            chunk = next(self._chunks)
            parts.append(chunk.text)
            read, self._ended = read + len(chunk.text), chunk.ends
        self._text, self._place = "".join(parts), 0

    def peek(self) -> str:
        """Return the next character that is not white space; "" at the end."""
        while True:
            self._place = _JSON_WHITE.match(self._text, self._place).end()  # type: ignore[union-attr]
            if self._place < len(self._text) or self._ended:
                return self._text[self._place : self._place + 1]
            self._more()

    def next(self) -> str:
        """Return the character that peek would, and step over it."""
        character = self.peek()
        self._place += len(character)
        return character

    def value(self) -> object:
        """Return the next value, and step over it.

        Raises:
            ValueError: it is not JSON.
        """
        self.peek()
        while True:
            try:
                value, end = _JSON.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _SHORT
                if self._ended or not unfinished:
                    raise
            else:
                # A number may continue there; what is not a string is an error anyway.
                self._place = end
                return value
            self._more()


def _text_of(value: object, field: str, where: str) -> str:
    if not isinstance(value, dict):
        raise UserError(f"prepare text: {where} must be an object with the field '{field}', got {_kind(value)}")
    if field not in value:
        there = ", ".join(map(repr, value)) or "no fields"
        raise UserError(f"prepare text: {where} has no field '{field}', only {there}; name one with --field")
    if not isinstance(value[field], str):
        raise UserError(f"prepare text: {where}: the field '{field}' must be a string, got {_kind(value[field])}")
    return _checked(value[field], f"{where}: the field '{field}'")


def _checked(text: str, where: str) -> str:
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"prepare text: {where} has a lone surrogate (half of a UTF-16 pair), which is not a character")
    return text


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _not_utf8(where: str, error: UnicodeDecodeError, offset: int) -> UserError:
    place = offset + error.start
    for magic, kind in _COMPRESSED.items():
        if place < 64 and error.object.startswith(magic):
            return UserError(
                f"prepare text: {where} is compressed with {kind}, which is not supported; decompress it first"
            )
    return UserError(
        f"prepare text: {where} is not UTF-8: invalid byte 0x{error.object[error.start]:02x} at offset {place}; "
        "convert the file to UTF-8 first, e.g. with iconv"
    )


def separate(chunks: Iterator[Chunk], separator: str, found: Callable[[], None]) -> Iterator[Chunk]:
    """Split a document at each separator, also where two chunks share one; tell `found` of each."""
    kept = len(separator) - 1  # characters that may be the start of one
    rest = ""
    for text, ends in chunks:
        *whole, rest = (rest + text).split(separator)
        for document in whole:
            found()
            yield Chunk(document, ends=True)
        if ends:
            yield Chunk(rest, ends=True)
            return
        cut = max(0, len(rest) - kept)
        yield Chunk(rest[:cut], ends=False)
        rest = rest[cut:]


def without_blank(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
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
