"""Which files are text, by their names, and which of them are in a folder."""

import json
import os
import stat
from pathlib import Path
from typing import NoReturn

from fastllm.data.documents import shown
from fastllm.errors import UserError

STDIN = Path("-")
FORMATS = {".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json"}
IN_FOLDERS = (".txt", ".jsonl", ".ndjson")  # .json is often something else: such a file must be named
MANIFEST = "manifest.json"  # of a data folder


def format_of(file: Path) -> str | None:
    """Return "text", "jsonl" or "json" by the last suffix, in upper or lower case, before .gz; None for others."""
    return FORMATS.get(_suffix(file.name))


def _suffix(name: str) -> str:
    return os.path.splitext(name.lower().removesuffix(".gz"))[1]


def find(path: Path, skipped: list[str]) -> list[Path]:
    """Return the files to read for a path of the command line, in the order of their paths.

    Folders are searched to their bottom, also through links; names that start with a dot are passed by.

    Args:
        path: a file, a folder, or STDIN.
        skipped: gets the names of the files and folders that are passed by.

    Raises:
        UserError: nothing is there, it cannot be read, or it has no text.
    """
    if path == STDIN:
        return [path]
    try:
        mode = path.stat().st_mode
    except OSError as error:
        cannot_read(path, error)
    if stat.S_ISREG(mode):
        return [path]
    if not stat.S_ISDIR(mode):  # a pipe or a device: it could not be read twice
        raise UserError(f"prepare text: {shown(path)} is not a file or folder; send it to the standard input, named -")
    found = _search(path, skipped)
    if not found:
        raise UserError(
            f"prepare text: {shown(path)} has no files that end in {', '.join(IN_FOLDERS)} (or these with .gz); "
            "to read other files, name each of them"
        )
    return found


def _search(top: Path, skipped: list[str]) -> list[Path]:
    found = []
    seen: set[tuple[int, int]] = set()  # a link may lead back to a folder that it is in
    for folder, folders, names in os.walk(top, onerror=_cannot_list, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        if MANIFEST in names and is_data_folder(Path(folder)):
            skipped.append(shown(folder))
            folders.clear()
            continue
        skipped += [shown(Path(folder, name)) for name in folders if name.startswith(".")]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(folder, name)
            if not name.startswith(".") and _suffix(name) in IN_FOLDERS and not _is_special(file):
                found.append(file)
            else:
                skipped.append(shown(file))
    return sorted(found)


def _is_special(file: Path) -> bool:
    """Return whether it is a pipe, a socket or a device: opening one might wait for ever."""
    try:
        return not stat.S_ISREG(file.stat().st_mode)
    except FileNotFoundError as error:
        target = shown(os.readlink(file))
        raise UserError(f"prepare text: {shown(file)} is a broken link: {target} does not exist") from error
    except OSError as error:
        cannot_read(file, error)


def is_data_folder(folder: Path) -> bool:
    """Return whether prepare wrote a folder."""
    try:
        return "splits" in json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _cannot_list(error: OSError) -> NoReturn:
    cannot_read(error.filename, error)


def cannot_read(path: str | Path, error: OSError) -> NoReturn:
    """Raise UserError for a file or folder."""
    raise UserError(f"prepare text: cannot read {shown(path)}: {error.strerror or error}") from error
