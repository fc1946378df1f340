"""Data folders: what is in them, that they are whole or not there, and that damage is seen."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fastllm import tokenizers
from fastllm.data import (
    FileSource,
    PrepareOptions,
    TextSource,
    TokenData,
    encoding,
    pieces,
    preparation,
    prepare,
    shards,
)
from fastllm.errors import UserError
from fastllm.tokenizers import CharacterTokenizer

TEXT = "".join(chr(97 + i % 26) for i in range(1000))


class WithEnd(CharacterTokenizer):
    """Characters, and a token that ends a document; its vocabulary may be said to be larger than it is."""

    kind = "with_end"
    reserved = 0

    @property
    def vocab_size(self):
        return super().vocab_size + 1 + self.reserved

    @property
    def end_of_text(self):
        return self.vocab_size - 1


@pytest.fixture
def with_end(monkeypatch):
    monkeypatch.setitem(tokenizers.KINDS, "with_end", WithEnd)
    monkeypatch.setattr(
        preparation, "train_tokenizer", lambda kind, texts, **options: WithEnd("".join(set().union(*texts)))
    )


@pytest.fixture
def folder(tmp_path):
    prepare(TEXT, tmp_path / "data", ["made up"])
    return tmp_path / "data"


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def jsonl(path, documents):
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents), encoding="utf-8")
    return path


def texts_of(data, name):
    """Return a split's documents as text."""
    split = data.split(name, 1)
    borders = [*split.starts.tolist(), len(split)]
    return [data.tokenizer.decode(split.read(a, b)) for a, b in itertools.pairwise(borders)]


def test_a_single_text(folder):
    data = TokenData(folder)
    assert data.tokenizer.vocab_size == 26
    train, val = data.split("train", 8), data.split("val", 8)
    assert (len(train), len(val), val.bytes, val.characters) == (900, 100, 100, 100)
    assert texts_of(data, "train") + texts_of(data, "val") == [TEXT[:900], TEXT[900:]]
    assert data.manifest["held_out"] == "the last 0.1 of the characters"
    assert data.manifest["sources"] == ["made up"]
    data.verify()


def test_documents_of_one_split_each(tmp_path):
    documents = [f"document {i}: {'é' * (i % 7)}" for i in range(200)]
    manifest = prepare(
        FileSource([jsonl(tmp_path / "x.jsonl", documents)]), tmp_path / "data", options=PrepareOptions(0.2, seed=3)
    )
    data = TokenData(tmp_path / "data")
    found = {name: texts_of(data, name) for name in ("train", "val")}
    # Without a token that ends a document, a newline does.
    assert [d + "\n" for d in documents if d + "\n" in found["val"]] == found["val"]
    assert [d + "\n" for d in documents if d + "\n" not in found["val"]] == found["train"]
    assert manifest["documents"] == 200
    assert manifest["val_share"] == pytest.approx(0.2, rel=0.05)
    assert manifest["notes"] == []
    for name, split in manifest["splits"].items():
        text = "".join(found[name])
        assert split["documents"] == len(found[name])
        assert split["tokens"] == len(text)
        # The newlines that were added are not the text's: bits a byte must compare with other tokenizers'.
        added = len(found[name])
        assert (split["characters"], split["bytes"]) == (len(text) - added, len(text.encode()) - added)


def test_the_ends_of_few_long_documents(tmp_path):
    documents = ["a" * 600, "b" * 1000]
    manifest = prepare(FileSource([jsonl(tmp_path / "x.jsonl", documents)]), tmp_path / "data")
    data = TokenData(tmp_path / "data")
    assert texts_of(data, "train") == ["a" * 540 + "\n", "b" * 900 + "\n"]
    assert texts_of(data, "val") == ["a" * 60 + "\n", "b" * 100 + "\n"]
    assert manifest["val_share"] == 0.1
    assert manifest["held_out"] == "the last 0.1 of the characters of each document"


