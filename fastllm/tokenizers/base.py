"""The interface of every tokenizer, and how one is stored beside a model.

A kind says how plain text becomes ids and which bytes each id stands for; decoding, whole or as a stream, special
tokens and checks of ids are the same for all and are here.
"""

import codecs
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fastllm.errors import UserError, UserValueError, check_type, describe
from fastllm.files import write_json
from fastllm.tokenizers import chat, huggingface
from fastllm.tokenizers.huggingface import Named
from fastllm.tokenizers.storage import write_bytes

FILE = "tokenizer.json"
# In a folder for Hugging Face's transformers, where tokenizer.json is a file of theirs.
EXPORTED_FILE = "fastllm-tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
_BLOCK = 1 << 20  # ids decoded at a time; 2^31 / 2^20 bytes a token are in no vocabulary
_WRONG_TYPE = (TypeError, ValueError, OverflowError)  # what Python and numpy raise for ids that are none
FEW = 128  # ids; so many are put together one by one before numpy's calls have begun


class EncodedBatch(Sequence[np.ndarray]):
    """The ids of several texts in one array; the ids of one text are cut out of it when they are asked for.

    Cutting out every text takes a tenth of the time of encoding short texts: to have all ids, take the array.

    Args:
        ids: of all texts in a row.
        lengths: how many each text has.

    Attributes:
        ids: the same.
        bounds: where each text's ids begin, and where the last one's end.

    Example:
        >>> batch = EncodedBatch(np.array([7, 8, 9]), [2, 0, 1])
        >>> batch[0].tolist(), len(batch)
        ([7, 8], 3)
    """

    def __init__(self, ids: np.ndarray, lengths: Iterable[int]) -> None:
        self.ids = ids
        counts = lengths if isinstance(lengths, np.ndarray) else np.fromiter(lengths, np.int64)
        self.bounds = np.append(0, counts.cumsum())

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return self.ids[self.bounds[place] : self.bounds[place + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.ids[start:end] for start, end in pairwise(self.bounds.tolist()))

    def astype(self, dtype: np.dtype) -> "EncodedBatch":
        """Return the same ids in another dtype."""
        return EncodedBatch(self.ids.astype(dtype), np.diff(self.bounds))


class Tokenizer(ABC):
    """Text to token ids and back, without loss.

    Attributes:
        special_tokens: names and ids of tokens that encode gives for no plain text; empty where a kind has none.
        added_tokens: names and ids of tokens that are looked for in every text before all others; most kinds have none.
        end_of_text: the id to write between documents; None where a kind has none.
        start_of_text: the id that a model from elsewhere expects in front of every text; None where it expects none.
            encode and encode_chat never add it, a chat template may.
        chat_template: how a conversation becomes a text, in Jinja; None where a model came with none.
        named_tokens: the names of tokens by their roles, such as "bos_token", as the files of a model from elsewhere
            have them: what its chat template can use.
    """

    kind: str  # the name under which a stored tokenizer finds its class again
    special_tokens: dict[str, int] = {}  # noqa: RUF012 - never changed in place
    added_tokens: dict[str, int] = {}  # noqa: RUF012
    end_of_text: int | None = None
    start_of_text: int | None = None
    chat_template: str | None = None
    named_tokens: dict[str, str] = {}  # noqa: RUF012

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of tokens; ids are 0, .., vocab_size - 1."""

    @cached_property
    @abstractmethod
    def token_bytes(self) -> list[bytes]:
        """What each id stands for, in UTF-8; a token may be a part of a character."""

    @abstractmethod
    def _encode(self, text: str) -> np.ndarray:
        """Return the ids of plain text, int64."""

    def encode(self, text: str, allow_special: bool = False) -> np.ndarray:
        """Return the ids of text, int64.

        Args:
            text: what to encode.
            allow_special: whether the names of special tokens in text become their ids; otherwise they are text.

        Raises:
            UserError: the vocabulary has no token for a part of text.
            TypeError: text is not a str.
        """
        if not isinstance(text, str):
            raise TypeError(f"encode: 'text' must be a str, got {describe(text)}")
        return self._encode_special(text) if allow_special and self.special_tokens else self._encode(text)

    def _encode_special(self, text: str) -> np.ndarray:
        """Return the ids of text in which names of special tokens stand for these."""
        return encode_around(self._special_names, self.special_tokens, text, self._encode)

    @cached_property
    def _special_names(self) -> re.Pattern:
        return any_of(self.special_tokens)

    def encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        """Return the ids of each text, as encode would.

        Raises:
            UserError: as encode; the message does not say in which text.
            TypeError: texts is not a list of str.
        """
        if isinstance(texts, str | bytes):  # a sequence too, and a character of it a text
            raise TypeError(f"encode_batch: 'texts' must be a list of str, got {describe(texts)}; put it in a list")
        try:
            return self._encode_batch(texts)
        except (AttributeError, TypeError) as error:  # types are looked at only now, so good texts pay nothing for it
            if sentence := _find_no_text(texts):
                raise TypeError(f"encode_batch: {sentence}") from error
            raise

    def _encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        return joined([self._encode(text) for text in texts])

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ids; special tokens give their names, and bytes that are not UTF-8 give U+FFFD.

        Raises:
            UserError: an id is outside the vocabulary.
            TypeError: ids are not one sequence of whole numbers.
        """
        try:
            return self._decode(ids)
        except UserError:
            raise
        except _WRONG_TYPE as error:
            raise TypeError(f"decode: 'ids' must be a sequence of whole numbers, got {describe(ids)}") from error

    def _decode(self, ids: Sequence[int] | np.ndarray) -> str:
        if len(ids) > FEW:
            return self._joined_bytes(self._check(ids)).decode("utf-8", "replace")
        listed = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
        tokens = self.token_bytes
        if listed and not (min(listed) >= 0 and max(listed) < len(tokens)):
            self._check(listed)
        return b"".join([tokens[id] for id in listed]).decode("utf-8", "replace")

    def _joined_bytes(self, ids: np.ndarray) -> bytes:
        """Join the tokens of ids: the position in the table of every byte of the result, then one gather."""
        table, ends = self._table
        blocks = []
        for start in range(0, ids.size, _BLOCK):
            block = ids[start : start + _BLOCK]
            stops = ends.take(block + 1)
            lengths = stops - ends.take(block)
            places = np.cumsum(lengths, dtype=np.int32)
            every = np.arange(places[-1], dtype=np.int32)
            every += np.repeat(stops - places, lengths)
            blocks.append(table.take(every).tobytes())
        return b"".join(blocks)

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        """All tokens in a row, and where each ends; a zero in front is where the first starts."""
        ends = np.cumsum([0, *map(len, self.token_bytes)], dtype=np.int32)
        return np.frombuffer(b"".join(self.token_bytes), dtype=np.uint8), ends

    def decode_batch(self, batch: Iterable[Sequence[int] | np.ndarray]) -> list[str]:
        """Return the text of each sequence of ids, as decode would.

        Raises:
            UserError: an id is outside the vocabulary.
            TypeError: batch is not of sequences of whole numbers.
        """
        try:
            return self._decode_batch(as_batch(batch))
        except UserError:
            raise
        except _WRONG_TYPE as error:
            raise TypeError(
                f"decode_batch: 'batch' must be sequences of whole numbers, got {describe(batch)}"
            ) from error

    def _decode_batch(self, batch: EncodedBatch) -> list[str]:
        ids = self._check(batch.ids)
        content = self._joined_bytes(ids)
        _, ends = self._table
        bounds = np.append(0, np.cumsum(np.diff(ends).take(ids), dtype=np.int64)).take(batch.bounds).tolist()
        if content.isascii():
            text = content.decode()
            return [text[start:end] for start, end in pairwise(bounds)]
        return [content[start:end].decode("utf-8", "replace") for start, end in pairwise(bounds)]

    def _check(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        checked = as_ids(ids)
        # One pass: a negative one is a huge unsigned one.
        if checked.size and checked.view(np.uint64).max() >= self.vocab_size:
            raise UserValueError(f"ids must be in [0, {self.vocab_size}), got {checked.min()} to {checked.max()}")
        return checked

    def streaming_decoder(self) -> "StreamingDecoder":
        """Return a decoder that takes ids one at a time and gives text as soon as its characters are complete."""
        return StreamingDecoder(self)

    @property
    def first_token(self) -> int | None:
        """The id that a model is given in front of what it writes; None where it is given none."""
        return self.start_of_text

    def render_chat(self, messages: chat.Messages, add_generation_prompt: bool = True, **variables: Any) -> str:
        """Return a conversation as the text that the model was trained on.

        Args:
            messages: mappings of "role" and "content", and what else the chat template knows.
            add_generation_prompt: whether to begin the model's answer.
            variables: what else the template knows, such as `tools`.

        Raises:
            UserError: there is no chat template, or it is broken, raises or takes too long.
            TypeError: messages are not a list of mappings of plain data.
        """
        given = {**variables, "add_generation_prompt": add_generation_prompt}
        return chat.render(self._template, messages, self._roles(), given)

    def encode_chat(self, messages: chat.Messages, add_generation_prompt: bool = True, **variables: Any) -> np.ndarray:
        """Return the ids of a conversation, int64.

        Special tokens that the template writes are ids. Where messages or variables hold their names these stay text;
        tokens that are added but not special are found there, as in every text.

        Args:
            messages: as in render_chat.
            add_generation_prompt: as in render_chat.
            variables: as in render_chat.

        Raises:
            UserError: as render_chat; or the vocabulary has no token for a part of the text.
            TypeError: as render_chat.
        """
        given = {**variables, "add_generation_prompt": add_generation_prompt}
        marked = chat.render_marked(self._template, messages, self._roles(), given, self.special_tokens)
        return self._encode_marked(marked)

    def _encode_marked(self, marked: chat.Marked) -> np.ndarray:
        """Return the ids of a chat; the names that the template wrote are special tokens."""
        return encode_around(
            marked.names, self.special_tokens, marked.text, lambda part: self._encode(part.replace(marked.mark, ""))
        )

    @property
    def _template(self) -> str:
        if self.chat_template is None:
            raise UserError(f"this {self.kind} tokenizer has no chat template: set 'chat_template' to use one")
        return self.chat_template

    def _roles(self) -> dict[str, str]:
        """Return named_tokens; our own tokenizers have one token that ends a text and begins the next."""
        if self.named_tokens or self.end_of_text is None:
            return self.named_tokens
        end = self.token_bytes[self.end_of_text].decode()
        return {"bos_token": end, "eos_token": end}

    def carried(self) -> dict[str, Any]:
        """Return what a model from elsewhere brought beside the vocabulary: attributes that are stored as they are."""
        names = ("start_of_text", "chat_template", "named_tokens")
        return {name: value for name in names if (value := getattr(self, name)) not in (None, {})}

    def carry(self, stored: dict[str, Any]) -> None:
        """Take what carried returned out of stored."""
        for name, kind in (("start_of_text", int), ("chat_template", str), ("named_tokens", dict)):
            if name in stored:
                check_type("tokenizer", name, stored[name], kind)
                setattr(self, name, stored.pop(name))

    @abstractmethod
    def to_json(self) -> dict:
        """Return what from_json needs to make this tokenizer; files beside tokenizer.json are named by SHA-256."""

    @classmethod
    @abstractmethod
    def from_json(cls, stored: dict, folder: Path) -> "Tokenizer":
        """Make a tokenizer of what to_json returned and the files in folder."""

    def files(self) -> dict[str, bytes]:
        """Return the files that are stored beside tokenizer.json, by name."""
        return {}

    def save(self, folder: str | Path, name: str = FILE) -> None:
        """Write folder/tokenizer.json and what belongs to it; name is another name for that file."""
        for file, content in self.files().items():
            write_bytes(Path(folder) / file, content)
        write_json(Path(folder) / name, {"kind": self.kind, **self.to_json(), **self.carried()})

    def huggingface(self) -> dict | None:
        """Return the steps of the tokenizers library that do the same (see huggingface.py); None if it cannot."""
        return None

    @abstractmethod
    def token_names(self) -> dict[str, int]:
        """Return the ids of all tokens by the names that they have in Hugging Face's files."""

    def to_embed(self) -> dict:
        """Return what makes this tokenizer without other files, except for Hugging Face's tokenizer.json."""
        return self.to_json()

    def _named(self) -> Named:
        starts = True if self.start_of_text is not None else None
        return Named(self.special_tokens, self.added_tokens, self._roles(), starts)

    def save_huggingface(self, folder: str | Path, model_max_length: int | None = None) -> None:
        """Write the tokenizer so that transformers' AutoTokenizer reads it, where it can, and load_tokenizer too.

        load_tokenizer also reads what AutoTokenizer saves of it.

        Args:
            folder: is made if missing.
            model_max_length: how many tokens the model takes; transformers truncates to it.
        """
        source = {"kind": self.kind, **self.to_embed(), **self.carried()}
        template = source.pop("chat_template", None)
        named, steps = self._named(), self.huggingface()
        others: dict[str, Any] = {huggingface.SOURCE: source}
        if steps is None:  # keep transformers from taking an empty tokenizer for this one
            others["tokenizer_class"] = f"fastllm-{self.kind}"
        else:
            write_bytes(Path(folder) / FILE, huggingface.steps_file(steps, named))
        settings = huggingface.settings_file(named, model_max_length, template, **others)
        write_bytes(Path(folder) / huggingface.CONFIG, settings)
        self.save(folder, EXPORTED_FILE)


class StreamingDecoder:
    """The text of ids that come one at a time; all that push and finish return is what decode would.

    Example:
        >>> from fastllm.tokenizers import ByteTokenizer
        >>> decoder = ByteTokenizer().streaming_decoder()
        >>> [decoder.push(id) for id in "é!".encode()], decoder.finish()
        (['', 'é', '!'], '')
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """Take the next id; return the text that is complete with it, perhaps none.

        Raises:
            UserError: id is outside the vocabulary.
            TypeError: id is not a whole number.
        """
        tokens = self._tokenizer.token_bytes
        try:
            if not 0 <= id < len(tokens):
                self._tokenizer._check([id])
            token = tokens[id]
        except TypeError as error:
            raise TypeError(f"push: 'id' must be a whole number, got {describe(id)}") from error
        return self._utf8.decode(token)

    def finish(self) -> str:
        """Return what is left: U+FFFD if the last character was never completed."""
        return self._utf8.decode(b"", final=True)


def as_batch(sequences: Iterable[Sequence[int] | np.ndarray]) -> EncodedBatch:
    """Return sequences of ids in one array."""
    if isinstance(sequences, EncodedBatch):
        return sequences
    parts = list(sequences)
    if all(isinstance(part, list) for part in parts):  # quicker than an array of each
        return EncodedBatch(as_ids(list(chain.from_iterable(parts))), map(len, parts))
    return joined([as_ids(part) for part in parts])


def any_of(names: Iterable[str]) -> re.Pattern:
    """Return a pattern that finds names, the longest where several begin."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})")


def encode_around(
    names: re.Pattern, tokens: dict[str, int], text: str, encode: Callable[[str], np.ndarray]
) -> np.ndarray:
    """Return the ids of text in which names stand for tokens, and encode gives those of what is between them."""
    parts = names.split(text)  # plain, name, plain, .., plain
    ids = [np.array([tokens[part]]) if index % 2 else encode(part) for index, part in enumerate(parts)]
    return np.concatenate(ids)


def as_ids(ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return ids as an array of int64.

    Raises:
        TypeError: they are not one sequence of whole numbers; numpy alone would cut off floats.
    """
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError(f"ids must be a sequence of whole numbers, got {describe(ids)}")
    return array.astype(np.int64, copy=False)


def _find_no_text(texts: object) -> str:
    """Return a sentence that says why texts is not a list of str; "" if it is one."""
    if not isinstance(texts, Iterable) or not hasattr(texts, "__len__"):
        return f"'texts' must be a list of str, got {describe(texts)}"
    wrong = next(((index, text) for index, text in enumerate(texts) if not isinstance(text, str)), None)
    return f"'texts' must be a list of str, got {describe(wrong[1])} at position {wrong[0]}" if wrong else ""


def joined(parts: Sequence[np.ndarray]) -> EncodedBatch:
    """Return the ids of several texts in one array."""
    return EncodedBatch(np.concatenate([np.empty(0, np.int64), *parts]), map(len, parts))


def utf8(text: str) -> bytes:
    """Return text in UTF-8.

    Raises:
        UserError: text has a lone surrogate, which is not a character and has no UTF-8.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserValueError(
            f"the text has a lone surrogate, U+{ord(text[error.start]):04X} at position {error.start}: half of a "
            "UTF-16 pair is not a character; decode the source with errors='replace'"
        ) from error


def check_texts(texts: Iterable[str]) -> Iterable[str]:
    """Return texts; each is checked when it is read.

    Raises:
        TypeError: texts is one text, whose characters would be taken for texts, or what comes is none.
    """
    if isinstance(texts, str):
        raise TypeError("train: 'texts' must be an iterable of texts, got a str; put it in a list")
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        raise TypeError(f"train: 'texts' must be an iterable of texts, got {describe(texts)}")
    return map(_checked_text, texts)


def _checked_text(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"train: 'texts' must be an iterable of texts, got {describe(text)} among them")
    return text
