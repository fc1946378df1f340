"""A run's checkpoints: whole at every moment, checked when read."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastllm.errors import UserError
from fastllm.files import copy_folder, find_checkpoint, is_run, previous, replace_folder, verify_folder
from fastllm.models import Model, load
from fastllm.tokenizers import Tokenizer, has_tokenizer, load_tokenizer
from fastllm.train.metrics import read_metrics

LAST, BEST, EMA = "last", "best", "ema"
PARTS = ".metadata"  # the file by which a checkpoint of several processes' parts is known (sharded.py)
_STATE = "state.pt"
_VERSION = 2  # of what is in state.pt
_KEPT = re.compile(r"step-\d+")


def folder_of(run: Path, name: str) -> Path:
    """Return where a run keeps its checkpoint of that name."""
    return run / "checkpoints" / name


def kept_name(step: int) -> str:
    """Return the name of a checkpoint that is kept beside last and best; names sort as steps do."""
    return f"step-{step:08d}"


def kept(run: Path) -> list[Path]:
    """Return the folders that keep_checkpoints kept, oldest first."""
    folder = run / "checkpoints"
    return sorted(path for path in folder.iterdir() if _KEPT.fullmatch(path.name)) if folder.is_dir() else []


def forget_kept(run: Path, number: int, after: int | None = None) -> None:
    """Delete all but the newest kept checkpoints, and those of steps that were taken back."""
    folders = kept(run)
    for folder in folders:
        if after is not None and folder.name > kept_name(after):
            shutil.rmtree(folder)
    for folder in kept(run)[: -number or None]:
        shutil.rmtree(folder)


def save(
    run: Path, name: str, model: Model, tokenizer: Tokenizer, state: dict[str, Any],
    add: Callable[[Path], None] = lambda folder: None,
) -> Path:  # fmt: skip
    """Write a checkpoint in the place of the one before; return its folder.

    Args:
        run: the run's folder.
        name: the checkpoint's.
        model: its weights and settings.
        tokenizer: the one the model was trained with.
        state: the trainer's, tensors and plain values.
        add: writes further files into the folder it is given.

    Raises:
        UserError: it could not be written; the one before, if there was one, is intact.
    """

    def fill(folder: Path) -> None:
        try:
            model.save_pretrained(folder)
            with (folder / _STATE).open("wb") as file:  # torch's own file would not say why it cannot be written
                torch.save({"version": _VERSION, **state}, file)
            add(folder)
        except (RuntimeError, OSError, ValueError) as error:
            raise _as_os_error(error) from error
        tokenizer.save(folder)

    folder = folder_of(run, name)
    replace_folder(folder, fill)
    return folder


def copy(run: Path, name: str, other: str, link: bool) -> None:
    """Put a copy of a checkpoint that was just saved in another's place; link: as files.copy_folder has it."""
    copy_folder(folder_of(run, name), folder_of(run, other), link)


def _as_os_error(error: Exception) -> OSError:
    """Return the system's error, which torch turns into one of its own; or what there is."""
    for cause in (error, error.__context__):
        if isinstance(cause, OSError):
            return cause
    return OSError(0, f"{error}".splitlines()[0])


def never_saved(run: Path) -> bool:
    """Return whether a run was stopped before its first "last" was whole; "best" is written just before it."""
    last, best = (folder_of(run, name) for name in (LAST, BEST))
    if last.exists() or previous(last).exists():
        return False
    if any(row["step"] for row in read_metrics(run)):  # the first "last" is of step 0: it was there, and is lost
        return False
    return not best.exists() or load_state(run, BEST)["step"] == 0


def locate(run: Path, name: str) -> Path:
    """Return the folder of a checkpoint, whole or not.

    Raises:
        UserError: the run has none of that name; those that it has are listed.
    """
    if not is_run(run):
        raise UserError(f"{run} is not a run: it has no folder checkpoints")
    return find_checkpoint(run, name)


def find(run: Path, name: str) -> Path:
    """Return the folder of a checkpoint, after reading all of it to check that it is whole.

    Raises:
        UserError: the run has none of that name, and those that it has are listed; or it is damaged, and an intact
            other one is offered.
    """
    folder = locate(run, name)
    try:
        verify_folder(folder)
    except UserError as error:
        raise UserError(f"{error}{_offer(run, name)}") from error
    return folder


def _offer(run: Path, name: str) -> str:
    other = BEST if name == LAST else LAST
    try:
        verify_folder(folder_of(run, other))
    except UserError:
        return ""
    return f"; the checkpoint '{other}' is intact: take it with --checkpoint {other}"


def load_model(run: Path, name: str) -> tuple[Model, Tokenizer]:
    """Return a checkpoint's model and tokenizer.

    Raises:
        UserError: there is none, it is damaged, or its vocabulary does not fit its model.
    """
    return read_model(find(run, name))


def load_state(run: Path, name: str) -> dict[str, Any]:
    """Return the trainer's state of a checkpoint.

    Raises:
        UserError: there is none, it is damaged, or it was written by another version.
    """
    return read_state(find(run, name))


def load_source(source: Path, name: str = BEST, tokenizer: Path | None = None) -> tuple[Model, Tokenizer | None]:
    """Return the model that a run, a folder or a file holds (see models.load), and its tokenizer if there is one.

    Args:
        source: where to look.
        name: of the checkpoint, where source is a run.
        tokenizer: the folder of another tokenizer to take than the source's.

    Raises:
        UserError: source is none of these, or is damaged, or the tokenizer does not fit the model.
    """
    if not source.exists():
        raise UserError(f"{source} does not exist")
    folder = find(source, name) if is_run(source) else source
    try:
        model = load(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no model that fastllm reads ({error})") from error
    if tokenizer is None and not has_tokenizer(folder):
        return model, None
    loaded = load_tokenizer(tokenizer or folder)
    model.check_tokenizer(loaded, tokenizer or folder)
    return model, loaded


def read_model(folder: Path) -> tuple[Model, Tokenizer]:
    """Return the model and tokenizer in a checkpoint's folder.

    Raises:
        UserError: they are not of one run.
    """
    model, tokenizer = load(folder), load_tokenizer(folder)
    model.check_tokenizer(tokenizer, folder)
    return model, tokenizer


def read_state(folder: Path) -> dict[str, Any]:
    """Return the trainer's state in a checkpoint's folder; nothing but tensors and plain values is unpickled.

    Raises:
        UserError: it was written by another version.
    """
    state = torch.load(folder / _STATE, weights_only=True)
    if state.get("version") != _VERSION:
        raise UserError(
            f"{folder} was written by another version of fastllm, and only that can continue it; its weights can start "
            f"a new run: --init {folder}"
        )
    return state
