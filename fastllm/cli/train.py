"""fastllm train: a new run, or one that goes on."""

import signal
from dataclasses import fields
from pathlib import Path

from jsonargparse import Namespace

from fastllm.cli.options import add_train_config, config_of
from fastllm.cli.parser import Parser
from fastllm.errors import UserError
from fastllm.train.config import RESUMABLE, TrainConfig


def add_to(commands) -> None:
    """Add the command's parser."""
    parser = Parser(
        description="Train a GPT. Settings come from --config FILE.yaml and from options, which win. The same command "
        "under torchrun trains with several processes."
    )
    add_train_config(parser)
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue this run, with its own settings")
    parser.add_argument("--checkpoint", default="last", help="the checkpoint to resume from: last or best")
    commands.add_subcommand("train", parser, help="train a GPT on a data folder")


def run(arguments: Namespace) -> int:
    """Train, or continue a run."""
    config, resume = train_config(arguments)

    from fastllm.memory import keep_freed_memory, spare_long_lived_objects
    from fastllm.train.report import Reporter
    from fastllm.train.trainer import Trainer, TrainingInterrupted

    keep_freed_memory()
    trainer = Trainer(config, resume, arguments.given)
    spare_long_lived_objects()
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        # A second one ends the process at once; but torchrun passes on what the terminal already sent to everyone.
        if not trainer.parallel.under_torchrun:
            signal.signal(number, signal.SIG_DFL)
        trainer.request_stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    quiet = not trainer.parallel.is_main
    with Reporter(config.max_steps, trainer.step, quiet) as reporter:
        reporter.say(f"{_size(trainer)}, run folder {trainer.run}")
        if resume is not None and not trainer.resumed:
            reporter.say("the run had not saved anything yet: it starts from the beginning")
        if trainer.step == config.max_steps:
            reporter.say(f"it is at step {trainer.step} already, its last; to go on give more: --max_steps N")
        try:
            summary = trainer.train(reporter)
        except TrainingInterrupted:
            reporter.say(
                f"interrupted after step {trainer.step}: saved in {trainer.run}/checkpoints/last; "
                f"continue with: fastllm train --resume {trainer.run}"
            )
            return 128 + (received[0] if received else signal.SIGINT)  # a signal that only another process got
        if trainer.step < config.max_steps:
            reporter.say(f"stopped after step {trainer.step}: no better in {config.patience} evaluations")
        reporter.say(
            f"done in {summary['seconds']:.1f} s: validation loss {summary['val_loss']:.4f} over the whole split; "
            f"curve in {trainer.run}/loss.png; try: fastllm sample {trainer.run}"
        )
    return 0


def _size(trainer) -> str:
    count = trainer.parallel.world_size
    processes = f" in {count} processes ({trainer.config.parallel})" if count > 1 else ""
    tokens, ids = trainer.data.tokenizer.vocab_size, trainer.model.config.vocab_size
    padding = f" ({ids - tokens:,} of its {ids:,} token ids are padding)" if ids > tokens else ""
    return f"{trainer.model.num_parameters():,} parameters{padding} on {trainer.device.type}{processes}"


def train_config(arguments: Namespace) -> tuple[TrainConfig, str | None]:
    """Return the run's settings and the checkpoint to resume from, None for a new run."""
    config = config_of(arguments)
    if arguments.resume is None:
        return config, None
    if arguments.checkpoint not in ("last", "best"):
        raise UserError(f"train: 'checkpoint' must be last or best, got '{arguments.checkpoint}'")
    given = [field.name for field in fields(config) if field.name in arguments.given]
    extra = [name for name in given if name not in RESUMABLE]
    if extra:
        options = ", --".join(extra)
        raise UserError(
            f"train: --resume keeps the run's own settings but for --max_steps and those that change no result; leave "
            f"out --{options}"
        )
    stored = TrainConfig.load(arguments.resume / "config.yaml")
    for name in given:
        setattr(stored, name, getattr(config, name))
    return stored, arguments.checkpoint
