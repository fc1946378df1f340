"""The moving average of weights, kept checkpoints, their mean, and the commands eval and plot."""

import math
import re

import pytest
import torch

from fastllm import cli
from fastllm.data import TokenData
from fastllm.models import GPT, GPTConfig
from fastllm.train import checkpoint
from fastllm.train.average import MovingAverage, average_weights
from fastllm.train.language import perplexity_and_bits
from tests.train.tiny import rows, train, weights


def test_moving_average_against_its_formula():
    model = torch.nn.Linear(3, 2)
    average = MovingAverage(model, 0.9)
    expected = model.weight.detach().double()
    for step in range(1, 100):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
        torch.testing.assert_close(average.values["weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_in_place_gives_the_weights_back():
    model = torch.nn.Linear(3, 2)
    average = MovingAverage(model, 0.5)
    before, kept = model.weight.detach().clone(), torch.ones(2, 3)
    average.values["weight"].copy_(kept)
    with pytest.raises(KeyError), average.in_place():
        assert torch.equal(model.weight, kept)
        raise KeyError
    assert torch.equal(model.weight, before)
    assert torch.equal(average.values["weight"], kept)


def test_the_average_is_evaluated_and_saved_and_does_not_touch_the_training(data, tmp_path):
    with_it, without = tmp_path / "with", tmp_path / "without"
    assert train(data, with_it, "--max_steps=20", "--eval_interval=10", "--ema_decay=0.9") == 0
    assert train(data, without, "--max_steps=20", "--eval_interval=10") == 0
    for name, value in weights(without).items():
        assert torch.equal(value, weights(with_it)[name])
        if name.endswith("weight"):
            assert not torch.equal(value, weights(with_it, "ema")[name])
    evaluation = next(row for row in rows(with_it) if row.get("step") == 20 and "val_loss" in row)
    assert evaluation["ema_val_loss"] != evaluation["val_loss"]
    assert "final_ema_val_loss" in rows(with_it)[-1]


def test_kept_checkpoints_are_the_latest(data, tmp_path):
    assert train(data, tmp_path / "run", "--max_steps=20", "--eval_interval=5", "--keep_checkpoints=2") == 0
    assert [folder.name for folder in checkpoint.kept(tmp_path / "run")] == ["step-00000015", "step-00000020"]
    for name, value in weights(tmp_path / "run").items():
        assert torch.equal(value, weights(tmp_path / "run", "step-00000020")[name])


def test_mean_of_checkpoints(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=10", "--eval_interval=5", "--keep_checkpoints=3") == 0
    assert cli.main(["eval", str(run), "--average=3", f"--out={tmp_path / 'mean'}"]) == 0
    mean = GPT.from_pretrained(tmp_path / "mean").state_dict()
    parts = [weights(run, f"step-{step:08d}") for step in (0, 5, 10)]
    for name, value in mean.items():
        torch.testing.assert_close(value, sum(part[name] for part in parts) / 3)
    assert "mean of step-00000000 to step-00000010 on val" in capsys.readouterr().out
    assert cli.main(["eval", str(run), "--average=4"]) == 2
    assert "must be at most the 3 checkpoints" in capsys.readouterr().err


def test_mean_of_other_models(tmp_path):
    for name, width in (("a", 8), ("b", 16)):
        GPT(GPTConfig(5, 4, 1, 1, width)).save_pretrained(tmp_path / name)
    with pytest.raises(ValueError, match="must all be of one model"):
        average_weights([tmp_path / "a", tmp_path / "b"])


def test_eval_equals_the_runs_last_line(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=10") == 0
    capsys.readouterr()
    assert cli.main(["eval", str(run), "--checkpoint=last", "--batch_size=7"]) == 0
    output = capsys.readouterr().out
    assert float(re.search(r"loss ([\d.]+)", output)[1]) == pytest.approx(rows(run)[-1]["final_val_loss"], abs=6e-5)
    bits = rows(run)[-1]["final_val_loss"] / math.log(2)  # a byte a character
    assert float(re.search(r"bits per byte ([\d.]+)", output)[1]) == pytest.approx(bits, abs=6e-5)
    assert cli.main(["eval", str(run), "--split=train"]) == 0


def test_eval_against_a_plain_loop(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=3") == 0
    model = checkpoint.load_model(run, "last")[0].eval()
    split = TokenData(data).split("val", 8)
    tokens = torch.from_numpy(split.read(0, len(split)))
    assert (len(tokens) - 1) % 8  # the last window is part of one
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, 8):
            window = tokens[start : start + 9]
            logits = model(window[:-1].unsqueeze(0))[0]
            total += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
    assert rows(run)[-1]["final_val_loss"] == pytest.approx(total / (len(tokens) - 1), rel=1e-6)


def test_perplexity_and_bits_a_byte():
    split = type("EightTokens", (), {"bytes": 4, "__len__": lambda self: 8})()
    # 8 tokens of log 4 nats are 16 bits; in 4 bytes, 4 bits each.
    assert perplexity_and_bits(math.log(4), split) == pytest.approx((4.0, 4.0))
    assert perplexity_and_bits(1e4, split)[0] < math.inf


def test_eval_refuses(data, tmp_path, capsys):
    assert train(data, tmp_path / "run", "--max_steps=1") == 0
    for option, message in (
        ("--split=test", "'split' must be train or val of this data, got 'test'"),
        ("--batch_size=0", "'batch_size' must be at least 1, got 0"),
        ("--out=x", "'out' is where --average writes its model"),
        ("--checkpoint=none", "has no checkpoint 'none'; it has best, last"),
    ):
        assert cli.main(["eval", str(tmp_path / "run"), option]) == 2
        assert message in capsys.readouterr().err


def test_plot_draws_several_runs(data, tmp_path, capsys):
    for name in ("a", "b"):
        assert train(data, tmp_path / name, "--max_steps=1") == 0
    picture = tmp_path / "both.png"
    assert cli.main(["plot", str(tmp_path / "a"), str(tmp_path / "b"), f"--out={picture}"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert cli.main(["plot", str(tmp_path / "c")]) == 2
    assert "c has no evaluation in metrics.jsonl: is it a run?" in capsys.readouterr().err
