"""Reading documents from files, folders and the standard input, and what is said of bad ones."""

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.data import FileSource, TextSource, sources
from fastllm.data import documents as reading
from fastllm.data.discovery import STDIN
from fastllm.data.documents import Chunk
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


def test_names_are_read_from_their_end_and_in_any_case(tmp_path):
    folder = tmp_path / "folder"
    line = '{"text": "record"}\n'
    write(folder / "A.TXT", "text")
    write(folder / "b.ndjson", line)
    write(folder / "c.NDJSON.gz", line)
    write(folder / "d.jsonl.txt", line)
    write(folder / "e.json", "{}")
    write(folder / "f.txt.bak", "not read")
    write(folder / "g.Txt.GZ", gzip.compress(b"zipped"))
    source = FileSource([folder])
    assert documents(source) == ["text", "record", "record", line, "zipped"]
    assert source.skipped == [str(folder / name) for name in ("e.json", "f.txt.bak")]
    assert documents(FileSource([write(tmp_path / "zipped", gzip.compress(b"text"))])) == ["text"]


def test_links_to_folders_are_followed_once(tmp_path):
    write(tmp_path / "other" / "deep" / "a.txt", "a")
    write(tmp_path / "folder" / "b.txt", "b")
    (tmp_path / "folder" / "link").symlink_to("../other")
    (tmp_path / "folder" / "again").symlink_to("../other/deep")
    (tmp_path / "folder" / "loop").symlink_to("..")
    assert documents(FileSource([tmp_path / "folder"])) == ["a", "b"]


def test_what_is_skipped_is_named(tmp_path):
    write(tmp_path / "a.txt", "a")
    write(tmp_path / "empty.txt", "")
    write(tmp_path / "x.png", "not read")
    write(tmp_path / ".git" / "b.txt", "not read")
    write(tmp_path / "data" / "manifest.json", '{"splits": {}}')
    write(tmp_path / "data" / "merges.txt", "not read")
    os.mkfifo(tmp_path / "pipe.txt")
    source = FileSource([tmp_path])
    assert documents(source) == ["a"]
    assert sorted(source.skipped) == [str(tmp_path / name) for name in (".git", "data", "pipe.txt", "x.png")]
    assert source.notes == [f"no text in {tmp_path / 'empty.txt'}"]


def test_a_separator_that_never_occurs_is_told(tmp_path):
    paths = [write(tmp_path / name, "a<e>b") for name in ("a.txt", "b.txt")]
    for separator, expected in (("<e>", []), ("<f>", ["the document separator '<f>' does not occur in a.txt, b.txt"])):
        source = FileSource(paths, separator=separator)
        assert len(documents(source)) == (4 if separator == "<e>" else 2)
        assert [note.replace(f"{tmp_path}/", "").split(":")[0] for note in source.notes] == expected


