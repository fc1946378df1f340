"""fastllm translate, as a user types it."""

import io
import json
import subprocess
import sys

import pytest

from fastllm import cli
from tests.pairs import prepared, reversed_words


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translate")
    data = prepared(folder / "pairs", reversed_words(300), tag="<2en>")
    options = ["--model=transformer", "--n_encoder_layer=1", "--n_decoder_layer=1", "--n_head=2", "--n_embd=32",
               "--context_length=64", "--max_steps=2", "--warmup_steps=1", "--threads=1"]  # fmt: skip
    assert cli.main(["train", f"--data={data}", f"--out={folder / 'run'}", *options]) == 0
    return folder / "run"


def test_files_texts_and_standard_input_give_the_same(run, tmp_path, capsys):
    texts = ["Haus rot", "", "Katze"]
    (tmp_path / "a.txt").write_text("\ufeff" + "\r\n".join(texts) + "\n", encoding="utf-8")
    capsys.readouterr()
    assert cli.main(["translate", str(run), str(tmp_path / "a.txt")]) == 0
    of_file = capsys.readouterr().out
    assert len(of_file.split("\n")) == 4 and of_file.split("\n")[1] == ""
    assert cli.main(["translate", str(run), *(f"--text={text}" for text in texts)]) == 0
    assert capsys.readouterr().out == of_file
    command = [sys.executable, "-m", "fastllm", "translate", str(run)]
    found = subprocess.run(command, input="\n".join(texts), capture_output=True, text=True, check=True)
    assert found.stdout == of_file
    assert cli.main(["translate", str(run), str(tmp_path / "a.txt"), f"--out={tmp_path / 'b.txt'}"]) == 0
    assert (tmp_path / "b.txt").read_text() == of_file


def test_a_program_that_waits_gets_its_answer(run):
    command = [sys.executable, "-m", "fastllm", "translate", str(run), "--num_beams=1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        for text in (b"Haus\n", b"Katze rot\n"):
            process.stdin.write(text)
            process.stdin.flush()
            assert process.stdout.readline().endswith(b"\n")
        process.stdin.close()
        assert process.wait(30) == 0


def test_formats(run, capsys):
    capsys.readouterr()
    command = ["translate", str(run), "--text=Haus", "--text=rot", "--n_best=2", "--num_beams=3"]
    assert cli.main([*command, "--format=tsv"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [(row[0], row[1]) for row in rows] == [("1", "1"), ("1", "2"), ("2", "1"), ("2", "2")]
    assert cli.main([*command, "--format=jsonl"]) == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["source"] for one in objects] == ["Haus", "rot"]
    assert objects[0]["n_best"][1]["text"] == rows[1][3].strip("\n")
    assert f"{objects[0]['score']:.4f}" == rows[0][2]
    assert cli.main([*command]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_faults_are_told_beside(run, capsys):
    capsys.readouterr()
    assert cli.main(["translate", str(run), "--text=Haus {0}", "--max_length=1"]) == 0
    told = capsys.readouterr()
    assert told.err.startswith("fastllm: text 1: ") and told.err.endswith("missing: '{0}'\n")
    assert len(told.out.splitlines()) <= 1


def test_glossary_prefix_and_tag(run, tmp_path, capsys):
    capsys.readouterr()
    (tmp_path / "words.tsv").write_text("Haus\tred oven\n\n")
    options = [f"--glossary={tmp_path / 'words.tsv'}", "--prefix=the", "--tag=<2en>"]
    assert cli.main(["translate", str(run), "--text=Haus", *options]) == 0
    out = capsys.readouterr().out
    assert out.startswith("the") and "red oven" in out


def test_attention(run, tmp_path, capsys):
    capsys.readouterr()
    files = [f"--attention={tmp_path / 'a.svg'}", f"--html={tmp_path / 'a.html'}"]
    assert cli.main(["translate", str(run), "--text=Haus rot", *files]) == 0
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
    assert "<table>" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_interactive(run, monkeypatch, capsys):
    capsys.readouterr()
    answers = iter(["Haus", "rot"])

    def ask(prompt):
        try:
            return next(answers)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr("sys.stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    assert cli.main(["translate", str(run)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num_beams=0"], "'num_beams' must be at least 1, got 0"),
        (["--n_best=9"], "'n_best' must be at most num_beams (4), got 9"),
        (["--format=xml"], "'format' must be one of text, tsv, jsonl, got 'xml'"),
        (["--tag=<x>"], "'tag' must be one that the model was trained with (<2en>), got '<x>'"),
        (["--length_penalty=wu"], "'length_penalty' must be one of gnmt, power, got 'wu'"),
        (["--alpha=1", "--num_beams=1"], "one beam is greedy, whatever the length penalty"),
        (["--text=b", "--html=a.html"], "'html' is of one text: give it with --text"),
    ],
)
def test_wrong_command_lines(options, message, run, capsys):
    capsys.readouterr()
    assert cli.main(["translate", str(run), "--text=a", *options]) == 2
    assert message in capsys.readouterr().err


def test_files_that_cannot_be_read(run, tmp_path, capsys):
    capsys.readouterr()
    (tmp_path / "a.txt").write_bytes(b"gut\nM\xfcller\n")
    assert cli.main(["translate", str(run), str(tmp_path / "a.txt")]) == 2
    assert "a.txt, line 2: byte 0xFC is not UTF-8" in capsys.readouterr().err
    assert cli.main(["translate", str(run), str(tmp_path / "b.txt")]) == 2
    assert "cannot read" in capsys.readouterr().err
    (tmp_path / "g.tsv").write_text("Haus\n")
    assert cli.main(["translate", str(run), "--text=a", f"--glossary={tmp_path / 'g.tsv'}"]) == 2
    assert "g.tsv, line 1 must have a phrase, a tab and its translation, got 'Haus'" in capsys.readouterr().err


def test_commands_for_other_models_say_so(run, capsys):
    capsys.readouterr()
    for command in ("sample", "chat"):
        assert cli.main([command, str(run)]) == 2
        assert f"{command}: {run} is a transformer, use `fastllm translate`" in capsys.readouterr().err
