"""Where a document's text may be cut: what the tokens will be is decided here.

A document is tokenized in pieces, so that one larger than memory can be, and several processes can share it. Cuts are
made only where they cannot change the ids: between any two characters for characters and bytes; for GPT-2's tokenizer
after a newline between two characters that are not white space, where its pattern always ends a word; for sentencepiece
models that lose nothing, in which newlines are tokens, after a newline (of spellings that a unigram model finds equally
good it may then choose another). Other tokenizers get their documents whole, up to LONGEST characters; a longer one is
cut after a newline, and there the ids may differ. For one text they are always the same, however many processes work.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from fastllm.data.documents import Chunk
from fastllm.data.holdout import LEFT_OUT
from fastllm.errors import UserError
from fastllm.tokenizers import SentencePieceTokenizer, Tokenizer

TRAIN, VAL = SPLITS = ("train", "val")
PIECE = 1 << 18  # characters: a cut is looked for from there on
LONGEST = 1 << 24  # characters of a document that is not cut
_CHANGED = "prepare: the text changed between its two readings; run it again"


class Piece(NamedTuple):
    """Text that is tokenized at once."""

    text: str
    split: str
    ends: bool  # its document ends here
    added: int = 0  # characters at its end that are not in the source


FindCut = Callable[[str, int], int]


def split_pieces(chunks: Iterable[Chunk], cuts: Iterable[int], find_cut: FindCut) -> Iterator[Piece]:
    """Cut documents into pieces, each of one split.

    Args:
        chunks: of the documents.
        cuts: for each document, how many of its characters are for training, or LEFT_OUT; the rest is for validation.
        find_cut: gives the first place from an index on where a text may be cut; 0 if it has none.

    Raises:
        UserError: there are more or fewer documents than cuts.
    """
    cuts = iter(cuts)
    cut: int | None = None
    position, held = 0, ""
    for text, ends in chunks:
        if cut is None:
            cut = next(cuts, None)
            if cut is None:
                raise UserError(_CHANGED)
        if cut != LEFT_OUT:
            border = cut - position
            position += len(text)
            if 0 < border <= len(text):
                *whole, held = _parts(held + text[:border], find_cut)
                yield from (Piece(part, TRAIN, ends=False) for part in whole)
                yield Piece(held, TRAIN, ends=True)
                text, held = text[border:], ""
            *whole, held = _parts(held + text, find_cut)
            split = TRAIN if position < cut else VAL
            yield from (Piece(part, split, ends=False) for part in whole)
            if ends:
                yield Piece(held, split, ends=True)
        if ends:
            cut, position, held = None, 0, ""
    if next(cuts, None) is not None:
        raise UserError(_CHANGED)


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
