"""fastllm chat on a folder with a small model, and on files that it cannot talk with."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from fastllm import cli
from fastllm.generation import Chat
from fastllm.models import load
from fastllm.tokenizers import ByteTokenizer, load_tokenizer
from tests.generation.models import small_model
from tests.generation.test_chat import TEMPLATE

OPTIONS = ["--max_new_tokens=12", "--device=cpu", "--seed=5"]


@pytest.fixture
def folder(tmp_path):
    tokenizer = ByteTokenizer()
    tokenizer.chat_template = TEMPLATE
    small_model("qwen3", tokenizer.vocab_size, 96).save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    return tmp_path / "model"


def talk(monkeypatch, capsys, folder, lines, *options, status=0):
    typed = iter(lines)

    def answer(prompt):
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)
    assert cli.main(["chat", str(folder), *OPTIONS, *options]) == status
    return capsys.readouterr()


def answers(folder, messages, **options):
    chat = Chat(load(folder), load_tokenizer(folder), max_new_tokens=12, seed=5, temperature=0.5, top_p=0.9, **options)
    return ["".join(chat.say(message)) for message in messages]


def test_it_answers_and_remembers(folder, monkeypatch, capsys):
    out = talk(monkeypatch, capsys, folder, ["hi", "and you?"], "--system=be brief").out
    assert out == "".join(f"{one}\n" for one in answers(folder, ["hi", "and you?"], system="be brief")) + "\n"


def test_reset_save_and_quit(folder, tmp_path, monkeypatch, capsys):
    file = tmp_path / "chat.json"
    printed = talk(monkeypatch, capsys, folder, ["hi", "/reset", "ho", f"/save {file}", "/quit", "never"])
    assert f"saved in {file}" in printed.out
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert [message["content"] for message in saved if message["role"] == "user"] == ["ho"]


def test_what_a_line_may_not_be(folder, monkeypatch, capsys):
    printed = talk(monkeypatch, capsys, folder, ["/rest", "/save", "x" * 200, "hi"], "--temperature=0")
    assert "chat: '/rest' is not a command: /reset forgets" in printed.err
    assert "'/save' is not a command without a file" in printed.err
    assert "the message has 205 tokens" in printed.err
    assert printed.out.strip()  # the last line is answered all the same


def test_a_conversation_that_gets_long_says_so(folder, monkeypatch, capsys):
    printed = talk(monkeypatch, capsys, folder, ["a" * 30] * 4, "--system=S")
    assert "the conversation is longer than the model's context: the model no longer sees the first 2" in printed.err


def test_ctrl_c_ends_the_answer_and_not_the_program(folder):
    words = [sys.executable, "-m", "fastllm", "chat", str(folder), "--max_new_tokens=60", "--device=cpu"]
    slow = "import time; from fastllm.models.decoder import CachedContext as C; push = C.push; "
    slow += "C.push = lambda self, tokens: (time.sleep(0.2), push(self, tokens))[1]; "
    code = f"{slow}import sys; from fastllm import cli; sys.exit(cli.main({words[3:]!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    first = process.stdout.read(1)
    while len(first) < 6:
        first += process.stdout.read(1)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    out, err = process.communicate(b"/quit\n", timeout=60)
    assert process.returncode == 0, err
    assert len(first + out) < 60  # it did not go on to the end


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nowhere", "nowhere does not exist"),
        (lambda folder: _write(folder / "cut.gguf", b"GGUF\3\0\0\0"), "cut.gguf"),
        (lambda folder: _write(folder / "none.gguf", b"nothing of the kind"), "none.gguf"),
        (lambda folder: _without_template(folder), "the model has no chat template"),
    ],
)
def test_what_it_cannot_talk_with(make, message, folder, capsys):
    assert cli.main(["chat", str(make(folder))]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def _write(path, content):
    path.write_bytes(content)
    return path


def _without_template(folder):
    ByteTokenizer().save(folder)
    return folder
