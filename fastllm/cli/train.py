"""fastllm train: a new run, or one that goes on."""

import signal
from pathlib import Path

from jsonargparse import Namespace

from fastllm.cli.options import add_train_config, config_of, given_settings
from fastllm.cli.parser import Parser
from fastllm.errors import UserError
from fastllm.train.config import RESUMABLE, TrainConfig
from fastllm.train.plot import can_plot
from fastllm.train.schedule import ENDING


def add_to(commands) -> None:
    """Add the command's parser."""
    parser = Parser(
        description="Train a model. Settings come from --config FILE.yaml and from options, which win. The same "
        "command under torchrun trains with several processes."
    )
    add_train_config(parser)
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue this run, with its own settings")
    parser.add_argument("--checkpoint", default="last", help="the checkpoint to resume from: last or best")
    commands.add_subcommand("train", parser, help="train a model on a data folder")


def run(arguments: Namespace) -> int:
    """Train, or continue a run."""
    config, resume = train_config(arguments)
    config.check()
    _check_effect(arguments)

    from fastllm.memory import keep_freed_memory, spare_long_lived_objects
    from fastllm.train.report import SCORES, Reporter
    from fastllm.train.trainer import Trainer, TrainingInterrupted

    _check_processes(arguments)
    keep_freed_memory()
    trainer = Trainer(config, resume, arguments.given)
    spare_long_lived_objects()
    name = trainer.run.quoted
    reporter = Reporter(config.max_steps, trainer.step, quiet=not trainer.parallel.is_main)
    received = _stop_on_signals(trainer, reporter)
    try:
        with reporter:
            _say_beginning(trainer, resume, reporter)
            summary = trainer.train(reporter)
    except TrainingInterrupted:
        reporter.say(
            f"interrupted after step {trainer.step}: saved in {trainer.run}/checkpoints/last; "
            f"continue with: fastllm train --resume {name}"
        )
        return 128 + (received[0] if received else signal.SIGINT)  # a signal that only another process got
    if trainer.step < config.max_steps:
        figure = {"loss": "validation loss", "bleu": "BLEU", "chrf": "chrF"}[config.best_by]
        reporter.say(f"stopped after step {trainer.step}: no better {figure} in {config.patience} evaluations")
    curve = f"; curve in {trainer.run}/loss.png" if can_plot() else ""
    used = "translate" if config.model.task == "translation" else "sample"
    scores = "".join(f", {name} {summary[key]:.1f}" for key, name in SCORES.items() if key in summary)
    reporter.say(
        f"done in {summary['seconds']:.1f} s: validation loss {summary['val_loss']:.4f}{scores} over the whole split"
        f"{curve}; try: fastllm {used} {name}"
    )
    return 0


def _say_beginning(trainer, resume: str | None, reporter) -> None:
    config = trainer.config
    reporter.say(f"{_size(trainer)}, run folder {trainer.run}")
    if resume is not None and not trainer.resumed:
        reporter.say("the run had not saved anything yet: it starts from the beginning")
    if trainer.step == config.max_steps and not trainer.progress.evaluation_due:
        rises = config.schedule in ENDING
        reporter.say(
            f"the run is already at its last step, {trainer.step}; to continue it, give a larger --max_steps"
            + (f" (the learning rate then rises again: {config.schedule} ends at max_steps)" if rises else "")
        )
    if not can_plot():
        reporter.say("no loss.png will be drawn, as matplotlib is missing: pip install 'fastllm[train]'")
    for note in trainer.notes:
        reporter.say(f"note: {note}")


def _stop_on_signals(trainer, reporter) -> list[int]:
    """Let signals end the run after its step, with a checkpoint; return where those received are listed.

    A second Ctrl-C or TERM ends the process at once; but torchrun passes on what the terminal already sent to all, and
    a connection that drops may send HUP twice.
    """
    received: list[int] = []
    again = not trainer.parallel.under_torchrun

    def stop(number: int, frame: object) -> None:
        received.append(number)
        trainer.request_stop()
        if again:
            for one in (signal.SIGINT, signal.SIGTERM):
                signal.signal(one, signal.SIG_DFL)
        reporter.stopping("stopping after this step" + "; again stops now" * again)

    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None)):
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores HUP
            signal.signal(number, stop)
    return received


def _check_effect(arguments: Namespace) -> None:
    """Raise UserError for options of the command line that would do nothing."""
    typed = arguments.typed
    idle = {
        "checkpoint": (arguments.resume is None, "chooses where --resume continues: add --resume RUN"),
        "decay_share": (arguments.schedule != "wsd" and arguments.resume is None, "belongs to --schedule wsd: add it"),
        "min_learning_rate": (
            arguments.schedule not in ENDING and arguments.resume is None,
            f"belongs to --schedule {' and '.join(ENDING)}: choose one of them",
        ),
        "micro_batch_size": (
            arguments.resume is None and (arguments.micro_batch_size or 0) > arguments.batch_size,
            f"must be at most batch_size ({arguments.batch_size}): make it smaller",
        ),
    }
    for name, (without_effect, why) in idle.items():
        if name in typed and without_effect:
            raise UserError(f"train: '{name}' {why}, or leave it out")


def _check_processes(arguments: Namespace) -> None:
    from fastllm.train.parallel import Parallel

    if "parallel" in arguments.typed and not Parallel().under_torchrun:
        raise UserError(
            "train: 'parallel' says how several processes share the work, and there is only one: start several with "
            "torchrun --nproc_per_node=N -m fastllm train, or leave it out"
        )


def _size(trainer) -> str:
    count = trainer.parallel.world_size
    processes = f" in {count} processes ({trainer.config.parallel})" if count > 1 else ""
    tokens, ids = trainer.task.tokenizer.vocab_size, trainer.model.config.vocab_size
    padding = f" ({ids - tokens:,} of its {ids:,} token ids are padding)" if ids > tokens else ""
    return f"{trainer.model.num_parameters():,} parameters{padding} on {trainer.device.type}{processes}"


def train_config(arguments: Namespace) -> tuple[TrainConfig, str | None]:
    """Return the run's settings and the checkpoint to resume from, None for a new run."""
    if arguments.resume is None:
        return config_of(arguments), None
    if arguments.checkpoint not in ("last", "best"):
        raise UserError(f"train: 'checkpoint' must be last or best, got '{arguments.checkpoint}'")
    given = given_settings(arguments)
    extra = [name for name in given if name not in RESUMABLE]
    if extra:
        options = ", --".join(extra)
        raise UserError(
            f"train: --resume keeps the run's settings, except --max_steps and those that change no result; leave "
            f"out --{options}"
        )
    stored = TrainConfig.load(arguments.resume / "config.yaml")
    for name in given:
        setattr(stored, name, arguments[name])
    return stored, arguments.checkpoint
