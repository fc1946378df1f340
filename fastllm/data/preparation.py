"""From text to a data folder.

The folder has, for each split ("train" and "val"), the token ids in shards (train-00000.bin, ..), where documents begin
(train-documents.bin), the tokenizer, and manifest.json, which counts and has every file's checksum. It is made under
another name and renamed when it is whole. The text is read twice: first to find out about its documents and to train
the tokenizer, then to tokenize it.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastllm.data.discovery import MANIFEST
from fastllm.data.documents import Chunk, shown
from fastllm.data.encoding import encode
from fastllm.data.holdout import HoldOut, Survey
from fastllm.data.pieces import SPLITS, VAL, FindCut, Piece, find_cut_for, split_pieces
from fastllm.data.shards import SplitWriter
from fastllm.data.sources import Source, TextSource
from fastllm.errors import UserError, UserValueError
from fastllm.files import locked_folder, put_in_place, sha256, unfinished, write_json
from fastllm.tokenizers import Tokenizer, load_tokenizer, train_tokenizer

VERSION = 2
LEAST_SHARD = 1_000_000  # token ids in a file: reading maps every file, and a process has 65,530 mappings at most
_FEW = 1 << 23  # bytes of text up to which starting processes takes longer than the work
_FIRST_VERSION = {"train.bin", "val.bin", "tokenizer.json"}  # files of folders from before the manifest listed them

Progress = Callable[[str, int, int], None]  # (what is done, how far, of how much)


@dataclass
class PrepareOptions:
    """How text becomes a data folder.

    Args:
        val_share: the share of the characters for validation, in (0, 1); see :mod:`fastllm.data.holdout`.
        seed: of the draw of validation documents.
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
    val_source: Source | None = None,
    progress: Progress | None = None,
) -> dict:
    """Tokenize text and write a data folder.

    Args:
        source: the documents, or one text.
        out: the folder to write; a data folder that is there is replaced when the new one is whole.
        names: where a text comes from, for the manifest.
        val_share: default 0.1; with options it is one of them.
        options: everything else that can be chosen.
        val_source: the validation split, in place of a share of source; of source, documents that equal one of it are
            left out. The tokenizer is trained on both.
        progress: is told how far it is.

    Returns:
        The manifest, as written.

    Raises:
        UserError: an option or the text cannot work, or the folder cannot be written; what was at out is still there.
        TypeError: val_share is given twice.
    """
    if options is not None and val_share is not None:
        raise TypeError("prepare: give 'val_share' or 'options', not both: PrepareOptions has a val_share")
    if isinstance(source, str):
        source = TextSource(source, names or ["a text"])
    options = options or PrepareOptions(0.1 if val_share is None else val_share)
    options.check()
    out = out.resolve()  # a link stays, and what it points to is replaced
    refuse_other_folders(out)
    temporary = unfinished(out)
    sources = [source] if val_source is None else [source, val_source]
    try:
        with locked_folder(temporary, out):
            manifest = _fill(temporary, sources, options, progress or (lambda *_: None))
            put_in_place(temporary, out)
    except OSError as error:
        raise UserError(
            f"cannot write {shown(out)}: {error.strerror or error}; nothing that was there is lost"
        ) from error
    return manifest


def sources_of(folder: Path) -> list[str] | None:
    """Return the names of what a data folder was made from; None if it is not a data folder."""
    try:
        sources = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sources"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return [str(name) for name in sources]


