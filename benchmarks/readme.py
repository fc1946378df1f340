"""The README's measured part, made of results/: what was measured, beside what, and where; nothing is typed by hand."""

import json
import re
import statistics
import sys
from pathlib import Path

from benchmarks import bench_training, harness

HERE = Path(__file__).parent
RESULTS = HERE / "results"
README = HERE.parent / "README.md"
START, END = "<!-- benchmarks: start -->", "<!-- benchmarks: end -->"


def fill() -> None:
    """Put all results between the README's markers."""
    text = README.read_text()
    pattern = re.compile(re.escape(START) + ".*" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        sys.exit(f"{README.name}: the markers {START} and {END} are missing")
    ops = f"{table(read('cpu.json'))}\n\n{in_short(read('cpu-xeon.json'), 'benchmarks/results/cpu-xeon.png')}"
    sections = [
        ("Ops, and a training step (`python -m benchmarks --nanogpt DIR`)", ops),
        ("A whole run beside nanoGPT's (`python -m benchmarks.bench_run`)", whole_run(read("runs/shakespeare.json"))),
        ("Generation (`python -m benchmarks.bench_decode`)", table(read("decode/cpu.json"))),
        ("Tokenizers (`python -m benchmarks.bench_tokenizers`)", table(read("tokenizers/cpu.json"))),
        (
            "What trained models reach (`python -m benchmarks.bench_training`)",
            bench_training.table([json.loads(path.read_text()) for path in RESULTS.glob("training/*.json")]),
        ),
    ]
    measured = "\n\n".join(f"### {title}\n\n{content}" for title, content in sections)
    README.write_text(pattern.sub(lambda _: f"{START}\n{measured}\n{END}", text))
    print(f"filled {README.name}")


def read(name: str) -> dict:
    """Return one file of results."""
    return json.loads((RESULTS / name).read_text())


def table(results: dict) -> str:
    """Return every row, the ones that lose included."""
    limits = results.get("limits")
    peers = list(dict.fromkeys(name for row in results["rows"] for name in row["ratio"]))
    measured = ""
    if limits is not None:
        measured = (
            f" Limits measured in the same run: a copy {limits['copy_gb_s']:.0f} GB/s, torch's matrix product "
            f"{limits['matmul_gflop_s']:.0f} GFLOP/s."
        )
    lines = [
        f"{harness.where(results['machine'])}.{measured}",
        "",
        f"| work | shape | fastllm | achieved | {' | '.join(f'times faster than {peer}' for peer in peers)} |",
        f"|---|---|---:|---|{'---:|' * len(peers)}",
    ]
    for row in results["rows"]:
        ratios = [f"{row['ratio'][peer]['median']:.2f}" if peer in row["ratio"] else "" for peer in peers]
        ours = f"{row['seconds'][harness.OURS] * 1e3:.3g} ms"
        lines.append(
            f"| {row['name']} | {row['shape']} | {ours} | {harness.share(row, limits)} | {' | '.join(ratios)} |"
        )
    return "\n".join(lines)


def in_short(results: dict, picture: str) -> str:
    """Return what the rows of another machine come to beside torch, and which of them lose."""
    ratios = {f"{row['name']} {row['shape']}": row["ratio"]["torch"]["median"] for row in results["rows"]}
    losing = [f"{name} {ratio:.2f}" for name, ratio in ratios.items() if ratio < 1]
    return (
        f"{harness.where(results['machine'])} ([picture]({picture})): {statistics.median(ratios.values()):.2f} times "
        f"faster than torch (median of {len(ratios)} rows, {min(ratios.values()):.2f} to {max(ratios.values()):.2f})"
        + (f"; slower: {', '.join(losing)}." if losing else ".")
    )


def whole_run(results: dict) -> str:
    """Return what bench_run measured, as a sentence a round."""
    rounds = [
        " and ".join(f"{name} {r['seconds']:.1f} s (validation loss {r['val_loss']:.4f})" for name, r in one.items())
        for one in results["rounds"]
    ]
    return (
        f"nanoGPT's CPU example, {results['steps']} steps from command to prompt; {harness.where(results['machine'])}: "
        f"{'; '.join(rounds)}. That is {results['ratio']:.0%} of nanoGPT's time (median). fastllm's loss is of the "
        "whole validation split, nanoGPT's of 20 random batches; the models differ in how their weights start."
    )


if __name__ == "__main__":
    fill()
