"""Files that survive: written whole under a temporary name, flushed to the disk, then renamed; checked by SHA-256."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from fastllm.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside path, then put it in path's place: path is whole at every moment.

    Raises:
        UserError: the disk is full or not writable; whatever was at path is still there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        with suppress(OSError):  # a folder that may only be read says so of this too
            temporary.unlink()
        raise UserError(f"cannot write {path}: {error.strerror or error}; nothing that was there is lost") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    write_atomically(path, lambda temporary: _write(temporary, text))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a temporary folder, add checksums, then put it in folder's place.

    At every moment `folder`, or its predecessor under the name `.folder.old`, is whole; readers look for both.

    Raises:
        UserError: the disk is full or not writable; the old folder, if there was one, is still there.
    """

    def fill_and_sum(temporary: Path) -> None:
        fill(temporary)
        sums = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
        _write(temporary / "checksums.json", json.dumps(sums, indent=2) + "\n")

    _replace(folder, fill_and_sum)


def copy_folder(source: Path, folder: Path, link: bool = False) -> None:
    """Put a copy of what replace_folder wrote, with its checksums, in folder's place, as safely.

    Args:
        source: the folder; its files must never be written into.
        link: share the files with source instead, where the disk can: it costs nothing, and both are damaged together.

    Raises:
        UserError: as replace_folder.
    """
    copy = _link if link else shutil.copy
    _replace(folder, lambda temporary: [copy(file, temporary / file.name) for file in sorted(source.iterdir())])


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # some disks, and folders shared over a network, have no links
        shutil.copy(source, target)


def _replace(folder: Path, fill: Callable[[Path], object]) -> None:
    temporary = unfinished(folder)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        fill(temporary)
        put_in_place(temporary, folder)
    except (OSError, UserError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        cause = error if isinstance(error, OSError) else error.__cause__  # `fill` may use write_atomically
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else error
        before = "; the one before it is intact" if folder.exists() else ""
        raise UserError(f"cannot write {folder}: {reason}{before}") from error


def new_folder(command: str, folder: Path) -> Path:
    """Return folder, if there is nothing of the user's in it.

    Raises:
        UserError: it is a file, or not empty.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{command}: {folder} is a file; name a new folder")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{command}: {folder} exists and is not empty; name a new folder")
    return folder


def put_in_place(temporary: Path, folder: Path) -> None:
    """Flush a finished folder to the disk and give it the name `folder`; what had it before goes."""
    old = previous(folder)
    for file in temporary.iterdir():
        sync(file)
    sync(temporary)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
    try:
        os.rename(temporary, folder)
    except BaseException:  # Ctrl-C too
        if old.exists():
            os.rename(old, folder)
        raise
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def unfinished(folder: Path) -> Path:
    """Return where replace_folder writes the new folder."""
    return folder.with_name(f".{folder.name}.tmp")


def previous(folder: Path) -> Path:
    """Return where replace_folder keeps the old folder for the moment in which it renames."""
    return folder.with_name(f".{folder.name}.old")


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run's, which has its models in checkpoints."""
    return (folder / "checkpoints").is_dir()


def find_checkpoint(run: Path, *names: str) -> Path:
    """Return the folder of the first of these checkpoints that a run has, whole or not.

    Raises:
        UserError: the run has none of them; those that it has are listed.
    """
    for name in names:
        folder = run / "checkpoints" / name
        for place in (folder, previous(folder)):  # a writer may have been killed between its two renames
            if place.is_dir():
                return place
    there = sorted(path.name for path in (run / "checkpoints").iterdir() if path.name[0] != "." and path.is_dir())
    wanted = " or ".join(f"'{name}'" for name in names)
    raise UserError(f"{run} has no checkpoint {wanted}; it has {', '.join(there) or 'none yet'}")


def verify_folder(folder: Path) -> None:
    """Compare a folder's files with its checksums.

    Raises:
        UserError: a file is missing or damaged; the message names it.
    """
    try:
        sums = json.loads((folder / "checksums.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/checksums.json is missing or damaged ({error})") from error
    for name, expected in sums.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing")
        if sha256(folder / name) != expected:
            raise UserError(f"{folder / name} is damaged: its SHA-256 is not the one that was written with it")


def lock(folder: Path) -> TextIO:
    """Take a folder for this process alone, as long as the returned file is open; the system frees it at a kill too.

    Raises:
        UserError: another process has it, or the folder cannot be written.
    """
    path = folder / ".lock"
    try:
        import fcntl
    except ImportError:  # Windows has no flock; there the lock is the file's name only
        return path.open("a+", encoding="utf-8")
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise UserError(
            f"{folder} is in use by process {holder}: wait for it, stop it, or name another folder"
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


@contextmanager
def locked_folder(folder: Path, what: Path) -> Iterator[None]:
    """Make a folder, empty, for this process alone; at the end what is still there under its name is deleted.

    Whoever writes it may rename it. One that a killed process left is taken over.

    Args:
        folder: the folder.
        what: is being written by means of it, for the message.

    Raises:
        UserError: another process has it.
    """
    descriptor = _locked(folder, what)
    try:
        for file in folder.iterdir():
            shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
        yield
    finally:
        if _identity(folder) == _identity(descriptor):
            shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _locked(folder: Path, what: Path) -> int:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # its owner has renamed or deleted it in this moment
            continue
        try:
            _lock_exclusively(descriptor, what)
        except BaseException:
            os.close(descriptor)
            raise
        if _identity(folder) == _identity(descriptor):
            return descriptor
        os.close(descriptor)


def _identity(place: Path | int) -> tuple[int, int] | None:
    try:
        status = os.stat(place)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _lock_exclusively(descriptor: int, what: Path) -> None:
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"another process is writing {what}: wait for it, or name another folder") from error
    except (ImportError, OSError):  # Windows has no flock, and some disks that are shared over a network
        pass


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(stream: TextIO) -> None:
    """Let what is still to be written into a stream that fails go nowhere: Python would try again at its end."""
    with suppress(OSError, ValueError):  # not every stream is a file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