def test_no_copy_of_a_training_document_is_held_out(tmp_path):
    documents = [f"document {i % 50}, which is there three times" for i in range(150)]
    prepare(FileSource([jsonl(tmp_path / "x.jsonl", documents)]), tmp_path / "data")
    data = TokenData(tmp_path / "data")
    train, val = (set(texts_of(data, name)) for name in ("train", "val"))
    assert train
    assert val
    assert not train & val
    prepare(FileSource([jsonl(tmp_path / "x.jsonl", ["abcdefghij"] * 5)]), tmp_path / "data")
    data = TokenData(tmp_path / "data")
    assert texts_of(data, "train") == ["abcdefghi\n"] * 5
    assert texts_of(data, "val") == ["j\n"] * 5


def test_a_share_that_whole_documents_cannot_have_is_told(tmp_path):
    source = FileSource([jsonl(tmp_path / "x.jsonl", [chr(97 + i) * 67 for i in range(15)])])
    manifest = prepare(source, tmp_path / "data")
    assert manifest["val_share"] == pytest.approx(1 / 15)
    assert "validation has 0.0667 of the characters, not 0.1" in manifest["notes"][0]


def test_validation_files(tmp_path):
    text = FileSource([jsonl(tmp_path / "x.jsonl", ["one", "two", "three", "four"])])
    validation = FileSource([jsonl(tmp_path / "y.jsonl", ["five", " two\n", "four"])])
    manifest = prepare(text, tmp_path / "data", val_source=validation)
    data = TokenData(tmp_path / "data")
    assert texts_of(data, "train") == ["one\n", "three\n"]
    assert texts_of(data, "val") == ["five\n", " two\n", "four\n"]
    assert manifest["sources"] == [str(tmp_path / "x.jsonl")]
    assert manifest["val_sources"] == [str(tmp_path / "y.jsonl")]
    assert manifest["notes"] == ["2 training documents (7 characters) left out: they are in the validation files too"]
    with pytest.raises(UserError, match="all training documents are in the validation files too"):
        prepare(validation, tmp_path / "data", val_source=validation)
    # A single text each has nothing to be parted from.
    prepare("abc", tmp_path / "data", ["x"], val_source=TextSource("cab", ["y"]))
    assert texts_of(TokenData(tmp_path / "data"), "val") == ["cab"]


def test_a_text_that_is_all_in_the_validation_files(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match="all files are for validation too"):
        FileSource([tmp_path], without=FileSource([tmp_path / "a.txt"]))


def test_one_prepare_a_folder_at_a_time(tmp_path):
    def another(what, done, total):
        with pytest.raises(UserError, match=r"another process is writing .*data: wait for it, or name another folder"):
            prepare(TEXT, tmp_path / "data", ["x"])

    prepare(TEXT, tmp_path / "data", ["x"], progress=another)
    assert [file.name for file in tmp_path.iterdir()] == ["data"]
    (tmp_path / ".data.tmp" / "left").mkdir(parents=True)  # by one that was killed
    prepare(TEXT, tmp_path / "data", ["x"])
    assert [file.name for file in tmp_path.iterdir()] == ["data"]


def test_end_of_text_follows_each_document(tmp_path, with_end):
    source = FileSource([jsonl(tmp_path / "x.jsonl", ["ab", "cd", "\n"])])
    manifest = prepare(source, tmp_path / "data", val_share=0.5)
    data = TokenData(tmp_path / "data")
    assert manifest["end_of_text"] == data.tokenizer.end_of_text == 5
    ids = {tuple(data.split(name, 1).read(0, 3).tolist()) for name in ("train", "val")}
    assert ids == {(1, 2, 5), (3, 4, 5)}
    assert manifest["splits"]["val"]["bytes"] == 2
    # A single text has nothing to be parted from.
    assert prepare("abcdef", tmp_path / "data", ["x"], 0.5)["end_of_text"] is None


@pytest.mark.parametrize(("size", "dtype"), [(2**16, "<u2"), (2**16 + 1, "<u4")])
def test_ids_fit_their_dtype(tmp_path, with_end, monkeypatch, size, dtype):
    monkeypatch.setattr(WithEnd, "reserved", size - 4)  # 3 characters and the end
    source = FileSource([jsonl(tmp_path / "x.jsonl", ["ab", "ba"])])
    assert prepare(source, tmp_path / "data", val_share=0.5)["dtype"] == dtype
    data = TokenData(tmp_path / "data")
    assert data.split("val", 1).read(0, 3)[-1] == data.split("train", 1).read(0, 3)[-1] == size - 1


