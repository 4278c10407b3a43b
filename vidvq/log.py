"""Messages and progress for people: progress bars on a terminal, periodic lines elsewhere.

Everything goes to stderr; stdout is for machine-readable results.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID
from rich.table import Column
from rich.text import Text

from vidvq.redact import printable, redact

console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

PLAIN_INTERVAL_S = 10.0
_BYTE_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def info(message: str) -> None:
    """Print a message."""
    console.print(printable(redact(message)), markup=False)


def warn(message: str) -> None:
    """Print a warning."""
    console.print("warning: " + printable(redact(message)), style="yellow", markup=False)


def counted(number: int, unit: str) -> str:
    """Text of a number with its unit, which is given in the plural: `1 shard`, `3 shards`."""
    return f"{number} {unit.removesuffix('s') if number == 1 else unit}"


def in_bytes(count: float) -> str:
    """Format a number of bytes in decimal units, such as ``4.7 MB``."""
    for size, unit in _BYTE_UNITS:
        # What would be rounded to 1000.0 is one of the next unit.
        if count >= 0.99995 * size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


class _LineColumn(ProgressColumn):
    """The progress in words, cut at the edge of the terminal."""

    def __init__(self, bar: "ProgressBar") -> None:
        super().__init__(Column(no_wrap=True, overflow="ellipsis"))
        self.bar = bar

    def render(self, task: Task) -> Text:
        return Text(self.bar.describe())


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
        self._printed: tuple[int, str] | None = None
        self._earlier = self._ahead = 0
        self._live: tuple[Progress, TaskID] | None = None

    def advance(self, count: int = 1, note: str | None = None, *, earlier: bool = False) -> None:
        """Record progress.

        Args:
            count: number of units done since the last call.
            note: short text to show after the bar, such as a loss; None keeps the last one.
            earlier: whether an earlier run did these units; they do not count for the rate.
        """
        self.done += count
        self._ahead = 0
        self._earlier += count if earlier else 0
        self.note = self.note if note is None else note
        self._show()

    def count_ahead(self) -> None:
        """Show one more unit as done, which a later call of :meth:`advance` includes."""
        self._ahead += 1
        self._show()

    def _show(self) -> None:
        if self._live:
            bar, task = self._live
            bar.update(task, completed=self._shown_done)
        elif self._shown_done != self.total and time.monotonic() - self._last_printed > PLAIN_INTERVAL_S:
            self.print_line()

    @property
    def _shown_done(self) -> int:
        done = self.done + self._ahead
        return done if self.total is None else min(done, self.total)

    def print_line(self) -> None:
        """Print the progress as one plain line, unless the last line says the same."""
        done = self._shown_done
        if self._printed == (done, self.note):
            return
        self._printed, self._last_printed = (done, self.note), time.monotonic()
        info(self.describe())

    def describe(self) -> str:
        """The progress in words, such as `shard: 84/1000, 12.3 clips/s, eta 0:01:14, 0 failed`."""
        done = self._shown_done
        shown = counted(done, self.unit) if self.total is None else f"{done}/{self.total}"
        return f"{self.label}: " + ", ".join(part for part in (shown, self._describe_rate(), self.note) if part)

    def _describe_rate(self) -> str:
        """Mean rate of this run and remaining time; the elapsed time where there is no rate or nothing remains."""
        elapsed_s, made = time.monotonic() - self._started, self._shown_done - self._earlier
        if self.done == self.total and not made:
            return "done before"
        if made <= 0 or elapsed_s <= 0:
            return f"{_clock(elapsed_s)} so far"
        rate = made / elapsed_s
        shown = f"{rate:.1f} {self.unit}/s" if rate >= 1 else f"{1 / rate:.1f} s/{self.unit.removesuffix('s')}"
        if self.total is None:
            return shown
        left = self.total - self._shown_done
        return f"{shown}, " + (f"eta {_clock(left / rate)}" if left > 0 else f"took {_clock(elapsed_s)}")


@contextmanager
def progress(label: str, total: int | None, unit: str) -> Iterator[ProgressBar]:
    """Show progress: a bar on a terminal that can redraw a line, else a line every 10 s.

    Args:
        label: name of the job.
        total: number of units; None if unknown.
        unit: name of the units (plural).
    """
    bar = ProgressBar(label, total, unit)
    if not sys.stderr.isatty() or console.is_dumb_terminal:
        yield bar
        bar.print_line()
        return
    with Progress(BarColumn(bar_width=28), _LineColumn(bar), console=console) as live:
        bar._live = (live, live.add_task(label, total=total))
        yield bar


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
