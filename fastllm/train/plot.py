"""loss.png: a run's curves, and several runs in one picture."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastllm.errors import UserError, UserImportError, did_you_mean
from fastllm.files import write_atomically
from fastllm.train.metrics import read_metrics

FORMATS = ("png", "svg", "pdf", "jpg", "webp")  # the ends of a picture's name


def can_plot() -> bool:
    """Return whether matplotlib is installed; training works without it."""
    return importlib.util.find_spec("matplotlib") is not None


def plot_loss(run: Path) -> Path:
    """Draw training and validation loss over steps into run/loss.png; return its path."""
    figure, axes = _new_figure()
    rows = read_metrics(run)
    steps = [row for row in rows if "loss" in row]
    evaluations = [row for row in rows if "val_loss" in row]
    axes.plot([r["step"] for r in steps], [r["loss"] for r in steps], color="#9ecae1", linewidth=0.8, label="batch")
    for key, color, label in (("train_loss", "#3182bd", "train"), ("val_loss", "#e6550d", "validation")):
        axes.plot([r["step"] for r in evaluations], [r[key] for r in evaluations], "o-", color=color, ms=4, label=label)
    if evaluations:
        best = min(evaluations, key=lambda row: row["val_loss"])
        axes.annotate(
            f"{best['val_loss']:.3f}", (best["step"], best["val_loss"]), textcoords="offset points", xytext=(0, 10),
            ha="center", color="#e6550d",
        )  # fmt: skip
    axes.legend()
    axes.set_title(_printable(run.absolute().name), parse_math=False)
    return _finish(figure, axes, run / "loss.png")


def plot_runs(runs: Iterable[Path], path: Path) -> Path:
    """Draw the validation loss of several runs over steps into one picture at path; return path.

    Raises:
        UserError: a folder has no evaluation in its metrics.jsonl, matplotlib is missing, or path's name does not end
            in the name of a format.
    """
    kind = path.suffix[1:].lower()
    if kind not in FORMATS:
        ends = ", ".join(f".{one}" for one in FORMATS)
        raise UserError(f"plot: 'out' must end in one of {ends}, got {path}{did_you_mean(kind, FORMATS)}")
    figure, axes = _new_figure()
    names = []
    for run in runs:
        rows = [row for row in read_metrics(run) if "val_loss" in row]
        if not rows:
            raise UserError(f"plot: {run} has no evaluation in metrics.jsonl: is it a run?")
        best = min(row["val_loss"] for row in rows)
        names.append(_printable(f"{run}: best {best:.4f}"))
        axes.plot([r["step"] for r in rows], [r["val_loss"] for r in rows], "o-", ms=3, label="run")
    # Names come last: matplotlib leaves out lines whose label begins with _, and reads formulas between two $.
    for text, name in zip(axes.legend().get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)
    return _finish(figure, axes, path)


def _new_figure() -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure  # not pyplot: that would pick a backend for the whole process
    except ImportError as error:
        raise UserImportError("plot: pictures need matplotlib: pip install 'fastllm[train]'") from error
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    return figure, figure.subplots()


def _printable(name: str) -> str:
    """Return a name without what no font has: bytes of a file's name that were not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def _finish(figure, axes, path: Path) -> Path:
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    kind = path.suffix[1:].lower()
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=130, format=kind))
    return path
