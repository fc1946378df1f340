"""What a person sees of a run while it trains: a progress bar on a terminal, plain lines elsewhere."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fastllm.files import discard

_SHOW_CURSOR = b"\x1b[?25h"
_WIDE, _MIDDLE = 80, 60  # columns of a terminal from which on all is shown, and all but the bar and MFU
_BESIDE_BAR = 72  # columns that all else takes

SCORES = {"val_bleu": "BLEU", "val_chrf": "chrF"}  # that evaluations may have, and their names


class Output:
    """Standard output that may fail: a closed terminal or a full disk loses lines, but does not stop the run."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lost = stream, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, unless writing has failed before."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, unless writing has failed before."""
        self._try(self._stream.flush)

    def _try(self, do) -> None:
        if self._lost:
            return
        try:
            do()
        except OSError as error:
            self._lost = True
            discard(self._stream)
            with suppress(OSError):
                print(f"fastllm: cannot write to standard output: {error.strerror}; the run goes on", file=sys.stderr)


class _State(ProgressColumn):
    """What is done beside training, or how training goes, in as many words as there is room for."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console, self._left = console, TimeRemainingColumn()

    def render(self, task: Task) -> Text:
        """Return the words."""
        fields, width = task.fields, self._console.width
        if fields["doing"]:
            return Text(fields["doing"])
        words = [f"loss {fields['loss']}"]
        if width >= _MIDDLE:
            words.append(f"{fields['speed']} tokens/s")
        if width >= _WIDE:
            words.append(f"MFU {fields['mfu']}")
        if width >= _MIDDLE:
            words.append(f"left {self._left.render(task).plain}")
        return Text("  ".join(words))


class _Bar(Progress):
    """A bar that gives up what matters least where a terminal is narrow, now or later; never the step."""

    def __init__(self, console: Console, **options: Any) -> None:
        self._width = lambda: console.width
        self._columns = lru_cache(maxsize=8)(partial(_columns, console))
        super().__init__(console=console, **options)

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        """Return the line."""
        self.columns = self._columns(max(0, min(40, self._width() - _BESIDE_BAR)))
        return super().make_tasks_table(tasks)


def _columns(console: Console, bar: int) -> tuple[ProgressColumn, ...]:
    bars = (BarColumn(bar),) if bar >= 8 else ()
    return TextColumn("step"), MofNCompleteColumn(), *bars, _State(console)


class Reporter:
    """Shows progress; use it as a context manager. What it cannot write any more stops no run.

    Args:
        max_steps: the run's length.
        step: where it starts.
        quiet: show nothing, as all processes of a run but one.
    """

    def __init__(self, max_steps: int, step: int = 0, quiet: bool = False) -> None:
        self._output = Output(sys.stdout)
        self.console = Console(file=self._output, quiet=quiet)  # type: ignore[arg-type]
        self._quiet = quiet
        self._speed = ""
        self._progress = _Bar(console=self.console, disable=quiet or not self.console.is_terminal)
        self._task = self._progress.add_task(
            "train", total=max_steps, completed=step, loss="-", speed="-", mfu="-", doing=""
        )
        self._stopping = ""

    def __enter__(self) -> "Reporter":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar, or below it when it is over."""
        if self.console.is_terminal:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
        elif not self._quiet:
            print(text, flush=True, file=self._output)

    def stopping(self, text: str) -> None:
        """Say at once that a signal was received: from its handler, which may have come in the middle of a write."""
        if self._quiet:
            return
        self._stopping = text
        with suppress(OSError):
            if self.console.is_terminal:  # its thread draws ten times a second
                self._progress.update(self._task, doing=text)
                os.write(sys.__stdout__.fileno(), _SHOW_CURSOR)  # type: ignore[union-attr] # if the next signal kills
            else:
                os.write(sys.__stderr__.fileno(), f"{text}\n".encode())  # type: ignore[union-attr]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Show that an evaluation is going on."""
        self._progress.update(self._task, doing=self._stopping or "evaluating")
        self._progress.refresh()
        try:
            yield
        finally:
            self._progress.update(self._task, doing=self._stopping)

    def step(self, step: int) -> None:
        """A step is done."""
        self._progress.update(self._task, completed=step)

    def log(self, row: dict) -> None:
        """A line of metrics was written."""
        mfu = "n/a" if row["mfu"] is None else f"{row['mfu']:.0%}"
        self._speed = f"{row['tokens_per_second']:,.0f}"
        self._progress.update(self._task, loss=f"{row['loss']:.4f}", speed=self._speed, mfu=mfu)

    def evaluation(self, row: dict, improved: bool) -> None:
        """An evaluation is done and its checkpoint is written."""
        average = f"  ema val loss {row['ema_val_loss']:.4f}" if "ema_val_loss" in row else ""
        mark = "  (best so far)" if improved else ""
        speed = f"  {self._speed} tokens/s" if self._speed and not self.console.is_terminal else ""  # no bar shows it
        losses = f"train loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}{average}"
        scores = "".join(f"  {name} {row[key]:.1f}" for key, name in SCORES.items() if key in row)
        self.say(f"step {row['step']:>6}  {losses}{scores}{speed}{mark}")
