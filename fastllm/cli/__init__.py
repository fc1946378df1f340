"""The command line: it parses, calls and prints, no more.

A command is a module here with add_to(commands), which adds its parser, and run(arguments); arguments.given has the
names of those that were given, be it in a --config file and at their defaults, arguments.typed of those that stand on
the command line. torch, and all that imports it, is imported inside run: `--help` answers at once.
"""

import errno
import io
import os
import re
import signal
import sys
from collections.abc import Sequence

import fastllm
from fastllm.cli import bench, chat, estimate, eval, export, info, plot, prepare, sample, train, translate
from fastllm.cli.parser import EXIT_USER_ERROR, Parser
from fastllm.errors import UserError
from fastllm.files import discard

COMMANDS = {
    "info": info, "prepare": prepare, "estimate": estimate, "train": train, "eval": eval, "sample": sample,
    "chat": chat, "translate": translate, "export": export, "plot": plot, "bench": bench,
}  # fmt: skip
_OF_OUTPUT = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG, errno.EBADF)  # of a write, or a terminal that is gone
_DESCRIPTION = (
    "Language and translation models on hand-written kernels. First steps: `fastllm prepare shakespeare`, then "
    "`fastllm train --data data/shakespeare --out runs/first`, then `fastllm sample runs/first`."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 0, 2 for a user's mistake, 128 + its number when a signal interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a model may write what a terminal has no sign for
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run(underscored(sys.argv[1:] if arguments is None else arguments))
        finally:
            sys.stdout.flush()  # or the interpreter does at its end, and a disk that is full would be a traceback
    except UnicodeDecodeError as error:  # of a --config file; all other texts are read with a word of their own
        return _failed(f"a file that was named is not UTF-8: {error}")
    except UserError as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        print("fastllm: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # `fastllm sample ... | head`
        discard(sys.stdout)
        return 128 + signal.SIGPIPE
    except OSError as error:  # a file that may not be read, a disk that fails: nothing that a traceback explains
        if error.filename is not None and error.strerror is not None:
            return _failed(f"{os.fsdecode(error.filename)}: {error.strerror}")
        if error.errno not in _OF_OUTPUT:
            raise
        discard(sys.stdout)
        return _failed(f"cannot write the output: {error.strerror}")
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return _failed("there is not enough memory: use a smaller --batch_size or a smaller model")


def _run(words: list[str]) -> int:
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    parser = make_parser()
    parsed = parser.parse_args(words)
    own = parsed[parsed.command]
    own.given = frozenset(parser.parse_args(words, defaults=False)[parsed.command].keys())
    typed = tuple(word[2:].partition("=")[0] for word in words if word.startswith("--"))
    own.typed = frozenset(name for name in own.given if any(name.startswith(begin) for begin in typed if begin))
    return COMMANDS[parsed.command].run(own)


def _failed(message: str) -> int:
    print(f"fastllm: {message}", file=sys.stderr)
    return EXIT_USER_ERROR


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory ran out; torch's CPU allocator raises a plain RuntimeError for it."""
    return isinstance(error, MemoryError) or bool(re.search("DefaultCPUAllocator|out of memory", str(error)))


def underscored(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with options spelt as they are defined: --max-steps means --max_steps."""
    ours, dashes, others = list(arguments), "--", []
    if dashes in ours:  # what follows is not for us
        end = ours.index(dashes)
        ours, others = ours[:end], ours[end:]
    words = []
    for word in ours:
        name, equals, value = word.partition("=")
        words.append(dashes + name[2:].replace("-", "_") + equals + value if name.startswith(dashes) else word)
    return words + others


def make_parser() -> Parser:
    """Return the parser of the whole command line."""
    parser = Parser(prog="fastllm", description=_DESCRIPTION, version=fastllm.__version__)
    commands = parser.add_subcommands(dest="command")
    for command in COMMANDS.values():
        command.add_to(commands)
    return parser
