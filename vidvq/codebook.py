"""A codebook as the model, the token format and everything between them describe it. Imports nothing."""

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
