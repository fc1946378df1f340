"""fastllm prepare parallel: sentences and their translations into a data folder."""

import sys
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from fastllm.cli.long_work import ended_by_signals, progress_bar
from fastllm.cli.parser import Parser, any_path
from fastllm.errors import UserError

if TYPE_CHECKING:
    from fastllm.data.parallel.sources import Corpus

_OPTIONS = (
    "val_share", "test_share", "seed", "vocab_size", "model_type", "separate_vocabularies", "tokenizer_from",
    "max_tokens", "min_tokens", "max_ratio", "keep_duplicates", "tag", "reverse_tag", "shard_tokens",
)  # fmt: skip


def parser() -> Parser:
    """Return the parser of the kind `parallel`."""
    own = Parser(description="Sentences and their translations, UTF-8, of any size; each file perhaps with .gz.")
    for prefix, what in (("", "to train on"), ("val_", "for validation"), ("test_", "for test")):
        instead = f", in place of --{prefix}share" if prefix else ""
        own.add_argument(
            f"--{prefix}source", nargs="+", type=any_path, metavar="FILE",
            help=f"source sentences {what}{instead}: a line each, in files or folders of them",
        )  # fmt: skip
        own.add_argument(
            f"--{prefix}target", nargs="+", type=any_path, metavar="FILE",
            help="their translations, line by line, in as many files",
        )  # fmt: skip
        own.add_argument(
            f"--{prefix}pairs", nargs="+", type=any_path, metavar="FILE",
            help=f"files with both sides {what}: .tsv (two columns), .jsonl, .ndjson or .tmx, or folders of them",
        )  # fmt: skip
    own.add_argument("--source_field", default="source", help="the field of a JSON object that has the source")
    own.add_argument("--target_field", default="target", help="the field that has the target")
    own.add_argument("--source_language", help="the language of a .tmx file's sources, e.g. de")
    own.add_argument("--target_language", help="the language of its targets, e.g. en")
    own.add_argument("--out", type=any_path, required=True, help="the data folder to write")
    own.add_argument(
        "--val_share", type=float, default=0.02,
        help="share of the pairs for validation: whole documents, drawn at random (a document is a file, or what "
        "stands between two empty lines); with fewer than 20 of them, blocks of neighbouring pairs",
    )  # fmt: skip
    own.add_argument("--test_share", type=float, default=0.0, help="the same for a test split")
    own.add_argument("--seed", type=int, default=0, help="random seed of the draw")
    own.add_argument("--vocab_size", type=int, default=8000, help="sub-word tokens, with sentencepiece")
    own.add_argument("--model_type", default="unigram", help="model type of sentencepiece: unigram or bpe")
    own.add_argument(
        "--separate_vocabularies", action="store_true", help="a vocabulary of vocab_size tokens for each side"
    )
    own.add_argument(
        "--tokenizer_from", type=any_path, metavar="DIR", help="use the tokenizers of this data folder or run"
    )
    own.add_argument(
        "--max_tokens", type=int, default=128, help="leave out pairs with a longer side; not of files named for a split"
    )
    own.add_argument("--min_tokens", type=int, default=1, help="leave out pairs with a shorter side")
    own.add_argument(
        "--max_ratio", type=float, default=3.0,
        help="leave out pairs of which one side has more tokens than so many times the other's, and over 10 more",
    )  # fmt: skip
    own.add_argument("--keep_duplicates", action="store_true", help="take a pair as often as it is there")
    own.add_argument(
        "--tag", nargs="+", default=[],
        help="a word to stand in front of every source, e.g. '<2en>'; or one for each of the files or folders, those "
        "of --source first, then those of --pairs, and for validation and test in the same order",
    )  # fmt: skip
    own.add_argument(
        "--reverse_tag", default="", help="learn the other direction too, with this word in front, e.g. '<2de>'"
    )
    own.add_argument("--shard_tokens", type=int, default=100_000_000, help="token ids in a file, at least 1,000,000")
    return own


