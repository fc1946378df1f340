"""A run's folder: config.yaml, metrics.jsonl, samples/, loss.png and checkpoints/, for one process at a time."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from fastllm import files
from fastllm.errors import UserError
from fastllm.train import checkpoint, schedule
from fastllm.train.config import TrainConfig
from fastllm.train.metrics import Metrics
from fastllm.train.plot import can_plot, plot_loss

SETTINGS = "config.yaml"


class Run:
    """The folder of one run; only the main process writes it, after `take` and `open`.

    Args:
        folder: made by take where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: TextIO | None = None
        self._metrics: Metrics | None = None

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def quoted(self) -> str:
        """The folder as a shell takes it."""
        return shlex.quote(str(self.folder))

    @property
    def has_settings(self) -> bool:
        """Whether a run was begun here."""
        return (self.folder / SETTINGS).exists()

    def take(self, config: TrainConfig, new: bool) -> None:
        """Lock the folder; a new run's must be empty (but for what a killed start left) and gets its settings.

        Raises:
            UserError: it is not empty, is in use, or cannot be made.
        """
        if new and self.folder.exists() and not _is_empty(self.folder):
            if not self.folder.is_dir():
                raise UserError(f"train: 'out' must be a new folder, and {self} is a file")
            go_on = f"continue it with --resume {self.quoted}, or " * self.has_settings
            raise UserError(f"train: {self} exists and is not empty; {go_on}name a new --out")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"train: cannot make {self}: {error.strerror}") from error
        self._lock = files.lock(self.folder)
        if new:
            config.save(self.folder / SETTINGS)

    def open(self, config: TrainConfig, step: int | None) -> None:
        """Begin to write metrics, and take back those past the step that a resumed run goes on from.

        Raises:
            UserError: tensorboard is asked for and not installed.
        """
        self._metrics = Metrics(self.folder, -1 if step is None else step, config.tensorboard)

    def take_back(self, step: int, keep: int) -> None:
        """Forget metrics and kept checkpoints of later steps: a resumed run makes them again."""
        assert self._metrics is not None
        self._metrics.forget_later()
        checkpoint.forget_kept(self.folder, keep, step)

    def close(self) -> None:
        """Finish metrics and unlock the folder."""
        if self._metrics is not None:
            self._metrics.close()
        if self._lock is not None:
            self._lock.close()

    # --- settings -----------------------------------------------------------------------------------------------------

    def save_settings(self, config: TrainConfig, step: int | None) -> list[str]:
        """Write config.yaml, with the settings given when resuming at a step; return warnings of what they change.

        The path of its data stays while it exists: a resume from elsewhere, by another path, must not take the
        run from where it was.
        """
        path = self.folder / SETTINGS
        if step is None or not path.exists():
            config.save(path)
            return []
        before = TrainConfig.load(path)
        stays = before.data is not None and before.data.is_absolute() and before.data.exists()
        replace(config, data=before.data if stays else config.data).save(path)
        rates = schedule.jump(before, config, step)
        return [] if rates is None else [self._of_jump(config, before.max_steps, *rates)]

    def _of_jump(self, config: TrainConfig, end: int, before: float, now: float) -> str:
        text = (
            f"with max_steps {config.max_steps} instead of {end} the schedule {config.schedule} ends at another step: "
            f"the learning rate of the next step is {now:.3g} instead of {before:.3g}"
        )
        if now > before:
            text += (
                f"; to continue at the low rate instead, stop this and start a new run from these weights: fastllm "
                f"train --init {self.quoted} --schedule constant --learning_rate {before:.3g} with --data, --out and "
                "--max_steps"
            )
        return text

    # --- what is written as it goes -----------------------------------------------------------------------------------

    def record(self, row: dict) -> None:
        """Add a line to metrics.jsonl; processes that do not write it do nothing."""
        if self._metrics is not None:
            self._metrics.record(row)

    def flush(self) -> None:
        """Bring the lines to the disk: a checkpoint must not be there without those before it."""
        if self._metrics is not None:
            self._metrics.flush()

    def write_sample(self, step: int, text: str) -> None:
        """Write samples/<step>.txt."""
        files.write_text(self.folder / "samples" / f"{step}.txt", text + "\n")

    def plot(self) -> None:
        """Draw loss.png, if that can be done."""
        if can_plot():
            plot_loss(self.folder)


def _is_empty(folder: Path) -> bool:
    """Return whether a folder has nothing but what a run that was killed at its beginning leaves."""
    return folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir())
