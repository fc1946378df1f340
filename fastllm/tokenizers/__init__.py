"""Text to token ids and back."""

from collections.abc import Iterable
from pathlib import Path

from fastllm.errors import UserError, UserValueError, describe
from fastllm.tokenizers import base, huggingface
from fastllm.tokenizers.base import EncodedBatch, StreamingDecoder, Tokenizer
from fastllm.tokenizers.byte import ByteTokenizer
from fastllm.tokenizers.character import CharacterTokenizer
from fastllm.tokenizers.gpt2 import NAMES, GPT2Tokenizer
from fastllm.tokenizers.sentencepiece import SentencePieceTokenizer

KINDS: dict[str, type[Tokenizer]] = {
    kind.kind: kind for kind in (CharacterTokenizer, ByteTokenizer, SentencePieceTokenizer, GPT2Tokenizer)
}


def train_tokenizer(kind: str, texts: Iterable[str], vocab_size: int | None = None, **options) -> Tokenizer:
    """Make a tokenizer of a kind from texts.

    Args:
        kind: "characters", "bytes", "sentencepiece" or "gpt2"; "bytes" and "gpt2" are ready made and read no text.
        texts: the texts, of any length, read once.
        vocab_size: how many tokens sentencepiece is to have, default 8000; for other kinds it follows from the kind.
        options: SentencePieceTokenizer.train's.

    Raises:
        UserError: kind is unknown, vocab_size is not what the kind or the texts allow, or the texts are empty.
        TypeError: texts is one str, or an option is unknown.
    """
    if kind not in KINDS:
        raise UserValueError(f"tokenizer: 'kind' must be one of {', '.join(KINDS)}, got '{kind}'")
    if kind == SentencePieceTokenizer.kind:
        return SentencePieceTokenizer.train(texts, 8000 if vocab_size is None else vocab_size, **options)
    if options:
        raise TypeError(f"tokenizer: kind '{kind}' has no options, got {', '.join(options)}")
    if kind == GPT2Tokenizer.kind:
        tokenizer: Tokenizer = GPT2Tokenizer.published()
    elif kind == ByteTokenizer.kind:
        tokenizer = ByteTokenizer.train(texts)
    else:
        tokenizer = CharacterTokenizer.train(texts)
    if vocab_size not in (None, tokenizer.vocab_size):
        has = tokenizer.vocab_size
        raise UserValueError(f"tokenizer: 'vocab_size' of {kind} is always {has}, got {vocab_size}; leave it out")
    return tokenizer


def has_tokenizer(folder: str | Path) -> bool:
    """Return whether load_tokenizer would look at something in folder."""
    names = (base.EXPORTED_FILE, base.FILE, *(vocab for vocab, _ in NAMES))
    return any((_place(Path(folder)) / name).exists() for name in names)


def _place(folder: Path) -> Path:
    """Return where a run has its tokenizer, beside its last model; any other folder as it is."""
    checkpoints = [folder / "checkpoints" / name for name in ("last", "best")]
    return next((checkpoint for checkpoint in checkpoints if checkpoint.is_dir()), folder)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Read the tokenizer stored in folder: one of ours, of whatever kind, or GPT-2's in Hugging Face's files.

    Args:
        folder: a data folder, a model's or a run's.

    Raises:
        UserError: there is none, or it is damaged or of an unknown kind.
    """
    folder = _place(Path(folder))
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"'{folder}' {what}: expected a folder with a tokenizer")
    if not has_tokenizer(folder):
        raise UserError(f"'{folder}' has no tokenizer: expected {base.FILE}, or the files of a GPT-2 tokenizer")
    ours = base.read_json(folder / base.FILE) if (folder / base.FILE).exists() else {}
    if "kind" in ours:
        return _load(folder / base.FILE, ours)
    exported, config = folder / base.EXPORTED_FILE, folder / huggingface.CONFIG
    stored = base.read_json(exported) if exported.exists() else None
    embedded = base.read_json(config).get(huggingface.SOURCE) if config.exists() else None
    for path, source in ((exported, stored), (config, embedded)):
        # A GPT-2 tokenizer is whole in Hugging Face's files, with tokens that were added there.
        if isinstance(source, dict) and source.get("kind") != GPT2Tokenizer.kind:
            return _load(path, source)
    try:
        return GPT2Tokenizer.from_folder(folder)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: the files of a GPT-2 tokenizer are damaged ({describe(error)})") from error


def _load(path: Path, stored: dict) -> Tokenizer:
    kind = stored.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{path}: 'kind' must be one of {', '.join(KINDS)}, got {kind!r}")
    try:
        tokenizer = KINDS[kind].from_json(stored, path.parent)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: a part of the {kind} tokenizer is missing or wrong ({error})") from error
    if path.name != base.FILE:
        _check_unchanged(tokenizer, path.parent / base.FILE)
    return tokenizer


def _check_unchanged(tokenizer: Tokenizer, path: Path) -> None:
    """Raise UserError if Hugging Face's file beside a tokenizer of ours has been changed, as by adding tokens."""
    if not path.exists():
        return
    try:
        changed = huggingface.difference(base.read_json(path), tokenizer.huggingface(), tokenizer.token_names())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({describe(error)})") from error
    if changed:
        raise UserError(f"{path} has {changed}: a {tokenizer.kind} tokenizer cannot be changed so")


__all__ = [
    "ByteTokenizer",
    "CharacterTokenizer",
    "EncodedBatch",
    "GPT2Tokenizer",
    "SentencePieceTokenizer",
    "StreamingDecoder",
    "Tokenizer",
    "has_tokenizer",
    "load_tokenizer",
    "train_tokenizer",
]
