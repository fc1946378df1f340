"""What the README and docs/benchmarks.md say was measured, made of results/: nothing is typed by hand.

The README gets a chart and a short table: the rows of FEATURED and all that lose. docs/benchmarks.md gets every row.
"""

import json
import re
import statistics
import sys
from pathlib import Path

from benchmarks import bench_training, harness

HERE = Path(__file__).parent
RESULTS = HERE / "results"
README = HERE.parent / "README.md"
DETAILS = HERE.parent / "docs" / "benchmarks.md"
CHART = RESULTS / "readme.png"
START, END = "<!-- benchmarks: start -->", "<!-- benchmarks: end -->"
# Rows of cpu.json, by their name and the beginning of their shape: a step of training, part by part.
FEATURED = (
    ("layer_norm fwd+bwd", ""), ("dropout_add_layer_norm fwd+bwd", ""), ("bias_gelu tanh fwd+bwd", ""),
    ("swiglu packed fwd+bwd", ""), ("rotary_embedding fwd+bwd", ""), ("cross_entropy fwd+bwd", ""),
    ("linear_cross_entropy fwd+bwd", ""), ("scaled_dot_product_attention causal fwd+bwd", "B4 H12 T1024"),
    ("linear fwd+bwd", "1024x768"), ("clip + AdamW", ""), ("training step", ""),
)  # fmt: skip
PEERS = ("torch", "nanoGPT")


def fill() -> None:
    """Put the results between the markers of both files, and draw the README's chart."""
    from benchmarks.__main__ import plot

    plot(chosen(read("cpu.json")), CHART)
    for path, measured in ((README, short()), (DETAILS, full())):
        path.write_text(filled(path, measured), encoding="utf-8")
        print(f"filled {path.name}")


def filled(path: Path, measured: str) -> str:
    """Return a file's text with this between its markers."""
    text = path.read_text(encoding="utf-8")
    pattern = re.compile(re.escape(START) + ".*" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        sys.exit(f"{path.name}: the markers {START} and {END} are missing")
    return pattern.sub(lambda _: f"{START}\n{measured}\n{END}", text)


def short() -> str:
    """Return what the README shows: the chosen rows, a whole run, and what is slower than its peer anywhere."""
    run, xeon = read("runs/shakespeare.json"), read("cpu-xeon.json")
    return "\n".join(
        [
            table(chosen(read("cpu.json"))),
            "",
            f"- A whole run of nanoGPT's CPU example ({run['steps']} steps, from command to prompt) takes "
            f"{run['ratio']:.0%} of nanoGPT's time. {harness.where(run['machine'])}.",
            f"- Another CPU: {in_short(xeon)}",
            f"- Layers in torch.nn's place and patched models: {in_short(read('layers/cpu.json'))}",
            f"- Slower in generation: {slower(read('decode/cpu.json'))}.",
            f"- Slower in tokenizers: {slower(read('tokenizers/cpu.json'))}.",
        ]
    )


def full() -> str:
    """Return every row that was measured."""
    picture = "../benchmarks/results/cpu-xeon.png"
    ops = f"{table(read('cpu.json'))}\n\n{in_short(read('cpu-xeon.json'))} [Picture]({picture})."
    sections = [
        ("Ops, and a training step (`python -m benchmarks --nanogpt DIR`)", ops),
        (
            "Layers in torch.nn's place, and patched models of transformers (`python -m benchmarks.bench_layers`)",
            table(read("layers/cpu.json")),
        ),
        ("A whole run beside nanoGPT's (`python -m benchmarks.bench_run`)", whole_run(read("runs/shakespeare.json"))),
        ("Generation (`python -m benchmarks.bench_decode`)", table(read("decode/cpu.json"))),
        ("Tokenizers (`python -m benchmarks.bench_tokenizers`)", table(read("tokenizers/cpu.json"))),
        (
            "What trained models reach (`python -m benchmarks.bench_training`)",
            bench_training.table([json.loads(path.read_text()) for path in RESULTS.glob("training/*.json")]),
        ),
    ]
    return "\n\n".join(f"## {title}\n\n{content}" for title, content in sections)


def chosen(results: dict) -> dict:
    """Return results with the rows of FEATURED, and behind them those that lose to torch or nanoGPT."""
    rows = []
    for name, shape in FEATURED:
        found = [row for row in results["rows"] if row["name"] == name and row["shape"].startswith(shape)]
        if not found:
            sys.exit(f"cpu.json has no row '{name}' {shape}, which the README shows: measure it, or change FEATURED")
        rows.append(found[0])
    rows += [row for row in results["rows"] if row not in rows and min(_ratios(row, PEERS).values()) < 1]
    kept = [{**row, "ratio": {peer: row["ratio"][peer] for peer in _ratios(row, PEERS)}} for row in rows]
    return {**results, "rows": kept}


def slower(results: dict) -> str:
    """Return the rows that lose to a peer: how many times faster than the fastest peer they are, and which that is."""
    worst = {
        f"{row['name']} {row['shape']}": min((r, peer) for peer, r in _ratios(row).items()) for row in results["rows"]
    }
    return "; ".join(f"{row}: {r:.2f} ({peer})" for row, (r, peer) in worst.items() if round(r, 2) < 1) or "none"


def _ratios(row: dict, peers: tuple[str, ...] | None = None) -> dict[str, float]:
    return {peer: ratio["median"] for peer, ratio in row["ratio"].items() if peers is None or peer in peers}


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


def in_short(results: dict) -> str:
    """Return what the rows of another machine come to beside torch, and which of them lose."""
    ratios = [row["ratio"]["torch"]["median"] for row in results["rows"]]
    return (
        f"{harness.where(results['machine'])}: {statistics.median(ratios):.2f} times faster than torch (median of "
        f"{len(ratios)} rows, {min(ratios):.2f} to {max(ratios):.2f}). Slower: {slower(results)}."
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
