"""Reading documents from files, folders and the standard input, and what is said of bad ones."""

import gzip
import io
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.data import FileSource, TextSource, sources
from fastllm.data.sources import STDIN, Chunk
from fastllm.errors import UserError


def documents(source, scratch=None):
    """Return the whole documents of a source."""
    if scratch is not None:
        source.open(scratch)
    found, parts = [], []
    for text, ends in source.read(lambda done: None):
        parts.append(text)
        if ends:
            found.append("".join(parts))
            parts = []
    assert not parts, "the last document does not end"
    return found


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def test_files_and_folders(tmp_path):
    folder = tmp_path / "folder"
    write(folder / "b.txt", "\ufeffsecond\r\n")
    write(folder / "a" / "z.txt.gz", "first é")
    write(folder / "c.jsonl", '{"text": "third"}\n\n{"text": " "}\n{"text": "fourth", "id": 1}')
    write(folder / "d.jsonl.gz", '\ufeff{"text": "fifth"}\n')
    write(folder / "notes.md", "not read")
    write(folder / ".hidden" / "e.txt", "not read")
    write(folder / ".e.txt", "not read")
    last = write(tmp_path / "named.md", "read when named")
    expected = ["first é", "second\r\n", "third", "fourth", "fifth", "read when named"]
    source = FileSource([folder, last])
    assert documents(source) == documents(source) == expected
    assert source.names == [str(folder), str(last)]


def test_another_field_and_format(tmp_path):
    path = write(tmp_path / "lines", '{"body": "one"}\n{"body": "two"}\n')
    assert documents(FileSource([path], field="body", format="jsonl")) == ["one", "two"]
    assert len(documents(FileSource([write(tmp_path / "x.jsonl", "as\nit is")], format="text"))) == 1


@pytest.mark.parametrize("zipped", [False, True])
def test_standard_input_is_read_twice(tmp_path, monkeypatch, zipped):
    content = ("wörd " * 200_000).encode()
    stdin = io.TextIOWrapper(io.BytesIO(gzip.compress(content) if zipped else content))
    monkeypatch.setattr(sys, "stdin", stdin)
    source = FileSource([STDIN])
    assert documents(source, tmp_path) == documents(source) == [content.decode()]
    assert source.size == stdin.buffer.tell()
    assert not list(tmp_path.iterdir())


@given(
    text=st.text(alphabet="a\n|", max_size=60), separator=st.sampled_from(["\n", "\n\n", "a|a", "||"]),
    cuts=st.lists(st.integers(1, 7), max_size=30),
)  # fmt: skip
def test_separators_that_chunks_share(text, separator, cuts):
    chunks, start = [], 0
    for size in cuts:
        chunks.append(Chunk(text[start : start + size], False))
        start += size
    chunks.append(Chunk(text[start:], True))
    found, parts = [], []
    for part, ends in sources._separate(iter(chunks), separator):
        parts.append(part)
        if ends:
            found.append("".join(parts))
            parts = []
    assert found == text.split(separator)


def test_blank_documents_are_left_out(tmp_path):
    path = write(tmp_path / "text.txt", "<e>one<e>\n <e><e> two\n<e>\n")
    assert documents(FileSource([path], separator="<e>")) == ["one", " two\n"]


