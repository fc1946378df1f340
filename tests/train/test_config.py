"""Settings: schedules against their formulas, and values, keys and files that cannot work."""

import math
import sys

import pytest

from fastllm import cli
from fastllm.errors import UserError
from fastllm.train import TrainConfig
from fastllm.train.schedule import SCHEDULES, learning_rate
from tests.train.tiny import train

STEPS = {"learning_rate": 3.0, "min_learning_rate": 1.0, "warmup_steps": 10, "max_steps": 110}


def rate(schedule, step, **settings):
    return learning_rate(TrainConfig(schedule=schedule, **{**STEPS, **settings}), step)


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_warmup_is_a_line(schedule):
    assert [rate(schedule, step) for step in range(10)] == pytest.approx([3 * (step + 1) / 11 for step in range(10)])
    assert rate(schedule, 10) == 3.0


def test_cosine():
    for step in range(10, 111):
        expected = 1 + 0.5 * (3 - 1) * (1 + math.cos(math.pi * (step - 10) / 100))
        assert rate("cosine", step) == pytest.approx(expected)
    assert rate("cosine", 500) == 1.0


def test_wsd():
    assert all(rate("wsd", step, decay_share=0.2) == 3.0 for step in range(10, 89))
    for step in range(88, 111):  # 22 steps of decay
        assert rate("wsd", step, decay_share=0.2) == pytest.approx(3 - 2 * (step - 88) / 22)
    assert rate("wsd", 500) == 1.0


def test_noam():
    # "Attention is all you need", 5.3, equation 3, with d_model^-0.5 such that the peak is 3.
    factor = 3.0 / 10**-0.5
    for step in range(1, 200):
        assert rate("noam", step - 1) == pytest.approx(factor * min(step**-0.5, step * 10**-1.5))
    assert rate("noam", 0, warmup_steps=0) == 3.0


def test_constant():
    assert {rate("constant", step) for step in range(10, 200)} == {3.0}
    assert set(SCHEDULES) == {"cosine", "wsd", "noam", "constant"}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--n_embd=15", r"'n_embd' must be a multiple of n_head (2), got 15"),
        ("--dropout=1.5", "'dropout' must be in [0, 1), got 1.5"),
        ("--ema_decay=1", "'ema_decay' must be in [0, 1), got 1"),
        ("--threads=99999", "'threads' must be at most 1024, got 99999"),
        (f"--seed={2**64}", "'seed' must be below 2^63, got 18446744073709551616"),
        ("--batch_size=0", "'batch_size' must be at least 1, got 0"),
        ("--micro_batch_size=0", "'micro_batch_size' must be at least 1, got 0"),
        ("--patience=-1", "'patience' must be at least 0, got -1"),
        ("--decay_share=0", "'decay_share' must be in (0, 1], got 0"),
        ("--schedule=cosin", "'schedule' must be cosine or wsd or noam or constant, got cosin; did you mean cosine?"),
        ("--precision=bf16", "'precision' must be float32 or bfloat16 or float16, got bf16"),
        ("--min_learning_rate=1", "'min_learning_rate' must be at most learning_rate"),
        ("--context_length=5000", "but a context of 5000 needs at least 5001"),
        ("--device=cuda", "'device' cannot be cuda: torch sees no CUDA device; take --device cpu"),
        ("--precision=float16", "'precision' float16 needs a CUDA device for its loss scaling; take bfloat16"),
    ],
)
def test_values_that_cannot_work(data, tmp_path, capsys, option, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert train(data, tmp_path / "run", option) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_misspelt_key_of_a_yaml_file_is_told_its_neighbour(tmp_path, capsys, monkeypatch):
    file = tmp_path / "run.yaml"
    file.write_text("n_layer: 3\nlearning_rat: 0.1\n")
    arguments = ["train", f"--config={file}"]
    monkeypatch.setattr(sys, "argv", ["fastllm", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "option 'learning_rat'; did you mean learning_rate?" in capsys.readouterr().err


def test_a_runs_own_file_with_an_unknown_or_broken_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("batch_sise: 3\n")
    with pytest.raises(UserError, match="'batch_sise' is not a setting; did you mean batch_size"):
        TrainConfig.load(path)
    for line, message in (
        ("n_layer: '1'", "'n_layer' must be of type int, got '1'"),
        ("n_layer: true", "'n_layer' must be of type int, got True"),
        ("n_layer: null", "'n_layer' must be of type int, got None"),
        ("threads: 1.5", r"'threads' must be of type int \| None, got 1.5"),
        ("dropout: none", "'dropout' must be of type float, got 'none'"),
        ("bias: 1", "'bias' must be of type bool, got 1"),
        ("schedule: 3", "'schedule' must be of type str, got 3"),
        ("data: 3", "'data' must be of type"),
        ("- n_layer", "is damaged: expected lines like"),
        ("model: bert", "config.yaml: 'model' must be one of gpt, llama, transformer, got bert"),
        ("model: llama\nbias: true", "'bias' is not a setting"),
    ):
        path.write_text(line + "\n")
        with pytest.raises(UserError, match=message):
            TrainConfig.load(path)
    path.write_text("dropout: 0\nthreads: null\n")
    assert TrainConfig.load(path).model.dropout == 0
    path.write_text("n_layer: [")
    with pytest.raises(UserError, match="is missing or damaged"):
        TrainConfig.load(path)


def test_settings_survive_the_file(tmp_path):
    config = TrainConfig(data=tmp_path, init=tmp_path, micro_batch_size=3, compile=True, schedule="wsd")
    config.save(tmp_path / "config.yaml")
    config.out = tmp_path
    assert TrainConfig.load(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("words", [["--compile"], ["--compile=true"], ["--compile", "true"]])
def test_switches_stand_alone_or_with_a_value(words):
    parsed = cli.make_parser().parse_args(["train", *words])
    assert parsed["train"].compile is True
    assert parsed["train"].bias is False
