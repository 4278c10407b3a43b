"""Blocks of pixels and their cosine transform, for the linear path between the pixels of a block and its latent."""

from itertools import product
from math import cos, pi, sqrt

import torch
from einops import rearrange
from torch import Tensor

# Orthonormal: brightness, then two colour differences.
_COLORS = ((1 / sqrt(3),) * 3, (1 / sqrt(2), 0.0, -1 / sqrt(2)), (1 / sqrt(6), -2 / sqrt(6), 1 / sqrt(6)))
# Frequencies are sorted by cost: detail over time and in colour carries less energy than detail in space.
_TIME_COST, _COLOR_COST = 2, 2


class Blocks:
    """The pixels of each latent as a vector.

    Args:
        frames: frames per latent.
        side: height and width of a latent (pixels).
    """

    def __init__(self, frames: int, side: int) -> None:
        self.frames, self.side = frames, side
        self.size = 3 * frames * side * side

    def __call__(self, video: Tensor) -> Tensor:
        """Map video ``b c (g r) (h p) (w q)`` to vectors ``b g h w (c r p q)``."""
        return rearrange(video, "b c (g r) (h p) (w q) -> b g h w (c r p q)", r=self.frames, p=self.side, q=self.side)

    def inverse(self, vectors: Tensor) -> Tensor:
        """Invert :meth:`__call__`."""
        return rearrange(
            vectors, "b g h w (c r p q) -> b c (g r) (h p) (w q)", c=3, r=self.frames, p=self.side, q=self.side
        )

    def lowest_frequencies(self, count: int) -> Tensor:
        """Return orthonormal vectors ``count size``: a cosine transform (DCT-II), the lowest frequencies first."""
        order = sorted(
            product(range(3), range(self.frames), range(self.side), range(self.side)),
            key=lambda index: (_COLOR_COST * (index[0] > 0) + _TIME_COST * index[1] + index[2] + index[3], index),
        )
        colors, time, space = torch.tensor(_COLORS), _cosines(self.frames), _cosines(self.side)
        return torch.stack(
            [
                torch.einsum("c,r,p,q->crpq", colors[c], time[t], space[y], space[x]).flatten()
                for c, t, y, x in order[:count]
            ]
        )


def _cosines(length: int) -> Tensor:
    """Return the orthonormal DCT-II basis ``frequency position``."""
    scales = [sqrt((2 if frequency else 1) / length) for frequency in range(length)]
    rows = [[cos(pi * frequency * (at + 0.5) / length) for at in range(length)] for frequency in range(length)]
    return torch.tensor(rows) * torch.tensor(scales)[:, None]
