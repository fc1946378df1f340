"""loss.png: a run's curves, and several runs in one picture."""

from pathlib import Path

from fastllm.errors import UserError
from fastllm.files import write_atomically
from fastllm.train.metrics import read_metrics


def plot_loss(run: Path) -> Path:
    """Draw training and validation loss over steps into run/loss.png; return its path."""
    from matplotlib.figure import Figure  # not pyplot: that would pick a backend for the whole process

    rows = read_metrics(run)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
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
    axes.set_title(run.name)
    return _finish(figure, axes, run / "loss.png")


def plot_runs(runs: list[Path], path: Path) -> Path:
    """Draw the validation loss of several runs over steps into one picture at path; return path.

    Raises:
        UserError: a folder has no evaluation in its metrics.jsonl.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        rows = [row for row in read_metrics(run) if "val_loss" in row]
        if not rows:
            raise UserError(f"plot: {run} has no evaluation in metrics.jsonl: is it a run?")
        best = min(row["val_loss"] for row in rows)
        axes.plot([r["step"] for r in rows], [r["val_loss"] for r in rows], "o-", ms=3, label=f"{run}: best {best:.4f}")
    return _finish(figure, axes, path)


def _finish(figure, axes, path: Path) -> Path:
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend()
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=130, format="png"))
    return path
