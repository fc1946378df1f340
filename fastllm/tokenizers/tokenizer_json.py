"""Byte-pair encodings of other makers, from their tokenizer.json, by Hugging Face's tokenizers library.

Llama 3, Qwen, SmolLM and others spell texts in bytes and differ in how they cut them into words. Llama 2's and
Mistral's, converted from sentencepiece, have tokens such as <0x0A> for the bytes of what is not in their vocabulary.
The ids are the library's. What each token stands for is read from the file: every id is decoded to its own bytes.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from fastllm.errors import UserError, UserValueError, describe
from fastllm.tokenizers import huggingface
from fastllm.tokenizers.base import END_OF_TEXT, EXPORTED_FILE, FILE, EncodedBatch, utf8
from fastllm.tokenizers.byte import spelling
from fastllm.tokenizers.chat import Marked
from fastllm.tokenizers.first_space import FirstSpaceTokenizer
from fastllm.tokenizers.storage import digest, parse_json, read_file, write_bytes

# The steps around the model: those that are known to lose nothing, or to be undone by the decoder.
_STEPS = {
    "normalizer": ("normalizers", ("NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace")),
    "pre_tokenizer": ("pretokenizers", ("ByteLevel", "Digits", "Metaspace", "Punctuation", "Split")),
    "post_processor": ("processors", ("ByteLevel", "TemplateProcessing")),
    "decoder": ("decoders", ("ByteFallback", "ByteLevel", "Fuse", "Replace", "Strip")),
}
# What a step of these must be like.
_SETTINGS: dict[str, dict[str, Any]] = {
    "decoder Replace": {"pattern": {"String": huggingface.SPACE}, "content": " "},
    "decoder Strip": {"content": " ", "start": 1, "stop": 0},
}
_LOSES = ("Removed", "removed")  # behaviours of a pre-tokenizer that leave out a part of the text
_BYTES = {character: byte for byte, character in spelling().items()}
_IN_UTF8 = {*range(0xC0), *range(0xC2, 0xF5)}  # the bytes that a text can have
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
_SHOWN = 5  # characters that an error names


class HuggingFaceTokenizer(FirstSpaceTokenizer):
    """A byte-pair encoding in the format of Hugging Face's tokenizers.

    Args:
        content: the bytes of a tokenizer.json.
        named_tokens: names of tokens by their roles, such as "eos_token", which is end_of_text. One that the file does
            not have is added behind all others, as transformers does.
        starts: whether the token that is "bos_token" is start_of_text; None asks the file's post-processor.

    Raises:
        UserError: content is damaged or has a model or a step that is not supported, or the package tokenizers is
            missing.
    """

    kind = "huggingface"

    def __init__(
        self, content: bytes, named_tokens: Mapping[str, str] | None = None, starts: bool | None = None
    ) -> None:
        self._content, self._starts = bytes(content), starts
        self.named_tokens = dict(named_tokens or {})
        stored = parse_json(Path(FILE), self._content)
        try:
            self._byte_level = _check_supported(stored)
            self._flags = {token["content"]: token for token in stored.get("added_tokens", [])}
            special = {name for name, flags in self._flags.items() if flags["special"]} | set(
                self.named_tokens.values()
            )
            self._engine = self._make_plain_engine(stored, special, self._content)
            first = huggingface.first_token(stored) if starts is None else self.named_tokens.get("bos_token")
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{FILE} is damaged ({describe(error)})") from error
        self._ids = vocab = self._engine.get_vocab(with_added_tokens=True)
        self.special_tokens = {name: vocab[name] for name in sorted(special, key=vocab.__getitem__)}
        self.added_tokens = {name: vocab[name] for name in self._flags if name not in special}
        self.end_of_text = vocab.get(self.named_tokens.get("eos_token", END_OF_TEXT))
        self.start_of_text = None if starts is False or first is None else vocab.get(first)
        self.drops_first_space = any(step["type"] == "Strip" for step in _flat(stored, "decoder"))
        self._unspelt = self._find_unspelt()
        self._check_special()

    @classmethod
    def from_folder(cls, folder: str | Path) -> "HuggingFaceTokenizer":
        """Load tokenizer.json and what tokenizer_config.json beside it says.

        Raises:
            UserError: tokenizer.json is missing, damaged or not supported.
        """
        folder = Path(folder)
        settings, content = huggingface.read_settings(folder), read_file(folder / FILE)
        try:
            tokenizer = cls(content, settings.roles, settings.starts)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error
        if missing := settings.added.keys() - tokenizer.token_names():
            raise UserError(f"{folder / FILE} lacks the token {min(missing)!r} that {huggingface.CONFIG} adds")
        tokenizer.chat_template = settings.chat_template
        return tokenizer

    def _make_engine(self, content: bytes) -> Any:
        """Return the library's tokenizer of a tokenizer.json, with the tokens that have roles."""
        try:
            import tokenizers
        except ModuleNotFoundError as error:
            raise UserError("the package tokenizers is missing; pip install 'fastllm[tokenizers]'") from error
        try:
            engine = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises nothing more special
            raise UserError(f"{FILE} is damaged: the tokenizers library cannot read it ({error})") from error
        engine.no_truncation()
        engine.no_padding()
        engine.add_special_tokens([name for name in self.named_tokens.values() if name not in self._flags])
        return engine

    def _make_plain_engine(self, stored: dict[str, Any], special: Collection[str], content: bytes = b"") -> Any:
        """Return the same without the means to make a special token: their names are text, and no merge makes one.

        Args:
            stored: what the file holds.
            special: the names.
            content: the file that stored is from, if it is from one.
        """
        model = stored["model"]
        kept = [merge for merge in model["merges"] if _merged(merge) not in special]
        if not content or len(kept) < len(model["merges"]):
            content = json.dumps({**stored, "model": {**model, "merges": kept}}).encode()
        engine = self._make_engine(content)
        engine.encode_special_tokens = True  # that is, as plain text
        return engine

    @cached_property
    def _special_engine(self) -> Any:
        """The library's tokenizer that finds special tokens in texts."""
        return self._make_engine(self._content)

    @cached_property
    def _inner_engine(self) -> Any:
        """The library's tokenizer of plain text behind a special token, where some put no space in front."""
        stored = self.huggingface()
        first = [step for step in _flat(stored, "pre_tokenizer") if step.get("prepend_scheme") == "first"]
        for step in first:
            step["prepend_scheme"] = "never"
        return self._make_plain_engine(stored, self.special_tokens) if first else self._engine

    def _find_unspelt(self) -> re.Pattern | None:
        """Return a pattern of the bytes that the vocabulary lacks; the library would leave them out of a text."""
        missing = [byte for character, byte in _BYTES.items() if byte in _IN_UTF8 and character not in self._ids]
        if not (self._byte_level and missing):
            return None
        return re.compile(b"[" + b"".join(re.escape(bytes([byte])) for byte in sorted(missing)) + b"]")

    def _check_special(self) -> None:
        """Raise UserError if plain text can become a special token: none could then be told from what a user wrote."""
        for name, id in self.special_tokens.items():
            if id in self._engine.encode(name, add_special_tokens=False).ids:
                raise UserError(f"{FILE}: the special token {name!r} must be one that plain text does not become")

    @property
    def vocab_size(self) -> int:
        """The largest id and one."""
        return max(self._ids.values()) + 1

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The tokens; special and added ones by their names, and nothing for an id that no token has."""
        tokens = [b""] * self.vocab_size
        for piece, id in self._ids.items():
            tokens[id] = self._bytes_of(piece)
        for name, id in {**self.special_tokens, **self.added_tokens}.items():
            tokens[id] = name.encode() if self._byte_level else name.replace(huggingface.SPACE, " ").encode()
        return tokens

    def _bytes_of(self, piece: str) -> bytes:
        if not self._byte_level:
            byte = _BYTE_TOKEN.fullmatch(piece)
            return bytes([int(byte[1], 16)]) if byte else piece.replace(huggingface.SPACE, " ").encode()
        try:
            return bytes([_BYTES[character] for character in piece])
        except KeyError:  # the library does not spell such a token
            return piece.encode()

    def _encode(self, text: str) -> np.ndarray:
        return self._encode_by(self._engine, text)

    def _encode_special(self, text: str) -> np.ndarray:
        return self._encode_by(self._special_engine, text)

    def _encode_by(self, engine: Any, text: str) -> np.ndarray:
        self._check_text(text)
        (encoding,) = engine.encode_batch_fast([text], add_special_tokens=False)  # encode would compute offsets too
        return np.array(encoding.ids, dtype=np.int64)

    def _check_text(self, text: str) -> None:
        if self._unspelt is None and text.isascii():
            return
        if (content := utf8(text)) and self._unspelt is not None and self._unspelt.search(content):
            unknown = [c for c in dict.fromkeys(text) if self._unspelt.search(c.encode())]
            shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in unknown[:_SHOWN])
            raise UserValueError(
                f"the text has characters that are not in the vocabulary of {self.vocab_size} tokens, which lacks a "
                f"byte of them too: {shown}"
            )

    def _encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        for text in texts:
            self._check_text(text)
        encodings = self._engine.encode_batch_fast(texts, add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        return EncodedBatch(np.fromiter(chain.from_iterable(ids), np.int64), map(len, ids))

    def _encode_marked(self, marked: Marked) -> np.ndarray:
        """Encode as the library does, unless it finds a special token that the template did not write."""
        if marked.mark not in marked.text:
            ids = self._encode_special(marked.text)
            if np.isin(ids, list(self.special_tokens.values())).sum() == len(marked.names.findall(marked.text)):
                return ids
        return self._encode_parts(marked)

    def _encode_parts(self, marked: Marked) -> np.ndarray:
        """Encode what is between the template's special tokens as plain text, as the library would beside these."""
        parts = marked.names.split(marked.text)  # plain, name, plain, .., plain
        ids = []
        for index, part in enumerate(parts):
            if index % 2:
                ids.append(np.array([self.special_tokens[part]]))
                continue
            plain = part.replace(marked.mark, "")
            if index and self._flags.get(parts[index - 1], {}).get("rstrip"):
                plain = plain.lstrip()
            if index + 1 < len(parts) and self._flags.get(parts[index + 1], {}).get("lstrip"):
                plain = plain.rstrip()
            ids.append(self._encode_by(self._inner_engine if index else self._engine, plain))
        return np.concatenate(ids)

    def token_names(self) -> dict[str, int]:
        """Return the vocabulary, as the file spells it."""
        return self._ids

    def to_json(self) -> dict:
        """Return the file's SHA-256, and what it does not say."""
        return {"sha256": digest(self._content), "named_tokens": self.named_tokens, "starts": self._starts}

    @classmethod
    def from_json(cls, stored: dict, folder: Path) -> "HuggingFaceTokenizer":
        """Read tokenizer.json in folder."""
        content = read_file(folder / FILE, stored["sha256"])
        return cls(content, stored["named_tokens"], stored["starts"])

    def files(self) -> dict[str, bytes]:
        """Return tokenizer.json, byte for byte."""
        return {FILE: self._content}

    def save(self, folder: str | Path, name: str = FILE) -> None:
        """Write the maker's tokenizer.json, and beside it fastllm-tokenizer.json, whatever the name."""
        super().save(folder, EXPORTED_FILE)

    def huggingface(self) -> dict:
        """Return the file's steps."""
        return json.loads(self._content)

    def save_huggingface(self, folder: str | Path, model_max_length: int | None = None) -> None:
        """Write the maker's tokenizer.json and a tokenizer_config.json, which AutoTokenizer and load_tokenizer read.

        Args:
            folder: is made if missing.
            model_max_length: how many tokens the model takes; transformers truncates to it.
        """
        folder = Path(folder)
        write_bytes(folder / FILE, self._content)
        named = self._named()._replace(starts=self._starts)
        settings = huggingface.settings_file(named, model_max_length, self.chat_template)
        write_bytes(folder / huggingface.CONFIG, settings)
        for stale in (EXPORTED_FILE, huggingface.TEMPLATE):
            (folder / stale).unlink(missing_ok=True)

    def __reduce__(self) -> tuple:
        return type(self), (self._content, self.named_tokens, self._starts), self.carried()


