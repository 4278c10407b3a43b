"""Charts of the report: inline SVG by matplotlib, with fonts and colours of the page (light and dark)."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Placeholder colours that matplotlib writes, replaced by variables of the style sheet.
_INK, _MUTED, _GRID = "#010101", "#020202", "#030303"
_SERIES = ("#010201", "#010202", "#010203", "#010204")
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--line)",
    **{color: f"var(--series-{index})" for index, color in enumerate(_SERIES, start=1)},
}
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vidvq",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 2.4,
    "lines.linewidth": 1.5,
}


@dataclass(frozen=True)
class Series:
    """One line of a chart; NaN leaves a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(
    title: str,
    series: Sequence[Series],
    y_label: str,
    log_y: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    floor: float | None = None,
    ceiling: float | None = None,
) -> str:
    """Plot lines over the training step, as an ``<svg>`` element.

    Args:
        marks: x positions to mark, each with its label.
        floor: lower end of the y axis; None fits the data.
        ceiling: upper end of the y axis; None fits the data.
    """
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _axes(title, "step", y_label, title_pad=16 if marks else 9)
        for line, color, dashes in zip(series, _SERIES, _DASHES, strict=False):
            dots = "o" if len(line.x) <= 12 else None
            axes.plot(line.x, line.y, color=color, linestyle=dashes, label=line.label, marker=dots, markersize=3)
        if log_y:
            _log_scale(axes)
        else:
            axes.set_ylim(bottom=floor, top=ceiling)
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        for position, label in marks:
            _mark(axes, position, label)
        if len(series) > 1:
            _legend(figure, len(series))
        return _svg(figure, title, "; ".join(_describe(line) for line in series))


def frequency_chart(title: str, counts: dict[str, np.ndarray]) -> str:
    """Plot the share of tokens per code of one codebook, as :func:`line_chart` does, the most frequent code first.

    Args:
        counts: occurrences by code, for each set of tokens.
    """
    series: list[Series] = []
    size = 1
    for label, occurrences in counts.items():
        size = len(occurrences)
        ranked = np.sort(occurrences[occurrences > 0])[::-1] / max(occurrences.sum(), 1)
        series.append(Series(label, np.arange(1, len(ranked) + 1).tolist(), (100 * ranked).tolist()))
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _axes(title, "codes, most frequent first", "% of tokens")
        for line, color, dashes in zip(series, _SERIES, _DASHES, strict=False):
            axes.plot(line.x, line.y, color=color, linestyle=dashes, label=line.label, drawstyle="steps-mid")
        axes.axhline(100 / size, color=_MUTED, linewidth=0.9, linestyle=(0, (2, 2)), label="even use")
        _log_scale(axes)
        axes.set_xlim(-0.01 * size, 1.01 * size)
        _legend(figure, len(series) + 1)
        used = "; ".join(f"{line.label} tokens use {len(line.x)} of {size} codes" for line in series)
        return _svg(figure, title, used)


def _axes(title: str, x_label: str, y_label: str, title_pad: float = 9) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.9, 2.9), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.set_title(title, pad=title_pad)
    axes.set_xlabel(x_label, labelpad=2)
    axes.set_ylabel(y_label)
    return figure, axes


def _log_scale(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _legend(figure: Figure, entries: int) -> None:
    figure.legend(loc="outside lower center", ncols=entries if entries <= 3 else 2)


def _mark(axes: Axes, position: float, label: str) -> None:
    """Draw a vertical line, with its label on the side that has more room."""
    axes.axvline(position, color=_MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    left, right = axes.get_xlim()
    after = position < (left + right) / 2
    axes.annotate(
        label,
        (position, 1),
        xycoords=("data", "axes fraction"),
        xytext=(3 if after else -3, 0),
        textcoords="offset points",
        ha="left" if after else "right",
        va="bottom",
        fontsize=8,
        color=_MUTED,
    )


def _describe(line: Series) -> str:
    values = [value for value in line.y if value == value]
    if not values:
        return f"{line.label}: no values"
    return f"{line.label}: from {values[0]:.3g} to {values[-1]:.3g}"


def _svg(figure: Figure, title: str, summary: str) -> str:
    """The ``<svg>`` element with colours and font of the page, unique ids, a text alternative and no metadata."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", text)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    prefix = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", text)
    text = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{prefix}-\1"', text)
    text = re.sub(r'\s(?:width|height)="[\d.]+pt"', "", text, count=2)
    label = f"{title}. {summary}.".replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
