"""The interface of a target: writing the sequences of a token shard in a trainer's format, and reading them back."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np

from vidvq.formats.export_records import Part
from vidvq.formats.token_shard import TokenInfo
from vidvq.storage import attempt_file, publish_replace, safe_join

Files: TypeAlias = list[IO[bytes]]


@dataclass(frozen=True)
class TokenSequence:
    """One clip to write.

    Attributes:
        ids: int64 ids, special tokens included, 1-d.
    """

    key: str
    ids: np.ndarray
    info: TokenInfo


@dataclass(frozen=True)
class Target:
    """An export format.

    Attributes:
        suffixes: suffixes of the files of one token shard.
        write: writes sequences to open files, one per suffix; also receives their number and the dtype of the ids.
        read: yields the ids of each clip from the paths of the files.
        index_files: names and contents of the files that index all parts, a pure function of their records.
        wide: type of the ids where uint16 does not hold all of them.
    """

    suffixes: tuple[str, ...]
    write: Callable[[Files, Iterator[TokenSequence], int, np.dtype], None]
    read: Callable[[list[Path], np.dtype], Iterator[np.ndarray]]
    index_files: Callable[[list[Part], np.dtype], dict[str, bytes]] = lambda parts, dtype: {}
    wide: type[np.integer] = np.uint32

    def dtype(self, vocabulary: int) -> np.dtype:
        """The dtype of the ids for a vocabulary size."""
        return np.dtype(np.uint16 if vocabulary <= 1 << 16 else self.wide)


def write_part(
    target: Target, folder: Path, stem: str, sequences: Iterator[TokenSequence], count: int, vocabulary: int
) -> list[Path]:
    """Write the files of one token shard, each atomically, and return their paths.

    Args:
        stem: stem of the file names.
        count: number of sequences.
        vocabulary: number of ids.
    """
    paths = [safe_join(folder, stem + suffix) for suffix in target.suffixes]
    with ExitStack() as stack:
        opened = [stack.enter_context(attempt_file(path)) for path in paths]
        target.write([file for file, _ in opened], sequences, count, target.dtype(vocabulary))
    for (_, attempt), path in zip(opened, paths, strict=True):
        publish_replace(attempt, path)
    return paths
