"""fastllm translate: texts from standard input, files or the command line, by a translation run."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from fastllm.cli.console import asked, load, set_threads, utf8
from fastllm.cli.options import check_checkpoint
from fastllm.cli.parser import Parser, any_path
from fastllm.errors import UserError

if TYPE_CHECKING:
    from fastllm.generation import Translation

_BLOCK = 1 << 16  # bytes read at once: what is there already is translated together
_STANDARD_INPUT = Path("-")
_FORMATS = ("text", "tsv", "jsonl")


def add_to(commands) -> None:
    """Add the command's parser."""
    parser = Parser(
        description="Translate texts, a line each, in their order: from files, --text, or standard input; on a "
        "terminal it asks for them. What is probably wrong with a translation (it is empty, it loops, it has no end, a "
        "phrase is missing) is told on standard error."
    )
    parser.add_argument("run", type=any_path, help="a translation run, or a folder with a model and its tokenizers")
    parser.add_argument("files", nargs="*", type=any_path, help="files of texts, a line each; - is standard input")
    parser.add_argument(
        "--text", action="append", type=str, default=[], metavar="TEXT", help="a text; repeat it for several"
    )
    parser.add_argument("--out", type=any_path, help="write into this file, not to standard output")
    parser.add_argument(
        "--format", default="text",
        help="text: a translation a line; tsv: number, rank, score, translation and faults; jsonl: an object a text",
    )  # fmt: skip
    parser.add_argument("--num_beams", type=int, default=4, help="unfinished translations that are followed; 1: greedy")
    parser.add_argument("--n_best", type=int, default=1, help="how many of the best to give, at most num_beams")
    parser.add_argument(
        "--length_penalty",
        default="gnmt",
        help="what scores are divided by: gnmt, ((5 + l) / 6)^alpha, or power: l^alpha",
    )
    parser.add_argument("--alpha", type=float, default=0.6, help="above 0, longer translations are favoured")
    parser.add_argument(
        "--max_length", type=int | None, default=None,
        help="tokens of a translation at most; the default is 2 of each of the source and 16 more",
    )  # fmt: skip
    parser.add_argument("--prefix", type=str, default="", help="what each translation begins with")
    parser.add_argument("--tag", type=str, default="", help="a tag to put in front of each text, such as '<2en>'")
    parser.add_argument(
        "--glossary", type=any_path,
        help="a file with a phrase, a tab and what must be in the translation of a text that has it, a line each",
    )  # fmt: skip
    parser.add_argument(
        "--ignore_placeholders", action="store_true",
        help="do not see to it that {0}, %%s, tags and addresses survive",
    )  # fmt: skip
    parser.add_argument(
        "--longest", type=int | None, default=None,
        help="tokens of a source that is translated at once; longer ones are cut between sentences, then at commas, "
        "then between words; the default is the model's context_length",
    )  # fmt: skip
    parser.add_argument("--split_sentences", action="store_true", help="translate the sentences of a line one by one")
    parser.add_argument("--attention", type=any_path, help="draw where one text's translation looks: a .png, .svg, ..")
    parser.add_argument("--html", type=any_path, help="write a page that shows where one text's translation looks")
    parser.add_argument("--batch_tokens", type=int, default=4096, help="tokens read at once; it changes no text")
    parser.add_argument(
        "--checkpoint", default="best", help="a run's checkpoint: best, last, ema or one that --keep_checkpoints kept"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: cuda where it can be used")
    parser.add_argument(
        "--threads",
        type=int | None,
        default=None,
        help="CPU threads; the default is torch's choice; it changes no text",
    )
    commands.add_subcommand("translate", parser, help="translate texts with a translation run")


def run(arguments: Namespace) -> int:
    """Print translations in the order of the texts."""
    _check(arguments)
    check_checkpoint("translate", arguments, arguments.run)
    glossary = {} if arguments.glossary is None else _glossary(arguments.glossary)
    model, tokenizer = load("translate", arguments.run, arguments.checkpoint, arguments.device, "translation")
    set_threads(model, 64 * arguments.num_beams, arguments.threads)
    options: dict[str, Any] = {
        "num_beams": arguments.num_beams, "n_best": arguments.n_best, "length_penalty": arguments.length_penalty,
        "alpha": arguments.alpha, "max_length": arguments.max_length, "prefix": utf8("translate", arguments.prefix),
        "glossary": glossary, "keep_placeholders": not arguments.ignore_placeholders, "longest": arguments.longest,
        "split_sentences": arguments.split_sentences, "batch_tokens": arguments.batch_tokens,
        "alignments": arguments.attention is not None or arguments.html is not None,
    }  # fmt: skip
    _check_tag(arguments.tag, tokenizer)

    from fastllm.generation import iterate_translations

    def translated(texts: list[str]) -> Iterator["Translation"]:
        tagged = [f"{arguments.tag} {text}" if arguments.tag and text.strip() else text for text in texts]
        return iterate_translations(model, tokenizer, tagged, **options)

    if options["alignments"]:
        return _show_attention(arguments, translated)
    if not arguments.text and not arguments.files and sys.stdin.isatty():
        return _ask(arguments, translated)
    if arguments.out is None:
        _write(sys.stdout, arguments, _texts(arguments), translated)
        return 0

    from fastllm.files import write_atomically

    def fill(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as file:
            _write(file, arguments, _texts(arguments), translated)

    write_atomically(arguments.out, fill)
    return 0


def _check(arguments: Namespace) -> None:
    for name in ("num_beams", "n_best", "threads", "batch_tokens", "max_length", "longest"):
        if arguments[name] is not None and arguments[name] < 1:
            raise UserError(f"translate: '{name}' must be at least 1, got {arguments[name]}")
    if arguments.format not in _FORMATS:
        raise UserError(f"translate: 'format' must be one of {', '.join(_FORMATS)}, got '{arguments.format}'")
    if arguments.text and arguments.files:
        raise UserError("translate: 'text' and files do not go together: put all texts into one of them")
    penalised = "length_penalty" in arguments.given or "alpha" in arguments.given
    if penalised and arguments.num_beams == 1 and arguments.format == "text":
        raise UserError("translate: one beam is greedy, whatever the length penalty: add --num_beams")
    for name in ("attention", "html"):
        if arguments[name] is not None and (len(arguments.text) != 1 or arguments.files):
            raise UserError(f"translate: '{name}' is of one text: give it with --text")


def _check_tag(tag: str, tokenizer) -> None:
    if tag and tag not in tokenizer.tags:
        known = ", ".join(tokenizer.tags) or "none"
        raise UserError(f"translate: 'tag' must be one that the model was trained with ({known}), got '{tag}'")


def _glossary(file: Path) -> dict[str, str]:
    glossary = {}
    for number, line in enumerate(_lines_of(file), 1):
        if not line.strip():
            continue
        columns = line.split("\t")
        if len(columns) != 2 or not all(column.strip() for column in columns):
            raise UserError(
                f"translate: {file}, line {number} must have a phrase, a tab and its translation, got '{line[:60]}'"
            )
        glossary[columns[0].strip()] = columns[1].strip()
    return glossary


# --- texts in ---------------------------------------------------------------------------------------------------------


def _texts(arguments: Namespace) -> Iterator[list[str]]:
    """Yield the texts, as many at a time as are there already."""
    if arguments.text:
        yield [utf8("translate", text) for text in arguments.text]
        return
    for file in arguments.files or [_STANDARD_INPUT]:
        if file == _STANDARD_INPUT:
            yield from _arriving()
        else:
            yield _lines_of(file)


def _arriving() -> Iterator[list[str]]:
    """Yield the lines of standard input as they come: a program may wait for each answer."""
    rest, number = b"", 1
    while block := os.read(sys.stdin.fileno(), _BLOCK):
        *lines, rest = (rest + block).split(b"\n")
        if lines:
            yield [_decoded(line, "standard input", number + i) for i, line in enumerate(lines)]
            number += len(lines)
    if rest:
        yield [_decoded(rest, "standard input", number)]


def _lines_of(file: Path) -> list[str]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"translate: cannot read {file}: {error.strerror}") from error
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [_decoded(line, str(file), number) for number, line in enumerate(lines[: -1 if not lines[-1] else None], 1)]


def _decoded(line: bytes, name: str, number: int) -> str:
    try:
        return line.decode("utf-8").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UserError(f"translate: {name}, line {number}: byte 0x{line[error.start]:02X} is not UTF-8") from error


# --- translations out -------------------------------------------------------------------------------------------------


def _write(
    file, arguments: Namespace, texts: Iterable[list[str]], translated: Callable[[list[str]], Iterator["Translation"]]
) -> None:
    number = 0
    for block in texts:
        for found in translated(block):
            number += 1
            _tell_faults(found, f"text {number}")
            for line in _lines(found, number, arguments.format):
                file.write(line + "\n")
            file.flush()


def _lines(found: "Translation", number: int, format: str) -> list[str]:
    if format == "text":
        return [one.text for one in found.n_best]
    if format == "tsv":
        return [
            "\t".join([str(number), str(rank), f"{one.score:.4f}", one.text.replace("\t", " "), "; ".join(one.faults)])
            for rank, one in enumerate(found.n_best, 1)
        ]
    best = [
        {"text": one.text, "score": one.score, "logprob": one.logprob, "faults": list(one.faults)}
        for one in found.n_best
    ]
    return [json.dumps({"source": found.source, **best[0], "n_best": best}, ensure_ascii=False)]


def _tell_faults(found: "Translation", where: str) -> None:
    if found.faults:
        print(f"fastllm: {where}: {', '.join(found.faults)}", file=sys.stderr)


def _ask(arguments: Namespace, translated: Callable[[list[str]], Iterator["Translation"]]) -> int:
    for text in asked():
        try:
            (found,) = translated([utf8("translate", text)])
        except UserError as error:  # such as a character that is not in the vocabulary: the next text may do
            print(f"fastllm: {error}", file=sys.stderr)
            continue
        _tell_faults(found, "this text")
        print("\n".join(_lines(found, 1, arguments.format)), flush=True)
    return 0


def _show_attention(arguments: Namespace, translated: Callable[[list[str]], Iterator["Translation"]]) -> int:
    from fastllm.generation.attention_pages import draw_attention, write_page

    (found,) = translated([utf8("translate", arguments.text[0])])
    _tell_faults(found, "this text")
    print("\n".join(_lines(found, 1, arguments.format)))
    if arguments.attention is not None:
        draw_attention(found, arguments.attention)
    if arguments.html is not None:
        write_page(found, arguments.html)
    return 0
