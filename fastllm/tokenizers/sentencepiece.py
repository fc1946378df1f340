"""Sub-word tokens by Google's sentencepiece (Kudo & Richardson, 2018), set up so that no text is lost.

sentencepiece by default normalises characters, drops line ends and repeated spaces and puts a space in front. A model
trained here does none of that and spells unknown characters as bytes. What is left is that sentencepiece writes a space
as U+2581 inside, so a U+2581 of the text would come back as a space: it is spelt as bytes too.

Line ends are byte tokens and no piece crosses one; so texts can be cut at line ends, and joined there, without changing
any ids. It is faster: byte-pair merging keeps a heap of the whole text, and each call, and each list, costs as much as
many characters. Unigram models whose sums of scores are rounded have no texts joined (see unigram_scores.py).
"""

import base64
import io
import os
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, count, islice, pairwise, product
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from fastllm.errors import UserError, UserValueError, check_type
from fastllm.tokenizers import huggingface, unigram_scores
from fastllm.tokenizers.base import (
    END_OF_TEXT,
    EncodedBatch,
    check_texts,
    utf8,
)
from fastllm.tokenizers.first_space import FirstSpaceTokenizer
from fastllm.tokenizers.storage import digest, read_file

FILE = "tokenizer.model"
EMBEDDED = "model"  # instead of the file
SPACE = huggingface.SPACE
MODEL_TYPES = ("unigram", "bpe")

# Where sentencepiece, left to itself, would cut a training text or leave a part of it out: at line ends, and at the
# two characters that it keeps for itself (a space, an unknown character) and NUL.
_SENTENCE_ENDS = re.compile("[\n\0\u2581\u2585]+")
# Many lines to a chunk, because a call costs as much as 30 characters, but no more than this many characters: merging
# pairs takes longer in a longer chunk, and sums of unigram scores are exact for so many. A longer line is one alone.
_SHORT = {"unigram": 500, "bpe": 150}
_HEX = "0123456789ABCDEF"
_WHOLE = re.compile(r"(?s:.+)")
_CUT = "\ud800"  # marks cuts: half of a UTF-16 pair, which no text that can be encoded has
_WORD_END = re.compile(r"(?<=[^ ])(?= )")
_WORDS_TOGETHER = 1 << 20  # characters whose words are looked up together: bounds what they take
_WORDS_REPEAT = 4000  # characters from which on looking words up costs less than encoding them again
_A_THREAD = 50_000  # characters that take a thread ten times as long as it takes to start
_TRAINING_THREADS = 16  # a constant: the unigram model's sums, and so its pieces, depend on it
_PROBE = " a  b \n\u3000\uff76 \u00e9e\u0301 \ufb01\r\n\t\0 "  # normalising, trimming or a dummy prefix changes it


