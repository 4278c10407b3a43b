"""What each code decodes to: the model's vocabulary made visible."""

from typing import Any

import numpy as np
import torch

from vidvq.codebook import Codebook
from vidvq.formats.token_shard import TokenizerCard
from vidvq.model import Tokenizer
from vidvq.model.pixels import to_frames

MAX_CODES = 256
# Codes around the one that is shown, so that it does not stand at a border.
_AROUND = 3


@torch.inference_mode()
def decode_atlas(tokenizer: Tokenizer, card: TokenizerCard, usage: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The most used codes of each codebook, and their patches.

    A spatial code is decoded as frame 0 of a grid of nothing else; a temporal one as the group after a frame 0 of the
    most used spatial code.

    Args:
        tokenizer: the tokenizer.
        card: its card.
        usage: occurrences of each code, by the codebook's name.

    Returns:
        per codebook its name, size, offset, ``codes`` by falling usage, ``counts``, and ``strip``: pixels
        ``h w c`` uint8, a row per code and a column per frame.
    """
    spatial = most_used(card, usage)
    return [_book(tokenizer, card, book, usage[book.name], spatial) for book in card.codebooks]


def most_used(card: TokenizerCard, usage: dict[str, np.ndarray]) -> int:
    """The code of frame 0 that occurs most."""
    return int(usage[card.codebooks[0].name].argmax())


@torch.inference_mode()
def decode_patch(tokenizer: Tokenizer, card: TokenizerCard, book: Codebook, code: int, spatial: int) -> np.ndarray:
    """What one code decodes to: ``h w c`` uint8, a column per frame; ``spatial`` is what a temporal one follows."""
    temporal = book is not card.codebooks[0]
    s, middle = card.spatial_factor, (_AROUND // 2) * card.spatial_factor
    grid = torch.full((1, 2 if temporal else 1, _AROUND, _AROUND), code, dtype=torch.int64)
    if temporal:
        grid[:, 0] = spatial
    pixels = to_frames(tokenizer.decode(grid.to(tokenizer.device)))[1 if temporal else 0 :]
    return np.concatenate(list(pixels[:, middle : middle + s, middle : middle + s]), axis=1)


def _book(
    tokenizer: Tokenizer, card: TokenizerCard, book: Codebook, counts: np.ndarray, spatial: int
) -> dict[str, Any]:
    order = [int(code) for code in np.argsort(-counts, kind="stable")[:MAX_CODES] if counts[code]]
    rows = [decode_patch(tokenizer, card, book, code, spatial) for code in order]
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
