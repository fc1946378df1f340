"""Training, its checkpoints and the command line, on a model that trains in a second."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from fastllm import cli, files
from fastllm.data import prepare
from fastllm.errors import UserError
from fastllm.generation import generate
from fastllm.models import GPT, GPTConfig
from fastllm.train import TrainConfig, checkpoint

TINY = ["--n_layer=1", "--n_head=2", "--n_embd=16", "--context_length=8", "--batch_size=4", "--eval_batches=2",
        "--warmup_steps=5", "--log_interval=5", "--threads=1", "--dropout=0.1"]  # fmt: skip


@pytest.fixture
def data(tmp_path):
    prepare("the quick brown fox jumps over the lazy dog. " * 60, tmp_path / "data", ["made up"])
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def signals_put_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def train(data, run, *options):
    return cli.main(["train", f"--data={data}", f"--out={run}", *TINY, *options])


def weights(run, name="last"):
    return checkpoint.load_model(run, name)[0].state_dict()


def test_a_run_has_everything_in_its_folder(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=40", "--eval_interval=20") == 0
    assert "done in" in capsys.readouterr().out
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluations = [row["val_loss"] for row in rows if "val_loss" in row]
    assert evaluations[-1] < evaluations[0]
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert TrainConfig.load(run / "config.yaml").n_embd == 16
    assert cli.main(["sample", str(run), "--max_new_tokens=20", "--prompt=the "]) == 0
    assert capsys.readouterr().out.startswith("the ")


def test_resume_equals_an_undisturbed_run(data, tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    # The rate's schedule depends on max_steps, so the first half of the broken run is told the whole length too.
    assert train(data, straight, "--max_steps=30", "--eval_interval=15") == 0
    assert train(data, broken, "--max_steps=30", "--eval_interval=15", "--learning_rate=1e-3") == 0
    rows = (broken / "metrics.jsonl").read_text()
    # Back to the checkpoint of step 15, as if the run had been killed after it.
    from fastllm.train.report import Reporter
    from fastllm.train.trainer import Trainer, TrainingInterrupted

    halfway = tmp_path / "halfway"
    config = TrainConfig.load(straight / "config.yaml")
    config.out = halfway
    trainer = Trainer(config)
    with Reporter(30) as reporter:
        reporter.step = lambda step: trainer.request_stop() if step == 17 else None
        with pytest.raises(TrainingInterrupted):
            trainer.train(reporter)
    assert cli.main(["train", f"--resume={halfway}"]) == 0
    for name, value in weights(straight).items():
        assert torch.equal(value, weights(halfway)[name]), name
    assert rows.count("val_loss") == (halfway / "metrics.jsonl").read_text().count("val_loss")


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


def test_disk_full_keeps_the_checkpoint_before(data, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=5", "--eval_interval=5") == 0
    before = weights(run)

    def full(path):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(files, "sync", full)
    assert cli.main(["train", f"--resume={run}", "--max_steps=10"]) == 2
    monkeypatch.undo()
    assert "No space left on device; the one before it is intact" in capsys.readouterr().err
    for name, value in weights(run).items():
        assert torch.equal(value, before[name])


def test_killed_between_the_two_renames(data, tmp_path):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=5", "--eval_interval=5") == 0
    folder = checkpoint.folder_of(run, "last")
    os.rename(folder, files.previous(folder))
    assert checkpoint.load_state(run, "last")["step"] == 5


def test_a_damaged_checkpoint_is_named_and_the_other_offered(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=5", "--eval_interval=5") == 0
    path = checkpoint.folder_of(run, "best") / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert cli.main(["sample", str(run)]) == 2
    error = capsys.readouterr().err
    assert f"{path} is damaged" in error
    assert "take it with --checkpoint last" in error
    assert cli.main(["sample", str(run), "--checkpoint=last", "--max_new_tokens=1", "--prompt=t"]) == 0


def test_a_vocabulary_that_does_not_fit(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=5", "--eval_interval=5") == 0
    prepare("other text entirely, with 0123456789. " * 60, data, ["other"])
    assert cli.main(["train", f"--resume={run}", "--max_steps=6"]) == 2
    assert "is not the one that the checkpoint" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(data, run, "--learning_rate=1e30", "--grad_clip=0", "--max_steps=50") == 2
    assert "the loss became" in capsys.readouterr().err
    assert checkpoint.load_state(run, "last")["step"] == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--n_embd=15", r"'n_embd' must be a multiple of n_head (2), got 15"),
        ("--dropout=1.5", "'dropout' must be in [0, 1), got 1.5"),
        ("--batch_size=0", "'batch_size' must be at least 1, got 0"),
        ("--min_learning_rate=1", "'min_learning_rate' must be at most learning_rate"),
        ("--context_length=5000", "but a context of 5000 needs at least 5001"),
    ],
)
def test_values_that_cannot_work(data, tmp_path, capsys, option, message):
    assert train(data, tmp_path / "run", option) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "nowhere"], "nowhere is not a run"),
        (["train", "--resume=nowhere"], "is missing or damaged"),
        (["train", "--resume=x", "--n_layer=3"], "leave out --n_layer"),
        (["train"], "'data' and 'out' must be given"),
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
    assert "scaled_dot_product" in output.replace("\n", "")
