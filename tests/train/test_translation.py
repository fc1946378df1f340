"""Runs that learn to translate keep what every run promises, and what translation adds."""

import math
import re

import pytest
import torch

from fastllm import cli
from fastllm.data import ParallelData
from fastllm.errors import UserError
from fastllm.generation import translate
from fastllm.models import load
from fastllm.tokenizers import load_tokenizer
from fastllm.train import TrainConfig, checkpoint
from fastllm.train.metrics import read_metrics
from fastllm.train.parallel import Parallel
from fastllm.train.translation import spread
from tests.pairs import numbers, prepared, reversed_words
from tests.train.processes import run_together
from tests.train.tiny import assert_same_weights, rows, train_until, weights

TINY = ["--model=transformer", "--n_encoder_layer=1", "--n_decoder_layer=1", "--n_head=2", "--n_embd=16",
        "--n_hidden=32", "--context_length=64", "--batch_tokens=150", "--eval_batches=2", "--warmup_steps=5",
        "--log_interval=5", "--threads=1", "--dropout=0.1", "--eval_translations=6"]  # fmt: skip


@pytest.fixture
def pairs(tmp_path):
    return prepared(tmp_path / "pairs", reversed_words(300), val_share=0.05)


def command(data, run, *options):
    return ["train", f"--data={data}", f"--out={run}", *TINY, *options]


def train(data, run, *options):
    return cli.main(command(data, run, *options))


@pytest.mark.parametrize("options", [[], ["--norm_first=false", "--subword_sampling=0.2", "--activation=swiglu"]])
def test_resume_equals_an_undisturbed_run(options, pairs, tmp_path):
    straight, halfway = tmp_path / "straight", tmp_path / "halfway"
    full = ["--micro_batch_size=3", "--ema_decay=0.9", "--keep_checkpoints=2", "--best_by=chrf", *options]
    assert train(pairs, straight, *full, "--max_steps=30", "--eval_interval=10") == 0
    config = TrainConfig.load(straight / "config.yaml")
    config.out = halfway
    train_until(config, 7)
    train_until(config, 20, "last")
    assert cli.main(["train", f"--resume={halfway}"]) == 0
    for name in ("last", "best", "ema"):
        assert_same_weights(straight, halfway, name)
    evaluations = [[row for row in rows(run) if "val_loss" in row] for run in (straight, halfway)]
    assert evaluations[0] == evaluations[1]
    assert all({"val_bleu", "val_chrf"} < row.keys() for row in evaluations[0])
    assert rows(straight)[-1] == rows(halfway)[-1]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_train_what_one_does(kind, pairs, tmp_path):
    options = ["--dropout=0", "--max_steps=10", "--eval_interval=5", "--log_interval=1", "--grad_clip=0.3",
               "--ema_decay=0.5"]  # fmt: skip
    alone, two = tmp_path / "alone", tmp_path / "two"
    assert train(pairs, alone, *options) == 0
    run_together(command(pairs, two, *options, f"--parallel={kind}", "--sample_interval=5"), 2)
    ours, theirs = rows(alone), rows(two)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        known = {key: v for key, v in b.items() if v is not None and not key.endswith(("bleu", "chrf"))}
        assert {key: a[key] for key in known} == pytest.approx(known, rel=2e-4)
    for key, value in weights(alone, "last").items():
        torch.testing.assert_close(weights(two, "last")[key], value, rtol=1e-3, atol=2e-4)
    assert "translation:" in (two / "samples" / "10.txt").read_text()


def test_micro_batches_give_the_same_step(pairs, tmp_path):
    options = ["--dropout=0", "--max_steps=6", "--eval_interval=3"]
    assert train(pairs, tmp_path / "whole", *options) == 0
    assert train(pairs, tmp_path / "parts", *options, "--micro_batch_size=2") == 0
    for one, other in zip(rows(tmp_path / "whole"), rows(tmp_path / "parts"), strict=True):
        known = {key: v for key, v in one.items() if v is not None and not key.endswith(("bleu", "chrf"))}
        assert {key: other[key] for key in known} == pytest.approx(known, rel=1e-4)


