"""Whole training runs by the wall clock, fastllm's and nanoGPT's in turn: from the command to the end of its process.

    python -m benchmarks.bench_run --nanogpt DIR --data DIR

DIR is a clone of nanoGPT whose data/shakespeare_char/prepare.py has run, and a folder that `fastllm prepare text` made
of the same file (data/shakespeare_char/input.txt). Both train nanoGPT's CPU example: 2000 steps of 4 layers, 4 heads,
128 channels, a context of 64 and a batch of 12.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import harness

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_run", description=__doc__)
    parser.add_argument("--nanogpt", type=Path, required=True, metavar="DIR", help="a clone with its data prepared")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="a folder that fastllm prepare wrote")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each (default 1, about four minutes)")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=RESULTS / "runs" / "shakespeare.json")
    arguments = parser.parse_args()
    for path in (arguments.nanogpt / "train.py", arguments.nanogpt / "data/shakespeare_char/train.bin"):
        if not path.exists():
            parser.error(f"--nanogpt: {path} is missing")
    rounds = [one_round(arguments) for _ in range(arguments.rounds)]
    ratio = statistics.median(r["fastllm"]["seconds"] / r["nanoGPT"]["seconds"] for r in rounds)
    results = {"machine": harness.machine(), "steps": arguments.steps, "ratio": ratio, "rounds": rounds}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"fastllm took {ratio:.0%} of nanoGPT's wall time (median of {len(rounds)}); wrote {arguments.output}")


def one_round(arguments: argparse.Namespace) -> dict:
    """Run both; return each one's seconds and the last validation loss that it printed."""
    nanogpt = [
        sys.executable, "train.py", "config/train_shakespeare_char.py", "--device=cpu", "--compile=False",
        "--eval_iters=20", "--log_interval=1", "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4",
        "--n_embd=128", f"--max_iters={arguments.steps}", f"--lr_decay_iters={arguments.steps}", "--dropout=0.0",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        ours = [
            sys.executable, "-m", "fastllm", "train", "--data", str(arguments.data.resolve()),
            "--out", f"{folder}/run", "--max_steps", str(arguments.steps),
        ]  # fmt: skip
        return {
            "nanoGPT": timed("nanoGPT", nanogpt, arguments.nanogpt, r"val loss ([\d.]+)"),
            "fastllm": timed("fastllm", ours, RESULTS.parent.parent, r"validation loss ([\d.]+)"),
        }


def timed(name: str, command: list[str], folder: Path, loss: str) -> dict:
    started = time.perf_counter()
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if run.returncode:
        sys.exit(f"{name} failed: {run.stderr.strip() or run.stdout.strip()}")
    result = {"seconds": round(seconds, 1), "val_loss": float(re.findall(loss, run.stdout)[-1])}
    print(name, result, flush=True)
    return result


if __name__ == "__main__":
    main()
