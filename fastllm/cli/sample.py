"""fastllm sample: text from a run, or from any folder with a model and its tokenizer."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from fastllm.cli.console import asked, load, set_threads, utf8
from fastllm.cli.options import SAMPLING, add_sampling, check_checkpoint
from fastllm.cli.parser import Parser, unescaped
from fastllm.errors import UserError

_RULE = "-" * 40
_START = "\n"  # what is continued where there is no prompt
_STANDARD_INPUT = Path("-")
_DRAWING = (*SAMPLING, "seed")  # what sampling goes by
_SEARCHING = ("length_penalty", "alpha")  # what beam search goes by


def add_to(commands) -> None:
    """Add the command's parser."""
    parser = Parser(description="Generate text from a run. One text streams as it comes; several come in batches.")
    parser.add_argument("run", type=Path, help="a run, or a folder or .gguf file with a model and its tokenizer")
    parser.add_argument(
        "--prompt", action="append", type=str, default=[], metavar="TEXT",
        help=r"the text to continue; repeat the option for several texts; \n is a new line, \\ a backslash; the "
        "default is a new line",
    )  # fmt: skip
    parser.add_argument(
        "--prompt_file", type=Path | None, default=None,
        help="a file with prompts, one per line, as they are; - is standard input",
    )  # fmt: skip
    parser.add_argument(
        "--interactive",
        action="store_true",
        help="ask for prompts until Ctrl-D, each with the next seed; Ctrl-C ends a text",
    )
    parser.add_argument("--max_new_tokens", type=int, default=500, help="how many tokens to add at most")
    parser.add_argument(
        "--num_samples", type=int, default=1, help="how many texts for each prompt; with --num_beams, the best ones"
    )
    add_sampling(parser)
    parser.add_argument(
        "--stop", action="append", type=str, default=[], metavar="TEXT",
        help=r"a text that ends a sample; repeat the option for several texts; \n is a new line",
    )  # fmt: skip
    parser.add_argument(
        "--num_beams",
        type=int,
        default=1,
        help="above 1: beam search over this many texts, which finds the likeliest and draws nothing",
    )
    parser.add_argument("--length_penalty", default="gnmt", help="how beam search counts the length: gnmt or power")
    parser.add_argument("--alpha", type=float, default=0.6, help="for beam search: above 0, longer texts are favoured")
    parser.add_argument(
        "--batch_size",
        type=int | None,
        default=None,
        help="how many texts are made together; the default is as many as fit in a gigabyte; it changes no text",
    )
    parser.add_argument("--seed", type=int, default=1337, help="the same seed gives the same text")
    parser.add_argument(
        "--checkpoint", default="best", help="a run's checkpoint: best, last, ema or one that --keep_checkpoints kept"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: cuda where it can be used")
    parser.add_argument(
        "--threads", type=int | None, default=None,
        help="CPU threads; the default is torch's choice, or one for a small model; it changes no text",
    )  # fmt: skip
    commands.add_subcommand("sample", parser, help="generate text from a run")


def run(arguments: Namespace) -> int:
    """Print generated text as it comes."""
    for name in ("num_samples", "num_beams", "batch_size", "threads"):
        if arguments[name] is not None and arguments[name] < 1:
            raise UserError(f"sample: '{name}' must be at least 1, got {arguments[name]}")
    _check_together(arguments)
    check_checkpoint("sample", arguments, arguments.run)
    arguments.stop = [unescaped(utf8("sample", text)) for text in arguments.stop]
    model, tokenizer = load("sample", arguments.run, arguments.checkpoint, arguments.device)
    prompts = [] if arguments.interactive else _prompts(arguments, tokenizer)
    together = max(1, len(prompts)) * max(arguments.num_samples, arguments.num_beams)
    set_threads(model, min(together, arguments.batch_size or together), arguments.threads)
    if not arguments.interactive:
        _answer(model, tokenizer, prompts, arguments)
        return 0
    for prompt in asked():
        try:
            _answer(model, tokenizer, [unescaped(utf8("sample", prompt))], arguments)
        except UserError as error:  # such as a character that is not in the vocabulary: the next prompt may do
            print(f"fastllm: {error}", file=sys.stderr)
            continue
        except KeyboardInterrupt:
            print()
        arguments.seed += arguments.num_samples  # or the same prompt would always get the same answer
    return 0


def _check_together(arguments: Namespace) -> None:
    """Raise UserError for options that exclude each other, and say which have no effect."""

    def named(names: Iterable[str]) -> str:
        return " and ".join(f"--{name}" for name in names if name in arguments.given)

    sources = [name for name in ("interactive", "prompt_file", "prompt") if name in arguments.given]
    if len(sources) > 1:
        raise UserError(f"sample: '{sources[0]}' and '{sources[1]}' do not go together")
    if arguments.num_beams > 1:
        if wrong := named(_DRAWING):
            raise UserError(f"sample: beam search draws nothing: leave out {wrong}, or --num_beams")
        return
    if wrong := named(_SEARCHING):
        raise UserError(f"sample: {wrong} only says how beam search works: add --num_beams, or leave it out")
    if arguments.temperature != 0 and arguments.top_k != 1:
        return
    if arguments.num_samples > 1:
        raise UserError(
            "sample: the likeliest token is taken each time, so all samples would be one: leave out --num_samples, "
            "raise --temperature, or search with --num_beams"
        )
    likeliest = "temperature" if arguments.temperature == 0 else "top_k"
    if idle := named(name for name in _DRAWING if name not in (likeliest, "repetition_penalty")):
        print(f"fastllm: the likeliest token is taken each time, whatever {idle} may be", file=sys.stderr)


def _prompts(arguments: Namespace, tokenizer) -> list[str]:
    if arguments.prompt_file is not None:
        return _prompts_of(arguments.prompt_file, tokenizer)
    if not all(arguments.prompt):
        raise UserError("sample: 'prompt' must not be empty; leave it out to start from a new line")
    if arguments.prompt:
        return [unescaped(utf8("sample", prompt)) for prompt in arguments.prompt]
    try:
        tokenizer.encode(_START)
    except UserError as error:
        raise UserError("sample: the vocabulary has no new line to start from; give a --prompt") from error
    return [_START]


def _prompts_of(file: Path, tokenizer) -> list[str]:
    name, prompts = "standard input" if file == _STANDARD_INPUT else file, []
    for number, line in enumerate(_lines(file, name), 1):
        if not line.strip():
            continue
        try:
            tokenizer.encode(line)
        except UserError as error:
            raise UserError(f"sample: {name}, line {number}: {error}") from error
        prompts.append(line)
    if not prompts:
        raise UserError(f"sample: {name} has no prompt: it is one per line, and empty lines don't count")
    return prompts


def _lines(file: Path, name: object) -> list[str]:
    try:
        content = sys.stdin.buffer.read() if file == _STANDARD_INPUT else file.read_bytes()
    except OSError as error:
        raise UserError(f"sample: cannot read the prompts in {name}: {error.strerror}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"sample: {name}, line {number}: byte 0x{content[error.start]:02X} is not UTF-8") from error
    return text.replace("\r\n", "\n").split("\n")


def _answer(model, tokenizer, prompts: list[str], arguments: Namespace) -> None:
    """Print num_samples texts for each prompt: one alone as it comes, several batch by batch."""
    from fastllm.generation import iterate_texts, stream_text

    longest = model.context_length
    long = [count for count in map(len, tokenizer.encode_batch(prompts)) if count > longest]
    if long and len(prompts) == 1:
        print(f"fastllm: the prompt has {long[0]} tokens; the model sees the last {longest}", file=sys.stderr)
    elif long:
        print(f"fastllm: {len(long)} of {len(prompts)} prompts have more tokens than the model's context; it sees the "
              f"last {longest}", file=sys.stderr)  # fmt: skip
    if arguments.num_beams > 1:
        _print_all(_beams(model, tokenizer, prompts, arguments))
        return
    options: dict[str, Any] = {name: arguments[name] for name in _DRAWING}
    options["stop"] = arguments.stop
    everything = [prompt for prompt in prompts for _ in range(arguments.num_samples)]
    if len(everything) > 1:
        results = iterate_texts(
            model, tokenizer, everything, arguments.max_new_tokens, batch_size=arguments.batch_size, **options
        )
        _print_all((prompt, result.text or "") for prompt, result in zip(everything, results, strict=True))
        return
    pieces = stream_text(model, tokenizer, everything[0], arguments.max_new_tokens, **options)
    print(everything[0], end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _beams(model, tokenizer, prompts: list[str], arguments: Namespace) -> Iterator[tuple[str, str]]:
    """Yield the best num_samples texts for each prompt, with the prompt."""
    from fastllm.generation import beam_search_batch
    from fastllm.generation.decoding import batches

    try:
        stops = [tokenizer.encode(stop).tolist() for stop in arguments.stop]
    except UserError as error:
        raise UserError(f"sample: 'stop': {error}") from error
    if any(len(stop) != 1 for stop in stops):
        raise UserError("sample: with beam search 'stop' must be texts of one token each, such as a newline")
    if arguments.num_samples > arguments.num_beams:
        raise UserError(f"sample: 'num_samples' must be at most num_beams ({arguments.num_beams})")
    if tokenizer.end_of_text is not None:
        stops.append([tokenizer.end_of_text])
    everything = [tokenizer.encode(prompt).tolist() for prompt in prompts]
    for part in batches(model, everything, arguments.max_new_tokens, arguments.batch_size, arguments.num_beams):
        encoded = everything[part]
        found = beam_search_batch(
            model, encoded, arguments.max_new_tokens, num_beams=arguments.num_beams,
            stop=stops, length_penalty=arguments.length_penalty, alpha=arguments.alpha,
            vocabulary=tokenizer.vocab_size,
        )  # fmt: skip
        for prompt, ids, beams in zip(prompts[part], encoded, found, strict=True):
            # Decoded with the prompt: a first word's space belongs to it, but not to a text's beginning.
            start = len(tokenizer.decode(ids))
            for beam in beams[: arguments.num_samples]:
                yield prompt, tokenizer.decode([*ids, *beam.ids])[start:]


def _print_all(texts: Iterable[tuple[str, str]]) -> None:
    for index, (prompt, text) in enumerate(texts):
        if index:
            print("\n" + _RULE)
        print(prompt + text, flush=True)