def test_separate_vocabularies_and_padded_ones(tmp_path):
    options = {"separate_vocabularies": True, "vocab_size": 285, "max_ratio": 9}
    data = prepared(tmp_path / "pairs", reversed_words(200), **options)
    assert train(data, tmp_path / "run", "--max_steps=3", "--vocab_size=320") == 0
    model, tokenizer = checkpoint.load_model(tmp_path / "run", "last")
    assert model.config.vocab_size == 320 and model.config.source_vocab_size == tokenizer.source_vocab_size == 285
    assert translate(model, tokenizer, ["Haus rot"])[0].source == "Haus rot"
    assert cli.main(["train", f"--resume={tmp_path / 'run'}", "--max_steps=5"]) == 0
    more = ["train", f"--data={data}", f"--out={tmp_path / 'more'}", f"--init={tmp_path / 'run'}", "--max_steps=2"]
    assert cli.main([*more, "--dropout=0.2"]) == 0
    assert load(tmp_path / "more").config.dropout == 0.2


def test_what_is_best(pairs, tmp_path, monkeypatch):
    scores = iter([10.0, 30.0, 20.0, 25.0, 1.0])

    def fixed(translations, references):
        assert len(translations) == len(references) > 0
        value = next(scores)
        return {"bleu": value, "chrf": value}, {"bleu": "", "chrf": ""}

    monkeypatch.setattr("fastllm.train.translation.score", fixed)
    run = tmp_path / "run"
    options = ["--max_steps=50", "--eval_interval=2", "--best_by=bleu", "--patience=2"]
    assert train(pairs, run, *options) == 0
    assert checkpoint.load_state(run, "best")["step"] == 2
    assert read_metrics(run)[-1]["step"] == 6  # stopped after two that were worse