def test_ids_outside_the_vocabulary_are_never_written(tmp_path, with_end, monkeypatch):
    monkeypatch.setattr(WithEnd, "_encode", lambda self, text: np.array([65536]))  # 0 as uint16
    with pytest.raises(UserError, match=r"ids must be in \[0, 4\), got 65536 to 65536"):
        prepare("abcabc", tmp_path / "data", ["x"])


def test_shards_are_one_sequence(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(preparation, "LEAST_SHARD", 1)
    prepare(TEXT, tmp_path / "shards", ["made up"], options=PrepareOptions(shard_tokens=300))
    whole, cut = TokenData(folder).split("train", 8), TokenData(tmp_path / "shards").split("train", 8)
    assert len(list((tmp_path / "shards").glob("train-0000?.bin"))) == 3
    assert len(list((tmp_path / "shards").glob("val-0*.bin"))) == 1
    for start, stop in ((0, 900), (299, 301), (300, 300), (299, 601), (899, 900)):
        assert (whole.read(start, stop) == cut.read(start, stop)).all()
    TokenData(tmp_path / "shards").verify()


def test_the_same_bytes_for_any_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "_FEW", 0)
    monkeypatch.setattr(preparation, "LEAST_SHARD", 1)
    monkeypatch.setattr(pieces, "PIECE", 50)
    monkeypatch.setattr(encoding, "PIECE", 50)  # many batches, so that they could get out of order
    source = FileSource([jsonl(tmp_path / "x.jsonl", [f"{i} " * (i % 90 + 1) for i in range(300)])])
    made = []
    for workers in (1, 2, 3):
        prepare(source, tmp_path / f"{workers}", options=PrepareOptions(workers=workers, shard_tokens=999))
        made.append(contents(tmp_path / f"{workers}"))
    assert made[0] == made[1] == made[2]
    assert len(made[0]) > 10
    # What goes wrong in another process is told as it is here.
    options = PrepareOptions(workers=2, tokenizer_from=tmp_path / "1")
    with pytest.raises(UserError, match=r"characters that are not in the vocabulary of 12 tokens: 'x'"):
        prepare("1 x", tmp_path / "other", options=options)
    assert not (tmp_path / "other").exists()


