"""``CODES.json``: how well a generator predicts each code; written by `vidvq generate evaluate --codes`."""

from dataclasses import asdict, dataclass
from pathlib import Path

from vidvq.formats.schema import Count, Label, Text, parse
from vidvq.storage import pretty_json, read_json, write_atomic

FORMAT = "vidvq.code-statistics/1"


@dataclass(frozen=True)
class BookStatistics:
    """Statistics of one codebook; lists have one entry per code that occurs, the most frequent first.

    Attributes:
        name: name of the codebook.
        codes: local codes.
        counts: occurrences in the held-out clips.
        bits: mean bits to predict the code where it occurs.
        nearest: the codes with the most similar embeddings, the most similar first.
    """

    name: Label
    codes: list[Count]
    counts: list[Count]
    bits: list[float]
    nearest: list[list[Count]]


@dataclass(frozen=True)
class CodeStatistics:
    """Statistics of all codebooks.

    Attributes:
        generator: fingerprint of the generator.
        token_fingerprint: fingerprint of the tokenizer.
        books: statistics by codebook, in the order of the tokenizer's card.
        bits_by_time: mean bits per code of each latent frame; None for given frames.
        bits_by_place: mean bits per code at each place of the grid, ``lh lw``; None where no clip reaches.
    """

    generator: Text
    token_fingerprint: Text
    books: list[BookStatistics]
    bits_by_time: list[float | None]
    bits_by_place: list[list[float | None]]


def write_code_statistics(path: Path, statistics: CodeStatistics) -> None:
    """Write the file atomically."""
    write_atomic(path, pretty_json(asdict(statistics) | {"format": FORMAT}))


def read_code_statistics(path: Path) -> CodeStatistics:
    """Read the file.

    Raises:
        UsageError: it is missing or damaged.
    """
    return parse(CodeStatistics, read_json(path), FORMAT, f"{path}", "run vidvq generate evaluate --codes again")