def test_the_mean_of_checkpoints_translates(pairs, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(pairs, run, "--max_steps=6", "--eval_interval=2", "--keep_checkpoints=3") == 0
    assert cli.main(["eval", str(run), "--average=3", f"--out={tmp_path / 'mean'}", "--num_beams=2"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"mean of step-\d+ to step-\d+ on val .*loss \d\.\d+ nats per token, perplexity", out)
    assert re.search(r"bleu \d+\.\d+ \(nrefs:1\|.*tok:13a", out)
    assert cli.main(["translate", str(tmp_path / "mean"), "--text", "Haus"]) == 0
    assert cli.main(["eval", str(run), "--split=test"]) == 2
    assert "'split' must be train or val of this data, got 'test'" in capsys.readouterr().err


def test_evaluated_losses_are_not_smoothed(pairs, tmp_path):
    run = tmp_path / "run"
    assert train(pairs, run, "--max_steps=2", "--eval_batches=0", "--label_smoothing=0.3") == 0
    model, tokenizer = checkpoint.load_model(run, "last")
    split = ParallelData(pairs).split("val")
    total = count = 0
    for i in range(len(split)):
        ids = split.target_ids(i)
        target = torch.tensor([[tokenizer.start, *ids[:-1]]])
        logits = model(torch.tensor([split.source_ids(i)]), target)[0]
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="sum").item()
        count += len(ids)
    final = read_metrics(run)[-1]
    assert final["final_val_loss"] == pytest.approx(total / count, rel=1e-4)
    assert final["final_val_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)


def test_label_smoothing_is_for_language_models_too(tmp_path):
    from fastllm.data import prepare

    prepare("the quick brown fox jumps over the lazy dog. " * 60, tmp_path / "data", ["made up"])
    options = [f"--data={tmp_path / 'data'}", "--n_layer=1", "--n_head=2", "--n_embd=16", "--context_length=8",
               "--max_steps=3", "--warmup_steps=1", "--threads=1"]  # fmt: skip
    losses = []
    for smoothing in (0.0, 0.5):
        run = tmp_path / f"run{smoothing}"
        assert cli.main(["train", f"--out={run}", *options, f"--label_smoothing={smoothing}"]) == 0
        losses.append([row for row in read_metrics(run) if "val_loss" in row])
    assert losses[0][0]["val_loss"] == losses[1][0]["val_loss"]  # before the first step
    assert losses[0][1]["val_loss"] != losses[1][1]["val_loss"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--context_length=5"], r"'context_length' must be at least \d+, the tokens of the longest sentence in"),
        (["--batch_tokens=3"], r"'batch_tokens' must be at least \d+"),
        (["--best_by=bleu", "--eval_translations=0"], "'best_by' must be loss, unless"),
        (["--best_by=ter"], "'best_by' must be loss or bleu or chrf, got ter"),
        (["--document_mask"], "'document_mask' is a setting of language models, and --model transformer is none"),
        (["--share_embeddings=some"], "'share_embeddings' must be one of all, target, none, got 'some'"),
        (["--n_layer=3"], "'n_layer' is not a setting of --model transformer: it is one of --model gpt and llama"),
    ],
)
def test_settings_that_cannot_work(options, message, pairs, tmp_path, capsys):
    assert train(pairs, tmp_path / "run", "--max_steps=1", *options) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_other_data_than_a_task_learns_from(pairs, tmp_path, capsys):
    assert cli.main(["train", f"--data={pairs}", f"--out={tmp_path / 'run'}"]) == 2
    assert "has pairs of sentences, which translation models learn from" in capsys.readouterr().err
    assert cli.main(["train", f"--data={pairs}", f"--out={tmp_path / 'run'}", "--batch_tokens=9"]) == 2
    assert "'batch_tokens' is a setting of translation models, and --model gpt is none" in capsys.readouterr().err


def test_which_sentences_are_looked_at():
    assert spread(10, 3) == [0, 4, 9]
    assert spread(2, 8) == [0, 1]
    assert Parallel().share.rows(7) == slice(0, 7)
    with pytest.raises(UserError, match="is not a folder of sentence pairs"):
        ParallelData("nowhere")


def test_words_are_translated_and_reversed_exactly(tmp_path):
    """The synthetic task, small: every word has its translation, and their order is the other way round."""
    data = prepared(tmp_path / "pairs", reversed_words(6000, longest=6, shortest=3), val_share=0.05)
    run = tmp_path / "run"
    options = ["--n_encoder_layer=2", "--n_decoder_layer=2", "--n_head=4", "--n_embd=64", "--n_hidden=256",
               "--batch_tokens=1500", "--max_steps=700", "--warmup_steps=100", "--learning_rate=3e-3",
               "--eval_interval=700", "--dropout=0", "--threads=2"]  # fmt: skip
    assert train(data, run, *options) == 0
    assert exact(run, data) > 0.95


@pytest.mark.slow
def test_numbers_are_spelled_out_exactly(tmp_path):
    data = prepared(tmp_path / "pairs", numbers(20000), val_share=0.05, vocab_size=340)
    run = tmp_path / "run"
    options = ["--n_encoder_layer=2", "--n_decoder_layer=2", "--n_head=4", "--n_embd=128", "--n_hidden=512",
               "--batch_tokens=2048", "--max_steps=2500", "--warmup_steps=200", "--learning_rate=2e-3",
               "--eval_interval=500", "--threads=2"]  # fmt: skip
    assert train(data, run, *options) == 0
    assert exact(run, data) > 0.99


def exact(run, data):
    """Return the share of the validation split's sources whose translation is the reference."""
    split = ParallelData(data).split("val")
    found = translate(load(run), load_tokenizer(run), [split.source_text(i) for i in range(len(split))])
    return sum(one.text == split.target_text(i) for i, one in enumerate(found)) / len(split)
