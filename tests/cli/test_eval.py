"""fastllm eval: what it refuses, and what it must not touch."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from fastllm import cli
from fastllm.data import FileSource, TokenData, prepare, windows
from fastllm.models import load
from fastllm.train.language import perplexity_and_bits
from tests.models.kinds import TRAINED
from tests.train.tiny import rows, train


@pytest.fixture
def data(tmp_path):
    prepare("the quick brown fox jumps over the lazy dog. " * 60, tmp_path / "data", ["made up"])
    return tmp_path / "data"


def test_damaged_data_is_no_loss(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=2") == 0
    shard = data / "val-00000.bin"
    content = shard.read_bytes()
    shard.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert cli.main(["eval", str(run)]) == 2
    assert f"{shard} is damaged" in capsys.readouterr().err


def test_an_average_is_never_written_over_something(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=4", "--eval_interval=2", "--keep_checkpoints=2") == 0
    best = run / "checkpoints" / "best"
    assert cli.main(["eval", str(run), "--average=2", f"--out={best}"]) == 2
    assert f"{best} exists and is not empty; name a new folder" in capsys.readouterr().err
    assert cli.main(["eval", str(run), "--average=2", f"--out={tmp_path / 'mean'}"]) == 0
    assert cli.main(["sample", str(tmp_path / "mean"), "--max_new_tokens=2", "--prompt=t"]) == 0


def test_no_bits_a_byte_where_first_tokens_are_not_predicted(tmp_path, capsys):
    (tmp_path / "texts.jsonl").write_text('{"text": "the quick fox"}\n' * 40)
    prepare(FileSource([tmp_path / "texts.jsonl"]), tmp_path / "data")
    assert train(tmp_path / "data", tmp_path / "run", "--max_steps=2", "--document_mask=true") == 0
    assert rows(tmp_path / "run")[-1]["final_val_bits_per_byte"] is None
    assert cli.main(["eval", str(tmp_path / "run")]) == 0
    assert "bits per byte n/a, as document_mask leaves tokens out" in capsys.readouterr().out
    assert perplexity_and_bits(math.log(4), SimpleNamespace(bytes=4), document_mask=True)[1] is None


def test_a_model_that_is_no_run_and_a_shorter_context(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=2", *TRAINED["llama"]) == 0
    best = run / "checkpoints" / "best"
    losses = []
    for words in ([run], [best, f"--data={data}"], [run, "--context_length=3"]):
        capsys.readouterr()
        assert cli.main(["eval", *map(str, words), "--json"]) == 0
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    assert losses[0] == losses[1] == pytest.approx(rows(run)[-1]["final_val_loss"], rel=1e-6)  # in other batches
    model, split = load(best), TokenData(data).split("val", 3)
    batches = list(windows(split, 3, 1000))
    with torch.no_grad():
        expected = sum(model.loss(b.tokens, b.targets).item() * b.num_targets() for b in batches)
    assert losses[2] == pytest.approx(expected / (len(split) - 1), rel=1e-5)
    assert cli.main(["eval", str(best)]) == 2
    assert f"eval: 'data' must be given, because {best} is a model and not a run" in capsys.readouterr().err
    assert cli.main(["eval", str(run), "--context_length=9"]) == 2
    assert "'context_length' must be at most the model's 8, got 9" in capsys.readouterr().err
