"""Which split a document belongs to, and where its text may be cut: what the tokens will be is decided here.

A document is tokenized in pieces, so that one larger than memory can be, and several processes can share it. Cuts are
made only where they cannot change the ids: between any two characters for characters and bytes; for GPT-2's tokenizer
after a newline between two characters that are not white space, where its pattern always ends a word; for sentencepiece
models that lose nothing, in which newlines are tokens, after a newline (of spellings that a unigram model finds equally
good it may then choose another). Other tokenizers get their documents whole, up to LONGEST characters; a longer one is
cut after a newline, and there the ids may differ. For one text they are always the same, however many processes work.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from fastllm.data.sources import Chunk
from fastllm.tokenizers import SentencePieceTokenizer, Tokenizer

TRAIN, VAL = SPLITS = ("train", "val")
PIECE = 1 << 18  # characters: a cut is looked for from there on
LONGEST = 1 << 24  # characters of a document that is not cut
FEW = 1 << 16  # documents whose lengths are remembered; of more, chance alone holds out the right share


class Survey:
    """What a first reading finds out, and what the hold-out needs to know of it.

    Args:
        seed: of the choice of documents.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.documents = self.characters = 0
        self._lengths: list[int] = []  # of the first FEW documents
        self._before = 0  # characters of the documents that have ended
        self._extremes: tuple[float, int, float, int] | None = None  # draw and index of the lowest, of the highest

    def watch(self, chunks: Iterable[Chunk]) -> Iterator[str]:
        """Pass on the texts."""
        for text, ends in chunks:
            self.characters += len(text)
            if ends:
                self._count(draw(self.seed, self.documents), self.documents)
                self.documents += 1
                if len(self._lengths) < FEW:
                    self._lengths.append(self.characters - self._before)
                self._before = self.characters
            yield text

    def _count(self, drawn: float, index: int) -> None:
        if self._extremes is None:
            self._extremes = (drawn, index, drawn, index)
        low, low_index, high, high_index = self._extremes
        if drawn < low:
            low, low_index = drawn, index
        if drawn > high:
            high, high_index = drawn, index
        self._extremes = (low, low_index, high, high_index)

    def hold_out(self, share: float) -> "HoldOut":
        """Return which part of what was read is for validation."""
        if self.documents == 1:
            return HoldOut(share, self.seed, cut=int(self.characters * (1 - share)))
        if self.documents <= FEW:
            chosen = _choose(self._lengths, share, self.seed)
            return HoldOut(sum(map(self._lengths.__getitem__, chosen)) / self.characters, self.seed, chosen=chosen)
        assert self._extremes is not None, "there are documents"
        return HoldOut(share, self.seed, always_val=self._extremes[1], always_train=self._extremes[3])


def _choose(lengths: list[int], share: float, seed: int) -> frozenset[int]:
    """Return documents that together have about a share of all characters, taken by their draw, the lowest first.

    One that would take them farther from the share than they are is passed over: a long document among few short ones
    would leave nothing to train on. There is at least one, and one is left.
    """
    wanted, total, chosen = share * sum(lengths), 0, set()
    for index in sorted(range(len(lengths)), key=lambda index: draw(seed, index)):
        if abs(total + lengths[index] - wanted) < abs(total - wanted):
            total += lengths[index]
            chosen.add(index)
    shortest = min(range(len(lengths)), key=lengths.__getitem__)
    if len(chosen) == len(lengths):
        chosen.remove(shortest)
    return frozenset(chosen or {shortest})


def draw(seed: int, index: int) -> float:
    """Return a number in [0, 1) that depends on nothing else: the same on every machine, in every version."""
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


class HoldOut(NamedTuple):
    """The validation split: the last `share` of the characters of a single document; of few documents those chosen,
    which have that share; of more than FEW those whose draw is under `share`. The lowest draw is held out then and the
    highest is not, whatever the share: each split has a document.
    """

    share: float
    seed: int
    cut: int | None = None  # of the single document, in characters
    chosen: frozenset[int] | None = None  # of few documents
    always_val: int = -1
    always_train: int = -1

    def split_of(self, document: int) -> str:
        """Return "train" or "val" for one of several documents."""
        if self.chosen is not None:
            return VAL if document in self.chosen else TRAIN
        if document in (self.always_val, self.always_train):
            return VAL if document == self.always_val else TRAIN
        return VAL if draw(self.seed, document) < self.share else TRAIN

    def describe(self) -> str:
        """Say which part is held out, for the manifest."""
        if self.cut is not None:
            return f"the last {self.share:g} of the characters"
        if self.chosen is not None:
            return f"documents with {self.share:.3g} of the characters, drawn with the seed {self.seed}"
        return f"documents drawn with the probability {self.share:g} and the seed {self.seed}"


class Piece(NamedTuple):
    """Text that is tokenized at once."""

    text: str
    split: str
    ends: bool  # its document ends here
    added: int = 0  # characters at its end that the source has not


FindCut = Callable[[str, int], int]


def split_pieces(chunks: Iterable[Chunk], hold_out: HoldOut, find_cut: FindCut) -> Iterator[Piece]:
    """Cut documents into pieces, each of one split.

    Args:
        chunks: of the documents.
        hold_out: which of them are for validation.
        find_cut: gives the first place from an index on where a text may be cut; 0 if it has none.
    """
    document = position = 0
    held = ""
    for text, ends in chunks:
        border = -1 if hold_out.cut is None else hold_out.cut - position
        if 0 < border <= len(text):
            yield from (Piece(part, TRAIN, ends=False) for part in _parts(held + text[:border], find_cut))
            held, text, position, border = "", text[border:], position + border, 0
        split = hold_out.split_of(document) if hold_out.cut is None else TRAIN if border > 0 else VAL
        position += len(text)
        *whole, held = _parts(held + text, find_cut)
        yield from (Piece(part, split, ends=False) for part in whole)
        if ends:
            yield Piece(held, split, ends=True)
            held, document = "", document + 1


def _parts(text: str, find_cut: FindCut) -> list[str]:
    """Cut a text where it is long enough and allows it; the last part is what is not cut yet."""
    parts, start = [], 0
    while len(text) - start > PIECE:
        cut = find_cut(text, start + PIECE)
        if not cut or cut - start > LONGEST:
            if len(text) - start <= LONGEST:
                break
            cut = text.rfind("\n", start, start + LONGEST) + 1 or start + LONGEST
        parts.append(text[start:cut])
        start = cut
    return [*parts, text[start:]]


def anywhere(text: str, start: int) -> int:
    """Cut between any two characters."""
    return start


def after_lone_newline(text: str, start: int) -> int:
    """Cut after a newline that has no white space beside it."""
    newline = text.find("\n", start, len(text) - 1)
    while newline >= 0 and (text[newline - 1].isspace() or text[newline + 1].isspace()):
        newline = text.find("\n", newline + 1, len(text) - 1)
    return newline + 1


def after_newline(text: str, start: int) -> int:
    """Cut after a newline."""
    return text.find("\n", start, len(text) - 1) + 1


def nowhere(text: str, start: int) -> int:
    """Keep documents whole."""
    return 0


_CUTS: dict[str, FindCut] = {"characters": anywhere, "bytes": anywhere, "gpt2": after_lone_newline}


def find_cut_for(tokenizer: Tokenizer) -> FindCut:
    """Return where texts may be cut for a tokenizer."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        return after_newline if tokenizer.lossless and not tokenizer.crosses_lines else nowhere
    return _CUTS.get(tokenizer.kind, nowhere)
