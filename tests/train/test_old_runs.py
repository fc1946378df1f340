"""A run that version 0.1.0 wrote, interrupted at step 7 of 12: it loads, goes on, and ends as it did then."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from fastllm import cli
from fastllm.models import GPT, GPTConfig, load
from fastllm.train import TrainConfig, checkpoint
from tests.train.tiny import rows

OLD = Path(__file__).parent / "fixtures" / "version-0.1.0"


@pytest.fixture
def run(tmp_path):
    shutil.copytree(OLD / "run", tmp_path / "run")
    return tmp_path / "run"


def test_it_goes_on_as_it_would_have_then(run):
    """Dropout, the order of the data, AdamW's moments, the moving average: a mistake in one of them shows."""
    assert cli.main(["train", f"--resume={run}", f"--data={OLD / 'data'}"]) == 0
    expected = json.loads((OLD / "expected.json").read_text())["rows"]
    ours = rows(run)[-len(expected) :]
    assert [row.keys() for row in ours] == [row.keys() for row in expected]
    for row, then in zip(ours, expected, strict=True):
        told = {name: value for name, value in then.items() if value is not None}
        assert {name: row[name] for name in told} == pytest.approx(told, rel=1e-5)  # other CPUs round otherwise


def test_its_settings_and_checkpoints_are_read(run):
    config = TrainConfig.load(run / "config.yaml")
    assert config.model == GPTConfig(65, 8, 2, 2, 16, dropout=0.1, bias=False)
    assert (config.max_steps, config.ema_decay, config.document_mask) == (12, 0.9, True)
    model, tokenizer = checkpoint.load_model(run, "last")
    assert isinstance(model, GPT)
    assert model.config == GPTConfig(tokenizer.vocab_size, 8, 2, 2, 16, dropout=0.1, bias=False)
    folder = checkpoint.folder_of(run, "last")
    for read in (load(folder), GPT.from_pretrained(folder)):
        assert torch.equal(read.embedding.token.weight, model.embedding.token.weight)
