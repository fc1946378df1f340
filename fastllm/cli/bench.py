"""fastllm bench: the benchmarks of a source checkout."""

import subprocess
import sys
from pathlib import Path

from jsonargparse import Namespace

from fastllm.cli.parser import Parser
from fastllm.errors import UserError


def add_to(commands) -> None:
    """Add the command's parser."""
    parser = Parser(description="Measure the kernels; further options go to python -m benchmarks (see its --help).")
    parser.add_argument("options", nargs="*", help="options for python -m benchmarks, after --")
    commands.add_subcommand("bench", parser, help="measure the kernels")


def run(arguments: Namespace) -> int:
    """Run the benchmarks of a source checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks" / "__main__.py").is_file():
        raise UserError("bench: the benchmarks are in the source checkout, not in the installed package; run it there")
    return subprocess.run([sys.executable, "-m", "benchmarks", *arguments.options], cwd=root, check=False).returncode
