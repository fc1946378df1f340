"""TensorBoard's copy of the metrics: with a stand-in for its writer everywhere, read back by itself where it is."""

import sys

import pytest

from fastllm import cli
from fastllm.train import TrainConfig
from tests.train.tiny import rows, train, train_until


def scalars_of(run):
    """Return what metrics.jsonl has, as (name, step, value)."""
    return {(k, row["step"], v) for row in rows(run) for k, v in row.items() if k != "step" and v is not None}


def test_tensorboard_missing_is_said(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert train(data, tmp_path / "run", "--tensorboard", "--max_steps=1") == 2
    assert "pip install 'fastllm[tensorboard]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_every_line_is_handed_on(data, tmp_path, monkeypatch):
    written, calls = set(), []

    class Writer:
        def __init__(self, folder, purge_step):
            calls.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.add((name, step, value))

        def flush(self):
            calls.append("flush")

        def close(self):
            calls.append("close")

    module = type(sys)("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    run = tmp_path / "run"
    assert train(data, run, "--tensorboard", "--max_steps=5", "--eval_interval=5") == 0
    assert scalars_of(run) <= written
    assert calls == [(str(run / "tensorboard"), 0), "flush", "flush", "close"]  # as often as a checkpoint is made
    assert cli.main(["train", f"--resume={run}", "--max_steps=6"]) == 0
    assert calls[4] == (str(run / "tensorboard"), 6)  # what it says of step 6 and on is not to be shown twice


def test_tensorboard_itself_reads_the_metrics_and_no_step_twice(data, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard, an optional extra of fastllm, is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    options = ["--tensorboard", "--max_steps=30", "--eval_interval=10", "--ema_decay=0.5"]
    assert train(data, tmp_path / "settings", *options) == 0
    config = TrainConfig.load(tmp_path / "settings" / "config.yaml")
    config.out = run
    train_until(config, 25)
    config.max_steps = 40  # the checkpoint best may be of an earlier step: what follows it is reported again
    train_until(config, 33, "best")
    assert cli.main(["train", f"--resume={run}"]) == 0
    board = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    events = [(name, event.step, event.value) for name in board.Tags()["scalars"] for event in board.Scalars(name)]
    steps = [(name, step) for name, step, _ in events]
    assert len(steps) == len(set(steps)), "a step is there twice"
    found = dict(zip(steps, (value for *_, value in events), strict=True))
    expected = {(name, step): value for name, step, value in scalars_of(run)}
    assert {name for name, _ in expected} >= {"loss", "val_loss", "ema_val_loss", "final_val_loss", "grad_norm"}
    assert {key: found[key] for key in expected} == pytest.approx(expected)  # float32 there
    assert {step for name, step in steps if name == "loss"} == {step for name, step in expected if name == "loss"}
