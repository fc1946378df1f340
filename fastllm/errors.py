"""What a user did that cannot work, said in one sentence."""

import difflib
import os
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path

# Settings by the names that they have elsewhere, where no likeness leads from one to the other.
_ELSEWHERE = {
    "lr": "learning_rate", "min_lr": "min_learning_rate", "warmup": "warmup_steps", "warmup_iters": "warmup_steps",
    "wd": "weight_decay", "clip": "grad_clip", "max_grad_norm": "grad_clip", "block_size": "context_length",
    "seq_len": "context_length", "max_seq_len": "context_length", "max_length": "max_new_tokens",
    "max_tokens": "max_new_tokens", "length": "max_new_tokens", "d_model": "n_embd", "dim": "n_embd",
    "hidden_size": "n_embd", "num_layers": "n_layer", "layers": "n_layer", "depth": "n_layer", "num_heads": "n_head",
    "heads": "n_head", "bs": "batch_size", "steps": "max_steps", "iters": "max_steps", "max_iters": "max_steps",
    "epochs": "max_steps", "dtype": "precision", "bf16": "precision", "fp16": "precision", "amp": "precision",
    "gradient_accumulation_steps": "micro_batch_size", "grad_accum": "micro_batch_size", "ema": "ema_decay",
    "gradient_checkpointing": "activation_checkpointing", "init_from": "init", "output": "out", "output_dir": "out",
    "out_dir": "out", "dataset": "data", "num_threads": "threads", "temp": "temperature", "n": "num_samples",
    "beams": "num_beams", "eos": "stop", "stop_token": "stop", "ckpt": "checkpoint", "vocab": "vocab_size",
}  # fmt: skip


class UserError(Exception):
    """A mistake the user can mend; the command line prints its message alone, without a traceback."""


class UserValueError(UserError, ValueError):
    """An argument or a setting with a value that it cannot have: Python's own error for it too, for who calls us."""


class UserImportError(UserError, ImportError):
    """A part that is not installed, not built, or cannot be loaded here."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for the known word that is meant or nearest, or nothing; options keep their "--"."""
    dashes, names = "--" * word.startswith("--"), list(known)
    meant = dashes + _ELSEWHERE.get(word.removeprefix("--"), "")
    near = [meant] if meant in names else difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def describe(value: object) -> str:
    """Return an argument of a wrong type as a message says what it got: its type and the beginning of its value."""
    return "None" if value is None else f"{type(value).__name__} {value!r:.60}"


def checked_path(where: str, name: str, value: object) -> Path:
    """Return an argument as a path; raise TypeError if it is none."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{where}: '{name}' must be a path, got {describe(value)}")
    return Path(value)


_NOUNS: dict[type, str] = {Integral: "a whole number", Real: "a number", bool: "a bool", str: "a str"}


def check_type(where: str, name: str, value: object, kind: type) -> None:
    """Raise TypeError if an argument is not of a kind; True and False are no numbers.

    Args:
        where: the function or class, or the file that the value is from.
        name: the argument's.
        value: what it is.
        kind: a class, or one of numbers' for all that count as such.
    """
    if not isinstance(value, kind) or (kind in (Integral, Real) and isinstance(value, bool)):
        expected = _NOUNS.get(kind, f"a {kind.__name__}")
        raise TypeError(f"{where}: '{name}' must be {expected}, got {describe(value)}")