class SentencePieceTokenizer(FirstSpaceTokenizer):
    """A sentencepiece model, trained here or elsewhere.

    Args:
        model: the bytes of a .model file.

    Attributes:
        lossless: whether every text comes back as it was; so for what train makes, rarely for models from elsewhere.

    Raises:
        UserError: model is damaged, or the package sentencepiece is missing.

    Example:
        >>> tokenizer = SentencePieceTokenizer.train(["the cat sat on the mat\\n" * 9], vocab_size=270)
        >>> tokenizer.decode(tokenizer.encode("  the hat\\r\\n"))
        '  the hat\\r\\n'
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes) -> None:
        self._model = bytes(model)
        self._processor = _load(self._model)
        sp = self._processor
        pieces = range(sp.vocab_size())
        self.special_tokens = {sp.id_to_piece(id): id for id in pieces if sp.is_control(id)}
        self.end_of_text = sp.eos_id() if sp.eos_id() >= 0 else None
        self._unknown = None if any(sp.is_byte(id) for id in pieces) else sp.unk_id()
        self._bar = [sp.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        self.lossless = self._unknown is None and sp.decode(sp.encode(_PROBE)) == _PROBE
        # No piece of ours does, but one from elsewhere may.
        self.crosses_lines = any("\n" in piece and piece != "\n" for piece in map(sp.id_to_piece, pieces))
        self._is_unigram = any(sp.get_score(id) % 1 for id in pieces)  # those of byte-pair pieces are ranks, negative
        self._short = _SHORT["unigram" if self._is_unigram else "bpe"]
        self._cut = _WHOLE if self.crosses_lines else re.compile(rf"(?s:.{{0,{self._short}}})\n|[^\n]+\n?")
        spelt = [sp.id_to_piece(id).replace(SPACE, " ") for id in pieces]
        # Byte-pair pieces are merged within words, then; each word is encoded once, however often it occurs.
        crosses_words = self.crosses_lines or any(re.search("[^ ] ", one) for one in spelt)
        self._in_words = self.lossless and not self._is_unigram and not crosses_words
        self._line_end = sp.encode("\n")
        self._joins = (
            self.lossless
            and not self.crosses_lines
            and (not self._is_unigram or unigram_scores.exact_length(map(sp.get_score, pieces)) > self._short)
        )
        first = next((id for id in pieces if sp.id_to_piece(id).startswith(SPACE) and sp.decode([id])), None)
        self.drops_first_space = first is not None and not sp.decode([first]).startswith(" ")

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int = 8000,
        *,
        model_type: str = "unigram",
        character_coverage: float = 0.9995,
        max_sentences: int = 500_000,
        max_sentence_length: int = 2000,
        seed: int = 0,
    ) -> "SentencePieceTokenizer":
        """Train a lossless model; the same texts and arguments give the same model.

        Args:
            texts: the texts, of any length; they are read once, and no more than max_sentences * max_sentence_length
                characters of them are held.
            vocab_size: the number of tokens, with 256 for bytes and 2 for unknown and the end of a text.
            model_type: "unigram" (Kudo, 2018) or "bpe" (Sennrich et al., 2016).
            character_coverage: the share of the texts' characters that get tokens of their own; rarer ones are bytes.
            max_sentences: how many lines to train on; drawn evenly from all where there are more.
            max_sentence_length: where to cut lines for training, in characters.
            seed: of the draw.

        Raises:
            UserError: the texts are empty, or vocab_size does not fit them; the message says which would.
            TypeError: texts is one str.
        """
        if model_type not in MODEL_TYPES:
            known = ", ".join(MODEL_TYPES)
            raise UserValueError(f"sentencepiece: 'model_type' must be one of {known}, got '{model_type}'")
        sizes = {"vocab_size": vocab_size, "max_sentences": max_sentences, "max_sentence_length": max_sentence_length}
        for name, value in sizes.items():
            check_type("sentencepiece", name, value, Integral)
        check_type("sentencepiece", "character_coverage", character_coverage, Real)
        if vocab_size < 259:
            raise UserValueError(
                f"sentencepiece: 'vocab_size' must be at least 259 (256 bytes, 2 special tokens, a character), got "
                f"{vocab_size}"
            )
        if max_sentences < 1 or max_sentence_length < 1:
            raise UserValueError("sentencepiece: 'max_sentences' and 'max_sentence_length' must be at least 1")
        sentences = draw(split_sentences(check_texts(texts), max_sentence_length), max_sentences, seed)
        if not sentences:
            raise UserValueError("sentencepiece: the training texts are empty")
        options = {
            "vocab_size": vocab_size, "model_type": model_type, "character_coverage": character_coverage,
            "max_sentence_length": 4 * max_sentence_length,  # in bytes; a longer one would be left out
        }  # fmt: skip
        return cls(_train(sentences, options))

    @classmethod
    def from_file(cls, path: str | Path) -> "SentencePieceTokenizer":
        """Load a .model file.

        Raises:
            UserError: it is missing or damaged.
        """
        content = read_file(Path(path))
        try:
            return cls(content)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    @classmethod
    def from_folder(cls, folder: str | Path) -> "SentencePieceTokenizer":
        """Load tokenizer.model of another maker, and what tokenizer_config.json beside it says.

        Raises:
            UserError: the model is missing or damaged, or the files beside it say other tokens than it has.
        """
        folder = Path(folder)
        tokenizer, settings = cls.from_file(folder / FILE), huggingface.read_settings(folder)
        names, sp = tokenizer.token_names(), tokenizer._processor
        for name, (id, special) in settings.added.items():
            if names.get(name) != id:
                raise UserError(
                    f"{folder / FILE} lacks the token {name!r} that the files beside it add with the id {id}"
                )
            if special and not (sp.is_control(id) or sp.is_unknown(id)):
                raise UserError(f"{folder / FILE} takes the token {name!r} for text: the files beside it say special")
        for role, name in settings.roles.items():
            if name not in names or (role == "eos_token" and names[name] != tokenizer.end_of_text):
                raise UserError(f"{folder / FILE} has another token than {name!r}, which is '{role}' beside it")
        tokenizer.named_tokens, tokenizer.chat_template = settings.roles, settings.chat_template
        first = names.get(settings.roles.get("bos_token", ""), sp.bos_id())
        tokenizer.start_of_text = None if settings.starts is False or first < 0 else first
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """The number of pieces."""
        return self._processor.vocab_size()

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The pieces with their spaces, and single bytes."""
        return [self._bytes_of(id) for id in range(self.vocab_size)]

    def _bytes_of(self, id: int) -> bytes:
        sp = self._processor
        piece = sp.id_to_piece(id)
        if sp.is_byte(id):
            return bytes([int(piece[1:-1], 16)])
        return sp.decode([id]).encode() if sp.is_unknown(id) else piece.replace(SPACE, " ").encode()

    def _encode(self, text: str) -> np.ndarray:
        if len(text) <= self._short and SPACE not in text:
            if not text.isascii():
                utf8(text)
            ids = np.array(self._processor.encode(text), dtype=np.int64)
            return ids if self._unknown is None else self._known(ids, [text])
        if self._in_words and len(text) > _WORDS_REPEAT and SPACE not in text:
            utf8(text)
            return np.concatenate(list(map(self._encode_words, _blocks(text))))
        chunks = self._chunks(text)
        if (threads := _threads(chunks)) > 1:
            arrays = self._processor.encode(chunks, num_threads=threads, return_type="numpy")
        else:  # one by one, as starting even one thread of the library's costs as much as 500 characters
            arrays = [self._processor.encode(chunk, return_type="numpy") for chunk in chunks]
        return self._join(text, chunks, arrays)

    def _encode_words(self, text: str) -> np.ndarray:
        words = _words(text)
        place: dict[str, int] = defaultdict(count().__next__)  # of each among the different ones
        places = np.fromiter(map(place.__getitem__, words), np.int64, len(words))
        each = self._encode_each(list(place))
        lengths = np.diff(each.bounds)[places]
        ends = lengths.cumsum()
        return each.ids[np.arange(ends[-1]) + np.repeat(each.bounds[places] - ends + lengths, lengths)]

    def _encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        if self._joins:
            return self._encode_joined(texts)
        chunked = [self._chunks(text) for text in texts]
        batch = self._encode_each(list(chain.from_iterable(chunked)))
        if len(batch) > len(texts):
            batch = EncodedBatch(batch.ids, np.diff(batch.bounds[np.cumsum([0, *map(len, chunked)])]))
        self._known(batch.ids, texts)
        return batch

    def _encode_joined(self, texts: Sequence[str]) -> EncodedBatch:
        """Encode all texts as one that is cut at line ends, as the library's list for each of them takes longer.

        A text that does not end a line is given a line end, and what that becomes is left out.
        """
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        text, ends = "".join(texts), lengths.cumsum()
        points = np.frombuffer(f"\0{text}".encode("utf-32-le", "surrogatepass"), np.uint32)
        is_line_end = points == ord("\n")
        is_open = ~is_line_end.take(ends) | (lengths == 0)
        if is_open.any():
            text = "".join([one + "\n" if add else one for one, add in zip(texts, is_open.tolist(), strict=True)])
        try:
            ids = self._encode(text)
        except UserValueError:
            for one in texts:
                utf8(one)  # says where in which
            raise
        lines = np.searchsorted(np.flatnonzero(is_line_end), ends, side="right") + is_open.cumsum()
        last = np.flatnonzero(ids == self._line_end)[lines - 1]
        if is_open.any():
            ids = np.delete(ids, last[is_open])
        return EncodedBatch(ids, np.diff(last, prepend=-1) - is_open)

    def _encode_each(self, chunks: list[str]) -> EncodedBatch:
        """Return the ids of each chunk, of which the library makes a list, for few ids quicker than an array."""
        lists = self._spelt(chunks, self._processor.encode(chunks, num_threads=_threads(chunks)))
        return EncodedBatch(np.fromiter(chain.from_iterable(lists), np.int64), map(len, lists))

    def _join(self, text: str, chunks: list[str], parts: list) -> np.ndarray:
        none = np.empty(0, np.int64)  # an empty text has no chunk
        return self._known(np.concatenate([none, *self._spelt(chunks, parts)]), [text])

    def _spelt(self, chunks: list[str], parts: list) -> list:
        """Put its bytes in the place of the space that the library has taken each U+2581 for."""
        if not (self.lossless and SPACE in chunks):
            return parts
        return [self._bar if chunk == SPACE else ids for chunk, ids in zip(chunks, parts, strict=True)]

    def _known(self, ids: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Return ids, unless the id of unknown characters is among them, which cannot be decoded."""
        if self._unknown is not None and (ids == self._unknown).any():
            characters = dict.fromkeys(chain.from_iterable(texts))
            unknown = (c for c in characters if self._unknown in self._processor.encode(c))
            shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in islice(unknown, 5))
            raise UserValueError(f"the text has characters that the model has not, nor bytes to spell them: {shown}")
        return ids

    def sample(self, text: str, alpha: float = 0.1, seed: int | None = None) -> np.ndarray:
        """Return the ids of one of text's segmentations, drawn at random: a regularisation for training.

        Args:
            text: what to encode.
            alpha: unigram: the exponent of a segmentation's probability (Kudo, 2018), 0 for all alike; bpe: the
                probability with which a merge is left out (BPE-dropout, Provilkov et al., 2020), 0 for encode's own.
            seed: makes the draw repeatable; None goes on with sentencepiece's generator, one for the process.

        Raises:
            UserError: alpha is negative.
        """
        if not alpha >= 0:
            raise UserValueError(f"sentencepiece: 'alpha' must be at least 0, got {alpha}")
        if seed is not None:
            _library().set_random_generator_seed(seed)
        draws = {"return_type": "numpy", "enable_sampling": True, "alpha": alpha, "nbest_size": -1}
        # One by one in this thread: a list is shared out to fresh threads, whose generators all start from the seed.
        chunks = self._chunks(text)
        return self._join(text, chunks, [self._processor.encode(chunk, **draws) for chunk in chunks])

    def _chunks(self, text: str) -> list[str]:
        """Cut text where no piece can cross."""
        utf8(text)
        if not self.lossless or (len(text) <= self._short and SPACE not in text):
            return [text]
        if SPACE in text:
            return [chunk for part in re.split(f"({SPACE})", text) for chunk in self._cut.findall(part)]
        return self._cut.findall(text)

    def huggingface(self) -> dict | None:
        """Return a unigram or byte-pair model with this one's pieces and scores; it takes a U+2581 for a space."""
        if not self.lossless:
            return None
        sp = self._processor
        scores = {sp.id_to_piece(id): sp.get_score(id) for id in range(self.vocab_size)}
        decoder = {"type": "Sequence", "decoders": [huggingface.SPACES_READ, huggingface.BYTES_READ, huggingface.FUSE]}
        steps: dict = {"normalizer": huggingface.SPACES_WRITTEN, "decoder": decoder}
        if self._is_unigram:
            vocab = list(scores.items())
            steps["model"] = {"type": "Unigram", "unk_id": sp.unk_id(), "vocab": vocab, "byte_fallback": True}
            cuts = {"Regex": self._inside_names()}
            steps["pre_tokenizer"] = {"type": "Split", "pattern": cuts, "behavior": "Isolated", "invert": False}
        else:
            unknown = sp.id_to_piece(sp.unk_id())
            steps["model"] = huggingface.byte_pair_model(
                self.token_names(), self._merges(scores), unk_token=unknown, byte_fallback=True, fuse_unk=True
            )
        return steps

    def token_names(self) -> dict[str, int]:
        """Return the ids of the pieces."""
        return {self._processor.id_to_piece(id): id for id in range(self.vocab_size)}

    def _plain(self) -> dict[str, int]:
        """Return the pieces that stand for themselves: no byte's, no special token's, not the unknown one's."""
        sp = self._processor
        kept = (sp.is_byte, sp.is_control, sp.is_unknown)
        return {piece: id for piece, id in self.token_names().items() if not any(is_kept(id) for is_kept in kept)}

    def _inside_names(self) -> str:
        """Return a pattern of a place inside every name of a byte or of a special or unknown token.

        Their unigram model would find these names in plain text, if it were not cut there. The place is one that no
        piece crosses, if there is one, so that the cut changes no other ids.
        """
        sp = self._processor
        crossed = {pair for piece in self._plain() for pair in pairwise(piece)}
        names = [list(piece) for piece, id in self.token_names().items() if sp.is_control(id) or sp.is_unknown(id)]
        places = []
        for name in [["<", "0", "x", *[_HEX] * 2, ">"], *names]:
            free = (cut for cut in range(1, len(name)) if crossed.isdisjoint(product(name[cut - 1], name[cut])))
            cut = next(free, 1)
            before, after = ("".join(f"[{re.escape(one)}]" for one in part) for part in (name[:cut], name[cut:]))
            places.append(f"(?<={before})(?={after})")
        return "|".join(places)

    def _merges(self, scores: dict[str, float]) -> list[tuple[str, str]]:
        """Return every pair of pieces that makes a piece, the best piece first."""
        places = self._plain()
        found = [
            (-scores[piece], places[piece[:cut]], places[piece[cut:]], piece[:cut], piece[cut:])
            for piece in places
            for cut in range(1, len(piece))
            if piece[:cut] in places and piece[cut:] in places
        ]
        return [(left, right) for *_, left, right in sorted(found)]

    def to_json(self) -> dict:
        """Return the SHA-256 of the model's file."""
        return {"sha256": digest(self._model)}

    @classmethod
    def from_json(cls, stored: dict, folder: Path) -> "SentencePieceTokenizer":
        """Read the model that is in stored, or in folder."""
        if EMBEDDED not in stored:
            return cls(read_file(folder / FILE, stored["sha256"]))
        model = base64.b64decode(stored[EMBEDDED])
        if digest(model) != stored["sha256"]:
            raise UserError(f"{folder}: the sentencepiece model in {huggingface.CONFIG} is damaged")
        return cls(model)

    def to_embed(self) -> dict:
        """Return the model as a text: what transformers saves has no scores of byte pairs, and no file of ours."""
        return {**self.to_json(), EMBEDDED: base64.b64encode(self._model).decode()}

    def files(self) -> dict[str, bytes]:
        """Return the model's file, which sentencepiece itself can read too."""
        return {FILE: self._model}

    def __reduce__(self) -> tuple:
        return type(self), (self._model,), self.carried()


def _threads(chunks: list[str]) -> int:
    return max(1, min(sum(map(len, chunks)) // _A_THREAD, len(chunks), os.cpu_count() or 1))


def _words(text: str) -> list[str]:
    """Cut text before line ends, and before spaces that follow something else."""
    return text.replace(" ", f"{_CUT} ").replace(f" {_CUT}", " ").replace("\n", f"{_CUT}\n").split(_CUT)


def _blocks(text: str) -> Iterator[str]:
    """Cut text between words."""
    start = 0
    while start < len(text):
        cut = _WORD_END.search(text, start + _WORDS_TOGETHER)
        end = cut.start() if cut else len(text)
        yield text[start:end]
        start = end


def split_sentences(texts: Iterable[str], longest: int) -> Iterator[str]:
    """Yield what sentencepiece is to be trained on: lines that are not empty, cut to at most `longest` characters."""
    for text in texts:
        utf8(text)
        for line in _SENTENCE_ENDS.split(text):
            for start in range(0, len(line), longest):
                yield line[start : start + longest]


def draw(sentences: Iterable[str], count: int, seed: int) -> list[str]:
    """Return at most count of sentences, each as likely as any other (reservoir sampling: Vitter, 1985)."""
    kept: list[str] = []
    uniform = random.Random(seed).random
    for index, sentence in enumerate(sentences):
        if index < count:
            kept.append(sentence)
        elif (place := int(uniform() * (index + 1))) < count:
            kept[place] = sentence
    return kept


def _train(sentences: list[str], options: dict) -> bytes:
    model = io.BytesIO()
    try:
        _library().SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_writer=model, num_threads=_TRAINING_THREADS, minloglevel=2,
            normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True, byte_fallback=True,
            unk_id=0, eos_id=1, bos_id=-1, pad_id=-1, eos_piece=END_OF_TEXT, **options,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise UserError(_explain(f"{error}", options)) from error
    content = model.getvalue()
    return unigram_scores.rounded(content) if options["model_type"] == "unigram" else content


def _explain(error: str, options: dict) -> str:
    """Say in our words what sentencepiece found wrong; it names a line of its source."""
    vocab_size = options["vocab_size"]
    if most := re.search(r"Vocabulary size too high.*<= (\d+)", error):
        return f"sentencepiece: 'vocab_size' must be at most {most[1]} for this text, got {vocab_size}"
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", error):
        return (
            f"sentencepiece: 'vocab_size' must be at least {least[1]} for this text (256 bytes, 2 special tokens, its "
            f"characters), got {vocab_size}; a smaller character_coverage needs fewer"
        )
    return f"sentencepiece could not be trained with {options}: {' '.join(error.split())}"


def _library() -> Any:
    try:
        import sentencepiece
    except ModuleNotFoundError as error:
        raise UserError("the package sentencepiece is missing; pip install 'fastllm[tokenizers]'") from error
    return sentencepiece


def _load(model: bytes) -> Any:
    try:
        processor = _library().SentencePieceProcessor(model_proto=model) if model else None
    except RuntimeError as error:
        raise UserError("this is no sentencepiece model, or a damaged one") from error
    if processor is None:  # sentencepiece takes an empty file for one that is loaded later
        raise UserError("this is no sentencepiece model: it is empty")
    return processor
