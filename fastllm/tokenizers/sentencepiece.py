"""Sub-word tokens by Google's sentencepiece (Kudo & Richardson, 2018), set up so that no text is lost.

sentencepiece by default normalises characters, drops line ends and repeated spaces and puts a space in front. A model
trained here does none of that and spells unknown characters as bytes. What is left is that sentencepiece writes a space
as U+2581 inside, so a U+2581 of the text would come back as a space: it is spelt as bytes too.
"""

import base64
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain, islice, pairwise, product
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from fastllm.errors import UserError, UserValueError, check_type
from fastllm.tokenizers import huggingface
from fastllm.tokenizers.base import EncodedBatch, check_texts, utf8
from fastllm.tokenizers.first_space import FirstSpaceTokenizer
from fastllm.tokenizers.sentencepiece_fast import FastEncoder, threads
from fastllm.tokenizers.sentencepiece_probe import probe
from fastllm.tokenizers.sentencepiece_training import draw, library, split_sentences, train
from fastllm.tokenizers.storage import digest, read_file

FILE = "tokenizer.model"
EMBEDDED = "model"  # instead of the file
SPACE = huggingface.SPACE
MODEL_TYPES = ("unigram", "bpe")
_HEX = "0123456789ABCDEF"


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
        self._processor = load_processor(self._model)
        sp = self._processor
        self.special_tokens = {sp.id_to_piece(id): id for id in range(sp.vocab_size()) if sp.is_control(id)}
        self.end_of_text = sp.eos_id() if sp.eos_id() >= 0 else None
        self._probe = probe(sp)
        self._fast = FastEncoder(sp, self._probe)
        self.lossless, self.crosses_lines = self._probe.lossless, self._probe.crosses_lines
        self.drops_first_space = self._probe.drops_first_space

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
        control_symbols: Sequence[str] = (),
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
            control_symbols: names of special tokens beside the one that ends a text; no text is encoded to them.

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
        if any(not name or "," in name or name.isspace() for name in control_symbols):
            raise UserValueError(
                f"sentencepiece: 'control_symbols' must be names without commas, got {list(control_symbols)}"
            )
        options = {
            "vocab_size": vocab_size, "model_type": model_type, "character_coverage": character_coverage,
            "control_symbols": ",".join(control_symbols),
            "max_sentence_length": 4 * max_sentence_length,  # in bytes; a longer one would be left out
        }  # fmt: skip
        return cls(train(sentences, options))

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
        if self._probe.lossless:
            return self._fast.encode(text)
        utf8(text)
        return self._known(np.array(self._processor.encode(text), dtype=np.int64), [text])

    def _encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        if self._probe.lossless:
            return self._fast.encode_batch(texts)
        for text in texts:
            utf8(text)
        lists = self._processor.encode(list(texts), num_threads=threads(texts))
        ids = np.fromiter(chain.from_iterable(lists), np.int64)
        return EncodedBatch(self._known(ids, texts), map(len, lists))

    def _known(self, ids: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Return ids, unless the id of unknown characters is among them, which cannot be decoded."""
        if self._probe.unknown is not None and (ids == self._probe.unknown).any():
            characters = dict.fromkeys(chain.from_iterable(texts))
            unknown = (c for c in characters if self._probe.unknown in self._processor.encode(c))
            shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in islice(unknown, 5))
            raise UserValueError(
                f"the text has characters that are not in the vocabulary of {self.vocab_size} tokens, which has no "
                f"tokens for their bytes: {shown}"
            )
        return ids

    def sample(self, text: str, alpha: float = 0.1, seed: int | None = None) -> np.ndarray:
        """Return the ids of one of text's segmentations, drawn at random: a regularisation for training.

        Args:
            text: what to encode.
            alpha: unigram: the exponent of a segmentation's probability (Kudo, 2018), 0 for all alike; bpe: the
                probability with which a merge is left out (BPE-dropout, Provilkov et al., 2020), 0 for encode's own.
            seed: makes the draw repeatable, in [0, 2^32 - 1); None goes on with sentencepiece's generator, of which
                each thread has its own.

        Raises:
            UserError: alpha is negative, or seed is outside its range.
            TypeError: seed is not a whole number.
        """
        if not alpha >= 0:
            raise UserValueError(f"sentencepiece: 'alpha' must be at least 0, got {alpha}")
        if seed is not None:
            check_type("sentencepiece", "seed", seed, Integral)
            if not 0 <= seed < 2**32 - 1:  # that one stands for chance
                raise UserValueError(f"sentencepiece: 'seed' must be in [0, {2**32 - 1}), got {seed}")
            library().set_random_generator_seed(seed)
        draws = {"enable_sampling": True, "alpha": alpha, "nbest_size": -1}
        if self._probe.lossless:
            return self._fast.sample(text, **draws)
        utf8(text)
        return self._known(np.array(self._processor.encode(text, **draws), dtype=np.int64), [text])

    def huggingface(self) -> dict | None:
        """Return a unigram or byte-pair model with this one's pieces and scores; it takes a U+2581 for a space."""
        if not self.lossless:
            return None
        sp = self._processor
        scores = {sp.id_to_piece(id): sp.get_score(id) for id in range(self.vocab_size)}
        decoder = {"type": "Sequence", "decoders": [huggingface.SPACES_READ, huggingface.BYTES_READ, huggingface.FUSE]}
        steps: dict = {"normalizer": huggingface.SPACES_WRITTEN, "decoder": decoder}
        if self._probe.is_unigram:
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


def load_processor(model: bytes) -> Any:
    """Return the library's processor of a .model file's bytes.

    Raises:
        UserError: they are damaged, or the package sentencepiece is missing.
    """
    try:
        processor = library().SentencePieceProcessor(model_proto=model) if model else None
    except RuntimeError as error:
        raise UserError("this is not a sentencepiece model, or a damaged one") from error
    if processor is None:  # sentencepiece takes an empty file for one that is loaded later
        raise UserError("this is not a sentencepiece model: it is empty")
    return processor
