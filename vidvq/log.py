"""What a person reads while a job runs: messages, and progress bars on a terminal or periodic lines elsewhere.

Everything goes to stderr; stdout is for results that a machine reads.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

console = Console(stderr=True, highlight=False, soft_wrap=True)

PLAIN_INTERVAL_S = 10.0


def info(message: str) -> None:
    """Tell the user something."""
    console.print(message, markup=False)


def warn(message: str) -> None:
    """Tell the user something that deserves a look."""
    console.print("warning: " + message, style="yellow", markup=False)


class _RateColumn(ProgressColumn):
    """Rate and time to go, from the average of this run: `12.3 clips/s, eta 0:01:20`."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(_rate_text(task.completed, task.total, task.elapsed or 0.0, self.unit), style="cyan")


class Bar:
    """A running count towards a total. Made by :func:`progress`."""

    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0
        self.note = ""
        self._started = self._told = time.monotonic()
        self._live: tuple[Progress, TaskID] | None = None

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Count ``count`` more as done, with an optional short note (a loss, a file) shown behind the bar."""
        self.done += count
        self.note = self.note if note is None else note
        if self._live:
            bar, task = self._live
            bar.update(task, completed=self.done, note=self.note)
        elif time.monotonic() - self._told > PLAIN_INTERVAL_S:
            self.tell()

    def tell(self) -> None:
        """Print one plain line."""
        self._told = time.monotonic()
        rate = _rate_text(self.done, self.total, self._told - self._started, self.unit)
        done = self.done if self.total is None else f"{self.done}/{self.total}"
        info(f"{self.label}: {done} {rate} {self.note}".rstrip())


@contextmanager
def progress(label: str, total: int | None, unit: str) -> Iterator[Bar]:
    """Show progress towards ``total`` (None: unknown) ``unit``: a bar on a terminal, else a line every 10 s."""
    bar = Bar(label, total, unit)
    if not sys.stderr.isatty():
        yield bar
        bar.tell()
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
