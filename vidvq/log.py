"""Messages and progress for people: progress bars on a terminal, periodic lines elsewhere.

Everything goes to stderr; stdout is for machine-readable results.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from vidvq.redact import printable, redact

console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

PLAIN_INTERVAL_S = 10.0


def info(message: str) -> None:
    """Print a message."""
    console.print(printable(redact(message)), markup=False)


def warn(message: str) -> None:
    """Print a warning."""
    console.print("warning: " + printable(redact(message)), style="yellow", markup=False)


class _RateColumn(ProgressColumn):
    """Mean rate of this run and remaining time: `12.3 clips/s, eta 0:01:20`."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(_rate_text(task.completed, task.total, task.elapsed or 0.0, self.unit), style="cyan")


class ProgressBar:
    """Progress of a job, created by :func:`progress`.

    Args:
        label: name of the job.
        total: number of units; None if unknown.
        unit: name of the units (plural).
    """

    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0
        self.note = ""
        self._started = self._last_printed = time.monotonic()
        self._live: tuple[Progress, TaskID] | None = None

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Record progress.

        Args:
            count: number of units done since the last call.
            note: short text to show after the bar, such as a loss; None keeps the last one.
        """
        self.done += count
        self.note = self.note if note is None else note
        if self._live:
            bar, task = self._live
            bar.update(task, completed=self.done, note=self.note)
        elif time.monotonic() - self._last_printed > PLAIN_INTERVAL_S:
            self.print_line()

    def print_line(self) -> None:
        """Print the progress as one plain line."""
        self._last_printed = time.monotonic()
        rate = _rate_text(self.done, self.total, self._last_printed - self._started, self.unit)
        done = self.done if self.total is None else f"{self.done}/{self.total}"
        info(f"{self.label}: {done} {rate} {self.note}".rstrip())


@contextmanager
def progress(label: str, total: int | None, unit: str) -> Iterator[ProgressBar]:
    """Show progress: a bar on a terminal, else a line every 10 s.

    Args:
        label: name of the job.
        total: number of units; None if unknown.
        unit: name of the units (plural).
    """
    bar = ProgressBar(label, total, unit)
    if not sys.stderr.isatty():
        yield bar
        bar.print_line()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        _RateColumn(unit),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=console) as live:
        bar._live = (live, live.add_task(label, total=total, note=""))
        yield bar


def _rate_text(done: float, total: float | None, elapsed_s: float, unit: str) -> str:
    if not done or elapsed_s <= 0:
        return "" if total is None else "eta unknown"
    rate = done / elapsed_s
    shown = f"{rate:.1f} {unit}/s" if rate >= 1 else f"{1 / rate:.1f} s/{unit.removesuffix('s')}"
    if total is None:
        return shown
    remaining_s = round(max(total - done, 0) / rate)
    return f"{shown}, eta {remaining_s // 3600}:{remaining_s // 60 % 60:02d}:{remaining_s % 60:02d}"
