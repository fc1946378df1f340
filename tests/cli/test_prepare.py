"""fastllm prepare: which folder it writes, what it says, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from fastllm import cli
from fastllm.data import TokenData

WORDS = "some words of a text that is not long\n" * 20


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name, content=WORDS):
    with open(name, "w", encoding="utf-8") as file:
        file.write(content)


def said(capsys, *words, code=0):
    """Return what prepare text says to these words."""
    assert cli.main(["prepare", "text", "--workers=1", *words]) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def test_separators_and_fields(folder, capsys):
    write("a.txt", "one<e>two<e>three" * 5)
    said(capsys, "a.txt", "--val-share=0.3", "--seed=1", "--document-separator=<e>")
    assert TokenData("data/a").manifest["documents"] == 11
    write("b.txt", "one\n\ntwo\n\nthree\n\nfour" * 9)
    said(capsys, "b.txt", r"--document_separator=\n\n")
    assert TokenData("data/b").manifest["documents"] == 28
    write("c.jsonl", '{"body": "one\\n\\ntwo"}\n' * 9)
    said(capsys, "c.jsonl", "--field=body")
    assert TokenData("data/c").manifest["documents"] == 9


def test_the_folder_has_the_name_of_its_source(folder, capsys):
    for name in ("book.txt", "lines.JSONL.gz", "notes.md"):
        write(name)
    said(capsys, "book.txt")
    said(capsys, "./lines.JSONL.gz", "--format=text", code=2)  # it is no .gz
    said(capsys, "notes.md")
    os.mkdir("corpus.txt")
    write("corpus.txt/a.txt")
    said(capsys, "corpus.txt")
    assert sorted(os.listdir("data")) == ["book", "corpus.txt", "notes.md"]
    for words in (["book.txt", "notes.md"], ["-"]):
        assert "name the folder to write with --out" in said(capsys, *words, code=2)


def test_other_data_is_replaced_only_where_that_was_asked_for(folder, capsys):
    for name in ("x.txt", "x.jsonl"):
        write(name, '{"text": "some text of a document"}\n' * 9)
    assert "replaced" not in said(capsys, "x.txt")
    assert "(the data that was there is replaced)" in said(capsys, "x.txt")
    before = TokenData("data/x").manifest
    assert "data/x has data of another source (x.txt), which would be replaced" in said(capsys, "x.jsonl", code=2)
    assert TokenData("data/x").manifest == before
    assert "(the data that was there is replaced)" in said(capsys, "x.jsonl", "--out=data/x")


def test_what_was_read_is_told(folder, capsys):
    os.mkdir("corpus")
    for name in ("a.txt", "b.md", "c.TXT"):
        write(f"corpus/{name}", WORDS + name)
    write("v.txt", "a text for validation")
    told = said(capsys, "corpus", "--val-share=0.25")
    assert "read: 2 files: corpus/a.txt, corpus/c.TXT\nskipped: 1 " in told
    assert "corpus/b.md" in told
    assert "2 documents; validation has 0.25" in told
    assert "of the characters: the last 0.25 of the characters of each document" in told
    told = said(capsys, "corpus", "--val-files", "v.txt")
    assert "read for validation: 1 file: v.txt" in told
    assert "3 documents; validation has 0.0" in told
    assert "of the characters: all of v.txt" in told
    assert cli.main(["prepare", "text", "v.txt", "--document-separator=<e>"]) == 0
    assert "note: the document separator '<e>' does not occur in v.txt" in capsys.readouterr().err


def test_options_without_effect(folder, capsys):
    write("a.txt")
    write("b.jsonl", '{"text": "some text of a document"}\n' * 9)
    for words, message in (
        (["a.txt", "--field=text"], "--field has no effect: no file is JSON"),
        (["b.jsonl", "--document-separator=x"], "--document_separator has no effect: all files are JSON"),
        (["a.txt", "--val-files", "b.jsonl", "--seed=0"], "--seed has no effect with --val_files"),
        (["a.txt", "--val-files", "b.jsonl", "--val-share=0.1"], "--val_share has no effect with --val_files"),
        (["-", "--val-files", "-"], "cannot be both training and validation"),
        (["a.txt", "--model-type=bpe"], "--model_type has no effect without --tokenizer sentencepiece"),
        (
            ["a.txt", "--tokenizer-from=data", "--vocab_size=5", "--tokenizer=gpt2"],
            "out --tokenizer, --vocab_size",
        ),
    ):
        assert message in said(capsys, *words, code=2)
    assert not os.path.exists("data")
    said(capsys, "a.txt", "--val-files", "b.jsonl", "--field=text")
    assert cli.main(["prepare", "text", "a.txt", "--seed=1"]) == 0
    assert "note: 'seed' has no effect: no documents were drawn" in capsys.readouterr().err


def run(*words, **environment):
    command = [sys.executable, "-m", "fastllm", "prepare", "text", "--workers=1", *words]
    environment = {**os.environ, **environment}
    return subprocess.run(command, env=environment, capture_output=True, check=False)


@pytest.mark.parametrize("locale", [{}, {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}])
def test_names_of_any_bytes_in_any_locale(folder, locale):
    for name in (b"\xff.txt", "é.txt".encode()):
        with open(name, "w", encoding="utf-8") as file:
            file.write("".join(f"document {i} é" for i in range(40)))
    result = run(b"\xff.txt", "é.txt".encode(), b"--out=data/\xfe", "--document-separator=é".encode(), **locale)
    assert (result.returncode, result.stderr) == (0, b"")
    manifest = json.loads((folder / os.fsdecode(b"data/\xfe") / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["sources"] == ["\ufffd.txt", "é.txt"]
    assert manifest["documents"] == 80
    result = run(b"\xff.txt", b"none\xff.txt", b"--out=data/\xfe", **locale)
    assert result.returncode == 2
    assert b"cannot read none" in result.stderr
    assert b"Traceback" not in result.stderr


def start(folder, *words):
    """Start prepare in a group of its own, and wait until it writes."""
    # Python in the background of a shell may have to ignore SIGINT.
    (folder / "text.txt").write_text("a few words\n" * 3_000_000)
    command = [sys.executable, "-m", "fastllm", "prepare", "text", "text.txt", *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_leaves_nothing_half_made(folder, workers, number):
    process = start(folder, f"--workers={workers}")
    while not list(folder.glob("data/.text.tmp/train-0*")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    os.killpg(process.pid, number) if number != signal.SIGTERM else process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert told in ("", "fastllm: interrupted\n")
    assert not list((folder / "data").iterdir())


def test_ctrl_c_while_worker_processes_start(folder):
    process = start(folder, "--workers=2")
    while not list(folder.glob("data/.text.tmp/train-d*")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert told == "fastllm: interrupted\n"
    assert not list((folder / "data").iterdir())