def _flat(stored: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return huggingface.flat(stored.get(name), _STEPS[name][0])


def _check_supported(stored: dict[str, Any]) -> bool:
    """Return whether a tokenizer.json's tokens are spelt in bytes; the other ones have tokens for bytes.

    Raises:
        UserError: it has a model or a step that is not supported.
    """
    model = stored["model"]
    for name, wanted, got in (
        ("model.type", "BPE", model.get("type", "BPE")),
        ("model.dropout", None, model.get("dropout") or None),
        ("model.continuing_subword_prefix", "", model.get("continuing_subword_prefix") or ""),
        ("model.end_of_word_suffix", "", model.get("end_of_word_suffix") or ""),
    ):
        if got != wanted:
            raise UserError(f"{FILE}: '{name}' must be {wanted if wanted != '' else 'empty'}, got {got}")
    for name, (_, known) in _STEPS.items():
        for step in _flat(stored, name):
            if step["type"] not in known:
                raise UserError(f"{FILE}: '{name}' must be made of {', '.join(known)}, got {step['type']}")
            for setting, value in _SETTINGS.get(f"{name} {step['type']}", {}).items():
                if step.get(setting) != value:
                    raise UserError(
                        f"{FILE}: '{setting}' of a {name} {step['type']} must be {value!r}, got {step.get(setting)!r}"
                    )
            if step.get("behavior") in _LOSES:
                raise UserError(
                    f"{FILE}: 'behavior' of {step['type']} must keep the whole text, got {step['behavior']}"
                )
    steps = {name: [step["type"] for step in _flat(stored, name)] for name in ("pre_tokenizer", "decoder")}
    if steps["decoder"] == ["ByteLevel"] and "ByteLevel" in steps["pre_tokenizer"]:
        return True
    lacking = [name for name in (f"<0x{byte:02X}>" for byte in range(256)) if name not in model["vocab"]]
    if "ByteFallback" not in steps["decoder"] or not model.get("byte_fallback") or lacking:
        raise UserError(
            f"{FILE}: expected a ByteLevel pre-tokenizer and decoder, or 'model.byte_fallback', a ByteFallback decoder "
            f"and the tokens <0x00> to <0xFF>, got the decoder {', '.join(steps['decoder']) or None}"
        )
    return False


def _merged(merge: str | list[str]) -> str:
    return merge.replace(" ", "") if isinstance(merge, str) else "".join(merge)
