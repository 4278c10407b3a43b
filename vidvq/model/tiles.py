"""Large frames in windows of one shape, which overlap by what a network sees around a place.

A window's inner part is what the whole frame would have given there: the windows' outer margins, where the network saw
a border that is none, are cut off. How a frame is cut depends on its size alone, so there is one result for it.
"""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """One window along one axis: ``start`` to ``stop``, of which ``first`` to ``last`` is kept."""

    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True)
class Tiles:
    """Windows over a grid of latents, all of one shape, whose kept parts cover it once.

    Attributes:
        spans: the windows' extents in height and in width, row by row.
    """

    spans: tuple[tuple[Span, Span], ...]

    @classmethod
    def over(cls, grid: tuple[int, int], size: int, margin: int) -> "Tiles":
        """Cover a grid.

        Args:
            grid: height and width.
            size: of what is kept of a window at most, where the frame has another on either side.
            margin: what a window must see beyond what is kept of it.
        """
        return cls(tuple(product(_line(grid[0], size, margin), _line(grid[1], size, margin))))

    def cut(self, x: Tensor, scale: int = 1) -> Tensor:
        """``b c t H W`` -> the windows ``(b n) c t h w``, of ``scale`` pixels per unit of the grid."""
        if len(self.spans) == 1:
            return x
        windows = [
            x[..., row.start * scale : row.stop * scale, column.start * scale : column.stop * scale]
            for row, column in self.spans
        ]
        return torch.stack(windows, dim=1).flatten(0, 1)

    def keep(self, window: Tensor, index: int, scale: int = 1) -> Tensor:
        """What is kept of window ``index``, ``... h w``."""
        row, column = self.spans[index % len(self.spans)]
        return window[
            ...,
            (row.first - row.start) * scale : (row.last - row.start) * scale,
            (column.first - column.start) * scale : (column.last - column.start) * scale,
        ]

    def join(self, kept: list[Tensor]) -> Tensor:
        """The kept parts ``1 ... h w`` of ``(b n)`` windows -> ``b ... H W``."""
        columns = len({column.start for _, column in self.spans})
        rows = [torch.cat(kept[at : at + columns], dim=-1) for at in range(0, len(kept), columns)]
        per_sample = len(self.spans) // columns
        return torch.cat([torch.cat(rows[at : at + per_sample], dim=-2) for at in range(0, len(rows), per_sample)])


def _line(length: int, size: int, margin: int) -> list[Span]:
    if length <= size + 2 * margin:
        return [Span(0, length, 0, length)]
    count = -(-(length - 2 * margin) // size)
    # As small as they can be and still cover the line, with twice the margin between one and the next.
    window = -(-(length + 2 * margin * (count - 1)) // count)
    starts = [index * (length - window) // (count - 1) for index in range(count)]
    cuts = [0, *(start + margin for start in starts[1:]), length]
    return [Span(start, start + window, *cuts[index : index + 2]) for index, start in enumerate(starts)]
