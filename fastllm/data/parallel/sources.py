"""Pairs of sentences from files: two files line by line, tables, JSON Lines or TMX, each also as .gz.

A corpus is read from its start as often as asked for. Documents end where a file does, and between two lines where both
sides are empty.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np

from fastllm.data.documents import shown
from fastllm.data.parallel import tmx
from fastllm.errors import UserError, UserValueError

FORMATS = (".tsv", ".jsonl", ".ndjson", ".tmx")
_SHOWN = 60  # characters of a text in a message


class Pair(NamedTuple):
    """A sentence and its translation, both without white space around them."""

    source: str
    target: str
    where: str  # file and line
    document: int  # counted through the corpus
    tags: tuple[str, ...] = ()  # what stands in front of the source, such as "<news>"


class Corpus(Protocol):
    """Pairs that can be read again and again."""

    names: list[str]

    def pairs(self) -> Iterator[Pair]:
        """Yield all pairs, those with empty sides too."""


def short(text: str) -> str:
    """Return a text for a message."""
    text = text.encode("utf-8", "replace").decode()  # JSON may have halves of characters
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


# --- files as lines ---------------------------------------------------------------------------------------------------


def open_bytes(path: Path) -> BinaryIO:
    """Open a file, unpacked if its name ends in .gz.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore
    except OSError as error:
        raise _unreadable(path, error) from error


def lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file in UTF-8, without their ends.

    Raises:
        UserError: it cannot be read, or a line is not UTF-8.
    """
    with open_bytes(path) as file:
        number = 0
        try:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8")
                yield text.removeprefix("\ufeff" if number == 1 else "").rstrip("\r\n")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise UserError(
                f"prepare parallel: {shown(path)}, line {number} is not UTF-8: invalid byte 0x{byte:02x} at column "
                f"{error.start + 1}; convert the file to UTF-8 first, e.g. with iconv"
            ) from error
        except (OSError, EOFError, zlib.error) as error:
            raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"prepare parallel: cannot read {shown(path)}: {getattr(error, 'strerror', None) or error}")


# --- two files --------------------------------------------------------------------------------------------------------


class LinePairs:
    """Pairs of files whose lines are each other's translations.

    Args:
        sources: files; or folders, which are searched for all files in them.
        targets: as many, in the same order; in folders, files of the same names but for their last suffix.

    Raises:
        UserError: a file is missing, or there are not as many targets as sources.
    """

    def __init__(self, sources: Sequence[Path], targets: Sequence[Path]) -> None:
        if len(sources) != len(targets):
            raise UserValueError(
                f"prepare parallel: 'target' must name as many files as 'source' ({len(sources)}), got {len(targets)}"
            )
        self._files = [pair for both in zip(sources, targets, strict=True) for pair in _matched(*both)]
        self.names = [f"{shown(source)} | {shown(target)}" for source, target in self._files]

    def pairs(self) -> Iterator[Pair]:
        """Yield the pairs of all files.

        Raises:
            UserError: two files have not as many lines as each other.
        """
        document = 0
        for source, target in self._files:
            name = shown(source)
            for number, (left, right) in enumerate(zip_longest(lines(source), lines(target)), 1):
                if left is None or right is None:
                    raise _unequal(source, target)
                left, right = left.strip(), right.strip()
                if not left and not right:
                    document += 1
                    continue
                yield Pair(left, right, f"{name}, line {number}", document)
            document += 1


def _matched(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Return the files of two paths, which are files or folders."""
    for path in (source, target):
        if not path.exists():
            raise UserError(f"prepare parallel: {shown(path)} does not exist")
    if source.is_dir() != target.is_dir():
        one, other = (source, target) if source.is_dir() else (target, source)
        raise UserError(f"prepare parallel: {shown(one)} is a folder and {shown(other)} a file; both must be the same")
    if not source.is_dir():
        return [(source, target)]
    left, right = _by_key(source), _by_key(target)
    if alone := sorted(left.keys() ^ right.keys()):
        where = shown(source if alone[0] in left else target)
        raise UserError(f"prepare parallel: the file {alone[0]} of {where} has no counterpart in the other folder")
    if not left:
        raise UserError(f"prepare parallel: {shown(source)} has no files")
    return [(left[key], right[key]) for key in sorted(left)]