def test_characters_that_blocks_share(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_BLOCK", 3)
    text = " \n é€😀" * 9
    assert documents(FileSource([write(tmp_path / "text.txt", text)])) == [text]
    assert documents(TextSource(text, ["made up"])) == [text]
    (tmp_path / "text.txt").write_bytes(text.encode() + b"\xf0\x9f\x98")  # a character that is not whole
    with pytest.raises(UserError, match=f"byte 0xf0 at offset {len(text.encode())} does not belong"):
        documents(FileSource([tmp_path / "text.txt"]))


def test_progress_ends_at_the_size(tmp_path):
    source = FileSource([write(tmp_path / "a.txt", "x" * 600_000), write(tmp_path / "b.txt.gz", "y" * 600_000)])
    seen = [0]
    assert len(list(source.read(seen.append))) >= 4
    assert seen == sorted(seen)
    assert seen[-1] == source.size == sum(file.stat().st_size for file in source.files)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"", r"x.txt is empty"),
        ("x.txt", b" \n", r"x.txt is empty"),
        ("x.txt.gz", b"", r"x.txt.gz is empty"),
        ("x.jsonl", b"\n", r"x.jsonl is empty"),
        ("x.txt", b"ab\xff", r"x.txt is not UTF-8: byte 0xff at offset 2"),
        ("x.txt.gz", b"a" * 300_000 + b"\xff", r"x.txt.gz is not UTF-8: byte 0xff at offset 300000"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "\xff"}', r"x.jsonl, line 2 is not UTF-8: byte 0xff at offset 24"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "b}', r"line 2 is not JSON: Unterminated string"),
        ("x.jsonl", b"[" * 100_000, r"line 1 is not JSON: maximum recursion"),
        ("x.jsonl", b'["a"]', r"line 1 must be an object with the field 'text', got a list"),
        ("x.jsonl", b'{"body": "a", "id": 1}', r"line 1 has no field 'text' but 'body', 'id'; name"),
        ("x.jsonl", b'{"text": 5}', r"line 1: 'text' must be a text, got a number"),
        ("x.jsonl", b'{"text": "\\ud800"}', r"line 1: 'text' has half of a surrogate pair"),
    ],
)  # fmt: skip
def test_bad_content(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        documents(FileSource([write(tmp_path / name, content)]))


def test_bad_gzip(tmp_path):
    path = tmp_path / "x.txt.gz"
    path.write_bytes(b"plain text")
    with pytest.raises(UserError, match=r"x.txt.gz is no sound .gz: Not a gzipped file"):
        documents(FileSource([path]))
    whole = gzip.compress(b"some text " * 1000)
    for damaged in (whole[:-9], whole[:30] + b"\0\0\0" + whole[33:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"x.txt.gz is (a damaged or unfinished|no sound) .gz"):
            documents(FileSource([path]))


def test_bad_paths_and_options(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none: No such file"):
        FileSource([tmp_path / "none"])
    with pytest.raises(UserError, match=r"has no files that end in .txt, .jsonl"):
        FileSource([tmp_path])
    with pytest.raises(UserError, match="is not a file or folder; send it to the standard input"):
        FileSource([Path("/dev/null")])
    path = write(tmp_path / "x.txt", "text")
    with pytest.raises(UserError, match="'format' must be one of auto, text, jsonl, got 'xml'"):
        FileSource([path], format="xml")
    with pytest.raises(UserError, match="'document_separator' must not be empty"):
        FileSource([path], separator="")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "link.txt").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"cannot read .*link.txt: No such file"):
        FileSource([tmp_path / "odd"])
    source = FileSource([path])
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read .*x.txt: No such file"):
        documents(source)


def test_file_names_may_be_anything(tmp_path):
    (tmp_path / "\udcff.txt").write_text("text")  # the byte 0xff, which is not UTF-8
    assert FileSource([tmp_path / "\udcff.txt"]).names == [f"{tmp_path}/\ufffd.txt"]


def test_json_escapes_are_text(tmp_path):
    path = write(tmp_path / "x.jsonl", json.dumps({"text": "a\n😀"}))
    assert documents(FileSource([path])) == ["a\n😀"]


def test_a_file_that_is_named_twice_is_read_once(tmp_path):
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "link.txt").symlink_to("b.txt")
    names = ["b.txt", "", "a.txt", "../" + tmp_path.name + "/a.txt"]
    files = FileSource([tmp_path / name for name in names]).files
    assert [file.name for file in files] == ["b.txt", "a.txt"]
