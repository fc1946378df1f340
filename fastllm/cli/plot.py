"""fastllm plot: several runs in one picture."""

from pathlib import Path

from jsonargparse import Namespace

from fastllm.cli.parser import Parser


def add_to(commands) -> None:
    """Add the command's parser."""
    parser = Parser(description="Draw the validation loss of several runs into one picture.")
    parser.add_argument("runs", nargs="+", type=Path, help="the runs' folders")
    parser.add_argument(
        "--out", type=Path, default=Path("loss.png"), help="the picture to write: .png, .svg, .pdf, .jpg or .webp"
    )
    commands.add_subcommand("plot", parser, help="draw several runs in one picture")


def run(arguments: Namespace) -> int:
    """Draw the picture."""
    from fastllm.train.plot import plot_runs

    print(plot_runs(arguments.runs, arguments.out))
    return 0
