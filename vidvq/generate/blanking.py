"""Blanking of hidden pixels before encoding, so that they cannot leak into the condition.

A token depends on all pixels in the tokenizer's receptive field, so the tokens of a visible region depend on hidden
pixels nearby. Therefore the pixels to generate are replaced by mid-grey and the result is encoded, as in MAGVIT (Yu et
al. 2023). Prefixes need no blanking, because groups are causal.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vidvq.model import Tokenizer

# Mid-grey, in [-1, 1].
_BLANK = 0.0


class BlankedVideo(NamedTuple):
    """A video encoded with its hidden pixels blanked, as a condition.

    Attributes:
        codes: codes of the blanked video, ``b lt lh lw`` int64.
        visible: fraction of the pixels of each latent that are visible (0 to 1), ``b lt lh lw`` float.
    """

    codes: Tensor
    visible: Tensor


@torch.no_grad()
def encode_visible(tokenizer: Tokenizer, video: Tensor, hidden: Tensor) -> BlankedVideo:
    """Encode the visible pixels of a video. The result does not depend on the hidden pixels.

    Args:
        video: ``b c t h w`` in [-1, 1].
        hidden: pixels to blank, ``b t h w`` bool.
    """
    blanked = torch.where(hidden[:, None], torch.full_like(video, _BLANK), video)
    visible = tokenizer.pad((~hidden)[:, None].to(video.dtype))
    r, s = tokenizer.temporal_factor, tokenizer.spatial_factor
    first, later = F.avg_pool3d(visible[:, :, :1], (1, s, s)), F.avg_pool3d(visible[:, :, 1:], (r, s, s))
    return BlankedVideo(tokenizer.encode(blanked), torch.cat([first, later], dim=2)[:, 0])


def hide_frames(shape: tuple[int, int, int], kept: list[int]) -> Tensor:
    """Return a mask ``t h w`` bool that hides all frames but the kept ones (indices)."""
    hidden = torch.ones(shape, dtype=torch.bool)
    hidden[kept] = False
    return hidden


def hide_between(shape: tuple[int, int, int], every: int) -> Tensor:
    """Return a mask ``t h w`` bool that hides all frames but each ``every``-th, from the first, and the last one."""
    return hide_frames(shape, sorted({*range(0, shape[0], every), shape[0] - 1}))


def hide_box(shape: tuple[int, int, int], box: tuple[int, int, int, int]) -> Tensor:
    """Return a mask ``t h w`` bool that hides a box in every frame.

    Args:
        shape: number of frames, height and width (pixels).
        box: left edge, top edge, width and height (pixels); parts outside the frame are left out.
    """
    left, top, width, height = box
    hidden = torch.zeros(shape, dtype=torch.bool)
    hidden[:, max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)] = True
    return hidden


def draw_hidden_pixels(task: str, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw the hidden pixels ``t h w`` bool of a training sample.

    ``interpolate`` keeps the first and the last frame or, for one sample in two, every k-th frame too (k from 2).
    ``fill`` hides a box of a quarter to three quarters of each side or, for one sample in four, everything outside the
    box.

    Args:
        task: ``interpolate`` or ``fill``.
        shape: number of frames, height and width (pixels).
    """

    def randint(low: int, high: int) -> int:
        """Return an integer from ``low`` to ``high``, both included."""
        return int(torch.randint(low, max(high, low) + 1, (), generator=rng))

    t, h, w = shape
    if task == "interpolate":
        longest = max(t - 1, 2)
        return hide_between(shape, randint(2, longest) if randint(0, 1) else longest)
    height, width = randint(h // 4, 3 * h // 4), randint(w // 4, 3 * w // 4)
    hidden = hide_box(shape, (randint(0, w - width), randint(0, h - height), width, height))
    return ~hidden if randint(0, 3) == 0 else hidden
