"""Runs small enough to be over in a second, and what to look at in them."""

import torch

from fastllm import cli
from fastllm.train import checkpoint
from fastllm.train.metrics import read_metrics
from fastllm.train.report import Reporter
from fastllm.train.trainer import Trainer, TrainingInterrupted

TINY = ["--n_layer=1", "--n_head=2", "--n_embd=16", "--context_length=8", "--batch_size=4", "--eval_batches=2",
        "--warmup_steps=5", "--log_interval=5", "--threads=1", "--dropout=0.1"]  # fmt: skip
TIMES = ("tokens_per_second", "mfu", "final_seconds")


def command(data, run, *options):
    return ["train", f"--data={data}", f"--out={run}", *TINY, *options]


def train(data, run, *options):
    return cli.main(command(data, run, *options))


def train_until(config, step, resume=None):
    """Train and interrupt after a step."""
    trainer = Trainer(config, resume)
    with Reporter(config.max_steps, quiet=True) as reporter:
        reporter.step = lambda now: trainer.request_stop() if now == step else None
        try:
            trainer.train(reporter)
        except TrainingInterrupted:
            return
    raise AssertionError("it was not interrupted")


def weights(run, name="last"):
    return checkpoint.load_model(run, name)[0].state_dict()


def assert_same_weights(run, other, name="last"):
    theirs = weights(other, name)
    for key, value in weights(run, name).items():
        assert torch.equal(value, theirs[key]), key


def rows(run):
    """Return the lines of metrics.jsonl without what depends on the clock."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(run)]
