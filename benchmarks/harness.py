"""How speed is measured: peers take turns in one process on the same fresh data, and what is quoted is their ratio.

Machines are shared, so an absolute time says little. Each round gives every peer the same new inputs, in an order
that rotates; a round yields one ratio (peer's time over fastllm's), and the median and quartiles of these are the
result. The outputs are compared first: a peer that computes something else stops the run.
"""

import contextlib
import gc
import math
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fastllm import ops

OURS = "fastllm"
MINIMUM_SECONDS = 0.02  # a measurement repeats a call until it has taken this long


@dataclass(frozen=True)
class Setting:
    """Where the cases compute and in what: device "cpu" or "cuda", and the dtype of what setups make by default."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @contextlib.contextmanager
    def making(self) -> Iterator[None]:
        """Make new tensors on the device, floating ones in the dtype."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with torch.device(self.device):
                yield
        finally:
            torch.set_default_dtype(before)

    def autocast(self) -> contextlib.AbstractContextManager:
        """Compute in the dtype with parameters in float32, as training does."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device, self.dtype)

    @property
    def resolution(self) -> float:
        """How far apart two right results may be, relative to the largest value, by the dtype alone."""
        return 0.0 if self.dtype == torch.float32 else 4 * torch.finfo(self.dtype).eps


CPU = Setting()


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
        tolerance: relative to the largest value of each compared tensor, in float32 (a coarser dtype has its own); None
            for random outputs.
        skipped: peer -> why it is not measured; the harness adds those that cannot do the work.
    """

    name: str
    shape: str
    setup: Callable[[], tuple]
    peers: dict[str, Callable]
    bytes: int | None = None
    flops: int | None = None
    tolerance: float | None = 1e-4
    skipped: dict[str, str] = field(default_factory=dict)


def machine(setting: Setting = CPU) -> dict:
    """Return what a reader needs to know of where a result was measured."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    info = ops.build_info()
    gpu = {"gpu": torch.cuda.get_device_name(), "dtype": str(setting.dtype)} if setting.device == "cuda" else {}
    return {
        **gpu,
        "cpu": cpu_name(_read("/proc/cpuinfo")),
        "threads": torch.get_num_threads(),
        "capability": info["cpu_capability"],
        "torch": torch.__version__,
        "fastllm": info["version"],
        "commit": commit.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }


# By vendor, family and models: what a CPU's own name, such as "AMD EPYC", does not say.
MICROARCHITECTURES = (
    ("AuthenticAMD", 23, range(0x30, 0x100), "Zen 2"), ("AuthenticAMD", 23, range(0x30), "Zen"),
    ("AuthenticAMD", 25, range(0x10, 0x20), "Zen 4"), ("AuthenticAMD", 25, range(0x60, 0x80), "Zen 4"),
    ("AuthenticAMD", 25, range(0xA0, 0xB0), "Zen 4"), ("AuthenticAMD", 25, range(0x100), "Zen 3"),
    ("AuthenticAMD", 26, range(0x100), "Zen 5"), ("GenuineIntel", 6, (85,), "Skylake or Cascade Lake"),
    ("GenuineIntel", 6, (106, 108), "Ice Lake"), ("GenuineIntel", 6, (143,), "Sapphire Rapids"),
    ("GenuineIntel", 6, (207,), "Emerald Rapids"), ("GenuineIntel", 6, (173, 174), "Granite Rapids"),
)  # fmt: skip


def cpu_name(cpuinfo: str) -> str:
    """Return a CPU's name with its microarchitecture, of what /proc/cpuinfo says."""
    facts = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", cpuinfo, re.MULTILINE))
    name = facts.get("model name", "").strip() or platform.processor()
    if not {"vendor_id", "cpu family", "model"} <= facts.keys():
        return name
    vendor, family, model = facts["vendor_id"], int(facts["cpu family"]), int(facts["model"])
    known = (kind for its, of, models, kind in MICROARCHITECTURES if (its, of) == (vendor, family) and model in models)
    return f"{name} ({next(known, f'family {family}, model {model}')})"


def where(machine: dict) -> str:
    """Return the machine in words."""
    unit = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads, {machine['capability']}"
    return f"{unit}, torch {machine['torch']}, {machine['date']}, commit {machine['commit']}"


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def limits(setting: Setting = CPU) -> dict[str, float]:
    """Measure the machine's own limits now: a plain copy in GB/s and a large matrix product in GFLOP/s."""
    on_cpu = setting.device == "cpu"
    n = 2048 if on_cpu else 8192
    with setting.making():
        source = torch.randn((64 if on_cpu else 512) * 1024 * 1024)
        target = torch.empty_like(source)
        a, b, c = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
    copies = [_time(lambda: target.copy_(source), setting) for _ in range(7)]
    products = [_time(lambda: torch.mm(a, b, out=c), setting) for _ in range(7)]
    return {
        "copy_gb_s": 2 * source.nbytes / statistics.median(copies) / 1e9,
        "matmul_gflop_s": 2 * n**3 / statistics.median(products) / 1e9,
    }


