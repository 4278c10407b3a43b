"""What a target is: how the sequences of one token shard are written for a trainer, and read back."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np

from vidvq.formats.token_shard import TokenInfo
from vidvq.storage import attempt_file, publish_over

Files: TypeAlias = list[IO[bytes]]


@dataclass(frozen=True)
class PartFile:
    """One file of a part: its name, size in bytes, and SHA-256 (hex)."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Part:
    """The record of one exported token shard.

    Attributes:
        shard: file name of the token shard.
        shard_sha256: its SHA-256 (hex).
        clips: number of clips.
        ids: number of ids, special tokens included.
        files: the files that hold them, in the order of the target's suffixes.
    """

    shard: str
    shard_sha256: str
    clips: int
    ids: int
    files: tuple[PartFile, ...]


@dataclass(frozen=True)
class Sequence:
    """One clip to write: ``ids`` is flat; ``info`` is what its token shard says of it."""

    key: str
    ids: np.ndarray
    info: TokenInfo


def unsigned(vocabulary: int) -> type[np.unsignedinteger]:
    """The smaller of uint16 and uint32 that holds all ids."""
    return np.uint16 if vocabulary <= 1 << 16 else np.uint32


def no_whole(parts: list[Part], dtype: np.dtype) -> dict[str, bytes]:
    """For the targets whose parts stand alone."""
    return {}


@dataclass(frozen=True)
class Target:
    """One kind of export.

    Attributes:
        suffixes: of the files that one token shard becomes.
        write: puts so many sequences into one open file per suffix.
        read: yields the ids of each clip, given the files' paths.
        whole: the files that belong to all parts together, by name: a pure function of the parts' records.
        dtype: of the ids, by the size of the vocabulary.
    """

    suffixes: tuple[str, ...]
    write: Callable[[Files, Iterator[Sequence], int, np.dtype], None]
    read: Callable[[list[Path], np.dtype], Iterator[np.ndarray]]
    whole: Callable[[list[Part], np.dtype], dict[str, bytes]] = no_whole
    dtype: Callable[[int], type[np.integer]] = unsigned


def write_part(
    target: Target, folder: Path, stem: str, sequences: Iterator[Sequence], count: int, vocabulary: int
) -> list[Path]:
    """Write the files of one token shard; each appears whole or not at all. Returns their paths."""
    paths = [folder / (stem + suffix) for suffix in target.suffixes]
    with ExitStack() as stack:
        opened = [stack.enter_context(attempt_file(path)) for path in paths]
        target.write([file for file, _ in opened], sequences, count, np.dtype(target.dtype(vocabulary)))
    for (_, attempt), path in zip(opened, paths, strict=True):
        publish_over(attempt, path)
    return paths
