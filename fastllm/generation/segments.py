"""Cutting a long text into parts that a model can take, so that the parts and what stands between them are the text.

The rule: a text that is short enough is one part. Else it is cut between sentences: after . ! ? … (and closing quotes
or brackets) where white space and then a capital, a digit or an opening quote follows, but not after an abbreviation or
an initial. A sentence that is still too long is cut after , ; : or a dash where a space follows, and what is then too
long at the last space that lets it fit; a word that alone is too long is cut anywhere. Parts are as long as may be.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

_END = re.compile(r"[.!?…]+[\"'»”’)\]]*(\s+)(?=[\"'«„“‘(\[¿¡]*[^\W_a-zß-öø-ÿ])")
_CLAUSE = re.compile(r"(?:[,;:]|\s[-–—])(\s+)")
_SPACE = re.compile(r"(\s+)")
_ABBREVIATIONS = set(
    "bzw ca co corp d.h dr e.g etc evtl fig ggf gov hr i.e inc jr ltd mr mrs ms nr no p pp prof s sen sr st".split()  # noqa: SIM905
    + "str u.a usw v vgl vs z.b".split()  # noqa: SIM905
)


class Part(NamedTuple):
    """A part of a text, and the white space behind it."""

    text: str
    space: str


def split_text(text: str, fits: Callable[[str], bool]) -> list[Part]:
    """Cut a text by the rule above; joined, parts and spaces are the text.

    Args:
        text: without white space around it.
        fits: whether a part is short enough.

    Example:
        >>> [part.text for part in split_text("It rains. Dr. No, who is wet, runs.", lambda text: len(text) < 20)]
        ['It rains.', 'Dr. No, who is wet,', 'runs.']
    """
    if fits(text):
        return [Part(text, "")]
    parts = [Part(text, "")]
    for cut in (_sentences, _clauses, _words, _anywhere):
        parts = [piece for part in parts for piece in ([part] if fits(part.text) else _recut(part, cut, fits))]
    return parts


def sentences(text: str) -> list[Part]:
    """Cut a text between its sentences, by the rule above."""
    return _cut(text, [match.span(1) for match in _END.finditer(text) if not _is_abbreviation(text, match.start())])


def _sentences(text: str, fits: Callable[[str], bool]) -> list[Part]:
    return sentences(text)


def _clauses(text: str, fits: Callable[[str], bool]) -> list[Part]:
    return _cut(text, [match.span(1) for match in _CLAUSE.finditer(text)])


def _words(text: str, fits: Callable[[str], bool]) -> list[Part]:
    return _cut(text, [match.span(1) for match in _SPACE.finditer(text)])


def _anywhere(text: str, fits: Callable[[str], bool]) -> list[Part]:
    pieces = []
    while text:
        size = len(text)
        while size > 1 and not fits(text[:size]):
            size = size // 2
        pieces.append(Part(text[:size], ""))
        text = text[size:]
    return pieces


def _cut(text: str, spaces: list[tuple[int, int]]) -> list[Part]:
    """Cut a text at some of its white space."""
    starts = [0, *(end for _, end in spaces)]
    ends = [*(start for start, _ in spaces), len(text)]
    gaps = [*(text[start:end] for start, end in spaces), ""]
    return [Part(text[start:end], gap) for start, end, gap in zip(starts, ends, gaps, strict=True)]


def _recut(part: Part, cut: Callable[[str, Callable[[str], bool]], list[Part]], fits: Callable) -> list[Part]:
    """Cut a part, and join neighbours as long as they fit; what stood behind the part stands behind its last."""
    joined: list[Part] = []
    for piece in cut(part.text, fits):
        if joined and fits(together := f"{joined[-1].text}{joined[-1].space}{piece.text}"):
            joined[-1] = Part(together, piece.space)
        else:
            joined.append(piece)
    joined[-1] = Part(joined[-1].text, joined[-1].space + part.space)
    return joined


def _is_abbreviation(text: str, end: int) -> bool:
    """Return whether a full stop at `end` belongs to an abbreviation or an initial."""
    if text[end] != "." or text[end + 1 : end + 2] == ".":
        return False
    word = re.search(r"[\w.]*$", text[:end])
    before = word[0] if word else ""
    return before.casefold() in _ABBREVIATIONS or (len(before) == 1 and before.isalpha()) or before.isdigit()
