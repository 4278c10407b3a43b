"""Tiling of large frames into overlapping windows of one shape.

Windows overlap by the receptive field of the network. Margins affected by artificial borders are discarded, so tiled
output equals untiled output up to rounding. The tiling depends only on the frame size, so results are reproducible.
"""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """Extent of a window along one axis (latents).

    Attributes:
        start: first position of the window.
        stop: position after the window.
        keep_start: first position that is kept.
        keep_stop: position after the kept part.
    """

    start: int
    stop: int
    keep_start: int
    keep_stop: int


@dataclass(frozen=True)
class Tiles:
    """Windows of one shape over a grid of latents. Their kept parts cover each position exactly once.

    Attributes:
        spans: extents of each window along height and width, in row-major order.
    """

    spans: tuple[tuple[Span, Span], ...]

    @classmethod
    def cover(cls, grid: tuple[int, int], size: int, margin: int) -> "Tiles":
        """Cover a grid with windows.

        Args:
            grid: height and width of the grid (latents).
            size: maximum size of the kept part of an inner window (latents).
            margin: context required around the kept part (latents).
        """
        return cls(tuple(product(_spans(grid[0], size, margin), _spans(grid[1], size, margin))))

    def window(self, scale: int = 1) -> tuple[int, int]:
        """Return height and width of a window (latents x ``scale``)."""
        row, column = self.spans[0]
        return (row.stop - row.start) * scale, (column.stop - column.start) * scale

    def split(self, x: Tensor, scale: int = 1) -> Tensor:
        """Split frames into windows.

        Args:
            x: frames or latents, ``b c t H W``.
            scale: pixels of ``x`` per latent.

        Returns:
            Windows ``(b n) c t h w``.
        """
        if len(self.spans) == 1:
            return x
        windows = [
            x[..., row.start * scale : row.stop * scale, column.start * scale : column.stop * scale]
            for row, column in self.spans
        ]
        return torch.stack(windows, dim=1).flatten(0, 1)

    def crop(self, window: Tensor, index: int, scale: int = 1) -> Tensor:
        """Crop a window to its kept part.

        Args:
            window: ``... h w``.
            index: index of the window in the output of :meth:`split`.
            scale: pixels of ``window`` per latent.
        """
        row, column = self.spans[index % len(self.spans)]
        return window[
            ...,
            (row.keep_start - row.start) * scale : (row.keep_stop - row.start) * scale,
            (column.keep_start - column.start) * scale : (column.keep_stop - column.start) * scale,
        ]

    def merge(self, kept: list[Tensor]) -> Tensor:
        """Merge the kept parts ``1 ... h w`` of ``(b n)`` windows into frames ``b ... H W``."""
        columns = len({column.start for _, column in self.spans})
        rows = [torch.cat(kept[at : at + columns], dim=-1) for at in range(0, len(kept), columns)]
        per_sample = len(self.spans) // columns
        return torch.cat([torch.cat(rows[at : at + per_sample], dim=-2) for at in range(0, len(rows), per_sample)])


def _spans(length: int, size: int, margin: int) -> list[Span]:
    if length <= size + 2 * margin:
        return [Span(0, length, 0, length)]
    count = -(-(length - 2 * margin) // size)
    # The smallest windows that cover the axis and overlap by twice the margin.
    window = -(-(length + 2 * margin * (count - 1)) // count)
    starts = [index * (length - window) // (count - 1) for index in range(count)]
    cuts = [0, *(start + margin for start in starts[1:]), length]
    return [Span(start, start + window, *cuts[index : index + 2]) for index, start in enumerate(starts)]
