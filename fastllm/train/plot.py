"""loss.png: a run's curves."""

import json
from pathlib import Path

from fastllm.files import write_atomically


def read_metrics(run: Path) -> list[dict]:
    """Return the lines of metrics.jsonl; a last line that was cut off is left out."""
    path = run / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


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
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a token)")
    axes.set_title(run.name)
    axes.grid(alpha=0.3)
    axes.legend()
    path = run / "loss.png"
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=130, format="png"))
    return path
