"""The tokenizer that a GGUF file carries, as llama.cpp writes it: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

A file says in `tokenizer.ggml.model` which algorithm it has. "gpt2" is byte-pair encoding over bytes, and
`tokenizer.ggml.pre` names how its maker cuts texts into words; it becomes a tokenizer.json. "llama" is sentencepiece's
byte-pair encoding and becomes a model of sentencepiece. A normalizer (Qwen2's NFC) is not in the file, and llama.cpp
applies none.
"""

import json
import mmap
import struct
from itertools import zip_longest
from pathlib import Path
from typing import Any

from fastllm.errors import UserError, describe
from fastllm.tokenizers import huggingface
from fastllm.tokenizers.base import Tokenizer
from fastllm.tokenizers.sentencepiece import SentencePieceTokenizer
from fastllm.tokenizers.tokenizer_json import HuggingFaceTokenizer

SUFFIX = ".gguf"
_PREFIX, _TEMPLATE = "tokenizer.", "tokenizer.chat_template"
_NUMBERS = "BbHhIif?"  # struct's letters of the types 0 to 7
_NUMBERS_BEHIND = {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # types of tokens; sentencepiece numbers them alike
_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE, _SIGNS = r"[^\r\n\p{L}\p{N}]?", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_TEKKEN = rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}|{_SIGNS}|{_REST}"
_GPT4O = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{_SIGNS}|{_REST}"
)
_GPT2 = [{**huggingface.BYTES, "use_regex": True}]
_DIGITS = [{"type": "Digits", "individual_digits": True}, *_GPT2]


def _split(pattern: str) -> list[dict[str, Any]]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [split, huggingface.BYTES]


# The values of `tokenizer.ggml.pre`, and the steps of the tokenizers library that cut texts so.
_WORDS: dict[str, list[dict[str, Any]]] = {
    **dict.fromkeys(("default", "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "command-r"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), _split(_LLAMA3)),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _split(_LLAMA3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"), _split(_QWEN2)),
    "tekken": _split(_TEKKEN),
    **dict.fromkeys(("gpt-4o", "llama4"), _split(_GPT4O)),
}
# Whose makers look a whole word up before they merge, and begin every text with a token if nothing else is said.
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken")


def has_tokenizer(path: Path) -> bool:
    """Return whether a file is a GGUF with a tokenizer.

    Raises:
        UserError: it is damaged.
    """
    return path.suffix == SUFFIX and path.is_file() and "tokenizer.ggml.model" in read_metadata(path)


def load(path: Path) -> Tokenizer:
    """Return the tokenizer in a GGUF file, with its chat template.

    Raises:
        UserError: the file is missing, damaged or has no tokenizer, or one that is not supported.
    """
    stored = read_metadata(path)
    model = stored.get("tokenizer.ggml.model")
    if model not in _MODELS:
        got = "none" if model is None else f"'{model}'"
        raise UserError(f"{path}: 'tokenizer.ggml.model' must be one of {', '.join(_MODELS)}, got {got}")
    try:
        tokenizer = _MODELS[model]({name.removeprefix("tokenizer.ggml."): value for name, value in stored.items()})
        tokenizer.carry({"chat_template": stored[_TEMPLATE]} if _TEMPLATE in stored else {})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is damaged: a part of its tokenizer is missing or wrong ({describe(error)})"
        ) from error
    return tokenizer


def _roles(stored: dict[str, Any]) -> dict[str, str]:
    """Return the names of tokens by their roles.

    Some files name an ordinary token, such as the first one, for padding or what is unknown: it stays ordinary.
    """
    tokens, roles = stored["tokens"], {}
    types = stored.get("token_type") or [_NORMAL] * len(tokens)
    for role, name in _ROLES.items():
        id = stored.get(f"{name}_token_id")
        if id is not None and (role in ("bos_token", "eos_token") or types[id] != _NORMAL):
            roles[role] = tokens[id]
    return roles


def _byte_pairs(stored: dict[str, Any]) -> Tokenizer:
    words = stored.get("pre", "default")
    if words not in _WORDS:
        raise UserError(f"'tokenizer.ggml.pre' must be one of {', '.join(_WORDS)}, got '{words}'")
    tokens, types = stored["tokens"], stored.get("token_type", [])
    added = [
        {"id": id, "content": token, "special": kind == _CONTROL, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
        for id, (token, kind) in enumerate(zip_longest(tokens, types, fillvalue=_NORMAL))
        if kind in (_CONTROL, _USER_DEFINED)
    ]  # fmt: skip
    model = huggingface.byte_pair_model(
        {token: id for id, token in enumerate(tokens)},
        (merge.split(" ") for merge in stored["merges"]),
        ignore_merges=words in _WHOLE_WORDS,
    )
    content = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _WORDS[words]},
        "decoder": huggingface.BYTES,
        "model": model,
    }
    starts = bool(stored.get("add_bos_token", words in _WHOLE_WORDS))
    return HuggingFaceTokenizer((json.dumps(content, ensure_ascii=False) + "\n").encode(), _roles(stored), starts)


