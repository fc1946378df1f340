"""What a person sees of a run while it trains: a progress bar on a terminal, plain lines elsewhere."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Reporter:
    """Shows progress; use it as a context manager.

    Args:
        max_steps: the run's length.
        step: where it starts.
        quiet: show nothing, as all processes of a run but one.
    """

    def __init__(self, max_steps: int, step: int = 0, quiet: bool = False) -> None:
        self.console = Console(stderr=False, quiet=quiet)
        self._quiet = quiet
        self._progress = Progress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s  MFU {task.fields[mfu]}  left"),
            TimeRemainingColumn(),
            console=self.console, disable=quiet or not self.console.is_terminal,
        )  # fmt: skip
        self._task = self._progress.add_task("train", total=max_steps, completed=step, loss="-", speed="-", mfu="-")

    def __enter__(self) -> "Reporter":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self.console.is_terminal:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
        elif not self._quiet:
            print(text, flush=True, file=sys.stdout)

    def step(self, step: int) -> None:
        """A step is done."""
        self._progress.update(self._task, completed=step)

    def log(self, row: dict) -> None:
        """A line of metrics was written."""
        mfu = "n/a" if row["mfu"] is None else f"{row['mfu']:.0%}"
        self._progress.update(self._task, loss=f"{row['loss']:.4f}", speed=f"{row['tokens_per_second']:,.0f}", mfu=mfu)

    def evaluation(self, row: dict, improved: bool) -> None:
        """An evaluation is done and its checkpoint is written."""
        average = f"  ema val loss {row['ema_val_loss']:.4f}" if "ema_val_loss" in row else ""
        mark = "  (best so far)" if improved else ""
        losses = f"train loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}{average}"
        self.say(f"step {row['step']:>6}  {losses}{mark}")
