"""The files of tokenizers: written whole, read with their SHA-256 where it is known."""

import hashlib
import json
from pathlib import Path

from fastllm.errors import UserError
from fastllm.files import write_atomically


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    write_atomically(path, lambda temporary: _write(temporary, content))


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def digest(content: bytes) -> str:
    """Return the SHA-256 of content in hex."""
    return hashlib.sha256(content).hexdigest()


def read_file(path: Path, sha256: str | None = None) -> bytes:
    """Read a tokenizer's file, and compare it with its SHA-256 where that is known.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if sha256 is not None and digest(content) != sha256:
        raise UserError(f"{path} is damaged: its SHA-256 is not the one that was stored with it")
    return content


def read_text(path: Path) -> str:
    """Read a text file in UTF-8.

    Raises:
        UserError: it cannot be read or is not UTF-8.
    """
    try:
        return read_file(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: it is not UTF-8") from error


def parse_json(path: Path, content: bytes) -> dict:
    """Return the object in a JSON file that has been read.

    Raises:
        UserError: it is not a JSON object.
    """
    try:
        stored = json.loads(content)
    except ValueError as error:  # UnicodeDecodeError is one
        raise UserError(f"{path} is damaged: it is not JSON ({error})") from error
    if not isinstance(stored, dict):
        raise UserError(f"{path} is damaged: expected an object, got {type(stored).__name__}")
    return stored


def read_json(path: Path) -> dict:
    """Read a JSON file that holds an object.

    Raises:
        UserError: it cannot be read or is not a JSON object.
    """
    return parse_json(path, read_file(path))
