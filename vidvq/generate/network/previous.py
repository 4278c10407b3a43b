"""The previous latent frame as a shortcut to the codes of the next: most of a video stays in place, or moves as one.

A transformer learns late to attend to the same place one frame earlier. With ``model.copy_radius``, each position has
the embeddings of the previous frame around it as an input, and its head can copy one of these codes: gates that depend
on the hidden vector raise their logits (as pointer networks do; Vinyals et al. 2015). The strongest gate acts as a
motion vector. Only indices of codes are used, so this works for any tokenizer.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

# Stands for a code that is not known.
UNKNOWN = -1


def previous_codes(
    codes: Tensor, mask: Tensor | None = None, before: Tensor | None = None, given: Tensor | None = None
) -> Tensor:
    """Return the code at the same place one latent frame earlier, for each position.

    Args:
        codes: ``b t h w`` int64.
        mask: ``b t h w`` bool, True for hidden codes; None hides none.
        before: the latent frame ``b 1 h w`` before the first; None if there is none.
        given: codes ``b t h w`` to use in place of hidden ones, ``UNKNOWN`` for none; None for none at all.

    Returns:
        ``b t h w`` int64; ``UNKNOWN`` where there is no earlier frame, or its code is hidden and not given.
    """
    known = codes
    if mask is not None:
        known = codes.masked_fill(mask, UNKNOWN) if given is None else torch.where(mask, given, codes)
    first = torch.full_like(codes[:, :1], UNKNOWN) if before is None else before
    return torch.cat([first, known[:, :-1]], dim=1)


def neighbors(previous: Tensor, radius: int) -> Tensor:
    """Return the codes of a square window around each position ``b t h w``: ``b t h w k``, ``UNKNOWN`` off the edge."""
    padded = F.pad(previous, (radius,) * 4, value=UNKNOWN)
    side = 2 * radius + 1
    windows = padded.unfold(2, side, 1).unfold(3, side, 1)
    return windows.flatten(-2)


class PreviousInput(nn.Module):
    """Mixes the embeddings of the previous latent frame around each position.

    Args:
        radius: radius of the window (latents).
    """

    def __init__(self, width: int, radius: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, 2 * radius + 1, padding=radius)

    def forward(self, vectors: Tensor) -> Tensor:
        """Map ``b t h w c`` to the same shape."""
        mixed = self.mix(rearrange(vectors, "b t h w c -> (b t) c h w"))
        return rearrange(mixed, "(b t) c h w -> b t h w c", t=vectors.shape[1])


def add_copies(logits: Tensor, digits: Tensor, gates: Tensor) -> Tensor:
    """Raise the logits of digits that can be copied.

    Args:
        logits: ``n k``.
        digits: candidates ``n m`` int64; ``UNKNOWN`` for none. Equal candidates add up.
        gates: ``n m``, by how much each is raised.
    """
    raised = gates.masked_fill(digits == UNKNOWN, 0).to(logits.dtype)
    parts = zip(digits.clamp(min=0).split(1, -1), raised.split(1, -1), strict=True)
    logits = logits.scatter_add(-1, *next(parts))
    for part in parts:
        # One after the other, because a GPU adds equal ones of a call in any order, and each order rounds differently.
        logits.scatter_add_(-1, *part)
    return logits
