"""From text to a data folder: train.bin, val.bin (token ids), tokenizer.json and manifest.json."""

from pathlib import Path

import numpy as np

from fastllm.errors import UserError
from fastllm.files import sha256, write_atomically, write_json
from fastllm.tokenizers import CharacterTokenizer

VERSION = 1
SPLITS = ("train", "val")


def read_texts(files: list[Path]) -> str:
    """Read UTF-8 text files and join them.

    Raises:
        UserError: a file is missing, a directory, empty or not UTF-8; the message names it (and the byte).
    """
    texts = []
    for file in files:
        if file.is_dir():
            raise UserError(f"prepare text: expected text files, got the directory {file}; name the files in it")
        try:
            data = file.read_bytes()
        except OSError as error:
            raise UserError(f"prepare text: cannot read {file}: {error.strerror}") from error
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(
                f"prepare text: {file} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start} "
                "does not belong; convert the file first, e.g. with iconv"
            ) from error
        if not text.strip():
            raise UserError(f"prepare text: {file} is empty")
        texts.append(text)
    return "\n".join(texts)


def prepare(text: str, out: Path, sources: list[str], val_share: float = 0.1) -> dict:
    """Tokenize text by characters and write a data folder; the last val_share of it is for validation.

    Returns:
        The manifest, as written.

    Raises:
        UserError: val_share is not in (0, 1), text is too short to split, or the folder cannot be written.
    """
    if not 0 < val_share < 1:
        raise UserError(f"prepare: 'val_share' must be between 0 and 1, got {val_share}")
    tokenizer = CharacterTokenizer(text)
    ids = tokenizer.encode(text)
    cut = int(len(ids) * (1 - val_share))
    if cut < 2 or len(ids) - cut < 2:
        raise UserError(f"prepare: the text must have at least 2 tokens in each split, got {len(ids)} in all")
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    splits: dict[str, dict] = {}
    manifest = {
        "version": VERSION,
        "tokenizer": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "dtype": dtype.str,
        "sources": sources,
        "splits": splits,
    }
    for name, part in zip(SPLITS, (ids[:cut], ids[cut:]), strict=True):
        path = out / f"{name}.bin"
        write_atomically(path, part.astype(dtype).tofile)
        splits[name] = {"tokens": len(part), "sha256": sha256(path)}
    tokenizer.save(out)
    write_json(out / "manifest.json", manifest)  # last: a folder with a manifest is complete
    return manifest