def _sentencepiece(stored: dict[str, Any]) -> Tokenizer:
    if "scores" not in stored or "token_type" not in stored:
        raise UserError("'tokenizer.ggml.scores' and 'token_type' must be given for a tokenizer of llama's kind")
    roles = _roles(stored)
    tokenizer = SentencePieceTokenizer(_model_proto(stored, roles))
    tokenizer.named_tokens = roles
    if stored.get("add_bos_token", True) and "bos_token" in roles:
        tokenizer.start_of_text = stored["bos_token_id"]
    return tokenizer


_MODELS = {"gpt2": _byte_pairs, "llama": _sentencepiece}


def _model_proto(stored: dict[str, Any], roles: dict[str, str]) -> bytes:
    """Return a sentencepiece model: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto"""
    pieces = zip(stored["tokens"], stored["scores"], stored["token_type"], strict=True)
    content = b"".join(
        _field(1, _field(1, _spelt(piece)) + b"\x15" + struct.pack("<f", score) + _field(3, kind))
        for piece, score, kind in pieces
    )
    names = {"unk_token": 45, "bos_token": 46, "eos_token": 47, "pad_token": 48}
    byte_pairs, byte_fallback = _field(3, 2), _field(35, 1)
    trainer = byte_pairs + byte_fallback + b"".join(_field(names[role], name.encode()) for role, name in roles.items())
    first_space, extra_spaces = stored.get("add_space_prefix", True), stored.get("remove_extra_whitespaces", False)
    normalizer = _field(1, b"identity") + _field(3, int(first_space)) + _field(4, int(extra_spaces))
    return content + _field(2, trainer) + _field(3, normalizer)


def _spelt(piece: str) -> bytes:
    return piece.replace(" ", huggingface.SPACE).encode()


def _field(number: int, value: int | bytes) -> bytes:
    """Return a field of a protobuf message: a small number, or bytes with their length in front."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    """Return a number, seven bits a byte."""
    content = bytearray()
    while number > 0x7F:
        content.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*content, number])


def read_metadata(path: Path) -> dict[str, Any]:
    """Return what a GGUF file says of its tokenizer, by full names; it is the file's beginning, and no tensor is read.

    Raises:
        UserError: the file cannot be read, or is damaged.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _metadata(path, content)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (
        IndexError,
        KeyError,
        ValueError,
        struct.error,
    ) as error:  # UnicodeDecodeError and no content are ValueErrors
        raise UserError(f"{path} is damaged: its metadata cannot be read ({describe(error)})") from error


def _metadata(path: Path, content: mmap.mmap) -> dict[str, Any]:
    magic, version, _, count = struct.unpack_from("<4sIQQ", content, 0)
    if magic != b"GGUF" or version not in _VERSIONS:
        raise UserError(f"{path} must be a GGUF file of version {' or '.join(map(str, _VERSIONS))}, little-endian")
    place, result = struct.calcsize("<4sIQQ"), {}
    for _ in range(count):
        name, place = _read(content, place, _STRING)
        (kind,) = struct.unpack_from("<I", content, place)
        value, place = _read(content, place + 4, kind)
        if name.startswith(_PREFIX):
            result[name] = value
    return result


def _read(content: mmap.mmap, place: int, kind: int) -> tuple[Any, int]:
    """Return the value at a place, and where it has ended."""
    if kind == _STRING:
        (length,) = struct.unpack_from("<Q", content, place)
        end = place + 8 + length
        if end > len(content):
            raise ValueError("a text ends after the file")
        return content[place + 8 : end].decode("utf-8"), end
    if kind == _ARRAY:
        inner, count = struct.unpack_from("<IQ", content, place)
        place += struct.calcsize("<IQ")
        if inner != _STRING:  # of numbers; no file has arrays of arrays
            form = f"<{count}{_letter(inner)}"
            return list(struct.unpack_from(form, content, place)), place + struct.calcsize(form)
        values = []
        for _ in range(count):
            value, place = _read(content, place, inner)
            values.append(value)
        return values, place
    form = f"<{_letter(kind)}"
    return struct.unpack_from(form, content, place)[0], place + struct.calcsize(form)


def _letter(kind: int) -> str:
    return _NUMBERS[kind] if 0 <= kind < len(_NUMBERS) else _NUMBERS_BEHIND[kind]
