"""Where each sample of token shards lies, from tar headers alone, so that one is read without those before it."""

import tarfile
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from vidvq.formats.commit import read_commit
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
        ValueError: the directory's job is unfinished, or a shard is not a readable tar.
    """
    shards = [tokens] if tokens.is_file() else committed_shards(tokens)
    return [place for shard in shards for place in index_shard(shard)]


def committed_shards(folder: Path) -> list[Path]:
    """The token shards of a finished directory that hold anything.

    Raises:
        ValueError: a shard of its plan is not committed.
    """
    shards: list[Path] = []
    for name, _ in read_plan(folder).shards():
        commit = read_commit(folder, name)
        if commit is None:
            raise ValueError(f"{folder}: {name} is not committed; finish vidvq tokenize first")
        if commit.sha256 and not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing; run vidvq verify {folder}")
        shards += [folder / name] if commit.sha256 else []
    return shards


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
                    raise ValueError(f"member {member.name} is not a plain file, or the file ends within it")
                key, _, extension = member.name.partition(".")
                samples.setdefault(key, []).append((extension, member.offset_data, member.size))
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise ValueError(f"{shard} is not a readable shard: {error}") from error
    return [TokenPlace(shard, key, tuple(members)) for key, members in samples.items()]


def nearest(name: str, names: list[str]) -> str:
    """``; nearest: NAME`` where one of ``names`` is much like ``name``, else nothing."""
    found = get_close_matches(name, names[:20_000], n=1, cutoff=0.5)
    return f"; nearest: {found[0]}" if found else ""
