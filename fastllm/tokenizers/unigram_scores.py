"""The scores of a unigram model's file, rounded so that their sums are exact.

A text's segmentation is the one whose pieces' scores, log-probabilities, have the largest sum. sentencepiece adds them
up in float32 from a text's beginning, so that of two segmentations which are about as good the better one depends on
what stands in front. Scores that are whole multiples of 2^-10 add up without rounding: a line's ids are the same alone
and among others, in float32 and in the doubles of Hugging Face's tokenizers. It changes a probability by 0.05% at most.
"""

import struct
from collections.abc import Callable, Iterable, Iterator

_STEPS = 1024  # to 1; a finer grid is exact for shorter texts only
_WHOLE = 2**24  # float32 has all whole numbers up to it
_UNKNOWN = 10  # what sentencepiece takes off the least score for a character that has no piece
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types
_PIECES, _SCORE = 1, 2  # numbers of the fields ModelProto.pieces and SentencePiece.score


def rounded(model: bytes) -> bytes:
    """Return a model's file with every score rounded."""
    return with_scores(model, lambda score: round(score * _STEPS) / _STEPS)


def with_scores(model: bytes, change: Callable[[float], float]) -> bytes:
    """Return a model's file with what change makes of every score; nothing else in it changes."""
    content = bytearray(model)
    for number, wire, start, end in _fields(model, 0, len(model)):
        if (number, wire) != (_PIECES, _BYTES):
            continue
        for inner, kind, place, _ in _fields(model, start, end):
            if (inner, kind) == (_SCORE, _FIXED32):
                struct.pack_into("<f", content, place, change(*struct.unpack_from("<f", model, place)))
    return bytes(content)


def exact_length(scores: Iterable[float]) -> int:
    """Return how many characters long a text may be so that no sum of its pieces' scores is ever rounded."""
    scores = list(scores)
    if any(score * _STEPS % 1 for score in scores):
        return 0
    return int(_WHOLE / _STEPS / (_UNKNOWN - min(scores)))


def _fields(content: bytes, place: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield each field of a protobuf message: its number, its wire type, and from where to where its value is."""
    while place < end:
        tag, place = _varint(content, place)
        wire = tag & 7
        if wire == _VARINT:
            _, after = _varint(content, place)
        elif wire == _BYTES:
            length, place = _varint(content, place)
            after = place + length
        else:
            after = place + {_FIXED64: 8, _FIXED32: 4}[wire]
        yield tag >> 3, wire, place, after
        place = after


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """Return the number that begins at place, seven bits a byte, and where it has ended."""
    number = shift = 0
    while content[place] & 0x80:
        number |= (content[place] & 0x7F) << shift
        shift += 7
        place += 1
    return number | content[place] << shift, place + 1
