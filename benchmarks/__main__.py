"""Measure, print, write results/*.json and the plot; --readme fills the README's table from them."""

import argparse
import json
import re
import sys
from pathlib import Path

import torch

from benchmarks import bench_gpt, bench_ops, harness

HERE = Path(__file__).parent
RESULTS = HERE / "results"
README = HERE.parent / "README.md"
START, END = "<!-- benchmarks: start -->", "<!-- benchmarks: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--full", action="store_true", help="also torch.compile and the larger models (many minutes)")
    parser.add_argument("--only", default="", help="measure only the cases whose name contains this text")
    parser.add_argument("--peer", action="append", help="compare with this peer only; may be given again")
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds a case (default 9)")
    parser.add_argument("--threads", type=int, help="torch's intra-op threads (default: torch's own choice)")
    parser.add_argument("--nanogpt", type=Path, metavar="DIR", help="a clone of nanoGPT, to measure its model too")
    parser.add_argument("--output", type=Path, help="where the JSON goes (default benchmarks/results/cpu.json)")
    parser.add_argument("--readme", action="store_true", help="measure nothing: fill the README's table from the JSON")
    arguments = parser.parse_args()
    output = arguments.output or RESULTS / "cpu.json"
    if arguments.readme:
        fill_readme()
        return
    if arguments.rounds < 3:
        parser.error(f"--rounds must be at least 3 for quartiles, got {arguments.rounds}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    results = run(arguments)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=1) + "\n")
    plot(results, output.with_suffix(".png"))
    print(f"wrote {output} and {output.with_suffix('.png').name}")


def run(arguments: argparse.Namespace) -> dict:
    """Measure all chosen cases, printing each as it comes."""
    machine, limit = harness.machine(), harness.limits()
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"limits now: copy {limit['copy_gb_s']:.1f} GB/s, matrix product {limit['matmul_gflop_s']:.0f} GFLOP/s")
    rows = []
    for family in (bench_ops.cases(arguments.full), bench_gpt.cases(arguments.full, arguments.nanogpt)):
        for case in family:
            if arguments.only not in f"{case.name} {case.shape}":
                continue
            if arguments.peer:
                wanted = {harness.OURS, *arguments.peer}
                case.peers = {name: peer for name, peer in case.peers.items() if name in wanted}
            row = harness.measure(case, arguments.rounds)
            rows.append(row)
            print(harness.describe(row, limit))
            for peer, why in case.skipped.items():
                print(f"  {peer} skipped: {why}")
            sys.stdout.flush()
    if not rows:
        sys.exit(f"--only: no case has '{arguments.only}' in its name")
    return {"machine": machine, "limits": limit, "rows": rows}


def table(results: dict) -> str:
    """Return the README's table: every row, the ones that lose included."""
    machine = results["machine"]
    peers = list(dict.fromkeys(name for row in results["rows"] for name in row["ratio"]))
    lines = [
        f"{machine['cpu']}, {machine['threads']} threads, {machine['capability']}, torch {machine['torch']}, "
        f"{machine['date']}, commit {machine['commit']}. Copy limit {results['limits']['copy_gb_s']:.0f} GB/s, matrix "
        f"product limit {results['limits']['matmul_gflop_s']:.0f} GFLOP/s, measured in the same run.",
        "",
        f"| work | shape | fastllm | achieved | {' | '.join(f'times faster than {peer}' for peer in peers)} |",
        f"|---|---|---:|---|{'---:|' * len(peers)}",
    ]
    for row in results["rows"]:
        ratios = [f"{row['ratio'][peer]['median']:.2f}" if peer in row["ratio"] else "" for peer in peers]
        ours = f"{row['seconds'][harness.OURS] * 1e3:.3g} ms"
        achieved = harness.share(row, results["limits"])
        lines.append(f"| {row['name']} | {row['shape']} | {ours} | {achieved} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def whole_run(results: dict) -> str:
    """Return what bench_run measured, as a sentence a round."""
    machine = results["machine"]
    rounds = [
        " and ".join(f"{name} {r['seconds']:.1f} s (validation loss {r['val_loss']:.4f})" for name, r in one.items())
        for one in results["rounds"]
    ]
    return (
        f"nanoGPT's CPU example whole, {results['steps']} steps from command to prompt (`python -m "
        f"benchmarks.bench_run`; {machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, "
        f"{machine['date']}): {'; '.join(rounds)}; that is {results['ratio']:.0%} of nanoGPT's time. fastllm's loss is "
        "of the whole validation split, nanoGPT's of 20 random batches."
    )


def fill_readme() -> None:
    """Put a table of each results/*.json, and the whole runs, between the README's markers."""
    parts = [table(json.loads(path.read_text())) for path in sorted(RESULTS.glob("*.json"))]
    parts += [whole_run(json.loads(path.read_text())) for path in sorted(RESULTS.glob("runs/*.json"))]
    tables = "\n\n".join(parts)
    text = README.read_text()
    pattern = re.compile(re.escape(START) + ".*" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        sys.exit(f"{README.name}: the markers {START} and {END} are missing")
    README.write_text(pattern.sub(lambda _: f"{START}\n{tables}\n{END}", text))
    print(f"filled {README.name}")


def plot(results: dict, path: Path) -> None:
    """Draw every row's ratio to each peer, with its quartiles."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = results["rows"]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.32 * len(rows)), layout="constrained")
    peers = list(dict.fromkeys(name for row in rows for name in row["ratio"]))
    height = 0.8 / max(1, len(peers))
    for index, peer in enumerate(peers):
        have = [(i, row["ratio"][peer]) for i, row in enumerate(rows) if peer in row["ratio"]]
        middle = [ratio["median"] for _, ratio in have]
        low = [ratio["median"] - ratio["quartiles"][0] for _, ratio in have]
        high = [ratio["quartiles"][1] - ratio["median"] for _, ratio in have]
        axes.barh([i + index * height for i, _ in have], middle, height, xerr=[low, high], label=peer, capsize=2)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(
        [i + 0.4 - height / 2 for i in range(len(rows))], [f"{r['name']}  {r['shape']}" for r in rows], fontsize=8
    )
    axes.invert_yaxis()
    axes.set_xscale("log")
    ticks = [0.5, 1, 2, 5, 10, 20]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(left=0.5)
    axes.set_xlabel("times faster than the peer (median, quartiles)")
    axes.set_title(f"fastllm on {results['machine']['cpu']}, {results['machine']['threads']} threads", fontsize=10)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