def test_a_tokenizer_of_another_folder(tmp_path, folder):
    run = tmp_path / "run" / "checkpoints" / "last"
    run.mkdir(parents=True)
    (run / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    for origin in (folder, tmp_path / "run"):
        manifest = prepare("cab" * 10, tmp_path / "other", ["x"], options=PrepareOptions(tokenizer_from=origin))
        assert manifest["vocab_size"] == 26
        assert TokenData(tmp_path / "other").split("val", 2).read(0, 3).tolist() == [2, 0, 1]


def test_the_folder_is_replaced_when_the_new_one_is_whole(tmp_path, folder, monkeypatch):
    before = contents(folder)
    prepare(TEXT, folder, ["made up"])
    assert contents(folder) == before
    with pytest.raises(UserError, match="each split needs at least 2 tokens, got 2 for train and 1 for val"):
        prepare("abc", folder, ["too short"])

    def interrupt(what, done, total):  # not by a signal: a process in the background may have to ignore that
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(TEXT * 2, folder, ["x"], progress=interrupt)
    full = OSError(28, os.strerror(28))

    def write(file, values):
        raise full

    monkeypatch.setattr(shards.HashedFile, "write", write)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device; nothing that was there is lost"):
        prepare(TEXT * 2, folder, ["x"])
    assert contents(folder) == before
    assert [file.name for file in tmp_path.iterdir()] == ["data"]


def test_what_prepare_did_not_write_is_not_replaced(tmp_path, folder):
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"has files that prepare did not write \(notes.txt\), .* name a new folder"):
        prepare(TEXT, folder, ["x"])
    with pytest.raises(UserError, match=r"notes.txt is a file; name a new folder with --out"):
        prepare(TEXT, folder / "notes.txt", ["x"])
    assert (folder / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    prepare(TEXT, tmp_path / "empty", ["x"])
    (tmp_path / "link").symlink_to("empty")
    prepare(TEXT * 2, tmp_path / "link", ["x"])
    assert (tmp_path / "link").is_symlink()
    assert len(TokenData(tmp_path / "empty").split("val", 8)) == 200


def test_killed(tmp_path):
    """Whatever it had written does not look like a data folder, and is not in the way."""
    text, out = tmp_path / "text.txt", tmp_path / "data"
    text.write_text("a few words\n" * 1_000_000)
    command = [sys.executable, "-m", "fastllm", "prepare", "text", str(text), f"--out={out}", "--workers=1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(".data.tmp/train-*")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.kill()
    process.communicate()
    with pytest.raises(UserError, match="is not a data folder"):
        TokenData(out)
    prepare(TEXT, out, ["x"])
    assert [file.name for file in tmp_path.iterdir() if file != text] == ["data"]
    out.rename(tmp_path / ".data.old")  # killed between the two renames
    assert len(TokenData(out).split("val", 8)) == 100


def test_worker_processes_end_with_the_one_that_started_them(tmp_path):
    text, out = tmp_path / "text.txt", tmp_path / "data"
    text.write_text("a few words\n" * 3_000_000)
    command = [sys.executable, "-m", "fastllm", "prepare", "text", str(text), f"--out={out}", "--workers=2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not list(tmp_path.glob(".data.tmp/train-0*")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=60)  # its workers have the other end of the pipe: it closes when all have ended


def test_signals_wait_while_a_process_starts():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    reached = False
    try:
        with pytest.raises(KeyboardInterrupt), encoding._signals_held():
            os.kill(os.getpid(), signal.SIGINT)
            reached = True
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert reached


def test_a_folder_made_before_the_manifest_told_of_documents_is_read(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for name in ("documents", "notes", "val_share", "val_sources"):
        del manifest[name]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert len(TokenData(folder).split("val", 8)) == 100
    prepare(TEXT, folder, ["x"])


def test_damage_is_seen_and_named(folder):
    with pytest.raises(UserError, match="'val' has 100 tokens, but a context of 200 needs at least 201"):
        TokenData(folder).split("val", 200)
    for name in ("train-00000.bin", "val-documents.bin"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        with pytest.raises(UserError, match=rf"{name} is damaged"):
            TokenData(folder).verify()
        (folder / name).write_bytes(content)
    content = (folder / "train-00000.bin").read_bytes()
    (folder / "train-00000.bin").write_bytes(content[:-2])
    with pytest.raises(UserError, match=r"train-00000.bin is damaged: expected 1800 bytes, got 1798"):
        TokenData(folder)
    (folder / "train-00000.bin").unlink()
    with pytest.raises(UserError, match=r"train-00000.bin is damaged: expected 1800 bytes, got 0"):
        TokenData(folder)
    for manifest, message in (
        ('{"version": 2}', "is damaged"), ("[", "is damaged"), ("[]", "is damaged"),
        ('{"version": 1}', "'version' must be 2, got 1: run `fastllm prepare` again"),
    ):  # fmt: skip
        (folder / "manifest.json").write_text(manifest)
        with pytest.raises(UserError, match=message):
            TokenData(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_share": 0.0}, "'val_share' must be between 0 and 1, got 0"),
        ({"val_share": float("nan")}, "'val_share' must be between 0 and 1, got nan"),
        ({"workers": 0}, "'workers' must be at least 1, got 0"),
        ({"shard_tokens": 999_999}, "'shard_tokens' must be at least 1,000,000, got 999,999"),
        ({"tokenizer": "words"}, "must be one of characters"),
        ({"tokenizer_options": {"vocab_size": 9}}, "vocab_size"),
    ],
)
def test_options_that_cannot_work(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        prepare(TEXT, tmp_path / "data", ["x"], options=PrepareOptions(**options))
    assert not list(tmp_path.iterdir())


def test_only_reading_batches_needs_torch(tmp_path):
    """Processes that tokenize start in a fraction of a second."""
    code = f"""
import sys
from pathlib import Path
from fastllm.data import prepare
prepare("abcdef", Path({str(tmp_path / "data")!r}), ["x"], 0.5)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
