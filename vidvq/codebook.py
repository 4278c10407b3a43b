"""A codebook as the model, the token format and everything between them describe it. Imports nothing of vidvq."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Codebook:
    """One codebook of a tokenizer. Codes are stored local to their codebook: 0 to ``size - 1``.

    Attributes:
        name: which latents it serves: ``spatial`` (frame 0), ``temporal`` (later groups) or ``joint`` (all).
        offset: first id of its codes in a flat vocabulary over all codebooks.
    """

    name: str
    size: int
    offset: int


def codebook_spans(books: Sequence[Codebook], first: bool = True) -> list[tuple[Codebook, slice]]:
    """Return the codebook of frame 0 and that of the later groups, each with its latent frames.

    Args:
        books: codebooks of a tokenizer.
        first: whether the latent frames start with frame 0.
    """
    return [(books[0], slice(1)), (books[-1], slice(1, None))] if first else [(books[-1], slice(None))]
