"""A run from the command line: its folder, its options and its mistakes."""

import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from fastllm import cli
from fastllm.data import prepare
from fastllm.errors import UserError
from fastllm.models import GPT, GPTConfig
from fastllm.train import TrainConfig, checkpoint
from fastllm.train.metrics import read_metrics
from fastllm.train.report import Reporter
from fastllm.train.stepper import Stepper
from fastllm.train.trainer import Trainer
from tests.train.tiny import TINY, assert_same_weights, rows, train, train_until, weights


def test_a_run_has_everything_in_its_folder(data, tmp_path, capsys, pictures):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=40", "--eval_interval=20", "--sample_interval=20") == 0
    assert "done in" in capsys.readouterr().out
    lines = rows(run)
    evaluations = [row["val_loss"] for row in lines if "val_loss" in row]
    assert evaluations[-1] < evaluations[0]
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert TrainConfig.load(run / "config.yaml").model.n_embd == 16
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["20.txt", "40.txt"]
    assert cli.main(["sample", str(run), "--max_new_tokens=20", "--prompt=the "]) == 0
    assert capsys.readouterr().out.startswith("the ")


def test_what_a_line_of_metrics_says(data, tmp_path):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=10", "--eval_interval=10") == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    row = next(line for line in lines if line["step"] == 10 and "loss" in line)
    assert row["tokens"] == 10 * 4 * 8
    assert row["epoch"] == pytest.approx(320 / (2430 - 1), abs=1e-4)
    assert 0 < row["mfu"] < 1
    assert row["grad_norm"] > 0
    assert lines[-1]["final_val_perplexity"] == pytest.approx(2.718281828 ** lines[-1]["final_val_loss"])


def test_tokens_a_second_are_of_training_alone(data, tmp_path, monkeypatch):
    now = 0.0

    def taking(seconds, function):
        def slow(*arguments):
            nonlocal now
            now += seconds
            return function(*arguments)

        return slow

    for name, seconds in (("_train_step", 1), ("_evaluate", 100), ("_sample", 200), ("_plot", 300)):
        monkeypatch.setattr(Trainer, name, taking(seconds, getattr(Trainer, name)))
    monkeypatch.setattr("fastllm.train.trainer.time", SimpleNamespace(perf_counter=lambda: now))
    options = ["--max_steps=20", "--log_interval=5", "--eval_interval=3", "--sample_interval=4"]
    assert train(data, tmp_path / "run", *options) == 0
    speeds = [row["tokens_per_second"] for row in read_metrics(tmp_path / "run") if "loss" in row]
    assert speeds == [4 * 8] * 4


def test_the_samples_leave_no_trace_in_the_training(data, tmp_path):
    assert train(data, tmp_path / "with", "--max_steps=10", "--sample_interval=3") == 0
    assert train(data, tmp_path / "without", "--max_steps=10") == 0
    assert_same_weights(tmp_path / "with", tmp_path / "without")


