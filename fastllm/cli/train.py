"""fastllm train: a new run, or one that goes on."""

import signal
from pathlib import Path

from jsonargparse import Namespace

from fastllm.cli.parser import Parser
from fastllm.errors import UserError
from fastllm.train.config import TrainConfig


def add_to(commands) -> None:
    """Add the command's parser."""
    parser = Parser(description="Train a GPT. Settings come from --config FILE.yaml and from options, which win.")
    parser.add_argument("--config", action="config", help="a YAML file with any of the settings below")
    parser.add_class_arguments(TrainConfig)
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
    trainer = Trainer(config, resume)
    spare_long_lived_objects()
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        trainer.request_stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with Reporter(config.max_steps, trainer.step) as reporter:
        reporter.say(f"{trainer.model.num_parameters():,} parameters, run folder {trainer.run}")
        try:
            summary = trainer.train(reporter)
        except TrainingInterrupted:
            reporter.say(
                f"interrupted after step {trainer.step}: saved in {trainer.run}/checkpoints/last; "
                f"continue with: fastllm train --resume {trainer.run}"
            )
            return 128 + received[0]
    print(
        f"done in {summary['seconds']:.1f} s: validation loss {summary['val_loss']:.4f} over the whole split; "
        f"curve in {trainer.run}/loss.png; try: fastllm sample {trainer.run}"
    )
    return 0


def train_config(arguments: Namespace) -> tuple[TrainConfig, str | None]:
    """Return the run's settings and the checkpoint to resume from, None for a new run."""
    names = TrainConfig.__dataclass_fields__
    config = TrainConfig(**{name: arguments[name] for name in names})
    if arguments.resume is None:
        return config, None
    if arguments.checkpoint not in ("last", "best"):
        raise UserError(f"train: 'checkpoint' must be last or best, got '{arguments.checkpoint}'")
    extra = [name for name in config.changed_from_defaults() if name != "max_steps"]
    if extra:
        options = ", --".join(extra)
        raise UserError(f"train: --resume keeps the run's own settings but for --max_steps; leave out --{options}")
    stored = TrainConfig.load(arguments.resume / "config.yaml")
    if "max_steps" in config.changed_from_defaults():
        stored.max_steps = config.max_steps
    return stored, arguments.checkpoint
