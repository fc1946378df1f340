"""Finding and reading the tokenizer of a folder or a file: one of ours, or what a model from elsewhere carries."""

from pathlib import Path

from fastllm.errors import UserError, checked_path, describe
from fastllm.tokenizers import base, gguf, huggingface, marian, sentencepiece
from fastllm.tokenizers.base import Tokenizer
from fastllm.tokenizers.byte import ByteTokenizer
from fastllm.tokenizers.character import CharacterTokenizer
from fastllm.tokenizers.gpt2 import NAMES, GPT2Tokenizer
from fastllm.tokenizers.pair import PairTokenizer
from fastllm.tokenizers.sentencepiece import SentencePieceTokenizer
from fastllm.tokenizers.storage import read_json
from fastllm.tokenizers.tokenizer_json import HuggingFaceTokenizer

KINDS: dict[str, type[Tokenizer]] = {
    kind.kind: kind
    for kind in (
        CharacterTokenizer,
        ByteTokenizer,
        SentencePieceTokenizer,
        GPT2Tokenizer,
        HuggingFaceTokenizer,
        PairTokenizer,
    )
}
NEVER_TRAINED = (HuggingFaceTokenizer.kind, PairTokenizer.kind)  # by train_tokenizer
# Kinds that are whole in Hugging Face's files, with tokens that were added there.
_WHOLE = (GPT2Tokenizer.kind, HuggingFaceTokenizer.kind)


def has_tokenizer(source: str | Path) -> bool:
    """Return whether load_tokenizer would look at something in source.

    Raises:
        UserError: source is a GGUF file that is damaged.
    """
    if Path(source).is_file():
        return gguf.has_tokenizer(Path(source))
    names = (
        base.EXPORTED_FILE, base.FILE, *(vocab for vocab, _ in NAMES), sentencepiece.FILE, *marian.MODELS.values(),
    )  # fmt: skip
    return any((_place(Path(source)) / name).exists() for name in names)


def _place(folder: Path) -> Path:
    """Return where a run has its tokenizer, beside its last model; any other folder as it is."""
    checkpoints = [folder / "checkpoints" / name for name in ("last", "best")]
    return next((checkpoint for checkpoint in checkpoints if checkpoint.is_dir()), folder)


def load_tokenizer(source: str | Path) -> Tokenizer:
    """Read a stored tokenizer: one of ours, of whatever kind, or what another maker's model carries.

    Args:
        source: a data folder, a model's (in Hugging Face's files, or with a sentencepiece model) or a run's; or a GGUF
            file.

    Raises:
        UserError: there is none, or it is damaged, of an unknown kind or not supported.
        TypeError: source is not a path.
    """
    path = checked_path("load_tokenizer", "source", source)
    if path.suffix == gguf.SUFFIX and not path.is_dir():
        return gguf.load(path)
    folder = _place(path)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"'{folder}' {what}: expected a folder with a tokenizer, or a {gguf.SUFFIX} file")
    if not has_tokenizer(folder):
        raise UserError(
            f"'{folder}' has no tokenizer: expected {base.FILE}, {sentencepiece.FILE} or the files of a GPT-2 tokenizer"
        )
    ours = read_json(folder / base.FILE) if (folder / base.FILE).exists() else {}
    if "kind" in ours:
        return _load(folder / base.FILE, ours)
    exported, config = folder / base.EXPORTED_FILE, folder / huggingface.CONFIG
    stored = read_json(exported) if exported.exists() else {}
    if stored.get("kind") == HuggingFaceTokenizer.kind:
        return _load(exported, stored)
    embedded = read_json(config).get(huggingface.SOURCE) if config.exists() else None
    for path, made in ((exported, stored), (config, embedded)):
        if isinstance(made, dict) and made and made.get("kind") not in _WHOLE:
            tokenizer = _load(path, made)
            _check_unchanged(tokenizer, folder / base.FILE)
            tokenizer.chat_template = huggingface.read_settings(folder).chat_template or tokenizer.chat_template
            return tokenizer
    return _load_theirs(folder)


def _load_theirs(folder: Path) -> Tokenizer:
    """Read another maker's tokenizer; sentencepiece's and GPT-2's own kinds, the faster ones, where they fit."""
    if any((folder / name).is_file() for name in marian.MODELS.values()):
        return PairTokenizer.from_folder(folder)
    whole = (folder / base.FILE).exists()
    if (folder / sentencepiece.FILE).exists():
        try:
            return SentencePieceTokenizer.from_folder(folder)
        except UserError:
            if not whole:
                raise
    try:
        return GPT2Tokenizer.from_folder(folder)
    except UserError:
        if not whole:
            raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: the files of a GPT-2 tokenizer are damaged ({describe(error)})") from error
    return HuggingFaceTokenizer.from_folder(folder)


def _load(path: Path, stored: dict) -> Tokenizer:
    kind = stored.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{path}: 'kind' must be one of {', '.join(KINDS)}, got {kind!r}")
    try:
        tokenizer = KINDS[kind].from_json(stored, path.parent)
        tokenizer.carry(stored)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: a part of the {kind} tokenizer is missing or wrong ({error})") from error
    return tokenizer


def _check_unchanged(tokenizer: Tokenizer, path: Path) -> None:
    """Raise UserError if Hugging Face's file beside a tokenizer of ours has been changed, as by adding tokens."""
    if not path.exists():
        return
    try:
        changed = huggingface.difference(read_json(path), tokenizer.huggingface(), tokenizer.token_names())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({describe(error)})") from error
    if changed:
        raise UserError(f"{path} has {changed}: a {tokenizer.kind} tokenizer cannot be changed so")
