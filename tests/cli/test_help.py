"""What --help says: every option is explained, in words that are no Python."""

import re

import pytest

from fastllm import cli

COMMANDS = [[], ["prepare"], ["prepare", "shakespeare"], ["prepare", "text"], ["prepare", "parallel"]]
COMMANDS += [[name] for name in cli.COMMANDS if name != "prepare"]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_is_for_readers(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100000")  # no line is folded
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert not re.search(r"<class|null|default: (\)|\[|$)|\(\)", text)
    options = re.findall(r"^  (--\w+)(.*)$", re.sub(r"\n {10,}", "  ", text), re.MULTILINE)
    assert [name for name, rest in options if not re.search(r"  \w", rest)] == []


def test_types_and_defaults_that_help_are_told(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100000")
    with pytest.raises(SystemExit):
        cli.main(["sample", "--help"])
    text = capsys.readouterr().out
    assert "takes the likeliest (type: float, default: 0.8)" in text
    assert "draw only among the k likeliest tokens (type: int)" in text
    assert "its tokenizer (required)" in text
