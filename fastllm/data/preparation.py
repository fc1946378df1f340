"""From text to a data folder.

The folder has, for each split ("train" and "val"), the token ids in shards (train-00000.bin, ..), where documents begin
(train-documents.bin), the tokenizer, and manifest.json, which counts and has every file's checksum. It is made under
another name and renamed when it is whole. The text is read twice, first to count it and to train the tokenizer.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastllm.data.encoding import Encoded, encode
from fastllm.data.pieces import SPLITS, HoldOut, Piece, Survey, find_cut_for, split_pieces
from fastllm.data.shards import SplitWriter
from fastllm.data.sources import Source, TextSource
from fastllm.errors import UserError, UserValueError
from fastllm.files import put_in_place, sha256, write_json
from fastllm.tokenizers import Tokenizer, load_tokenizer, train_tokenizer

VERSION = 2
MANIFEST = "manifest.json"
LEAST_SHARD = 1_000_000  # token ids in a file: reading maps every file, and a process has 65,530 mappings at most
_FEW = 1 << 23  # bytes of text up to which starting processes takes longer than the work
_FIRST_VERSION = {"train.bin", "val.bin", "tokenizer.json"}  # files of folders from before the manifest listed them

Progress = Callable[[str, int, int], None]  # (what is done, how far, of how much)


@dataclass
class PrepareOptions:
    """How text becomes a data folder.

    Args:
        val_share: the share kept for validation, in (0, 1): of a single text its end, of several documents a draw.
        seed: of that draw.
        tokenizer: the kind of tokenizer to train.
        tokenizer_options: what its training is told, e.g. {"vocab_size": 1000}.
        tokenizer_from: take the tokenizer of this data folder, run or model instead.
        workers: processes that tokenize; the folder is the same for any number.
        shard_tokens: token ids in a file, at least a million.
    """

    val_share: float = 0.1
    seed: int = 0
    tokenizer: str = "characters"
    tokenizer_options: dict = field(default_factory=dict)
    tokenizer_from: Path | None = None
    workers: int = 1
    shard_tokens: int = 100_000_000

    def check(self) -> None:
        """Raise UserError for the first value that cannot work."""
        if not 0 < self.val_share < 1:
            raise UserError(f"prepare: 'val_share' must be between 0 and 1, got {self.val_share}")
        for name, least in (("workers", 1), ("shard_tokens", LEAST_SHARD)):
            if getattr(self, name) < least:
                raise UserError(f"prepare: '{name}' must be at least {least:,}, got {getattr(self, name):,}")


def prepare(
    source: Source | str,
    out: Path,
    names: list[str] | None = None,
    val_share: float | None = None,
    *,
    options: PrepareOptions | None = None,
    progress: Progress | None = None,
) -> dict:
    """Tokenize text and write a data folder.

    Args:
        source: the documents, or one text.
        out: the folder to write; a data folder that is there is replaced when the new one is whole.
        names: where a text comes from, for the manifest.
        val_share: default 0.1; with options it is one of them.
        options: everything else that can be chosen.
        progress: is told how far it is.

    Returns:
        The manifest, as written.

    Raises:
        UserError: an option or the text cannot work, or the folder cannot be written; what was at out is still there.
        TypeError: val_share is given twice.
    """
    if options is not None and val_share is not None:
        raise TypeError("prepare: 'val_share' must be one of the options where there are some, got both")
    if isinstance(source, str):
        source = TextSource(source, names or ["a text"])
    options = options or PrepareOptions(0.1 if val_share is None else val_share)
    options.check()
    out = out.resolve()  # a link stays, and what it points to is replaced
    _refuse_other_folders(out)
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        manifest = _fill(temporary, source, options, progress or (lambda *_: None))
        put_in_place(temporary, out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; nothing that was there is lost") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _refuse_other_folders(out: Path) -> None:
    """Raise if `out` has anything that prepare did not write: it would be lost."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"prepare: {out} is a file; name a new folder with --out")
    there = {file.name for file in out.iterdir()}
    if not there:
        return
    try:
        files = json.loads((out / MANIFEST).read_text(encoding="utf-8")).get("files", _FIRST_VERSION)
    except (OSError, ValueError, AttributeError):
        files = []
    if others := there - {MANIFEST, *files}:
        raise UserError(
            f"prepare: {out} has what is not of a data folder ({sorted(others)[0]}), and would be replaced; "
            "name a new folder with --out"
        )


def _fill(folder: Path, source: Source, options: PrepareOptions, progress: Progress) -> dict:
    source.open(folder)
    survey = Survey(options.seed)
    tokenizer = _make_tokenizer(source, survey, options, lambda done: progress("reading", done, source.size))
    tokenizer.save(folder)
    files = {file.name: sha256(file) for file in sorted(folder.iterdir())}
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    hold_out = survey.hold_out(options.val_share)
    # A single text has nothing to be parted from.
    end_of_text = tokenizer.end_of_text if survey.documents > 1 else None
    writers = {name: SplitWriter(folder, name, dtype, options.shard_tokens, end_of_text) for name in SPLITS}
    for encoded in _encoded(source, hold_out, tokenizer, folder, dtype, options.workers, progress):
        writers[encoded.piece.split].add(encoded)
    splits = {name: writer.close() for name, writer in writers.items()}
    if min(split["tokens"] for split in splits.values()) < 2:
        got = " and ".join(f"{splits[name]['tokens']} for {name}" for name in SPLITS)
        raise UserValueError(f"prepare: the text must have at least 2 tokens in each split, got {got}")
    for writer in writers.values():
        files |= writer.checksums
    manifest = {
        "version": VERSION,
        "tokenizer": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": end_of_text,
        "dtype": dtype.str,
        "sources": source.names,
        "held_out": hold_out.describe(),
        "splits": splits,
        "files": files,  # with their SHA-256
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def _make_tokenizer(source: Source, survey: Survey, options: PrepareOptions, done: Callable[[int], None]) -> Tokenizer:
    """Return the tokenizer; the survey has then seen everything."""

    def texts() -> Iterator[str]:
        yield from survey.watch(source.read(done))
        if survey.documents > 1:
            yield "\n"  # what parts documents where the vocabulary has no token for it

    stream = texts()
    if options.tokenizer_from is not None:
        tokenizer = load_tokenizer(options.tokenizer_from)
    else:
        tokenizer = train_tokenizer(options.tokenizer, stream, **options.tokenizer_options)
    for _ in stream:  # what training did not want
        pass
    if not survey.documents:
        raise UserValueError("prepare: the text is empty")
    return tokenizer


def _encoded(
    source: Source, hold_out: HoldOut, tokenizer: Tokenizer, folder: Path, dtype: np.dtype, workers: int,
    progress: Progress,
) -> Iterator[Encoded]:  # fmt: skip
    """Tokenize all pieces. Documents with neither a token nor a newline at their end get the latter."""
    chunks = source.read(lambda done: progress("tokenizing", done, source.size))
    pieces = split_pieces(chunks, hold_out, find_cut_for(tokenizer))
    if tokenizer.end_of_text is None and hold_out.cut is None:
        pieces = map(_with_newline, pieces)
    return encode(pieces, folder, dtype, workers if source.size > _FEW else 1)


def _with_newline(piece: Piece) -> Piece:
    if not piece.ends or piece.text.endswith("\n"):
        return piece
    return piece._replace(text=piece.text + "\n", added=1)
