"""What commands that make text share: the model, its threads, and prompts that somebody types."""

import importlib.util
import io
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from fastllm.errors import UserError

_FLOPS_OF_ONE = 1e8  # a core's work of about a millisecond: some 1e11 in a second


def set_threads(model, together: int, threads: int | None) -> None:
    """Set the threads that were asked for, or one where a step's products are about a millisecond's work for one.

    Threads would wait there, not work.

    Args:
        model: makes the text.
        together: how many sequences it continues at once.
        threads: as the user gave them.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    elif 2 * model.num_parameters() * together < _FLOPS_OF_ONE:
        torch.set_num_threads(1)


_USES = {"language": "which continues texts: use `fastllm sample`", "translation": "use `fastllm translate`"}


def load(command: str, folder: Path, name: str, device: str, task: str = "language"):
    """Return a model of a task on its device, and its tokenizer; name is of a run's checkpoint."""
    from fastllm.train import checkpoint
    from fastllm.train.device import for_generation

    model, tokenizer = checkpoint.load_source(folder, name)
    if model.config.task != task:
        raise UserError(f"{command}: {folder} is a {model.config.kind}, {_USES[model.config.task]}")
    place = for_generation(command, device, model)
    if tokenizer is None:
        raise UserError(
            f"{command}: {folder} has no tokenizer; make a folder with one: fastllm export "
            f"{shlex.quote(str(folder))} OUT --tokenizer DIR"
        )
    return model.to(place), tokenizer


def utf8(command: str, prompt: str) -> str:
    """Return a prompt that was typed, unless it was not UTF-8: Python has lone surrogates for what it could not read.

    Under a locale that is not UTF-8 that is much that is UTF-8.
    """
    if not any("\ud800" <= character <= "\udfff" for character in prompt):
        return prompt
    try:
        return os.fsencode(prompt).decode()
    except UnicodeError as error:
        raise UserError(f"{command}: the prompt is not UTF-8") from error


def asked() -> Iterator[str]:
    """Yield what is typed, a line at a time, to the end of standard input; empty lines are left out."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # or one wrong byte would take all that was read with it
    if sys.stdin.isatty() and importlib.util.find_spec("readline"):
        importlib.import_module("readline")  # input() then edits lines and has a history
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            print()
            return
        if prompt:
            yield prompt
