"""How speed is measured: peers take turns in one process on the same fresh data, and what is quoted is their ratio.

Machines are shared, so an absolute time says little. Each round gives every peer the same new inputs, in an order
that rotates; a round yields one ratio (peer's time over fastllm's), and the median and quartiles of these are the
result. The outputs are compared first: a peer that computes something else stops the run.
"""

import gc
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fastllm import ops

OURS = "fastllm"
MINIMUM_SECONDS = 0.02  # a measurement repeats a call until it has taken this long


@dataclass
class Case:
    """One piece of work and those who do it.

    Args:
        name: what is done, e.g. "gelu tanh".
        shape: on what, in words.
        setup: makes the inputs of a round; called with a fresh random state each time.
        peers: name -> function of the inputs, which returns the tensors to compare; "fastllm" is ours.
        bytes: the least traffic with memory, for GB/s; None where arithmetic is the limit.
        flops: the arithmetic, for GFLOP/s; None where memory is the limit.
        tolerance: relative to the largest value of each compared tensor; None for random outputs.
    """

    name: str
    shape: str
    setup: Callable[[], tuple]
    peers: dict[str, Callable]
    bytes: int | None = None
    flops: int | None = None
    tolerance: float | None = 1e-4
    skipped: dict[str, str] = field(default_factory=dict)


def machine() -> dict:
    """Return what a reader needs to know of where a result was measured."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in _read("/proc/cpuinfo").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    info = ops.build_info()
    return {
        "cpu": model,
        "threads": torch.get_num_threads(),
        "capability": info["cpu_capability"],
        "torch": torch.__version__,
        "fastllm": info["version"],
        "commit": commit.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }


def where(machine: dict) -> str:
    """Return the machine in words."""
    return (
        f"{machine['cpu']}, {machine['threads']} threads, {machine['capability']}, torch {machine['torch']}, "
        f"{machine['date']}, commit {machine['commit']}"
    )


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def limits() -> dict[str, float]:
    """Measure the machine's own limits now: a plain copy in GB/s and a large matrix product in GFLOP/s."""
    source = torch.randn(64 * 1024 * 1024)
    target = torch.empty_like(source)
    copies = [_time(lambda: target.copy_(source)) for _ in range(7)]
    n = 2048
    a, b, c = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
    products = [_time(lambda: torch.mm(a, b, out=c)) for _ in range(7)]
    return {
        "copy_gb_s": 2 * source.nbytes / statistics.median(copies) / 1e9,
        "matmul_gflop_s": 2 * n**3 / statistics.median(products) / 1e9,
    }


def _time(call: Callable[[], object]) -> float:
    """Return the seconds of one call, repeated until MINIMUM_SECONDS have passed."""
    repeats, total = 0, 0.0
    while total < MINIMUM_SECONDS:
        start = time.perf_counter()
        call()
        total += time.perf_counter() - start
        repeats += 1
    return total / repeats


def check(case: Case) -> None:
    """Compare every peer's outputs with fastllm's; raise if one differs."""
    if case.tolerance is None:
        return
    inputs = case.setup()
    ours = [t.detach().clone() for t in case.peers[OURS](*inputs)]
    for name, peer in case.peers.items():
        for i, (a, b) in enumerate(zip(ours, peer(*inputs), strict=True)):
            error = (a.double() - b.detach().double()).abs().max().item()
            scale = max(b.detach().abs().max().item(), 1e-6)
            if not error <= case.tolerance * scale:
                raise AssertionError(
                    f"{case.name} {case.shape}: output {i} of {name} differs from fastllm's by {error}"
                )


def measure(case: Case, rounds: int = 9) -> dict:
    """Check, warm up, then time all peers in turns; return a row for the results."""
    check(case)
    names = list(case.peers)
    times: dict[str, list[float]] = {name: [] for name in names}
    for round_index in range(rounds + 2):
        inputs = case.setup()
        for name in names[round_index % len(names) :] + names[: round_index % len(names)]:
            seconds = _time(lambda name=name, inputs=inputs: case.peers[name](*inputs))
            if round_index >= 2:  # the first two rounds warm up
                times[name].append(seconds)
        del inputs
        gc.collect()
    ours = statistics.median(times[OURS])
    row = {
        "name": case.name,
        "shape": case.shape,
        "rounds": rounds,
        "seconds": {},
        "ratio": {},
        "skipped": case.skipped,
    }
    for name in names:
        row["seconds"][name] = statistics.median(times[name])
        if name != OURS:
            ratios = [theirs / mine for theirs, mine in zip(times[name], times[OURS], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            row["ratio"][name] = {"median": middle, "quartiles": [low, high]}
    if case.bytes:
        row["gb_s"] = case.bytes / ours / 1e9
    if case.flops:
        row["gflop_s"] = case.flops / ours / 1e9
    return row


def describe(row: dict, limit: dict[str, float]) -> str:
    """Return one line of text for a row."""
    times = ", ".join(f"{name} {seconds * 1e3:.3g} ms" for name, seconds in row["seconds"].items())
    ratios = ", ".join(
        f"{r['median']:.2f}x {name} ({r['quartiles'][0]:.2f}-{r['quartiles'][1]:.2f})"
        for name, r in row["ratio"].items()
    )
    return f"{row['name']} {row['shape']}: {times}; {ratios}; {share(row, limit)}"


def share(row: dict, limit: dict[str, float] | None) -> str:
    """Return what fastllm achieved, and its share of the limit measured in the same run, if one was."""
    if "tokens_s" in row:
        return f"{row['tokens_s'][OURS]:,.1f} tokens/s"
    if "megabytes_s" in row:
        return f"{row['megabytes_s']:.1f} MB/s"
    for key, unit, of, name in (
        ("gb_s", "GB/s", "copy_gb_s", "copy"),
        ("gflop_s", "GFLOP/s", "matmul_gflop_s", "matmul"),
    ):
        if key in row:
            achieved = f"{row[key]:.3g} {unit}"
            return achieved if limit is None else f"{achieved} ({row[key] / limit[of]:.0%} of {name})"
    return ""
