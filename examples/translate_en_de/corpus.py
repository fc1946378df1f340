"""English sentences and their German translations, from three packages of Debian.

help.tsv has LibreOffice's help (MPL-2.0): paragraphs of pages that exist in both languages, under the same ids.
ding.tsv has the example sentences of the Ding dictionary (Frank Richter, TU Chemnitz; GPL-2.0 or later). A page, and
an entry of the dictionary, is a document; an empty line stands between two. Nothing of either is part of fastllm.

    python examples/translate_en_de/corpus.py data/translate_en_de
"""

import hashlib
import io
import lzma
import re
import sys
import tarfile
import urllib.request
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path

MIRROR = "https://deb.debian.org/debian"
INDEX = f"{MIRROR}/dists/bookworm/main/binary-all/Packages.xz"
HELP = {"en": "libreoffice-help-en-us", "de": "libreoffice-help-de"}
DING = "trans-de-en"
VOID = {"br", "hr", "img", "input", "link", "meta"}  # elements without an end

Document = list[tuple[str, str]]  # pairs (English, German)


def main(folder: Path) -> None:
    """Write help.tsv and ding.tsv, unless they are there."""
    paths = {"help.tsv": help_pages, "ding.tsv": ding_entries}
    missing = {name: read for name, read in paths.items() if not (folder / name).is_file()}
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    packages = fetch_packages([*HELP.values(), DING])
    for name, read in missing.items():
        documents = list(read(packages))
        text = "\n".join("".join(f"{english}\t{german}\n" for english, german in one) for one in documents)
        (folder / name).write_text(text, encoding="utf-8")
        print(f"{folder / name}: {sum(map(len, documents)):,} pairs in {len(documents):,} documents")


# --- packages ---------------------------------------------------------------------------------------------------------


def fetch_packages(names: Iterable[str]) -> dict[str, bytes]:
    """Return Debian packages by name, as their index of today has them, checked by their SHA-256."""
    index = lzma.decompress(fetch(INDEX)).decode()
    found = {}
    for name in names:
        entry = re.search(rf"^Package: {re.escape(name)}\n(.*\n)*?\n", index, re.MULTILINE)
        if entry is None:
            sys.exit(f"corpus: {INDEX} has no package {name}")
        path, digest = (re.search(rf"^{field}: (.*)$", entry[0], re.MULTILINE)[1] for field in ("Filename", "SHA256"))
        found[name] = fetch(f"{MIRROR}/{path}")
        if hashlib.sha256(found[name]).hexdigest() != digest:
            sys.exit(f"corpus: {MIRROR}/{path} is damaged: its SHA-256 is not {digest}")
    return found


def fetch(address: str) -> bytes:
    """Return what an address has."""
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.read()
    except OSError as error:
        sys.exit(f"corpus: cannot fetch {address}: {error}")


def files(package: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of the files of a .deb, which is an ar archive with a tar archive in it."""
    at = len(b"!<arch>\n")
    while at < len(package):
        name, size = package[at : at + 16].decode().strip(), int(package[at + 48 : at + 58])
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(package[at + 60 : at + 60 + size])) as archive:
                for member in archive:
                    if member.isfile():
                        yield member.name, archive.extractfile(member).read()
        at += 60 + size + size % 2


# --- LibreOffice's help -----------------------------------------------------------------------------------------------


def help_pages(packages: dict[str, bytes]) -> Iterator[Document]:
    """Yield what the pages of the help have in both languages; a pair that was on an earlier page is left out."""
    english, german = (
        {re.sub(r".*/help/[^/]*/", "", name): html for name, html in files(packages[HELP[language]]) if ".html" in name}
        for language in ("en", "de")
    )
    seen: set[tuple[str, str]] = set()
    for name in sorted(english.keys() & german.keys()):
        left, right = (paragraphs(side[name].decode("utf-8")) for side in (english, german))
        pairs = [(text, right[id]) for id, text in left.items() if id in right]
        new = [pair for pair in dict.fromkeys(pairs) if pair not in seen and is_language(*pair)]
        seen.update(new)
        if new:
            yield new


def is_language(english: str, german: str) -> bool:
    """Return whether a pair is text to be translated, not a name, a formula or a piece of code."""
    return english != german and all(len(re.findall(r"[^\W\d_]{2,}", text)) >= 3 for text in (english, german))


class Paragraphs(HTMLParser):
    """The texts of elements that have the id of a paragraph or a heading; of two keyboards' keys those of a PC."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._open: list[str | None] = []  # of each open element its id; "" is one that is left out

    def handle_starttag(self, tag: str, attrs: list) -> None:  # noqa: D102
        if tag == "br":
            self.handle_data(" ")
        if tag not in VOID:
            own = dict(attrs)
            id = own.get("id") or ""
            self._open.append("" if own.get("class") == "MAC" else id if re.match(r"(par|hd)_id", id) else None)

    def handle_endtag(self, tag: str) -> None:  # noqa: D102
        if self._open and tag not in VOID:
            self._open.pop()

    def handle_data(self, data: str) -> None:  # noqa: D102
        if id := next((id for id in reversed(self._open) if id is not None), ""):
            self.found[id] = self.found.get(id, "") + data


def paragraphs(html: str) -> dict[str, str]:
    """Return the paragraphs of a page by their ids, in their order."""
    parser = Paragraphs()
    parser.feed(html)
    return {id: " ".join(text.split()) for id, text in parser.found.items()}


# --- Ding -------------------------------------------------------------------------------------------------------------


def ding_entries(packages: dict[str, bytes]) -> Iterator[Document]:
    """Yield the sentences of each entry: `de | de :: en | en`, those that both sides end in . ! or ?."""
    (text,) = (data.decode("utf-8") for name, data in files(packages[DING]) if name.endswith("/trans/de-en"))
    seen: set[tuple[str, str]] = set()
    for line in text.splitlines():
        german, _, english = line.partition(" :: ")
        sides = zip(english.split(" | "), german.split(" | "), strict=False)
        pairs = [(clean(left), clean(right)) for left, right in sides]
        new = [pair for pair in dict.fromkeys(pairs) if pair not in seen and all(map(is_sentence, pair))]
        seen.update(new)
        if new:
            yield new


def clean(text: str) -> str:
    """Take the dictionary's notes, as [Br.] or {m}, off a text; where it has several, return the first."""
    return " ".join(re.sub(r"\[[^]]*\]|\{[^}]*\}|<[^>]*>", "", text.split(";")[0]).split())


def is_sentence(text: str) -> bool:
    """Return whether a text is a sentence as people write it, not a pattern as "jdn./etw. sehen"."""
    return len(text.split()) >= 3 and bool(re.fullmatch(r"[\"'„“]?[A-ZÄÖÜ][^/()]*[.!?][\"'“”]?", text))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/translate_en_de"))