def _inside(top: Path) -> Iterator[Path]:
    return (path for path in sorted(top.rglob("*")) if path.is_file() and not path.name.startswith("."))


def _by_key(top: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _inside(top):
        if (other := found.setdefault(_key(path, top), path)) is not path:
            raise UserError(
                f"prepare parallel: {shown(other)} and {shown(path)} differ in their last suffix only, so it is not "
                "clear which is meant; name the files one by one"
            )
    return found


def _key(path: Path, top: Path) -> str:
    """Return a file's name in its folder without .gz and the suffix that says its language."""
    name = path.relative_to(top).as_posix()
    return str(Path(name.removesuffix(".gz")).with_suffix(""))


def _unequal(source: Path, target: Path) -> UserError:
    left, right = list(lines(source)), list(lines(target))
    line = first_apart(list(map(len, left)), list(map(len, right)))
    texts = [short(side[line - 1]) if line <= len(side) else "the end of the file" for side in (left, right)]
    return UserError(
        f"prepare parallel: {shown(source)} has {len(left):,} lines and {shown(target)} {len(right):,}, and line by "
        f"line they must be translations; by their lengths, a guess, they go apart at about line {line:,}: "
        f"'{texts[0]}' beside '{texts[1]}'"
    )


def first_apart(left: Sequence[int], right: Sequence[int]) -> int:
    """Guess, by the lengths of their lines, from which line on two files no longer fit; counted from 1.

    Supposing that one of them has some lines more in one place, it is where moving the rest by so many lines makes the
    ratios of lengths most alike.
    """
    both, more = min(len(left), len(right)), len(right) - len(left)
    a, b = (np.log(np.array(side, dtype=float) + 5) for side in (left, right))
    skipped = (a[: max(0, -more)] * 0, b[: max(0, more)] * 0)
    plain = b[:both] - a[:both]
    moved = b[len(skipped[1]) :][:both] - a[len(skipped[0]) :][:both]
    middle = float(np.median(plain)) if both else 0.0
    before = np.concatenate([[0.0], np.abs(plain - middle).cumsum()])
    after = np.concatenate([np.abs(moved - middle)[::-1].cumsum()[::-1], [0.0]])
    return int((before + after).argmin()) + 1


# --- one file ---------------------------------------------------------------------------------------------------------


class FilePairs:
    """Files that have both sides: .tsv, .jsonl, .ndjson or .tmx, each perhaps with .gz.

    Args:
        paths: files; or folders, which are searched for such files.
        source_field, target_field: of JSON objects; a field "tag", where it is there, stands in front of the source.
        source_language, target_language: of a .tmx file's units, such as "en", which "en-US" is too.

    Raises:
        UserError: a file is missing or of another kind.
    """

    def __init__(
        self, paths: Sequence[Path], source_field: str = "source", target_field: str = "target",
        source_language: str | None = None, target_language: str | None = None,
    ) -> None:  # fmt: skip
        self._fields, self._languages = (source_field, target_field), (source_language, target_language)
        self._files = [file for path in paths for file in self._found(path)]
        self.names = [shown(file) for file in self._files]

    def _found(self, path: Path) -> list[Path]:
        if not path.exists():
            raise UserError(f"prepare parallel: {shown(path)} does not exist")
        files = [path] if path.is_file() else [file for file in _inside(path) if _suffix(file) in FORMATS]
        if not files:
            raise UserError(f"prepare parallel: {shown(path)} has no files that end in {', '.join(FORMATS)}")
        for file in files:
            if _suffix(file) not in FORMATS:
                ends = ", ".join(FORMATS)
                raise UserError(f"prepare parallel: 'pairs' must end in {ends} (or .gz), got {shown(file)}")
            if _suffix(file) == ".tmx" and None in self._languages:
                raise UserError(
                    f"prepare parallel: {shown(file)} may have many languages: say which with --source_language and "
                    "--target_language"
                )
        return files

    def pairs(self) -> Iterator[Pair]:
        """Yield the pairs of all files.

        Raises:
            UserError: a file is not what its name says.
        """
        document = 0
        for file in self._files:
            name = shown(file)
            readers = {".tsv": self._table, ".tmx": self._memory}
            for source, target, where, tag in readers.get(_suffix(file), self._objects)(file):
                source, target = source.strip(), target.strip()
                if not source and not target:
                    document += 1
                    continue
                yield Pair(source, target, f"{name}, {where}", document, (tag,) if tag else ())
            document += 1

    def _table(self, file: Path) -> Iterator[tuple[str, str, str, str]]:
        for number, line in enumerate(lines(file), 1):
            columns = line.split("\t") if line.strip() else ["", ""]
            if len(columns) != 2:
                raise UserError(
                    f"prepare parallel: {shown(file)}, line {number} must have two columns with a tab between them, "
                    f"got {len(columns)}: '{short(line)}'"
                )
            yield columns[0], columns[1], f"line {number}", ""

    def _objects(self, file: Path) -> Iterator[tuple[str, str, str, str]]:
        for number, line in enumerate(lines(file), 1):
            if not line.strip():
                yield "", "", "", ""
                continue
            where = f"{shown(file)}, line {number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"prepare parallel: {where} is not JSON: {error}") from error
            source, target = (value.get(name) if isinstance(value, dict) else None for name in self._fields)
            tag = value.get("tag", "") if isinstance(value, dict) else ""
            if not (isinstance(source, str) and isinstance(target, str)):
                raise UserError(
                    f"prepare parallel: {where} must be an object with the texts '{self._fields[0]}' and "
                    f"'{self._fields[1]}', got '{short(line)}'; other names are given by --source_field and "
                    "--target_field"
                )
            if not isinstance(tag, str):
                raise UserError(f"prepare parallel: {where}: the field 'tag' must be a string, got {tag!r:.60}")
            yield source, target, f"line {number}", tag

    def _memory(self, file: Path) -> Iterator[tuple[str, str, str, str]]:
        source, target = self._languages
        assert source is not None and target is not None  # _found has seen to it
        with open_bytes(file) as data:
            for number, *texts in tmx.units(data, shown(file), (source, target)):
                yield texts[0], texts[1], f"unit {number}", ""


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


class PairsOf:
    """Pairs that are in memory.

    Args:
        pairs: of sources and targets.
        name: what they are.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]], name: str = "pairs") -> None:
        self._pairs = [(source.strip(), target.strip()) for source, target in pairs]
        self.names = [name]

    def pairs(self) -> Iterator[Pair]:
        """Yield them, as one document."""
        for number, (source, target) in enumerate(self._pairs, 1):
            yield Pair(source, target, f"{self.names[0]}, pair {number}", 0)


class Tagged:
    """Pairs of which each source has a tag in front, before those that it has.

    Args:
        corpus: the pairs.
        tag: such as "<news>".
    """

    def __init__(self, corpus: Corpus, tag: str) -> None:
        self._corpus, self._tag, self.names = corpus, tag, corpus.names

    def pairs(self) -> Iterator[Pair]:
        """Yield them with the tag."""
        for pair in self._corpus.pairs():
            yield pair._replace(tags=(self._tag, *pair.tags))


class Corpora:
    """Several corpora, one after the other.

    Args:
        corpora: the corpora.
    """

    def __init__(self, corpora: Sequence[Corpus]) -> None:
        self._corpora = list(corpora)
        self.names = [name for corpus in self._corpora for name in corpus.names]

    def pairs(self) -> Iterator[Pair]:
        """Yield the pairs of all; documents are counted through."""
        first = 0
        for corpus in self._corpora:
            last = first
            for pair in corpus.pairs():
                last = first + pair.document
                yield pair._replace(document=last)
            first = last + 1
