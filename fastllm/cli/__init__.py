"""The command line: it parses, calls and prints, no more.

A command is a module here with add_to(commands), which adds its parser, and run(arguments); arguments.given has the
names of those that were given, be it in a --config file and at their defaults. torch, and all that imports it, is
imported inside run: `--help` answers at once.
"""

import io
import os
import signal
import sys
from collections.abc import Sequence

from fastllm.cli import bench, estimate, eval, export, info, plot, prepare, sample, train
from fastllm.cli.parser import EXIT_USER_ERROR, Parser
from fastllm.errors import UserError

COMMANDS = {
    "info": info, "prepare": prepare, "estimate": estimate, "train": train, "eval": eval, "sample": sample,
    "export": export, "plot": plot, "bench": bench,
}  # fmt: skip
_DESCRIPTION = (
    "Train and sample GPTs on hand-written kernels. First steps: `fastllm prepare shakespeare`, then `fastllm train "
    "--data data/shakespeare --out runs/first`, then `fastllm sample runs/first`."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 0, 2 for a user's mistake, 130 or 143 when interrupted."""
    parser = make_parser()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a model may write what a terminal has no sign for
            stream.reconfigure(errors="backslashreplace")
    try:
        words = underscored(sys.argv[1:] if arguments is None else arguments)
        parsed = parser.parse_args(words)
        own = parsed[parsed.command]
        own.given = frozenset(parser.parse_args(words, defaults=False)[parsed.command].keys())
        return COMMANDS[parsed.command].run(own)
    except UnicodeDecodeError as error:  # of a --config file; all other texts are read with a word of their own
        print(f"fastllm: a file that was named is not UTF-8: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except UserError as error:
        print(f"fastllm: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("fastllm: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # `fastllm sample ... | head`
        sys.stderr.close()
        return 128 + signal.SIGPIPE
    except OSError as error:  # a file that may not be read, a disk that fails: nothing that a traceback explains
        if error.filename is None or error.strerror is None:
            raise
        print(f"fastllm: {os.fsdecode(error.filename)}: {error.strerror}", file=sys.stderr)
        return EXIT_USER_ERROR


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
    parser = Parser(prog="fastllm", description=_DESCRIPTION)
    commands = parser.add_subcommands(dest="command")
    for command in COMMANDS.values():
        command.add_to(commands)
    return parser
