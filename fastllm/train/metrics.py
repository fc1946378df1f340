"""metrics.jsonl, a JSON object a line, and TensorBoard's copy of it."""

import json
from pathlib import Path
from typing import Any

from fastllm.errors import UserError
from fastllm.files import sync, write_text

FILE = "metrics.jsonl"


def read_metrics(run: Path) -> list[dict]:
    """Return the lines of metrics.jsonl; one that was cut off or damaged is left out, and the others stay."""
    path = run / FILE
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


class Metrics:
    """Writes a run's metrics.

    Args:
        run: the run's folder.
        step: where the run goes on; -1 where it begins.
        tensorboard: whether to write run/tensorboard too.

    Raises:
        UserError: tensorboard is asked for and not installed.
    """

    def __init__(self, run: Path, step: int = -1, tensorboard: bool = False) -> None:
        self._path, self._step = run / FILE, step
        # purge_step: TensorBoard then hides what earlier files say of this step and later ones.
        self._writer = tensorboard_writer()(str(run / "tensorboard"), purge_step=step + 1) if tensorboard else None

    def record(self, row: dict) -> None:
        """Add a line.

        Raises:
            UserError: it could not be written.
        """
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise self._failed(error) from error
        if self._writer is not None:
            for name, value in row.items():
                if name != "step" and value is not None:
                    self._writer.add_scalar(name, value, row["step"])

    def flush(self) -> None:
        """Bring what was recorded to the disk: a checkpoint must not be there without the lines before it.

        Raises:
            UserError: it could not be written.
        """
        try:
            if self._path.exists():
                sync(self._path)
            if self._writer is not None:
                self._writer.flush()
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> UserError:
        return UserError(f"cannot write {self._path}: {error.strerror}; the last checkpoint is intact")

    def forget_later(self) -> None:
        """Take out lines past the run's step, of a run's end, and one that was cut off: they will be reported again."""
        rows = read_metrics(self._path.parent)
        kept = [row for row in rows if row["step"] <= self._step and "final_val_loss" not in row]
        if kept or self._path.exists():
            write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))

    def close(self) -> None:
        """Finish TensorBoard's file."""
        if self._writer is not None:
            self._writer.close()


def tensorboard_writer() -> Any:
    """Return TensorBoard's class for writing its files.

    Raises:
        UserError: the package is missing.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("train: 'tensorboard' needs its package: pip install 'fastllm[tensorboard]'") from error
    return SummaryWriter