def test_ctrl_c_saves_and_says_so(data, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "fastllm", "train", f"--data={data}", f"--out={run}", *TINY,
               "--max_steps=1000000", "--eval_interval=1000000"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 60
    while not (run / "metrics.jsonl").exists() or '"loss"' not in (run / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"saved in {run}/checkpoints/last; continue with: fastllm train --resume {run}" in output
    assert checkpoint.load_state(run, "last")["step"] > 0


def test_an_existing_run_is_never_overwritten(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=5", "--eval_interval=5") == 0
    before = (run / "metrics.jsonl").read_text()
    assert train(data, run) == 2
    assert f"continue it with --resume {run}, or name a new --out" in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_text() == before


def test_a_vocabulary_that_does_not_fit(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=5", "--eval_interval=5") == 0
    prepare("other text entirely, with 0123456789. " * 60, data, ["other"])
    assert cli.main(["train", f"--resume={run}", "--max_steps=6"]) == 2
    assert "is not the one that the checkpoint" in capsys.readouterr().err


def test_a_run_goes_on_with_its_own_data_alone(data, tmp_path, capsys):
    run, moved = tmp_path / "run", tmp_path / "moved"
    assert train(data, run, "--max_steps=5") == 0
    data.rename(moved)
    assert cli.main(["train", f"--resume={run}", f"--data={moved}", "--max_steps=6"]) == 0
    prepare("the lazy dog jumps over the quick brown fox. " * 60, data, ["other text, of the same letters"])
    assert cli.main(["train", f"--resume={run}", f"--data={data}", "--max_steps=7"]) == 2
    assert f"{data} holds other tokens" in capsys.readouterr().err
    assert TrainConfig.load(run / "config.yaml").data == moved


def test_a_loss_that_is_not_finite_stops(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(data, run, "--learning_rate=1e30", "--grad_clip=0", "--max_steps=50") == 2
    assert "the loss became" in capsys.readouterr().err
    assert checkpoint.load_state(run, "last")["step"] == 0


def test_a_loss_that_is_not_finite_names_its_step_and_batch(data, tmp_path, capsys, monkeypatch):
    step, calls = Stepper.step, []

    def broken(self, batch, rate):
        calls.append(batch)
        return step(self, batch, rate) * (torch.nan if len(calls) == 7 else 1)

    monkeypatch.setattr(Stepper, "step", broken)
    assert train(data, tmp_path / "run", "--max_steps=50", "--eval_interval=8", "--log_interval=50") == 2
    assert "the loss became nan at step 7, on batch 6 of the data" in capsys.readouterr().err
    assert checkpoint.load_state(tmp_path / "run", "last")["step"] == 0  # not the 8 of the evaluation after it


def test_weights_that_are_not_finite_are_not_saved(data, tmp_path, capsys):
    options = ["--learning_rate=1e30", "--grad_clip=0", "--warmup_steps=0", "--log_interval=50", "--max_steps=50"]
    assert train(data, tmp_path / "run", *options, "--eval_interval=1") == 2
    error = capsys.readouterr().err
    assert "_loss became nan at step" in error and "start a new run from it with a smaller rate, --init" in error
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())
    assert all("NaN" not in line for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert train(data, tmp_path / "sampled", *options, "--sample_interval=2") == 2
    assert "no longer finite after step 2" in capsys.readouterr().err


def test_ctrl_c_does_not_save_weights_that_are_not_finite(data, tmp_path):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=3") == 0
    config = TrainConfig.load(run / "config.yaml")
    config.max_steps = 9
    trainer = Trainer(config, "last")
    with Reporter(9, quiet=True) as reporter:

        def break_and_stop(step):
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(torch.nan)
            trainer.request_stop()

        reporter.step = break_and_stop
        with pytest.raises(UserError, match="a weight is no longer finite after step 4; the last checkpoint in"):
            trainer.train(reporter)
    assert checkpoint.load_state(run, "last")["step"] == 3


@pytest.mark.parametrize("masked", [[], ["--document_mask"]])
def test_an_evaluation_takes_no_more_rows_at_once_than_a_step(data, tmp_path, monkeypatch, masked):
    whole, parts, sizes, loss = tmp_path / "whole", tmp_path / "parts", [], GPT.loss
    assert train(data, whole, "--max_steps=2", "--eval_interval=1", "--dropout=0", *masked) == 0

    def watched(self, tokens, *others, **options):
        sizes.append(len(tokens))
        return loss(self, tokens, *others, **options)

    monkeypatch.setattr(GPT, "loss", watched)
    options = ["--max_steps=2", "--eval_interval=1", "--dropout=0", "--micro_batch_size=3", *masked]
    assert train(data, parts, *options) == 0
    assert max(sizes) == 3
    for one, other in zip(rows(whole), rows(parts), strict=True):
        one, other = ({key: value for key, value in row.items() if value is not None} for row in (one, other))
        assert one == pytest.approx(other, rel=1e-4)


def test_patience(data, tmp_path, capsys):
    run = tmp_path / "run"
    # Nothing is learnt, so no evaluation after the first is better.
    options = ["--learning_rate=0", "--min_learning_rate=0", "--max_steps=100", "--eval_interval=5", "--patience=3"]
    assert train(data, run, *options) == 0
    assert "stopped after step 15: no better validation loss in 3 evaluations" in capsys.readouterr().out
    assert rows(run)[-1]["step"] == 15
    assert cli.main(["train", f"--resume={run}"]) == 0  # it knows that it had stopped
    assert rows(run)[-1]["step"] == 15


def test_patience_is_counted_across_a_resume(data, tmp_path):
    straight, halfway = tmp_path / "straight", tmp_path / "halfway"
    options = ["--learning_rate=0", "--min_learning_rate=0", "--max_steps=100", "--eval_interval=5", "--patience=3"]
    assert train(data, straight, *options) == 0
    config = TrainConfig.load(straight / "config.yaml")
    config.out = halfway
    train_until(config, 12)
    assert cli.main(["train", f"--resume={halfway}"]) == 0
    assert rows(halfway)[-1]["step"] == 15


@pytest.fixture
def pretrained(data, tmp_path):
    torch.manual_seed(5)
    model = GPT(GPTConfig(28, 16, 1, 2, 8, bias=True))
    model.save_pretrained(tmp_path / "pretrained")
    return tmp_path / "pretrained", model


def test_init_starts_from_a_models_weights(data, tmp_path, pretrained):
    folder, model = pretrained
    run = tmp_path / "run"
    options = ["--batch_size=4", "--max_steps=1", "--learning_rate=0", "--min_learning_rate=0", "--threads=1"]
    assert cli.main(["train", f"--data={data}", f"--out={run}", f"--init={folder}", *options]) == 0
    for name, value in weights(run).items():
        assert torch.equal(value, model.state_dict()[name]), name
    config = TrainConfig.load(run / "config.yaml")
    assert (config.model.n_embd, config.model.context_length, config.model.bias) == (8, 16, True)
    (folder / "model.safetensors").unlink()  # a resumed run needs it no more
    assert cli.main(["train", f"--resume={run}", "--max_steps=2"]) == 0


def test_init_from_a_run_takes_its_best(data, tmp_path):
    assert train(data, tmp_path / "first", "--max_steps=2") == 0
    options = ["--max_steps=1", "--eval_interval=1", "--learning_rate=0", "--min_learning_rate=0"]
    run = tmp_path / "run"
    init = [f"--init={tmp_path / 'first'}", "--batch_size=4", "--eval_batches=2", "--warmup_steps=0"]
    assert cli.main(["train", f"--data={data}", f"--out={run}", *init, *options]) == 0
    for name, value in weights(tmp_path / "first", "best").items():
        assert torch.equal(value, weights(run)[name])


def test_init_that_does_not_fit(data, tmp_path, pretrained, capsys):
    folder, _ = pretrained
    arguments = ["train", f"--data={data}", f"--out={tmp_path / 'run'}", f"--init={folder}"]
    assert cli.main([*arguments, "--n_layer=7"]) == 2
    assert "'init' sets the model's n_layer (1); leave it out" in capsys.readouterr().err
    assert cli.main([*arguments, "--n_layer=4"]) == 2  # the default, but given
    assert "'init' sets the model's n_layer (1); leave it out" in capsys.readouterr().err
    prepare("another alphabet, of more letters: THE QUICK BROWN FOX " * 99, data, ["other"])
    assert cli.main(arguments) == 2
    assert "vocabularies of" in (error := capsys.readouterr().err)
    assert "'tokenizer' must have at most the model's 28 tokens, got 31" in error
    prepare("THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG. " * 60, data, ["other letters, as many"])
    prepare("the quick brown fox jumps over the lazy dog. " * 60, tmp_path / "lower", ["made up"])
    (folder / "tokenizer.json").write_bytes((tmp_path / "lower" / "tokenizer.json").read_bytes())
    assert cli.main(arguments) == 2
    assert f"with --tokenizer_from {folder}" in capsys.readouterr().err
    (folder / "tokenizer.json").write_text("{")
    assert cli.main(arguments) == 2
    assert str(folder / "tokenizer.json") in capsys.readouterr().err
    assert cli.main([*arguments[:-1], f"--init={tmp_path}/nowhere"]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    (folder / "config.json").write_text("{")
    assert cli.main(arguments) == 2
    assert "holds no model that fastllm reads" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
