"""Measure, print, write results/*.json and the plot; python -m benchmarks.readme fills the README from them."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import bench_attention, bench_gpt, bench_ops, harness
from fastllm import ops

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--full", action="store_true", help="also torch.compile and the larger models (many minutes)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cpu (float32) or cuda")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), help="default float32 on cpu, bfloat16 on cuda"
    )
    parser.add_argument("--only", default="", help="measure only the cases whose name contains this text")
    parser.add_argument("--peer", action="append", help="compare with this peer only; may be given again")
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds a case (default 9)")
    parser.add_argument("--threads", type=int, help="torch's intra-op threads (default: torch's own choice)")
    parser.add_argument("--nanogpt", type=Path, metavar="DIR", help="a clone of nanoGPT, to measure its model too")
    parser.add_argument("--output", type=Path, help="where the JSON goes (default benchmarks/results/DEVICE.json)")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    if arguments.device == "cuda" and ops.build_info()["cuda"] == "no":
        parser.error(f"--device cuda: this build has no CUDA kernels ({ops.build_info()['cuda_reason']})")
    if arguments.device == "cpu" and arguments.dtype not in (None, "float32"):
        parser.error(f"--dtype {arguments.dtype} is measured with --device cuda only")
    output = arguments.output or RESULTS / f"{arguments.device}.json"
    if arguments.rounds < 3:
        parser.error(f"--rounds must be at least 3 for quartiles, got {arguments.rounds}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    output.parent.mkdir(parents=True, exist_ok=True)
    results = run(arguments, output)
    plot(results, output.with_suffix(".png"))
    print(f"wrote {output} and {output.with_suffix('.png').name}")
    if results["failed"]:
        sys.exit(f"{len(results['failed'])} cases failed: {', '.join(results['failed'])}")


def run(arguments: argparse.Namespace, output: Path) -> dict:
    """Measure all chosen cases, printing each as it comes; what is measured is written at once.

    A case whose outputs differ, or that raises, is told and left out, and the others go on.
    """
    dtype = arguments.dtype or ("bfloat16" if arguments.device == "cuda" else "float32")
    setting = harness.Setting(arguments.device, getattr(torch, dtype))
    machine, limit = harness.machine(setting), harness.limits(setting)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"limits now: copy {limit['copy_gb_s']:.1f} GB/s, matrix product {limit['matmul_gflop_s']:.0f} GFLOP/s")
    results: dict = {"machine": machine, "limits": limit, "rows": [], "failed": {}}
    families = {"ops": bench_ops.cases(arguments.full, setting)}
    if setting.device == "cuda":
        families["attention"] = bench_attention.cases()
    families["training step"] = bench_gpt.cases(arguments.full, arguments.nanogpt, setting)
    for family, its_cases in families.items():
        for case in until_one_fails(family, its_cases, results["failed"]):
            if arguments.only not in f"{case.name} {case.shape}":
                continue
            if arguments.peer:
                wanted = {harness.OURS, *arguments.peer}
                case.peers = {name: peer for name, peer in case.peers.items() if name in wanted}
            try:
                row = harness.measure(case, arguments.rounds, setting)
            except (AssertionError, RuntimeError) as error:
                results["failed"][f"{case.name} {case.shape}"] = str(error)
                print(f"{case.name} {case.shape} FAILED: {error}", flush=True)
                continue
            results["rows"].append(row)
            output.write_text(json.dumps(results, indent=1) + "\n")
            print(harness.describe(row, limit), flush=True)
    if not results["rows"]:
        sys.exit(f"no case with '{arguments.only}' in its name was measured")
    return results


def until_one_fails(family: str, cases: Iterator[harness.Case], failed: dict) -> Iterator[harness.Case]:
    """Yield the cases; one that cannot even be made is the last."""
    try:
        yield from cases
    except (AssertionError, RuntimeError) as error:
        failed[f"{family}: making a case"] = str(error)
        print(f"{family}: making a case FAILED: {error}", flush=True)


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
        [i + height * (len(row["ratio"]) - 1) / 2 for i, row in enumerate(rows)],
        [f"{row['name']}  {row['shape']}" for row in rows],
        fontsize=8,
    )
    axes.set_ylim(len(rows), -height / 2 - 0.2)  # the first row on top
    axes.set_xscale("log")
    ticks = [0.5, 1, 2, 5, 10, 20]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(left=0.5)
    axes.set_xlabel("times faster than the peer (median, quartiles)")
    machine = results["machine"]
    unit = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    axes.set_title(f"fastllm on {unit}", fontsize=10)
    figure.legend(loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