def run(options: Namespace, given: set[str]) -> int:
    """Write a data folder."""
    from fastllm.data import ParallelOptions, prepare_parallel
    from fastllm.data.documents import shown
    from fastllm.data.preparation import sources_of

    if len(options.tag) > 1 and options.reverse_tag:
        raise UserError(
            f"prepare parallel: --reverse_tag needs one --tag, that of the first direction, got {len(options.tag)}"
        )
    corpus = _corpus("", options)
    if corpus is None:
        raise UserError("prepare parallel: name the sentences to train on: --source and --target, or --pairs")
    val, test = _corpus("val_", options), _corpus("test_", options)
    for name, named in (("val_share", val), ("test_share", test)):
        if name in given and named is not None:
            raise UserError(f"prepare parallel: --{name} has no effect where files are named; leave one of them out")
    if options.tokenizer_from is not None:
        for name in ("vocab_size", "model_type", "separate_vocabularies"):
            if name in given:
                raise UserError(f"prepare parallel: --tokenizer_from uses a tokenizer as it is; leave out --{name}")
    tags = {"tag": options.tag[0] if len(options.tag) == 1 else ""}
    settings = ParallelOptions(**{name: options[name] for name in _OPTIONS} | tags)
    replaced = "" if sources_of(options.out) is None else " (the data that was there is replaced)"
    with ended_by_signals(), progress_bar(of_bytes=False) as progress:
        manifest = prepare_parallel(corpus, options.out, options=settings, val=val, test=test, progress=progress)
    _report(manifest)
    sizes = ", ".join(f"{split['pairs']:,} {name}" for name, split in manifest["splits"].items() if split["pairs"])
    vocabulary = f"{manifest['vocab_size']:,}"
    if settings.separate_vocabularies:
        vocabulary = f"{manifest['source_vocab_size']:,} and {vocabulary}"
    print(f"{shown(options.out)}: {sizes} pairs, vocabulary of {vocabulary}{replaced}")
    return 0


def _corpus(prefix: str, options: Namespace) -> "Corpus | None":
    from fastllm.data import Corpora, FilePairs, LinePairs, Tagged

    sources, targets, pairs = (options[f"{prefix}{name}"] for name in ("source", "target", "pairs"))
    if bool(sources) != bool(targets):
        one, other = ("source", "target") if sources else ("target", "source")
        raise UserError(f"prepare parallel: --{prefix}{one} needs --{prefix}{other}, its translations line by line")
    if sources and len(sources) != len(targets):
        raise UserError(
            f"prepare parallel: --{prefix}target must name as many files as --{prefix}source ({len(sources)}), got "
            f"{len(targets)}"
        )
    names = options.source_field, options.target_field, options.source_language, options.target_language
    corpora: list[Corpus] = [LinePairs([one], [other]) for one, other in zip(sources or [], targets or [], strict=True)]
    corpora += [FilePairs([path], *names) for path in pairs or []]
    if len(options.tag) > 1 and corpora:
        if len(options.tag) != len(corpora):
            raise UserError(
                f"prepare parallel: --tag must have one word, or one for each of the {len(corpora)} files of "
                f"--{prefix}source and --{prefix}pairs, got {len(options.tag)}"
            )
        corpora = [Tagged(corpus, tag) for corpus, tag in zip(corpora, options.tag, strict=True)]
    return Corpora(corpora) if corpora else None


def _report(manifest: dict) -> None:
    """Say what was left out and held out, and what may be a mistake."""
    from fastllm.data.parallel.filters import REASONS

    for reason, entry in manifest["dropped"].items():
        print(f"left out {entry['pairs']:,} pair{'s' * (entry['pairs'] != 1)}: {REASONS[reason]} ({reason})")
        for example in entry["examples"]:
            print(f"    {example}")
    for name in ("val", "test"):
        if manifest["splits"][name]["pairs"]:
            print(f"{name}: {manifest['held_out'][name]}")
    for split, entry in manifest["splits"].items():
        if entry["pairs"]:
            tokens = " and ".join(f"{entry[side]['tokens'] / entry['pairs']:.1f}" for side in ("source", "target"))
            print(f"{split}: {tokens} tokens in a source and a target on average")
    for note in manifest["notes"]:
        print(f"fastllm: note: {note}", file=sys.stderr)
