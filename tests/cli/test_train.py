"""The command line and generation."""

import errno
import io
import os
import sys
from functools import partial

import pytest
import torch
from rich.console import Console

from fastllm import cli
from fastllm.errors import UserError
from fastllm.generation import generate
from fastllm.models import GPT, GPTConfig
from fastllm.train.report import Reporter


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "nowhere"], "nowhere does not exist"),
        (["train", "--resume=nowhere"], "is missing or damaged"),
        (["train", "--resume=x", "--n_layer=3"], "leave out --n_layer"),
        (["train"], "'data' and 'out' must be given"),
        (["train", "--out=run"], "train: 'data' must be given"),
        (["prepare", "shakespeare", "--plays=some"], "'plays' must be tiny or all, got 'some'"),
    ],
)
def test_command_lines_that_cannot_work(arguments, message, capsys):
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_options_may_be_spelt_with_dashes():
    words = ["train", "--max-steps=5", "--out", "a-b", "--data=c-d", "--", "--peer-name"]
    expected = ["train", "--max_steps=5", "--out", "a-b", "--data=c-d", "--", "--peer-name"]
    assert cli.underscored(words) == expected


def test_a_misspelt_option_is_told_its_neighbour(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fastllm", "train", "--n_leyer=3"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "did you mean --n_layer?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --n-layer=x", "fastllm train: 'n_layer' must be a whole number, got 'x' (see fastllm train --help)"),
        ("train --threads 1.5", "fastllm train: 'threads' must be a whole number, got '1.5' ("),
        ("train --learning-rate=", "fastllm train: 'learning_rate' must be a number, got '' ("),
        ("train --bias=maybe", "fastllm train: 'bias' must be true or false, got 'maybe' ("),
        ("train --micro-bach-size=1", "--micro_bach_size=1; did you mean --micro_batch_size? ("),
        ("trian", "plot, bench must follow, got 'trian'; did you mean train? (see fastllm --help)"),
        ("prepare", "fastllm prepare: one of shakespeare, text, parallel must follow (see fastllm prepare --help)"),
        ("prepare text", "fastllm prepare text: 'files' must be given (see fastllm prepare text --help)"),
        ("export", "fastllm export: 'source' and 'out' must be given (see fastllm export --help)"),
        ("train --config=nowhere.yaml", "fastllm train: 'config': File does not exist: "),
    ],
)
def test_a_wrong_command_line_is_told_in_a_readers_words(words, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fastllm", *words.split()])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "'config' must be a YAML file with lines like 'n_layer: 4'"),
        ("- n_layer", "'config' must be a YAML file with lines like 'n_layer: 4'"),
        ("n_layer: [4", "'config' is not valid YAML: while parsing a flow sequence at line 1, column 10"),
        ("n_layer: four", "'n_layer' must be a whole number, got 'four'"),
    ],
)
def test_a_settings_file_that_is_none(content, message, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", f"--config={tmp_path}/run.yaml"])
    assert stop.value.code == 2
    assert f"fastllm train: {message}" in capsys.readouterr().err


def test_a_file_that_may_not_be_read_is_named(capsys, monkeypatch):
    def denied(arguments):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "data/manifest.json")

    monkeypatch.setattr("fastllm.cli.info.run", denied)
    assert cli.main(["info"]) == 2
    assert capsys.readouterr().err == "fastllm: data/manifest.json: Permission denied\n"


def test_what_a_terminal_shows_while_training(monkeypatch):
    screen = io.StringIO()
    console = partial(Console, file=screen, force_terminal=True, width=120)
    monkeypatch.setattr("fastllm.train.report.Console", lambda **options: console())
    with Reporter(10) as reporter:
        reporter.log({"loss": 1.5, "tokens_per_second": 2000.0, "mfu": 0.25})
        reporter._progress.refresh()
        reporter.log({"loss": 1.25, "tokens_per_second": 2000.0, "mfu": None})  # a device whose peak is not known
        reporter.say(f"curve in runs/[red]{'long' * 40}/loss.png")
    shown = screen.getvalue()
    assert "loss 1.5000  2,000 tokens/s  MFU 25%" in shown
    assert "loss 1.2500  2,000 tokens/s  MFU n/a" in shown
    assert f"runs/[red]{'long' * 40}/loss.png" in shown  # to be copied as it is


def test_generate_is_seeded_greedy_and_exact_in_top_k():
    torch.manual_seed(0)
    model = GPT(GPTConfig(11, 8, 1, 2, 16))
    prompt = [1, 2, 3]
    assert list(generate(model, prompt, 20, seed=5)) == list(generate(model, prompt, 20, seed=5))
    greedy = list(generate(model, prompt, 20, temperature=0))
    assert greedy == list(generate(model, prompt, 20, top_k=1, seed=1))
    assert model.training
    with torch.no_grad():
        assert greedy[0] == int(model(torch.tensor([prompt]))[0, -1].argmax())
        model.embedding.token.weight.zero_()  # all logits equal: exactly k may come out
    assert len(set(generate(model, prompt, 200, top_k=3, seed=0))) == 3


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "must have at least one token"),
        ([11], {}, r"must have ids in \[0, 11\), got 11 to 11"),
        ([1], {"temperature": -1.0}, "'temperature' must be at least 0"),
        ([1], {"top_k": 0}, "'top_k' must be at least 1"),
    ],
)
def test_generate_refuses(prompt, options, message):
    with pytest.raises(UserError, match=message):
        generate(GPT(GPTConfig(11, 8, 1, 2, 16)), prompt, 1, **options)


def test_info(capsys):
    assert cli.main(["info"]) == 0
    output = capsys.readouterr().out
    assert "CPU capability" in output
    assert "CPU bfloat16" in output
    assert "scaled_dot_product" in output.replace("\n", "")
