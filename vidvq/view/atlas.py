"""The atlas: the image patch that each code decodes to."""

from typing import Any

import numpy as np
import torch
from einops import repeat

from vidvq.codebook import Codebook
from vidvq.formats.token_shard import TokenizerCard
from vidvq.model import Tokenizer
from vidvq.model.enlarge import shrink_frames
from vidvq.model.pixels import to_frames

MAX_CODES = 256
# Side of the decoded grid (codes). The middle one is shown, away from the border.
_SIDE = 3


@torch.inference_mode()
def decode_atlas(tokenizer: Tokenizer, card: TokenizerCard, usage: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Decode the most used codes of each codebook.

    A spatial code is decoded as frame 0 of a grid of this code only, a temporal code as the group that follows a frame
    0 of the most used spatial code.

    Args:
        usage: occurrences of each code, by name of the codebook.

    Returns:
        For each codebook its name, size and offset, ``codes`` sorted by usage, ``counts``, and ``strip``: pixels
        ``h w c`` uint8, one row per code and one column per frame.
    """
    spatial = most_used(card, usage)
    return [_book(tokenizer, card, book, usage[book.name], spatial) for book in card.codebooks]


def most_used(card: TokenizerCard, usage: dict[str, np.ndarray]) -> int:
    """The most frequent code of frame 0."""
    return int(usage[card.codebooks[0].name].argmax())


@torch.inference_mode()
def decode_patches(
    tokenizer: Tokenizer, card: TokenizerCard, book: Codebook, codes: list[int], spatial: int
) -> list[np.ndarray]:
    """Decode each code, in the same calls, to a patch ``h w c`` uint8, one column per frame.

    Args:
        codes: local codes; at least one.
        spatial: code of frame 0 if ``book`` is the temporal codebook.
    """
    temporal = book is not card.codebooks[0]
    s, middle = card.spatial_factor, (_SIDE // 2) * card.spatial_factor
    grids = repeat(torch.tensor(codes), "b -> b t h w", t=2 if temporal else 1, h=_SIDE, w=_SIDE).clone()
    if temporal:
        grids[:, 0] = spatial
    patches = []
    for video in tokenizer.decode(grids.to(tokenizer.device)).split(1):
        pixels = shrink_frames(to_frames(video)[1 if temporal else 0 :], tokenizer.upscale)
        patches.append(np.concatenate(list(pixels[:, middle : middle + s, middle : middle + s]), axis=1))
    return patches


def _book(
    tokenizer: Tokenizer, card: TokenizerCard, book: Codebook, counts: np.ndarray, spatial: int
) -> dict[str, Any]:
    order = [int(code) for code in np.argsort(-counts, kind="stable")[:MAX_CODES] if counts[code]]
    rows = decode_patches(tokenizer, card, book, order, spatial) if order else []
    s, temporal = card.spatial_factor, book is not card.codebooks[0]
    strip = np.concatenate(rows) if rows else np.zeros((s, s, 3), dtype=np.uint8)
    return {
        "name": book.name,
        "size": book.size,
        "offset": book.offset,
        "used": int((counts > 0).sum()),
        "codes": order,
        "counts": [int(counts[code]) for code in order],
        "frames": card.temporal_factor if temporal else 1,
        "strip": strip,
    }
