"""Conditions that cannot leak: hidden pixels are blanked before the tokenizer sees the video.

The tokens of a visible region have seen what lies around it, as far as the tokenizer's receptive field reaches. So they
are never taken from a whole video: what is to be generated is replaced by mid-grey, and the result is encoded, as in
MAGVIT (Yu et al. 2023). Prefixes need no such care, because groups are causal.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vidvq.model import Tokenizer

# Mid-grey, in [-1, 1].
_BLANK = 0.0


@dataclass(frozen=True)
class Blanked:
    """A condition: what is left of a video.

    Attributes:
        codes: ``b lt lh lw`` int64, of the video with its hidden pixels blanked.
        visible: ``b lt lh lw`` float, the share of the pixels of each latent that are not hidden (0 to 1).
    """

    codes: Tensor
    visible: Tensor


@torch.no_grad()
def encode_visible(tokenizer: Tokenizer, video: Tensor, hidden: Tensor) -> Blanked:
    """Encode what is visible of a video. The result is the same whatever the hidden pixels are.

    Args:
        tokenizer: the tokenizer.
        video: ``b c t h w`` in [-1, 1].
        hidden: ``b t h w`` bool, pixels to blank.
    """
    blanked = torch.where(hidden[:, None], torch.full_like(video, _BLANK), video)
    share = tokenizer.pad((~hidden)[:, None].to(video.dtype))
    r, s = tokenizer.temporal_factor, tokenizer.spatial_factor
    first, later = F.avg_pool3d(share[:, :, :1], (1, s, s)), F.avg_pool3d(share[:, :, 1:], (r, s, s))
    return Blanked(tokenizer.encode(blanked), torch.cat([first, later], dim=2)[:, 0])


def hide_frames(shape: tuple[int, int, int], kept: list[int]) -> Tensor:
    """Hide all frames but some: ``t h w`` bool."""
    hidden = torch.ones(shape, dtype=torch.bool)
    hidden[kept] = False
    return hidden


def hide_box(shape: tuple[int, int, int], box: tuple[int, int, int, int]) -> Tensor:
    """Hide a box of every frame: ``t h w`` bool.

    Args:
        shape: frames, height and width (pixels).
        box: left, top, width and height (pixels).
    """
    left, top, width, height = box
    hidden = torch.zeros(shape, dtype=torch.bool)
    hidden[:, top : top + height, left : left + width] = True
    return hidden


def draw_hidden(task: str, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Draw the hidden pixels ``t h w`` of a training sample.

    ``interpolate`` keeps the first and the last frame, or every k-th frame and the last. ``fill`` hides a box of a
    quarter to three quarters of each side, or, for one sample in four, everything but the box.
    """

    def draw(low: int, high: int) -> int:
        """Return an integer from ``low`` to ``high``."""
        return int(torch.randint(low, max(high, low) + 1, (), generator=generator))

    t, h, w = shape
    if task == "interpolate":
        step = draw(2, max(t - 1, 2))
        return hide_frames(shape, sorted({*range(0, t, step), t - 1}))
    height, width = draw(h // 4, 3 * h // 4), draw(w // 4, 3 * w // 4)
    hidden = hide_box(shape, (draw(0, w - width), draw(0, h - height), width, height))
    return ~hidden if draw(0, 3) == 0 else hidden