def refuse_other_folders(out: Path) -> None:
    """Raise if `out` has anything that prepare did not write: it would be lost."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"prepare: 'out' must be a folder, and {shown(out)} is a file; name a new folder with --out")
    there = {file.name for file in out.iterdir()}
    if not there:
        return
    try:
        files = json.loads((out / MANIFEST).read_text(encoding="utf-8")).get("files", _FIRST_VERSION)
    except (OSError, ValueError, AttributeError):
        files = []
    if others := there - {MANIFEST, *files}:
        raise UserError(
            f"prepare: {shown(out)} has files that prepare did not write ({shown(sorted(others)[0])}), so it is not "
            "replaced; name a new folder with --out"
        )


def _fill(folder: Path, sources: list[Source], options: PrepareOptions, progress: Progress) -> dict:
    """Write everything into folder; sources are the text and, where it is given, the validation text."""
    with ExitStack() as stack:
        surveys = [stack.enter_context(closing(Survey(options.seed, folder))) for _ in sources]
        for source in sources:
            source.open(folder)
        tokenizer = _make_tokenizer(sources, surveys, options, progress)
        tokenizer.save(folder)
        files = {file.name: sha256(file) for file in sorted(folder.iterdir())}
        dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
        parted = _parted(surveys)
        end_of_text = tokenizer.end_of_text if parted else None
        hold_outs, held_out, notes = _hold_out(sources, surveys, options.val_share)
        writers = {name: SplitWriter(folder, name, dtype, options.shard_tokens, end_of_text) for name in SPLITS}
        pieces = _pieces(_readings(sources, "tokenizing", progress), hold_outs, find_cut_for(tokenizer))
        if parted and end_of_text is None:
            pieces = map(_with_newline, pieces)
        workers = options.workers if sum(source.size for source in sources) > _FEW else 1
        for encoded in encode(pieces, folder, dtype, workers):
            writers[encoded.piece.split].add(encoded)
        documents = sum(survey.documents for survey in surveys)
    splits = {name: writer.close() for name, writer in writers.items()}
    if min(split["tokens"] for split in splits.values()) < 2:
        got = " and ".join(f"{splits[name]['tokens']} for {name}" for name in SPLITS)
        raise UserValueError(f"prepare: each split needs at least 2 tokens, got {got}: use more text")
    for writer in writers.values():
        files |= writer.checksums
    share = splits[VAL]["characters"] / sum(split["characters"] for split in splits.values())
    if len(sources) == 1 and abs(share - options.val_share) > min(options.val_share, 1 - options.val_share) / 4:
        notes.append(
            f"validation has {share:.3g} of the characters, not {options.val_share:g}: "
            "the documents are too few or too unequal to come nearer"
        )
    manifest = {
        "version": VERSION,
        "tokenizer": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": end_of_text,
        "dtype": dtype.str,
        "sources": sources[0].names,
        "val_sources": sources[1].names if len(sources) > 1 else None,
        "documents": documents,  # of the sources; one that is cut is in both splits
        "held_out": held_out,
        "val_share": share,  # of the characters
        "notes": [*notes, *(note for source in sources for note in source.notes)],
        "splits": splits,
        "files": files,  # with their SHA-256
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def _readings(sources: list[Source], what: str, progress: Progress) -> list[Iterator[Chunk]]:
    """Return the chunks of each source; how far it is counts through all of them."""
    total = sum(source.size for source in sources)

    def reading(source: Source, before: int) -> Iterator[Chunk]:
        return source.read(lambda done: progress(what, before + done, total))

    return [reading(source, sum(other.size for other in sources[:i])) for i, source in enumerate(sources)]


def _make_tokenizer(
    sources: list[Source], surveys: list[Survey], options: PrepareOptions, progress: Progress
) -> Tokenizer:
    """Return the tokenizer; the surveys have then seen everything."""

    def texts() -> Iterator[str]:
        for survey, chunks in zip(surveys, _readings(sources, "reading", progress), strict=True):
            yield from survey.watch(chunks)
        if _parted(surveys):
            yield "\n"  # what parts documents where the vocabulary has no token for it

    stream = texts()
    if options.tokenizer_from is not None:
        tokenizer = load_tokenizer(options.tokenizer_from)
    else:
        tokenizer = train_tokenizer(options.tokenizer, stream, **options.tokenizer_options)
    for _ in stream:  # what training did not want
        pass
    for source, survey in zip(sources, surveys, strict=True):
        if not survey.documents:
            raise UserValueError(f"prepare: there is no text in {', '.join(source.names)}")
    return tokenizer


def _parted(surveys: list[Survey]) -> bool:
    """Return whether there are several documents, which must be kept apart."""
    return any(survey.documents > 1 for survey in surveys)


def _hold_out(sources: list[Source], surveys: list[Survey], share: float) -> tuple[list[HoldOut], str, list[str]]:
    """Return the hold-out of each source, what it is, and what the user should know of it."""
    if len(sources) == 1:
        hold_out = surveys[0].hold_out(share)
        return [hold_out], hold_out.describe(), []
    text, validation = surveys
    documents, characters = text.leave_out(validation)
    if not text.documents:
        raise UserValueError("prepare: all training documents are in the validation files too: none is left")
    copies = (
        f"{documents:,} training documents ({characters:,} characters) left out: they are in the validation files too"
    )
    names = ", ".join(sources[1].names)
    return [text.whole(val=False), validation.whole(val=True)], f"all of {names}", [copies] if documents else []


def _pieces(readings: list[Iterator[Chunk]], hold_outs: list[HoldOut], find_cut: FindCut) -> Iterator[Piece]:
    for chunks, hold_out in zip(readings, hold_outs, strict=True):
        yield from split_pieces(chunks, hold_out.cuts(), find_cut)


def _with_newline(piece: Piece) -> Piece:
    """End a document with a newline, where the vocabulary has no token for its end."""
    if not piece.ends or piece.text.endswith("\n"):
        return piece
    return piece._replace(text=piece.text + "\n", added=1)
