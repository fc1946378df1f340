"""The whole chain in about three minutes on a laptop: real text, a GPT trained on it, and what it then writes.

`make demo` runs this; each step is a command you can run yourself.
"""

import subprocess
import sys
import time
from pathlib import Path

DATA = Path("data/shakespeare")


def fastllm(*arguments: str) -> None:
    print(f"\n$ fastllm {' '.join(arguments)}", flush=True)
    status = subprocess.run([sys.executable, "-m", "fastllm", *arguments], check=False).returncode
    if status:
        sys.exit(status)


def main() -> None:
    run = Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    fastllm("prepare", "shakespeare", "--out", str(DATA))
    fastllm("train", "--data", str(DATA), "--out", str(run))
    fastllm("sample", str(run), "--num_samples", "2", "--max_new_tokens", "300")
    print(f"\nThe loss curve is in {run}/loss.png; more text: .venv/bin/fastllm sample {run} --prompt 'ROMEO:'")


if __name__ == "__main__":
    main()
