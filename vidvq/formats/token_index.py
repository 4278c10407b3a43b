"""Where each sample of token shards lies, so that one is read without those before it.

Of a finished directory the commit records tell; of a shard alone, its tar headers.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from vidvq.errors import UsageError
from vidvq.formats.commit import Commit, read_commits
from vidvq.formats.plan import read_plan
from vidvq.formats.tar import MAX_MEMBER_BYTES, check_name
from vidvq.formats.token_shard import TokenInfo, TokenizerCard, parse_info, parse_tokens


@dataclass(frozen=True)
class TokenPlace:
    """One sample: its shard, key, and for each member its extension, offset and size in bytes."""

    shard: Path
    key: str
    members: tuple[tuple[str, int, int], ...]

    def read_info(self) -> TokenInfo:
        """Read the sample's JSON alone.

        Raises:
            ValueError: it has none, or a damaged one.
        """
        return parse_info(self._files({"json"}), f"{self.shard}: {self.key}")

    def read(self, card: TokenizerCard) -> tuple[np.ndarray, TokenInfo]:
        """Read the codes ``lt lh lw`` and the JSON; raises as :func:`vidvq.formats.token_shard.parse_tokens`."""
        return parse_tokens(self._files(None), card, f"{self.shard}: {self.key}")

    def _files(self, wanted: set[str] | None) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        with self.shard.open("rb") as file:
            for extension, offset, size in self.members:
                if wanted is None or extension in wanted:
                    file.seek(offset)
                    files[extension] = file.read(size)
        return files


def index_tokens(tokens: Path) -> list[TokenPlace]:
    """The samples of a directory of token shards, or of one shard, in order.

    Raises:
        ValueError: the directory's job is unfinished, a shard of it is missing or torn, or one is not a readable tar.
    """
    if tokens.is_file():
        return index_shard(tokens)
    places: list[TokenPlace] = []
    for shard, commit in _committed(tokens):
        samples: dict[str, list[tuple[str, int, int]]] = {}
        for member, offset in commit.places():
            samples.setdefault(member.key, []).append((member.name.partition(".")[2], offset, member.size))
        places += [TokenPlace(shard, key, tuple(members)) for key, members in samples.items()]
    return places


def committed_shards(folder: Path) -> list[Path]:
    """The token shards of a finished directory that hold anything.

    Raises:
        ValueError: a shard of its plan is not committed, or its file is missing or of another size.
    """
    return [shard for shard, _ in _committed(folder)]


def _committed(folder: Path) -> Iterator[tuple[Path, Commit]]:
    names = list(read_plan(folder).shard_names())
    for name, commit in zip(names, read_commits(folder, names), strict=True):
        if commit is None:
            raise UsageError(f"{folder}: {name} is not committed; finish vidvq tokenize first")
        if commit.sha256 is None:
            continue
        try:
            size = (folder / name).stat().st_size
        except FileNotFoundError:
            raise UsageError(f"{folder / name} is missing; run vidvq verify {folder}") from None
        if size != commit.bytes:
            raise UsageError(
                f"{folder / name} has {size} bytes, not the {commit.bytes} of its record; run vidvq verify {folder}"
            )
        yield folder / name, commit


def index_shard(shard: Path) -> list[TokenPlace]:
    """The samples of one shard, in order; the content of its members is not read.

    Raises:
        ValueError: it is not a readable tar of plain members.
    """
    samples: dict[str, list[tuple[str, int, int]]] = {}
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            end = file.seek(0, 2)
            for member in tar:
                check_name(member.name)
                if not member.isreg() or member.size > MAX_MEMBER_BYTES or member.offset_data + member.size > end:
                    raise UsageError(f"member {member.name} is not a plain file, or the file ends within it")
                key, _, extension = member.name.partition(".")
                samples.setdefault(key, []).append((extension, member.offset_data, member.size))
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise UsageError(f"{shard} is not a readable shard: {error}") from error
    return [TokenPlace(shard, key, tuple(members)) for key, members in samples.items()]


def nearest(name: str, names: list[str]) -> str:
    """``; nearest: NAME`` where one of ``names`` is much like ``name``, else nothing."""
    found = get_close_matches(name, names[:20_000], n=1, cutoff=0.5)
    return f"; nearest: {found[0]}" if found else ""
