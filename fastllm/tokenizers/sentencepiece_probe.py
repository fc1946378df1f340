"""What a sentencepiece model does with texts, found out once: which ways of encoding give its ids."""

import re
from dataclasses import dataclass
from typing import Any

from fastllm.tokenizers import huggingface, unigram_scores

# Many lines to a chunk, because a call costs as much as 30 characters, but no more than this many characters: merging
# pairs takes longer in a longer chunk, and sums of unigram scores are exact for so many. A longer line is one alone.
_SHORT = {"unigram": 500, "bpe": 150}
_PROBE = " a  b \n\u3000\uff76 \u00e9e\u0301 \ufb01\r\n\t\0 "  # normalising, trimming or a dummy prefix changes it


@dataclass(frozen=True)
class Probe:
    """What a model is like.

    Attributes:
        lossless: every text comes back as it was.
        unknown: the id of characters that the model has no token for; None if it spells these as bytes.
        is_unigram: its pieces have log-probabilities; otherwise they are merged in pairs.
        crosses_lines: a piece has a line end and something else.
        in_words: pairs are merged within words alone, so that a word's ids are the same wherever it stands.
        joins: texts can be encoded together, cut at line ends, and each has the ids that it has alone.
        short: how many characters are encoded together at most.
        line_end: the ids of a line end.
        bar: the ids of the bytes of U+2581, which the library takes for a space.
        drops_first_space: the model puts a space in front of every text.
    """

    lossless: bool
    unknown: int | None
    is_unigram: bool
    crosses_lines: bool
    in_words: bool
    joins: bool
    short: int
    line_end: tuple[int, ...]
    bar: tuple[int, ...]
    drops_first_space: bool


def probe(processor: Any) -> Probe:
    """Return what the model of the library's SentencePieceProcessor is like."""
    sp = processor
    ids = range(sp.vocab_size())
    pieces, scores = [sp.id_to_piece(id) for id in ids], [sp.get_score(id) for id in ids]
    unknown = None if any(sp.is_byte(id) for id in ids) else sp.unk_id()
    lossless = unknown is None and sp.decode(sp.encode(_PROBE)) == _PROBE
    is_unigram = any(score % 1 for score in scores)  # those of byte-pair pieces are ranks, negative
    short = _SHORT["unigram" if is_unigram else "bpe"]
    # No piece of ours does, but one from elsewhere may.
    crosses_lines = any("\n" in piece and piece != "\n" for piece in pieces)
    crosses_words = crosses_lines or any(re.search("[^ ] ", piece.replace(huggingface.SPACE, " ")) for piece in pieces)
    first = next((id for id in ids if pieces[id].startswith(huggingface.SPACE) and sp.decode([id])), None)
    exact = not is_unigram or unigram_scores.exact_length(scores) > short
    return Probe(
        lossless=lossless,
        unknown=unknown,
        is_unigram=is_unigram,
        crosses_lines=crosses_lines,
        in_words=lossless and not is_unigram and not crosses_words,
        joins=lossless and not crosses_lines and exact,
        short=short,
        line_end=tuple(sp.encode("\n")),
        bar=tuple(sp.piece_to_id(f"<0x{byte:02X}>") for byte in huggingface.SPACE.encode()),
        drops_first_space=first is not None and not sp.decode([first]).startswith(" "),
    )
