"""Reading TMX, the XML format of translation memories, as a stream: units with a text in each of some languages."""

import zlib
from collections.abc import Iterator
from typing import BinaryIO
from xml.etree import ElementTree

from fastllm.errors import UserError

_LANG = "{http://www.w3.org/XML/1998/namespace}lang"


def units(data: BinaryIO, name: str, languages: tuple[str, str]) -> Iterator[tuple[int, str, str]]:
    """Yield the number of each unit that has both languages, counted from 1, and its texts.

    Args:
        data: the file.
        name: for messages.
        languages: such as "en", which "en-US" is too where a unit has no plain "en".

    Raises:
        UserError: the file is not TMX, or no unit has both languages.
    """
    number = found = 0
    there: dict[str, None] = {}  # languages, in their order
    body = None
    try:
        for event, element in ElementTree.iterparse(data, events=("start", "end")):
            if event == "start":
                body = element if _local(element) == "body" else body
                continue
            if _local(element) != "tu":
                continue
            number += 1
            texts = _variants(element)
            there |= dict.fromkeys(texts)
            source, target = (_in_language(texts, language.lower()) for language in languages)
            if body is not None:
                body.clear()  # or all that was read would stay in memory
            if source is not None and target is not None:
                found += 1
                yield number, source, target
    except (ElementTree.ParseError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"prepare parallel: {name} is not TMX after unit {number}: {error}") from error
    if not found:
        raise UserError(
            f"prepare parallel: {name} has no unit with both '{languages[0]}' and '{languages[1]}', only "
            f"{', '.join(there) or 'units of no language'}; name others with --source_language and --target_language"
        )


def _local(element: ElementTree.Element) -> str:
    """Return an element's name without its namespace."""
    return element.tag.rsplit("}", 1)[-1]


def _variants(unit: ElementTree.Element) -> dict[str, str]:
    """Return the texts of a unit by language, in small letters."""
    texts: dict[str, str] = {}
    for variant in unit:
        if _local(variant) == "tuv":
            language = (variant.get(_LANG) or variant.get("lang") or "").lower()
            segment = next((child for child in variant if _local(child) == "seg"), None)
            texts.setdefault(language, "" if segment is None else " ".join("".join(segment.itertext()).split()))
    return texts


def _in_language(texts: dict[str, str], language: str) -> str | None:
    """Return the text in a language, or else in one of its variants."""
    near = (text for own, text in texts.items() if own.split("-")[0] == language)
    return texts.get(language, next(near, None))