def _time(call: Callable[[], object], setting: Setting = CPU) -> float:
    """Return the seconds of one call, repeated until MINIMUM_SECONDS have passed."""
    if setting.device == "cuda":
        return _time_on_gpu(call)
    repeats, total = 0, 0.0
    while total < MINIMUM_SECONDS:
        start = time.perf_counter()
        call()
        total += time.perf_counter() - start
        repeats += 1
    return total / repeats


def _time_on_gpu(call: Callable[[], object]) -> float:
    """Time replays of the call captured as a CUDA graph: the GPU's own work, not Python's launching of it."""
    torch.cuda.synchronize()  # the inputs were made on another stream
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(torch.cuda.Stream()):
        call()  # what is made on a first call (workspaces, compiled code) is made outside the capture
        torch.cuda.current_stream().synchronize()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            call()
        repeats = 1
        while True:
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(repeats):
                graph.replay()
            stop.record()
            stop.synchronize()
            seconds = start.elapsed_time(stop) / 1e3
            if seconds >= MINIMUM_SECONDS:
                return seconds / repeats
            repeats = math.ceil(repeats * min(100.0, 1.2 * MINIMUM_SECONDS / max(seconds, 1e-6)))


def check(case: Case, setting: Setting = CPU) -> None:
    """Compare every peer's outputs with fastllm's; raise if one differs.

    A peer that raises (it does not serve this device, dtype or option) is left out.
    """
    tolerance = None if case.tolerance is None else max(case.tolerance, setting.resolution)
    with setting.making():
        inputs = case.setup()
    ours = [t.detach().clone() for t in case.peers[OURS](*inputs)]
    for name in [name for name in case.peers if name != OURS]:
        try:
            theirs = case.peers[name](*inputs)
        except (RuntimeError, ValueError) as error:
            leave_out(case, name, error)
            continue
        if tolerance is None:
            continue
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            error = (a.double() - b.detach().double()).abs().max().item()
            scale = max(b.detach().abs().max().item(), 1e-6)
            if not error <= tolerance * scale:
                raise AssertionError(
                    f"{case.name} {case.shape}: output {i} of {name} differs from fastllm's by {error}"
                )


def leave_out(case: Case, name: str, error: Exception) -> None:
    """Measure the case without this peer, and keep why."""
    case.skipped[name] = str(error).partition("\n")[0]
    del case.peers[name]


def peak_bytes(case: Case, setting: Setting) -> dict[str, int]:
    """Return how much GPU memory each peer takes beyond its inputs, at its highest."""
    with setting.making():
        inputs = case.setup()
    peaks = {}
    for name, peer in case.peers.items():
        peer(*inputs)  # what stays after a first call (cuBLAS's workspace) is not the peer's
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        peer(*inputs)
        torch.cuda.synchronize()
        peaks[name] = torch.cuda.max_memory_allocated() - before
    return peaks


def measure(case: Case, rounds: int = 9, setting: Setting = CPU) -> dict:
    """Check, warm up, then time all peers in turns; return a row for the results."""
    torch._dynamo.reset()  # or torch.compile would take this case's shapes for another shape of the last one
    check(case, setting)
    times: dict[str, list[float]] = {name: [] for name in case.peers}
    for round_index in range(rounds + 2):
        with setting.making():
            inputs = case.setup()
        names = list(case.peers)
        for name in names[round_index % len(names) :] + names[: round_index % len(names)]:
            try:
                seconds = _time(lambda name=name, inputs=inputs: case.peers[name](*inputs), setting)
            except RuntimeError as error:  # a graph cannot capture it, or its memory is not enough for that
                if name == OURS:
                    raise
                leave_out(case, name, error)
                continue
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
    for name in case.peers:
        row["seconds"][name] = statistics.median(times[name])
        if name != OURS:
            ratios = [theirs / mine for theirs, mine in zip(times[name], times[OURS], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            row["ratio"][name] = {"median": middle, "quartiles": [low, high]}
    if setting.device == "cuda":
        row["peak_bytes"] = peak_bytes(case, setting)
    if case.bytes:
        row["gb_s"] = case.bytes / ours / 1e9
    if case.flops:
        row["gflop_s"] = case.flops / ours / 1e9
    return row


def describe(row: dict, limit: dict[str, float]) -> str:
    """Return one line of text for a row, and one for each peer that it lacks."""
    times = ", ".join(f"{name} {seconds * 1e3:.3g} ms" for name, seconds in row["seconds"].items())
    ratios = ", ".join(
        f"{r['median']:.2f}x {name} ({r['quartiles'][0]:.2f}-{r['quartiles'][1]:.2f})"
        for name, r in row["ratio"].items()
    )
    memory = ", ".join(f"{name} {peak / 1e6:,.0f} MB" for name, peak in row.get("peak_bytes", {}).items())
    parts = (f"{row['name']} {row['shape']}: {times}", ratios, share(row, limit), memory)
    skipped = [f"  {peer} skipped: {why}" for peer, why in row.get("skipped", {}).items()]
    return "\n".join(["; ".join(part for part in parts if part), *skipped])


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
            value, unit = (row[key], unit) if row[key] < 1000 else (row[key] / 1000, unit.replace("G", "T", 1))
            achieved = f"{value:.3g} {unit}"
            return achieved if limit is None else f"{achieved} ({row[key] / limit[of]:.0%} of {name})"
    return ""