@pytest.mark.parametrize("block", [1, 7, 1 << 18])
def test_json_arrays(tmp_path, monkeypatch, block):
    monkeypatch.setattr(reading, "BLOCK", block)
    texts = ["one", 'quotes " and [brackets] {', "é😀\n\\", "x" * 500, "last"]
    records = [{"id": 12.5, "text": text, "more": [None, True, {"text": "no"}]} for text in texts]
    for content in (texts, records):
        for indent in (None, 2):
            for ascii in (False, True):
                path = write(tmp_path / "x.json", json.dumps(content, indent=indent, ensure_ascii=ascii) + "\n")
                assert documents(FileSource([path])) == texts
    assert documents(FileSource([write(tmp_path / "x.json", '\ufeff [ "a"\n]\n')])) == ["a"]
    assert documents(FileSource([write(tmp_path / "X.JSON.gz", '["a" , {"text":"b"}]')])) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}', "x.json must be an array of objects with the field 'text' or of strings, got an object"),
        ("5", "or of strings, got something else"),
        ("[]", "x.json has no text"),
        ('["a", 5]', "record 2 must be an object with the field 'text', got a number"),
        ('["a" "b"]', "expected ',' or ']' after record 1, got '\"'"),
        ('["a", ]', "record 2 is not JSON: Expecting value"),
        ('["a", "b', "record 2 is not JSON: Unterminated string"),
        ('["a", {"text": "b', "record 2 is not JSON: Unterminated string"),
        ('["a"', "after record 1, got the end of the file"),
        ('["a"] {}', "x.json has more text after its array"),
        ('[{"text": tru]', "record 1 is not JSON: Expecting value"),
        ('["\\ud800"]', "record 1 has a lone surrogate"),
    ],
)
def test_bad_json_arrays(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        documents(FileSource([write(tmp_path / "x.json", content)]))


def test_a_long_json_array_takes_little_memory(tmp_path):
    path = tmp_path / "x.json"
    with path.open("w") as file:
        file.write("[")
        file.writelines(json.dumps("text" * 500) + "," for _ in range(20_000))  # 40 MB
        file.write('"last"]')
    tracemalloc.start()
    count = sum(chunk.ends for chunk in FileSource([path]).read(lambda done: None))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_001
    assert peak < 8e6


def test_other_compressions_are_named(tmp_path):
    for name, content in (("x.bz2", bz2.compress(b"text" * 99)), ("x.xz", lzma.compress(b"text" * 99))):
        with pytest.raises(UserError, match=rf"{name} is compressed with (bzip2|xz), which is not supported"):
            documents(FileSource([write(tmp_path / name, content)]))


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
    for part, ends in reading.separate(iter(chunks), separator, lambda: None):
        parts.append(part)
        if ends:
            found.append("".join(parts))
            parts = []
    assert found == text.split(separator)


def test_blank_documents_are_left_out(tmp_path):
    path = write(tmp_path / "text.txt", "<e>one<e>\n <e><e> two\n<e>\n")
    assert documents(FileSource([path], separator="<e>")) == ["one", " two\n"]


def test_characters_that_blocks_share(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK", 3)
    monkeypatch.setattr(sources, "BLOCK", 3)
    text = " \n é€😀" * 9
    assert documents(FileSource([write(tmp_path / "text.txt", text)])) == [text]
    assert documents(TextSource(text, ["made up"])) == [text]
    (tmp_path / "text.txt").write_bytes(text.encode() + b"\xf0\x9f\x98")  # a character that is not whole
    with pytest.raises(UserError, match=f"invalid byte 0xf0 at offset {len(text.encode())};"):
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
        ("x.txt", b"", r"x.txt has no text"),
        ("x.txt", b" \n", r"x.txt has no text"),
        ("x.txt.gz", b"", r"x.txt.gz has no text"),
        ("x.jsonl", b"\n", r"x.jsonl has no text"),
        ("x.txt", b"ab\xff", r"x.txt is not UTF-8: invalid byte 0xff at offset 2"),
        ("x.txt.gz", b"a" * 300_000 + b"\xff", r"x.txt.gz is not UTF-8: invalid byte 0xff at offset 300000"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "\xff"}', r"line 2 is not UTF-8: invalid byte 0xff at offset 24"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "b}', r"line 2 is not JSON: Unterminated string"),
        ("x.jsonl", b"[" * 100_000, r"line 1 is not JSON: maximum recursion"),
        ("x.jsonl", b'["a"]', r"line 1 must be an object with the field 'text', got an array"),
        ("x.jsonl", b'{"body": "a", "id": 1}', r"line 1 has no field 'text', only 'body', 'id'; name"),
        ("x.jsonl", b'{"text": 5}', r"line 1: the field 'text' must be a string, got a number"),
        ("x.jsonl", b'{"text": "\\ud800"}', r"line 1: the field 'text' has a lone surrogate"),
    ],
)  # fmt: skip
def test_bad_content(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        documents(FileSource([write(tmp_path / name, content)]))


def test_bad_gzip(tmp_path):
    path = tmp_path / "x.txt.gz"
    path.write_bytes(b"plain text")
    with pytest.raises(UserError, match=r"x.txt.gz is not a valid .gz file, .* Not a gzipped file"):
        documents(FileSource([path]))
    whole = gzip.compress(b"some text " * 1000)
    for damaged in (whole[:-9], whole[:30] + b"\0\0\0" + whole[33:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"x.txt.gz is not a valid .gz file, or is incomplete"):
            documents(FileSource([path]))


def test_bad_paths_and_options(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none: No such file"):
        FileSource([tmp_path / "none"])
    with pytest.raises(UserError, match=r"has no files that end in .txt, .jsonl"):
        FileSource([tmp_path])
    with pytest.raises(UserError, match="is not a file or folder; send it to the standard input"):
        FileSource([Path("/dev/null")])
    path = write(tmp_path / "x.txt", "text")
    with pytest.raises(UserError, match="'format' must be one of auto, text, jsonl, json, got 'xml'"):
        FileSource([path], format="xml")
    with pytest.raises(UserError, match="'document_separator' must not be empty"):
        FileSource([path], separator="")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "link.txt").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"link.txt is a broken link: nowhere does not exist"):
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
